//! One running guest, the steps on it, and the checks after each.

mod acts;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qmp::{Client, DynamicMemoryInfo};

use super::devices::{Devices, MOST_STORED};
use super::footprint::{Footprint, descriptors_and_threads, threads_named};
use super::steps::{ResetBy, Step};
use super::tally::Tally;
use super::{
    BOOT, LEAST, MORE_PRIVATE_AT_END, MORE_PRIVATE_EVER, MORE_PRIVATE_HUGE, MOST, OVER_THE_BOOKS,
    Plan,
};
use crate::{MIB, PATIENCE, Vm, VmConfig, has_size, wait_for};

/// How far the guest's `MemTotal` may be from the expected value: a few pages that a kernel keeps
/// as it brings memory online.
const TOLERANCE: u64 = 4 * MIB;

/// A guest that lost more than this to drivers that left is worn out.
const WORN_OUT: u64 = 300 * MIB;

/// How much free memory a process leaves alone when it touches the rest.
const UNTOUCHED: u64 = 96 * MIB;

/// The checker's initial memory limit.
const CHECKED: u64 = 96 * MIB;

/// How often a size is polled while it changes.
const LOOK: Duration = Duration::from_millis(20);

/// The most descriptors a connected client costs.
const DESCRIPTORS_OF_A_CLIENT: u64 = 3;
const THREADS_OF_A_CLIENT: u64 = 2;

/// The names of these threads. A client's descriptor is closed before the last of them ends.
const CLIENTS_THREADS: [&str; 2] = ["qmp-read", "qmp-write"];

/// How far the number of mappings may vary, because of an allocator's arenas.
const MORE_MAPPINGS: u64 = 16;

/// The most mappings that partly ballooned huge pages may cost: `guest_ram` keeps 8,192 runs of them
/// out of the host's hands, each with a mapping of its own and one behind it.
const MORE_GUEST_MAPPINGS: u64 = 2 * 8192;

/// As [`NO_CLEARING`](crate::NO_CLEARING); in addition, a damaged kernel must not carry on as if
/// nothing had happened.
const APPEND: &str = "init_on_alloc=0 oops=panic";

pub(super) struct Session {
    vm: Vm,
    devices: Option<Devices>,
    keep_size: bool,
    seed: u64,
    clients: Vec<Client>,
    /// The books at the last observation.
    seen: DynamicMemoryInfo,
    /// `MemTotal` less the size by the books, right after boot.
    own: i128,
    /// Memory that departed drivers had given up and that is never freed.
    lost: u64,
    start: Option<Footprint>,
}

impl Session {
    pub(super) fn start(plan: &Plan) -> Result<Self> {
        let devices = plan.devices.then(Devices::new).transpose()?;
        let mut config = VmConfig {
            cpus: 2,
            memory: BOOT,
            max_memory: Some(MOST),
            on_reset: Some(if plan.keep_size { "keep-size" } else { "boot-size" }),
            hugepages: plan.hugepages,
            status_report: true,
            append: APPEND,
            ..VmConfig::default()
        };
        if let Some(devices) = &devices {
            devices.give(&mut config);
        }
        Ok(Self {
            vm: Vm::start(&config)?,
            devices,
            keep_size: plan.keep_size,
            seed: plan.seed,
            clients: Vec::new(),
            seen: DynamicMemoryInfo::default(),
            own: 0,
            lost: 0,
            start: None,
        })
    }

    /// Does everything once that leaves something behind, then records the figures with which those
    /// of later steps are compared.
    pub(super) fn warm_up(&mut self, tally: &mut Tally) -> Result<()> {
        self.settle_in(tally)?;
        if self.devices.is_some() {
            let step = Step::Devices { seed: self.seed, mib: MOST_STORED, midway: None };
            self.take(&step, 0, tally).with_context(|| step.to_string())?;
        }
        for step in [
            Step::Resize { target: MOST, watched: true },
            Step::Touch(128 * MIB),
            Step::Resize { target: LEAST, watched: false },
            Step::Reset { how: ResetBy::Monitor, midway: None },
            Step::Resize { target: MOST, watched: false },
            Step::Reload { midway: None },
            Step::Clients(super::steps::Visit::Stay),
            Step::Clients(super::steps::Visit::Leave),
        ] {
            self.take(&step, 0, tally).with_context(|| step.to_string())?;
        }
        let now = self.at_rest(tally)?;
        tally.host.start = Some(now);
        self.start = Some(now);
        Ok(())
    }

