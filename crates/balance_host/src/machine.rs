//! The three kinds of monitors: `hvb`'s, QEMU's with hv-balloon, and QEMU's with a virtio balloon.

mod hyperv;
mod virtio;

use std::time::{SystemTime, UNIX_EPOCH};

use qmp::{Client, ClientError, DynamicMemoryInfo, ErrorClass, ReceivedEvent, Value};
use qmp::{XQueryDynamicMemory, qapi};
use serde_json::json;

use crate::reading::{Facts, Reading, Stamped, short};
use hyperv::{Known, StatusReport};
use virtio::Statistics;

/// Bytes of a KiB.
const KIB: u64 = 1024;

/// How often a virtio balloon's guest is to report, in seconds.
const POLL_SECONDS: u64 = 1;

/// A VM behind a monitor, and how to read it.
#[derive(Debug)]
pub(crate) struct Machine {
    kind: Kind,
    facts: Facts,
    /// The size, as the last answer gave it.
    actual_kib: u64,
    /// The size at this place in the stream of events. An answer may overtake events: those that came
    /// before it are kept, and looked at after it.
    tracked_kib: u64,
    /// The last report of a Hyper-V guest that was not put together with a size yet.
    fresh: Option<(StatusReport, Stamped<u64>)>,
    report: Option<Stamped<balancer::GuestReport>>,
    /// What one of our own machines said last, while that is still true.
    books: Option<Books>,
}

#[derive(Debug)]
enum Kind {
    /// Our own monitor.
    Own { reports: bool },
    /// QEMU's hv-balloon.
    HvBalloon { reports: bool, assigned_kib: u64 },
    /// QEMU's virtio balloon, at this place in the object tree.
    Virtio { path: String, polls: Polls, statistics: Statistics },
    /// A QEMU balloon of which nothing else is known.
    Unknown,
}

/// Whether a virtio balloon's statistics are polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Polls {
    /// They are not, and must not be.
    Not,
    /// They were before.
    Already,
    /// They are for us; this is what was set before.
    ForUs { before: u64 },
}

/// What one of our own machines has said of its memory.
#[derive(Clone, Debug)]
struct Books {
    info: DynamicMemoryInfo,
    asked_ms: u64,
}

/// Books that no event has changed are asked for this often.
const BOOKS_MS: u64 = 60_000;

impl Books {
    /// Whether nothing is under way. From here on, each change of the size is told by an event; what else
    /// changes, such as the target that another client sets, is known after [`BOOKS_MS`] at the latest.
    fn are_settled(&self) -> bool {
        let info = &self.info;
        let is_there = info.target.is_none_or(|target| target == info.actual);
        // What the device waits for may be over at any time.
        is_there
            && info.waiting.is_none()
            && info.in_flight == 0
            && info.held == 0
            && info.undiscarded == 0
    }

    /// Whether they are new enough for a report to need no others.
    const fn hold(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.asked_ms) < BOOKS_MS
    }
}

/// What an event means for whoever reads the machine.
/// More important ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meaning {
    /// Nothing.
    Nothing,
    /// The size or a report is new: read.
    Read,
    /// The guest starts anew.
    Reset,
}

/// Why a VM cannot be balanced, or not now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Unfit(String),
}

impl Machine {
    /// Finds out what is behind a monitor. With `dry`, nothing in it is changed.
    pub(crate) fn attach(client: &mut Client, dry: bool) -> Result<Self, AttachError> {
        if let Some(info) = optional(client.run(&XQueryDynamicMemory {}))? {
            let reports = reports(client)?.unwrap_or(false);
            return Ok(Self::new(Kind::Own { reports }, facts_of(&info), info.actual / KIB));
        }
        let actual_kib = match client.run(&qapi::query_balloon {}) {
            Ok(info) => kib(info.actual),
            Err(error @ ClientError::Command { .. }) => return Err(unfit(&error)),
            Err(error) => return Err(error.into()),
        };
        let memory = optional(client.run(&qapi::query_memory_size_summary {}))?;
        let (base, plugged) = memory.map_or((actual_kib, 0), |memory| {
            (memory.base_memory / KIB, memory.plugged_memory.unwrap_or(0) / KIB)
        });
        let balloon = virtio_balloon(client)?;
        if let Some(path) = balloon {
            let polls = start_polling(client, &path, dry)?;
            let facts = Facts { boot_kib: base, maximum_kib: base.saturating_add(plugged) };
            let kind = Kind::Virtio { path, polls, statistics: Statistics::default() };
            return Ok(Self::new(kind, facts, actual_kib));
        }
        let Some(reports) = reports(client)? else {
            let facts = Facts { boot_kib: base, maximum_kib: base.max(actual_kib) };
            return Ok(Self::new(Kind::Unknown, facts, actual_kib));
        };
        let added_kib = hyperv::region_kib(&list(client, "query-memory-devices")?);
        let facts = Facts { boot_kib: base, maximum_kib: base.saturating_add(added_kib) };
        let assigned_kib = base.saturating_add(plugged);
        Ok(Self::new(Kind::HvBalloon { reports, assigned_kib }, facts, actual_kib))
    }

