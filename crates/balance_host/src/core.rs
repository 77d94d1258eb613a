//! From readings to orders: the `balancer` between what is known of VMs by name and what they are told.

mod history;
mod reservations;
mod tell;

use std::collections::{BTreeMap, BTreeSet};

use balancer::{
    Aged, Balancer, Decision, HostSample, Mode, Pool, Rule, Vm, VmDecision, VmId, VmSample,
};
use serde::{Deserialize, Serialize};

use crate::process::Figures;
use crate::reading::{Link, Reading, Stamped};
use crate::record::{Entry, Recorder};
use crate::status::{ActionStatus, Explanation, ReservationStatus, Status};
use crate::wish::{Configuration, Wish, WishError};
use history::History;
use reservations::Reservations;

/// A VM that is not where it should be is told again after this long: somebody else may have told it
/// something, or it was reset.
const TELL_AGAIN_MS: u64 = 30_000;

/// What is known of a VM at the moment of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInput {
    /// Its name.
    #[serde(skip)]
    pub name: String,
    /// Its socket.
    #[serde(skip)]
    pub socket: String,
    /// What kind of VM it is.
    #[serde(skip)]
    pub kind: &'static str,
    /// Another number is another VM, or the same from its start.
    pub life: u32,
    /// How its monitor can be reached.
    pub link: Link,
    /// What its monitor said last.
    pub reading: Option<Reading>,
    /// What the host knows of its process.
    pub(crate) process: Option<Stamped<Figures>>,
    /// Why its monitor refused the last target.
    pub refusal: Option<String>,
    /// Whether the reading shows what became of the last order.
    pub is_settled: bool,
}

/// A size for a VM to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The VM.
    pub name: String,
    /// The life that it is for.
    pub life: u32,
    /// What it has.
    pub actual_kib: u64,
    /// What it should have.
    pub target_kib: u64,
    /// Why.
    pub reason: String,
    /// Whether it was told the same before.
    pub is_reminder: bool,
}

/// There is no VM of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no VM '{0}' here: hvb balance status lists those that there are")]
pub struct UnknownVm(pub String);

/// What is remembered of a VM.
#[derive(Clone, Debug)]
struct Known {
    id: VmId,
    life: u32,
    held: bool,
    /// What it was told last, and when.
    told: Option<(u64, u64)>,
    /// The most that it was told since it was read. It may have that by now.
    promised_kib: u64,
}

/// A row of the last decision.
#[derive(Clone, Debug)]
struct Shown {
    input: VmInput,
    settings: Option<balancer::VmSettings>,
    held: bool,
    decision: Option<VmDecision>,
}

/// Decides for the VMs of a host. Knows no clock: each call brings the time.
#[derive(Debug, Default)]
pub struct Core {
    configuration: Configuration,
    dry_run: bool,
    /// What the operator set while this runs.
    live: BTreeMap<String, Wish>,
    balancer: Balancer,
    next_id: u32,
    known: BTreeMap<String, Known>,
    reservations: Reservations,
    now_ms: u64,
    host: Option<Stamped<HostSample>>,
    decision: Decision,
    shown: Vec<Shown>,
    history: History,
    decisions: u64,
    recorder: Option<Recorder>,
}

impl Core {
    /// A core that knows no VM yet. With `dry_run` it does not expect its orders to be carried out.
    #[must_use]
    pub fn new(configuration: Configuration, dry_run: bool) -> Self {
        let mut core = Self { dry_run, ..Self::default() };
        core.configure(configuration);
        core
    }

    /// Changes the configuration from the next decision on. What was set live stays on top.
    pub fn configure(&mut self, configuration: Configuration) {
        self.record(|| Entry::Configuration(configuration.clone()));
        let mut policy = configuration.policy;
        if self.dry_run {
            // Nobody moves, so nobody is stuck.
            policy.stuck_after_ms = u64::MAX;
        }
        self.balancer.set_policy(policy);
        self.configuration = configuration;
    }