    /// Brings the guest to its state after the warm-up and compares the figures.
    pub(super) fn wind_up(&mut self, tally: &mut Tally) -> Result<()> {
        if self.lost > 0 {
            self.take(&Step::Reset { how: ResetBy::Monitor, midway: None }, 0, tally)?;
        }
        let now = self.at_rest(tally)?;
        tally.host.end = Some(now);
        let start = self.start.context("no figures of the start")?;
        let more = now.private.saturating_sub(start.private);
        ensure!(
            more <= MORE_PRIVATE_AT_END,
            "hvb has {more} bytes more of its own: {now:?}, {start:?}"
        );
        ensure!(now.descriptors == start.descriptors, "descriptors: {now:?}, {start:?}");
        ensure!(now.threads == start.threads, "threads: {now:?}, {start:?}");
        Ok(())
    }

    /// Nothing is ballooned, and no client but this one is connected.
    fn at_rest(&mut self, tally: &mut Tally) -> Result<Footprint> {
        self.take(&Step::Resize { target: MOST, watched: false }, 0, tally)?;
        ensure!(self.seen.actual == MOST && self.seen.ballooned == 0, "{:?}", self.seen);
        self.clients.clear();
        self.wait_for_clients_to_go()?;
        Footprint::of(self.vm.id())
    }

    pub(super) fn is_worn_out(&self) -> bool {
        self.lost > WORN_OUT
    }

    /// Makes the guest power off, which must be clean.
    pub(super) fn end(self) -> Result<()> {
        self.vm.power_off()?;
        self.devices.map_or(Ok(()), Devices::end)
    }

    /// Takes one step and makes all checks.
    pub(super) fn take(&mut self, step: &Step, number: u64, tally: &mut Tally) -> Result<()> {
        self.act(step, number, tally)?;
        if let Some(devices) = &self.devices {
            devices.check(&mut self.vm)?;
        }
        self.settle(tally)?;
        self.verify(tally)?;
        self.read_events(tally)?;
        self.check_books()?;
        self.check_host(tally)?;
        let complaints = self.vm.complaints()?;
        ensure!(complaints.is_empty(), "hvb complains: {complaints}");
        Ok(())
    }