    fn new(kind: Kind, facts: Facts, actual_kib: u64) -> Self {
        let tracked_kib = actual_kib;
        Self { kind, facts, actual_kib, tracked_kib, fresh: None, report: None, books: None }
    }

    /// The size may be about to change.
    pub(crate) fn disturb(&mut self) {
        self.books = None;
    }

    /// What this is, for the operator.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Own { reports: true } => "hvb",
            Kind::Own { reports: false } => "hvb without --status-report",
            Kind::HvBalloon { reports: true, .. } => "QEMU with hv-balloon",
            Kind::HvBalloon { reports: false, .. } => "QEMU with hv-balloon, status-report=off",
            Kind::Virtio { polls: Polls::Not, .. } => "QEMU with virtio-balloon, no statistics",
            Kind::Virtio { .. } => "QEMU with virtio-balloon",
            Kind::Unknown => "QEMU with a balloon of unknown kind",
        }
    }

    /// Takes an event in.
    pub(crate) fn take(&mut self, event: &ReceivedEvent, now_ms: u64) -> Meaning {
        match event.name.as_str() {
            "HV_BALLOON_STATUS_REPORT" => match StatusReport::parse(&event.data) {
                Some(report) => {
                    let size = Stamped { value: self.tracked_kib, at_ms: now_ms };
                    self.fresh = Some((report, size));
                    Meaning::Read
                }
                None => Meaning::Nothing,
            },
            "BALLOON_CHANGE" => {
                self.disturb();
                if let Some(bytes) = event.data.get("actual").and_then(Value::as_u64) {
                    self.tracked_kib = bytes / KIB;
                }
                Meaning::Read
            }
            "MEMORY_DEVICE_SIZE_CHANGE" | "X_BALLOON_STOPPED" => {
                self.disturb();
                Meaning::Read
            }
            "RESET" => {
                self.disturb();
                Meaning::Reset
            }
            _ => Meaning::Nothing,
        }
    }

    /// What the machine is like by a report that has come, if that needs no command.
    pub(crate) fn at_hand(&mut self, now_ms: u64) -> Option<Reading> {
        self.fresh?;
        let books = self.books.take().filter(|books| books.hold(now_ms))?;
        Some(self.settle(books, now_ms))
    }

    /// Reads the machine. `now_ms` is asked for when the answers are there.
    pub(crate) fn read(
        &mut self,
        client: &mut Client,
        now_ms: impl Fn() -> u64,
    ) -> Result<Reading, ClientError> {
        if let Some(reading) = self.at_hand(now_ms()) {
            return Ok(reading);
        }
        let can_report = match &mut self.kind {
            Kind::Own { .. } => {
                self.books = None;
                let info = client.run(&XQueryDynamicMemory {})?;
                let asked_ms = now_ms();
                return Ok(self.settle(Books { info, asked_ms }, asked_ms));
            }
            Kind::HvBalloon { reports, assigned_kib } => {
                self.actual_kib = size(client)?;
                if let Some(memory) = optional(client.run(&qapi::query_memory_size_summary {}))? {
                    let plugged = memory.plugged_memory.unwrap_or(0);
                    *assigned_kib = memory.base_memory.saturating_add(plugged) / KIB;
                }
                if let Some((report, size)) = self.fresh.take() {
                    // QEMU tells of no change of size; the one just read is nearest.
                    let size = Stamped { value: self.actual_kib, ..size };
                    let known = Known::assigned(*assigned_kib, self.actual_kib);
                    self.report = Some(report.of_guest(size, &known));
                }
                *reports
            }
            Kind::Virtio { path, polls, statistics } => {
                self.actual_kib = size(client)?;
                if *polls != Polls::Not {
                    let stats = qom_get(client, path, "guest-stats")?;
                    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let now = virtio::Moment { ms: now_ms(), epoch_s: epoch.as_secs() };
                    if let Some(report) = statistics.take(&stats, self.actual_kib, now) {
                        self.report = Some(report);
                    }
                }
                *polls != Polls::Not
            }
            Kind::Unknown => {
                self.actual_kib = size(client)?;
                false
            }
        };
        Ok(self.reading(can_report, now_ms()))
    }

    /// Puts the books of one of our own machines and its guest's report together.
    fn settle(&mut self, books: Books, now_ms: u64) -> Reading {
        let info = &books.info;
        self.facts = facts_of(info);
        self.actual_kib = info.actual / KIB;
        if let Some((report, size)) = self.fresh.take() {
            // Events come in order, so the size was right when the guest reported.
            self.report = Some(report.of_guest(size, &Known::of(info)));
        }
        let words = info.stopped.as_ref().or(info.waiting.as_ref());
        let reading = Reading {
            told_kib: info.target.map(|bytes| bytes / KIB),
            obstacle: words.map(|words| short(words)),
            ..self.reading(matches!(self.kind, Kind::Own { reports: true }), now_ms)
        };
        self.books = Some(books).filter(Books::are_settled);
        reading
    }

    fn reading(&self, can_report: bool, now_ms: u64) -> Reading {
        Reading {
            facts: self.facts,
            actual: Stamped { value: self.actual_kib, at_ms: now_ms },
            report: self.report,
            can_report,
            told_kib: None,
            obstacle: None,
        }
    }

    /// The events before the last answer have been taken.
    pub(crate) const fn caught_up(&mut self) {
        self.tracked_kib = self.actual_kib;
    }

    /// Forgets what was read of a guest that starts anew.
    pub(crate) fn reset(&mut self) {
        (self.fresh, self.report) = (None, None);
    }

    /// Tells the VM its size.
    pub(crate) fn order(client: &mut Client, target_kib: u64) -> Result<(), ClientError> {
        let bytes = target_kib.saturating_mul(KIB).min(i64::MAX.unsigned_abs());
        client.execute("balloon", json!({ "value": bytes })).map(|_| ())
    }

    /// Leaves the monitor as it was.
    pub(crate) fn detach(&self, client: &mut Client) {
        if let Kind::Virtio { path, polls: Polls::ForUs { before }, .. } = &self.kind {
            let value = json!({ "path": path, "property": POLLING, "value": before });
            if let Err(error) = client.execute("qom-set", value) {
                tracing::debug!("cannot set the polling of statistics as it was: {error}");
            }
        }
    }
}

