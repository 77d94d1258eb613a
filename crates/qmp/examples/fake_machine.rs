//! A monitor with no machine behind it: `cargo run -p qmp --example fake_machine /tmp/fake.sock`.
//!
//! Its guest boots with 1 GiB, moves towards the size asked for by 32 MiB ten times a second,
//! stops at 256 MiB and can grow to 2 GiB: enough to try clients against.

use qmp::{
    DynamicMemoryInfo, Event, EventSender, HvBalloonDevice, Machine, MemoryDevice, MemoryInfo,
    MonitorError, Refusal, RunState, Server, ShutdownCause,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const FLOOR: u64 = 256 * MIB;
const BOOT: u64 = 1024 * MIB;
const ADDABLE: u64 = 1024 * MIB;
const STEP: u64 = 32 * MIB;
const TICK: Duration = Duration::from_millis(100);

struct Fake {
    target: AtomicU64,
    actual: AtomicU64,
    added: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
    paused: AtomicBool,
    events: OnceLock<EventSender>,
    reset: AtomicBool,
    quit: mpsc::SyncSender<()>,
}

impl Machine for Fake {
    fn status(&self) -> RunState {
        if self.paused.load(SeqCst) { RunState::paused } else { RunState::running }
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        if bytes > BOOT + ADDABLE {
            let reason = format!("the guest can have no more than {} bytes", BOOT + ADDABLE);
            let refusal = Refusal { target: bytes, reason: reason.clone() };
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            return Err(MonitorError::generic(reason));
        }
        self.target.store(bytes, SeqCst);
        Ok(())
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(self.actual.load(SeqCst))
    }

    fn stop(&self) -> Result<(), MonitorError> {
        self.pause(true, &Event::Stop);
        Ok(())
    }

    fn cont(&self) -> Result<(), MonitorError> {
        self.pause(false, &Event::Resume);
        Ok(())
    }

    fn system_reset(&self) {
        self.reset.store(true, SeqCst);
    }

    fn quit(&self) {
        // A second quit changes nothing.
        let _ = self.quit.try_send(());
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let (target, actual) = (self.target.load(SeqCst), self.actual.load(SeqCst));
        let stopped = actual == FLOOR && target < FLOOR;
        let added = self.added.load(SeqCst);
        Ok(DynamicMemoryInfo {
            state: if stopped || target == actual { "idle" } else { "ballooning" }.to_owned(),
            actual,
            target: Some(target),
            maximum: BOOT + ADDABLE,
            boot: BOOT,
            hot_added: added,
            assigned: BOOT + added,
            ballooned: BOOT + added - actual,
            stopped: stopped.then(|| "the guest has no more to give".to_owned()),
            last_refusal: self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            guest_os: Some("make-believe".to_owned()),
            protocol_version: Some("2.0".to_owned()),
            ..DynamicMemoryInfo::default()
        })
    }

    fn memory_devices(&self) -> Vec<MemoryDevice> {
        vec![MemoryDevice::HvBalloon(HvBalloonDevice {
            memaddr: Some(BOOT),
            max_size: ADDABLE,
            memdev: Some("/objects/fake".to_owned()),
            size: self.added.load(SeqCst),
            ..HvBalloonDevice::default()
        })]
    }

    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        let plugged_memory = Some(self.added.load(SeqCst));
        Ok(MemoryInfo { base_memory: BOOT, plugged_memory })
    }
}

impl Fake {
    fn pause(&self, paused: bool, event: &Event) {
        if self.paused.swap(paused, SeqCst) != paused {
            self.events.get().inspect(|events| events.emit(event));
        }
    }

    /// Takes one step towards the target and tells of it.
    fn step(&self, events: &EventSender) {
        let (target, before) = (self.target.load(SeqCst).max(FLOOR), self.actual.load(SeqCst));
        let actual = target.clamp(before - STEP, before + STEP);
        if actual == before {
            return;
        }
        // Ballooned memory comes back before any is added.
        let added = self.added.load(SeqCst).max(actual.saturating_sub(BOOT));
        self.actual.store(actual, SeqCst);
        events.emit(&Event::BalloonChange { actual });
        self.set_added(added, events);
    }

    fn restart(&self, events: &EventSender) {
        self.target.store(BOOT, SeqCst);
        self.actual.store(BOOT, SeqCst);
        self.set_added(0, events);
        events.emit(&Event::Reset { guest: false, reason: ShutdownCause::host_qmp_system_reset });
    }

    fn set_added(&self, size: u64, events: &EventSender) {
        if self.added.swap(size, SeqCst) != size {
            let qom_path = "/machine/unattached/device[0]".to_owned();
            events.emit(&Event::MemoryDeviceSizeChange { id: None, size, qom_path });
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give the path of the socket to make")?;
    let (quit, quits) = mpsc::sync_channel(1);
    let fake = Arc::new(Fake {
        target: AtomicU64::new(BOOT),
        actual: AtomicU64::new(BOOT),
        added: AtomicU64::new(0),
        refusal: Mutex::new(None),
        paused: AtomicBool::new(false),
        events: OnceLock::new(),
        reset: AtomicBool::new(false),
        quit,
    });
    let server = Server::start(Path::new(&path), fake.clone())?;
    let events = server.events();
    // Set only here.
    let _ = fake.events.set(events.clone());
    while quits.recv_timeout(TICK).is_err() {
        if fake.reset.swap(false, SeqCst) {
            fake.restart(&events);
        }
        if !fake.paused.load(SeqCst) {
            fake.step(&events);
        }
    }
    events.emit(&Event::Shutdown { guest: false, reason: ShutdownCause::host_qmp_quit });
    Ok(())
}