    /// Has everything recorded from now on.
    pub(crate) fn record_with(&mut self, mut recorder: Recorder) {
        recorder.record(&Entry::begin(self.dry_run, self.configuration.clone()));
        self.recorder = Some(recorder);
    }

    /// Ends the recording, if there is one.
    pub(crate) fn end_recording(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.end();
        }
    }

    fn record(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&entry());
        }
    }

    /// A number for the whole last decision.
    pub(crate) fn digest(&self) -> u32 {
        crc32fast::hash(format!("{:?}", self.decision).as_bytes())
    }

    /// Decides. `vms` may come in any order.
    pub fn decide(
        &mut self,
        now_ms: u64,
        host: Option<Stamped<HostSample>>,
        mut vms: Vec<VmInput>,
    ) -> Vec<Order> {
        vms.sort_by(|one, other| one.name.cmp(&other.name));
        vms.dedup_by(|one, other| one.name == other.name);
        if let Some(recorder) = &mut self.recorder {
            recorder.begin_round(now_ms, host, &vms);
        }
        self.now_ms = now_ms;
        self.host = host;
        self.shown = vms.into_iter().map(|input| self.show(input)).collect();
        self.history.observe(&self.shown);
        self.meet();
        let (ids, samples) = self.samples();
        let host = self.host_sample();
        self.reservations.expire(now_ms);
        let wishes = self.reservations.wishes();
        match self.balancer.decide(now_ms, &host, &samples, &wishes) {
            Ok(decision) => self.decision.clone_from(decision),
            // The ids are sorted.
            Err(error) => tracing::error!("no decision: {error}"),
        }
        self.reservations.settle(&self.decision.rooms);
        let decided = self.decision.vms.clone();
        for (index, decision) in ids.into_iter().zip(decided) {
            if let Some(shown) = self.shown.get_mut(index) {
                shown.decision = Some(decision);
            }
        }
        let orders = self.orders();
        self.history.act(&orders, &self.shown, now_ms, self.dry_run);
        self.decisions = self.decisions.saturating_add(1);
        if self.recorder.is_some() {
            let digest = self.digest();
            self.record(|| Entry::Decided { digest, orders: orders.clone() });
        }
        orders
    }

    /// What every VM gets back when the daemon ends: what it booted with, if it has less.
    #[must_use]
    pub fn give_back(&self) -> Vec<Order> {
        let orders = self.shown.iter().filter_map(|shown| {
            let reading = shown.input.reading.as_ref()?;
            let (actual_kib, boot_kib) = (reading.actual.value, reading.facts.boot_kib);
            let is_ours = !shown.held && shown.decision.is_some();
            (is_ours && actual_kib < boot_kib).then(|| Order {
                name: shown.input.name.clone(),
                life: shown.input.life,
                actual_kib,
                target_kib: boot_kib,
                reason: "It gets back what it booted with.".to_owned(),
                is_reminder: false,
            })
        });
        orders.collect()
    }

    /// What is known of everything.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> Status {
        tell::status(self, now_ms)
    }

    /// What VMs were told last, the newest first.
    #[must_use]
    pub fn actions(&self, now_ms: u64) -> Vec<ActionStatus> {
        self.history.actions(now_ms)
    }

    /// Why a VM has what it has.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn explain(&self, name: &str, now_ms: u64) -> Result<Explanation, UnknownVm> {
        let shown = self.shown.iter().find(|shown| shown.input.name == name);
        let shown = shown.ok_or_else(|| UnknownVm(name.to_owned()))?;
        Ok(tell::explanation(self, shown, now_ms))
    }

    /// Changes settings of a VM until the daemon ends; returns those that were set so.
    ///
    /// # Errors
    /// There is no such VM, or the settings do not fit together; then nothing changes.
    pub fn set(&mut self, name: &str, wish: Wish) -> Result<Wish, SetError> {
        let is_known = self.configuration.vms.contains_key(name)
            || self.shown.iter().any(|shown| shown.input.name == name);
        if !is_known {
            return Err(UnknownVm(name.to_owned()).into());
        }
        let live = wish.over(self.live.get(name).copied().unwrap_or_default());
        live.over(self.configuration.wish(name)).check()?;
        self.live.insert(name.to_owned(), live);
        self.record(|| Entry::Set { name: name.to_owned(), wish });
        Ok(live)
    }

    /// Wants room for a VM that is about to start, for `ms` at most.
    ///
    /// # Errors
    /// There are too many reservations.
    pub fn reserve(&mut self, size_kib: u64, now_ms: u64, ms: u64) -> Result<u64, TooMany> {
        self.record(|| Entry::Reserve { size_kib, now_ms, ms });
        self.reservations.add(size_kib, now_ms.saturating_add(ms)).ok_or(TooMany)
    }

    /// Withdraws a reservation; whether it was there.
    pub fn withdraw(&mut self, id: u64) -> bool {
        self.record(|| Entry::Withdraw { id });
        self.reservations.withdraw(id)
    }

    /// How the reservation stands; `None` if it has ended.
    #[must_use]
    pub fn reservation(&self, id: u64, now_ms: u64) -> Option<ReservationStatus> {
        self.reservations.status(now_ms).find(|reservation| reservation.id == id)
    }

    /// The settings for a VM, of all layers.
    fn wish(&self, name: &str) -> Wish {
        let live = self.live.get(name).copied().unwrap_or_default();
        live.over(self.configuration.wish(name))
    }

    fn show(&self, mut input: VmInput) -> Shown {
        // A monitor may say anything, and what it says that its VM has, others do not get. So no VM counts
        // with more than the kernel could have given it.
        let host_kib = self.host.map_or(balancer::MAX_KIB, |host| host.value.total_kib);
        let process = input.process.as_ref().map(|figures| figures.value.sample);
        let limit_kib = process.and_then(|process| process.cgroup_limit_kib).unwrap_or(u64::MAX);
        if let Some(reading) = &mut input.reading {
            reading.actual.value = reading.actual.value.min(host_kib).min(limit_kib);
        }
        let wish = self.wish(&input.name);
        // Of a VM that says nothing of its size nothing is known that it could have.
        let reading = input.reading.as_ref().filter(|reading| reading.facts.maximum_kib > 0);
        let settings = reading.and_then(|reading| wish.settle(reading.facts).ok());
        Shown { input, settings, held: wish.hold.unwrap_or(false), decision: None }
    }

    /// Gives new VMs an id, and forgets those that are gone.
    fn meet(&mut self) {
        let present: BTreeSet<&str> = self
            .shown
            .iter()
            .filter(|shown| shown.counts())
            .map(|s| s.input.name.as_str())
            .collect();
        self.known.retain(|name, _| present.contains(name.as_str()));
        for shown in self.shown.iter().filter(|shown| shown.counts()) {
            let Shown { input, held, .. } = shown;
            let known = self.known.get_mut(&input.name);
            match known {
                // A VM that was held may have any size now, so what is remembered of it counts no more.
                Some(known) if known.life == input.life && (*held || !known.held) => {
                    known.held = *held;
                    if input.is_settled {
                        known.promised_kib = 0;
                    }
                }
                known => {
                    if known.is_none() {
                        self.reservations.arrived(input.actual_kib());
                    }
                    let id = VmId(self.next_id);
                    self.next_id = self.next_id.wrapping_add(1);
                    // Our own monitor tells what the VM was told.
                    let told_kib = input.reading.as_ref().and_then(|reading| reading.told_kib);
                    let told = told_kib.map(|kib| (kib, self.now_ms));
                    let known = Known { id, life: input.life, held: *held, told, promised_kib: 0 };
                    self.known.insert(input.name.clone(), known);
                }
            }
        }
    }

    /// The VMs in the order of their ids, and where each is shown.
    fn samples(&self) -> (Vec<usize>, Vec<Vm>) {
        let mut samples: Vec<(usize, Vm)> = self
            .shown
            .iter()
            .enumerate()
            .filter_map(|(index, shown)| Some((index, self.sample(shown)?)))
            .collect();
        samples.sort_by_key(|(_, vm)| vm.id);
        samples.into_iter().unzip()
    }

    fn sample(&self, shown: &Shown) -> Option<Vm> {
        let known = self.known.get(&shown.input.name)?;
        let reading = shown.input.reading.as_ref()?;
        let process = shown.input.process.as_ref();
        let actual_kib = reading.actual.aged(self.now_ms);
        let sample = VmSample {
            actual_kib: Aged { value: actual_kib.value.max(known.promised_kib), ..actual_kib },
            guest: reading.report.map(|report| report.aged(self.now_ms)),
            awaits_report: reading.can_report,
            process: process.map(|figures| {
                Stamped { value: figures.value.sample, at_ms: figures.at_ms }.aged(self.now_ms)
            }),
        };
        Some(Vm {
            id: known.id,
            settings: shown.settings?,
            mode: if shown.held { Mode::Held } else { Mode::Automatic },
            pool: process.map_or(Pool::Ordinary, |figures| figures.value.pool),
            sample,
        })
    }

    fn host_sample(&self) -> HostSample {
        let limit_kib = self.configuration.limit_kib;
        match self.host {
            Some(host) => {
                HostSample { age_ms: host.aged(self.now_ms).age_ms, limit_kib, ..host.value }
            }
            // Impossible, so every VM keeps what it has.
            None => HostSample {
                age_ms: u64::MAX,
                total_kib: 0,
                available_kib: 0,
                cgroup: None,
                limit_kib,
                psi_some_permille: 0,
                psi_full_permille: 0,
                swapped_in_kib: 0,
                huge_pages_free_kib: 0,
            },
        }
    }

    fn orders(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        for shown in &self.shown {
            let Some(decision) = shown.decision else { continue };
            let Some(known) = self.known.get_mut(&shown.input.name) else { continue };
            let (actual_kib, target_kib) = (shown.input.actual_kib(), decision.target_kib);
            if shown.held {
                continue;
            }
            let told_kib = known.told.map(|(kib, _)| kib);
            let is_reminder = told_kib == Some(target_kib);
            let is_due = if matches!(decision.reason.rule, Rule::Hold(_)) {
                // It is left alone, unless it may not have what it has.
                target_kib < actual_kib && shown.is_maximum(target_kib) && !is_reminder
            } else if let Some((_, at_ms)) = known.told.filter(|_| is_reminder) {
                let waited_ms = self.now_ms.saturating_sub(at_ms);
                actual_kib != target_kib && waited_ms >= TELL_AGAIN_MS
            } else {
                // Also if it has this size: it may be moving towards what somebody told it before.
                true
            };
            if !is_due {
                continue;
            }
            known.told = Some((target_kib, self.now_ms));
            if !self.dry_run {
                known.promised_kib = known.promised_kib.max(target_kib);
            }
            orders.push(Order {
                name: shown.input.name.clone(),
                life: shown.input.life,
                actual_kib,
                target_kib,
                reason: decision.reason.to_string(),
                is_reminder,
            });
        }
        orders
    }
}

/// Why settings were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// There is no such VM.
    #[error(transparent)]
    UnknownVm(#[from] UnknownVm),
    /// The settings contradict each other.
    #[error(transparent)]
    Wish(#[from] WishError),
}

/// There are too many reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {} reservations already: wait until one ends", reservations::MOST)]
pub struct TooMany;

impl VmInput {
    fn actual_kib(&self) -> u64 {
        self.reading.as_ref().map_or(0, |reading| reading.actual.value)
    }
}

impl Shown {
    fn is_maximum(&self, kib: u64) -> bool {
        self.settings.is_some_and(|settings| settings.form().maximum_kib == kib)
    }

    /// Whether the VM has memory as far as is known.
    fn counts(&self) -> bool {
        self.settings.is_some() && !matches!(self.input.link, Link::Gone(_))
    }
}

#[cfg(test)]
mod tests;