/// The property that says how often a virtio balloon's guest is asked, in seconds.
const POLLING: &str = "guest-stats-polling-interval";

/// What a monitor does not tell is zero; then the present size is all that is known to be possible.
fn facts_of(info: &DynamicMemoryInfo) -> Facts {
    let boot = if info.boot == 0 { info.actual } else { info.boot };
    let maximum = info.maximum.max(boot).max(info.actual);
    Facts { boot_kib: boot / KIB, maximum_kib: maximum / KIB }
}

fn kib(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0) / KIB
}

fn size(client: &mut Client) -> Result<u64, ClientError> {
    Ok(kib(client.run(&qapi::query_balloon {})?.actual))
}

/// `None` for a command that the monitor does not have, or that fails.
fn optional<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a Hyper-V guest's reports come; `None` if there is no hv-balloon.
fn reports(client: &mut Client) -> Result<Option<bool>, ClientError> {
    match client.execute("query-hv-balloon-status-report", Value::Null) {
        Ok(_) => Ok(Some(true)),
        Err(error) if error.is_class(&ErrorClass::CommandNotFound) => Ok(None),
        Err(ClientError::Command { desc, .. }) => Ok(hyperv::reports(&desc)),
        Err(error) => Err(error),
    }
}

fn unfit(error: &ClientError) -> AttachError {
    let remedy = "give QEMU -device virtio-balloon-pci, or vmbus-bridge and hv-balloon";
    AttachError::Unfit(format!("there is no balloon to set its memory with ({error}): {remedy}"))
}

fn list(client: &mut Client, command: &str) -> Result<Vec<Value>, ClientError> {
    let answer = optional(client.execute(command, Value::Null))?;
    Ok(answer.and_then(|answer| answer.as_array().cloned()).unwrap_or_default())
}

/// The place of a virtio balloon in QEMU's object tree: devices with an id, and those without.
fn virtio_balloon(client: &mut Client) -> Result<Option<String>, ClientError> {
    for directory in ["/machine/peripheral", "/machine/peripheral-anon"] {
        let answer = optional(client.execute("qom-list", json!({ "path": directory })))?;
        let objects = answer.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if let Some(name) = virtio::balloon_of(objects) {
            return Ok(Some(format!("{directory}/{name}")));
        }
    }
    Ok(None)
}

fn qom_get(client: &mut Client, path: &str, property: &str) -> Result<Value, ClientError> {
    client.execute("qom-get", json!({ "path": path, "property": property }))
}