    /// Waits until the device is idle.
    fn settle(&mut self, tally: &mut Tally) -> Result<()> {
        let what = "an idle device";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.look(tally)?;
            let arrived = status.target.is_none_or(|target| has_size(status, target));
            // The reason for stopping is given while the last pages are still being discarded.
            let ended = arrived || status.stopped.is_some();
            if status.state == "idle" && status.in_flight == 0 && ended {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {status:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Reads the books and adds what changed since the last observation of the same machine.
    fn look(&mut self, tally: &mut Tally) -> Result<&DynamicMemoryInfo> {
        let now = self.vm.dynamic_memory()?;
        tally.moved.add(&self.seen, &now);
        self.seen = now;
        Ok(&self.seen)
    }

    /// Goes to a size. May stop short only if the guest gives no more.
    fn approach(&mut self, target: u64, tally: &mut Tally) -> Result<()> {
        self.vm.set_target(target)?;
        self.settle(tally)?;
        let status = &self.seen;
        if has_size(status, target) {
            tally.reached += 1;
            return Ok(());
        }
        let why = status.stopped.as_deref().unwrap_or_default();
        ensure!(status.actual > target && why.contains("gives no more"), "{status:?}");
        tally.stopped += 1;
        Ok(())
    }

    /// Makes the checker verify all it has.
    fn verify(&mut self, tally: &mut Tally) -> Result<()> {
        let checked = self.vm.agent.verify()?;
        tally.checks.add(&checked);
        tally.checks.mismatches += checked.mismatches;
        ensure!(checked.mismatches == 0, "memory has changed: {checked:?}");
        Ok(())
    }

    /// Counts the events; none may report a reset or shutdown.
    fn read_events(&mut self, tally: &mut Tally) -> Result<()> {
        while let Some(event) = self.vm.monitor.next_event(Duration::from_millis(1))? {
            if event.name == "RESET" || event.name == "SHUTDOWN" {
                bail!("nobody asked for {event:?}");
            }
            *tally.events.entry(event.name).or_default() += 1;
        }
        for client in &mut self.clients {
            while client.next_event(Duration::from_millis(1))?.is_some() {}
        }
        Ok(())
    }

    /// The books add up and agree with the guest. Call this when the device is idle.
    fn check_books(&mut self) -> Result<()> {
        let status = &self.seen;
        ensure!(status.faults.are_none(), "the device counted faults: {status:?}");
        ensure!(
            status.actual + status.unconfirmed + status.ballooned == status.assigned,
            "{status:?}"
        );
        ensure!(status.assigned <= MOST, "{status:?}");
        let odd = [status.in_flight, status.held, status.undiscarded, status.foreign];
        ensure!(odd == [0; 4], "{status:?}");

        let total = self.vm.agent.meminfo()?.total;
        let expected = self.expected_total();
        let off = (i128::from(total) - expected).unsigned_abs();
        ensure!(
            off <= u128::from(TOLERANCE),
            "MemTotal is {total} instead of {expected}: {:?}",
            self.seen
        );
        Ok(())
    }

    fn expected_total(&self) -> i128 {
        self.own + i128::from(self.seen.actual) - i128::from(self.lost)
    }

    /// The host provides no more than the books say, and `hvb` has no more of its own than at
    /// first.
    fn check_host(&mut self, tally: &mut Tally) -> Result<()> {
        self.wait_for_clients_to_go()?;
        let now = Footprint::of(self.vm.id())?;
        let over = now.guest.saturating_sub(self.seen.actual);
        tally.host.add(&now, over);
        ensure!(over <= OVER_THE_BOOKS, "{over} bytes over the books: {now:?}, {:?}", self.seen);
        let Some(start) = self.start else { return Ok(()) };
        let clients = self.clients.len() as u64;
        let limits = Footprint {
            guest: now.guest,
            private: start.private + MORE_PRIVATE_EVER,
            private_huge: start.private_huge + MORE_PRIVATE_HUGE,
            descriptors: start.descriptors + clients * DESCRIPTORS_OF_A_CLIENT,
            threads: start.threads + clients * THREADS_OF_A_CLIENT,
            mappings: start.mappings + MORE_MAPPINGS + 4 * clients * THREADS_OF_A_CLIENT,
            guest_mappings: start.guest_mappings + MORE_GUEST_MAPPINGS,
        };
        let within = now.private <= limits.private
            && now.private_huge <= limits.private_huge
            && now.descriptors <= limits.descriptors
            && now.threads <= limits.threads
            && now.mappings <= limits.mappings
            && now.guest_mappings <= limits.guest_mappings;
        ensure!(within, "hvb uses more than at the start: {now:?}, limits {limits:?}");
        Ok(())
    }

    /// Waits until the threads and descriptors of departed clients are gone.
    fn wait_for_clients_to_go(&self) -> Result<()> {
        let clients = self.clients.len() as u64;
        // With that of the session itself.
        let most_of_clients = (clients + 1) * THREADS_OF_A_CLIENT;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let of_clients = threads_named(self.vm.id(), &CLIENTS_THREADS)?;
            let (descriptors, threads) = descriptors_and_threads(self.vm.id())?;
            let as_at_the_start = self.start.is_none_or(|start| {
                descriptors <= start.descriptors + clients * DESCRIPTORS_OF_A_CLIENT
                    && threads <= start.threads + clients * THREADS_OF_A_CLIENT
            });
            if of_clients <= most_of_clients && as_at_the_start {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the end of what departed clients had: not within {PATIENCE:?}: {descriptors} \
                 descriptors and {threads} threads, {of_clients} of clients, with {clients} \
                 clients: {:?}",
                self.start
            );
            std::thread::sleep(LOOK);
        }
    }
}