/// Has the guest asked for its statistics, unless it is already.
fn start_polling(client: &mut Client, path: &str, dry: bool) -> Result<Polls, ClientError> {
    let Some(before) = optional(qom_get(client, path, POLLING))? else { return Ok(Polls::Not) };
    let before = before.as_u64().unwrap_or(0);
    if (1..=POLL_SECONDS).contains(&before) {
        return Ok(Polls::Already);
    }
    if dry {
        return Ok(if before == 0 { Polls::Not } else { Polls::Already });
    }
    let value = json!({ "path": path, "property": POLLING, "value": POLL_SECONDS });
    Ok(match optional(client.execute("qom-set", value))? {
        Some(_) => Polls::ForUs { before },
        None => Polls::Not,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_hold_until_something_changes() {
        let facts = Facts { boot_kib: 4 << 20, maximum_kib: 4 << 20 };
        let info = DynamicMemoryInfo { actual: 4 << 30, ..DynamicMemoryInfo::default() };
        let books = |info: &DynamicMemoryInfo| Books { info: info.clone(), asked_ms: 1000 };
        assert!(books(&info).are_settled() && books(&info).hold(1000 + BOOKS_MS - 1));
        assert!(!books(&info).hold(1000 + BOOKS_MS));
        for change in [
            DynamicMemoryInfo { target: Some(2 << 30), ..info.clone() },
            DynamicMemoryInfo { in_flight: 4096, ..info.clone() },
            DynamicMemoryInfo { held: 4096, ..info.clone() },
            DynamicMemoryInfo { undiscarded: 4096, ..info.clone() },
            DynamicMemoryInfo {
                waiting: Some("the guest has just booted".to_owned()),
                ..info.clone()
            },
        ] {
            assert!(!books(&change).are_settled(), "{change:?}");
        }
        let mut machine = Machine::new(Kind::Own { reports: true }, facts, 4 << 20);
        for (name, holds) in [
            ("HV_BALLOON_STATUS_REPORT", true),
            ("RTC_CHANGE", true),
            ("BALLOON_CHANGE", false),
            ("MEMORY_DEVICE_SIZE_CHANGE", false),
            ("X_BALLOON_STOPPED", false),
            ("RESET", false),
        ] {
            machine.books = Some(books(&info));
            machine.take(&ReceivedEvent { name: name.to_owned(), data: Value::Null }, 7);
            assert_eq!(machine.books.is_some(), holds, "{name}");
        }
    }

    #[test]
    fn what_a_monitor_does_not_tell_is_no_size() {
        let facts = |boot, maximum, actual| {
            let info = DynamicMemoryInfo { boot, maximum, actual, ..DynamicMemoryInfo::default() };
            let Facts { boot_kib, maximum_kib } = facts_of(&info);
            (boot_kib << 10, maximum_kib << 10)
        };
        assert_eq!(facts(2 << 30, 4 << 30, 1 << 30), (2 << 30, 4 << 30));
        assert_eq!(facts(0, 0, 2 << 30), (2 << 30, 2 << 30));
        assert_eq!(facts(1 << 30, 0, 2 << 30), (1 << 30, 2 << 30));
    }

    #[test]
    fn a_report_has_the_size_of_its_place_in_the_stream_of_events() {
        let event = |name: &str, data| ReceivedEvent { name: name.to_owned(), data };
        let report = event(
            "HV_BALLOON_STATUS_REPORT",
            json!({ "committed": 1 << 30, "available": 1 << 30 }),
        );
        let facts = Facts { boot_kib: 9 << 20, maximum_kib: 9 << 20 };
        let mut machine = Machine::new(Kind::Own { reports: true }, facts, 4 << 20);
        let size = |machine: &mut Machine| {
            assert_eq!(machine.take(&report, 7), Meaning::Read);
            machine.fresh.unwrap().1
        };
        // An answer says 2 GiB; the guest had 4 when it reported, and the event was kept meanwhile.
        machine.actual_kib = 2 << 20;
        assert_eq!(size(&mut machine), Stamped { value: 4 << 20, at_ms: 7 });
        let change = event("BALLOON_CHANGE", json!({ "actual": 3_u64 << 30 }));
        assert_eq!(machine.take(&change, 8), Meaning::Read);
        assert_eq!(size(&mut machine).value, 3 << 20);
        machine.caught_up();
        assert_eq!(size(&mut machine).value, 2 << 20);
        for name in ["BALLOON_CHANGE", "HV_BALLOON_STATUS_REPORT", "RTC_CHANGE"] {
            machine.take(&event(name, json!({ "actual": "x" })), 9);
        }
        assert_eq!(machine.tracked_kib, 2 << 20, "nonsense changes nothing");
    }
}
