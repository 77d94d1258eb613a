//! The device's notices, passed on to the monitor's clients and the log.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hv_balloon::{Notice, Snapshot, StatusReport};
use page_range::PageCount;
use qmp::{Event, EventSender};

use vmbus_kvm::{DynamicMemoryHandle, Sink};

use crate::machine::Platform;
use crate::watch::{GuestLog, log};

/// In this time the monitor sends at most one event for each size and one status report, each the
/// newest. QEMU uses the same interval for these events.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// The device's id for monitor clients, and the path at which QEMU's clients look for it.
pub(crate) const DEVICE_ID: &str = "balloon0";
const QOM_PATH: &str = "/machine/peripheral/balloon0";

/// The destinations of notices.
pub(crate) struct Notices {
    monitor: Arc<OnceLock<EventSender>>,
    size: Throttled<PageCount>,
    hot_added: Throttled<PageCount>,
    report: Throttled<StatusReport>,
    log: GuestLog,
    device: Arc<OnceLock<DynamicMemoryHandle<Platform>>>,
    /// The shortfall that the log has told of last.
    told: Option<String>,
    repeat: Repeat,
    alignment: Alignment,
}

/// A wish of another thread that the size be told to the monitor's clients although it has not
/// changed. Wake the bus after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Repeat(Arc<AtomicBool>);

impl Repeat {
    pub(super) fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The alignment of memory added to the guest that runs, in pages, once it has told it; 0 before.
#[derive(Clone, Debug, Default)]
pub(super) struct Alignment(Arc<AtomicU64>);

impl Alignment {
    /// The alignment of the guest that ends. The next one has to tell its own.
    pub(super) fn take(&self) -> Option<PageCount> {
        Some(self.0.swap(0, Ordering::AcqRel)).filter(|pages| *pages > 0).map(PageCount::new)
    }
}

impl Notices {
    /// `monitor` and `device` are set once these exist.
    pub(crate) fn new(
        monitor: Arc<OnceLock<EventSender>>,
        log: GuestLog,
        device: Arc<OnceLock<DynamicMemoryHandle<Platform>>>,
        repeat: Repeat,
        alignment: Alignment,
    ) -> Self {
        Self {
            monitor,
            size: Throttled::default(),
            hot_added: Throttled::default(),
            report: Throttled::default(),
            log,
            device,
            told: None,
            repeat,
            alignment,
        }
    }

    fn pass_on(&mut self, notice: &Notice) {
        match *notice {
            Notice::SizeChanged { actual } => {
                self.size.held = Some(actual);
                self.flush();
            }
            Notice::HotAddedChanged { hot_added } => {
                tracing::info!(bytes = hot_added.bytes(), "memory added beyond boot RAM");
                self.hot_added.held = Some(hot_added);
                self.flush();
            }
            Notice::Unconfirmed { pages } => {
                tracing::warn!(
                    bytes = pages.bytes(),
                    "the guest's kernel has not confirmed memory that was added before it started \
                     (kexec); it is not counted, and not offered again before a reset"
                );
            }
            Notice::TargetReached { actual } => {
                tracing::info!(actual_bytes = actual.bytes(), "target reached");
            }
            Notice::StoppedShort { target, actual, reason } => {
                tracing::info!(
                    target_bytes = target.bytes(),
                    actual_bytes = actual.bytes(),
                    "stopped short of the target: {reason}"
                );
                self.emit(&Event::BalloonStopped {
                    target: target.bytes(),
                    actual: actual.bytes(),
                    reason: reason.to_string(),
                });
            }
            Notice::StatusReport(report) => {
                self.report.held = Some(report);
                self.flush();
            }
            Notice::Fault(fault) => {
                log(&self.log, || tracing::warn!("the guest's balloon driver: {fault}"));
            }
            Notice::Ready { version } => {
                log(&self.log, || tracing::info!(%version, "the guest's driver is ready"));
                self.tell_of_shortfall();
            }
            ref other => log(&self.log, || tracing::info!("{other:?}")),
        }
    }

    /// Says at the start, and not only to whoever asks for too much, that this guest cannot grow as
    /// far as it was meant to. The same is said once, however often the driver starts.
    fn tell_of_shortfall(&mut self) {
        let Some(device) = self.device.get() else { return };
        let snapshot = device.snapshot().device;
        let alignment = snapshot.alignment.map_or(0, PageCount::get);
        self.alignment.0.store(alignment, Ordering::Release);
        let found = shortfall(&snapshot);
        if let Some(text) = &found
            && found != self.told
        {
            log(&self.log, || tracing::warn!("{text}"));
        }
        self.told = found;
    }

    /// Repeats the size if a client is to hear of it.
    fn repeat_size(&mut self) {
        if self.repeat.0.swap(false, Ordering::AcqRel)
            && let Some(device) = self.device.get()
        {
            self.size.held = Some(device.snapshot().device.actual);
        }
    }

    /// Sends what was held back, once it is due.
    fn flush(&mut self) {
        if let Some(actual) = self.size.take_due() {
            self.emit(&Event::BalloonChange { actual: actual.bytes() });
        }
        if let Some(hot_added) = self.hot_added.take_due() {
            self.emit(&Event::MemoryDeviceSizeChange {
                id: Some(DEVICE_ID.into()),
                size: hot_added.bytes(),
                qom_path: QOM_PATH.into(),
            });
        }
        // A report that was held back is dropped if its guest is gone.
        if let Some(report) = self.report.take_due()
            && self.device.get().is_some_and(|device| device.snapshot().device.status.is_some())
        {
            self.emit(&Event::StatusReport {
                committed: report.committed.bytes(),
                available: report.available.bytes(),
            });
        }
    }

    fn emit(&self, event: &Event) {
        if let Some(monitor) = self.monitor.get() {
            monitor.emit(event);
        }
    }
}

impl Sink<Notice> for Notices {
    fn take(&mut self, notice: Notice) {
        self.pass_on(&notice);
    }

    fn due(&self) -> Option<Duration> {
        let repeat = self.repeat.0.load(Ordering::Acquire).then_some(Duration::ZERO);
        let held = [self.size.due(), self.hot_added.due(), self.report.due()];
        held.into_iter().chain([repeat]).flatten().min()
    }

    fn on_time(&mut self) {
        self.repeat_size();
        self.flush();
    }
}

/// Why the guest cannot grow to `--max-memory`, and what to do; nothing if it can.
fn shortfall(device: &Snapshot) -> Option<String> {
    let Snapshot { boot, assigned, maximum, hot_add_capacity: capacity, .. } = *device;
    let promised = boot.saturating_add(capacity);
    let alignment = device.alignment.filter(|_| maximum < promised)?;
    let start = format!(
        "the guest can have at most {}, not --max-memory {}",
        size(maximum),
        size(promised)
    );
    let whole = boot.saturating_add(capacity.align_down(alignment));
    let more = capacity.align_up(alignment).map(|capacity| boot.saturating_add(capacity));
    Some(if maximum >= whole {
        let larger = more.map(|more| format!(" or {}", size(more))).unwrap_or_default();
        format!(
            "{start}: it takes new memory in multiples of {} on top of the {} it boots with; give \
             --max-memory {}{larger}",
            size(alignment),
            size(boot),
            size(whole),
        )
    } else if maximum == assigned {
        format!("{start}: its driver takes no new memory; give it more with --memory")
    } else {
        format!(
            "{start}: what is left to add does not fit its address space in multiples of {}; give \
             it more with --memory",
            size(alignment)
        )
    })
}

/// A size as the options of `hvb run` take it.
fn size(pages: PageCount) -> String {
    let kib = pages.bytes() >> 10;
    match kib % 1024 {
        0 => format!("{}M", kib / 1024),
        _ => format!("{kib}K"),
    }
}

/// A value of which only the newest counts, sent at a limited rate.
#[derive(Debug)]
struct Throttled<T> {
    held: Option<T>,
    last: Option<Instant>,
}

impl<T> Default for Throttled<T> {
    fn default() -> Self {
        Self { held: None, last: None }
    }
}

impl<T> Throttled<T> {
    fn due(&self) -> Option<Duration> {
        let wait = |last: Instant| EVENT_INTERVAL.saturating_sub(last.elapsed());
        self.held.as_ref().map(|_| self.last.map_or(Duration::ZERO, wait))
    }

    fn take_due(&mut self) -> Option<T> {
        if self.due()?.is_zero() {
            self.last = Some(Instant::now());
            self.held.take()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hv_balloon::{Config, Device};
    use page_range::{Gpfn, PageRange};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A guest that boots with 1 GiB.
    fn guest(capacity: u64, alignment: u64, maximum: u64) -> Snapshot {
        let mib = |count: u64| PageCount::from_bytes(count * MIB);
        let boot = PageRange::new(Gpfn::default(), mib(1024)).unwrap();
        let config = Config { boot_ram: [boot].into_iter().collect(), ..Config::default() };
        Snapshot {
            hot_add_capacity: mib(capacity),
            alignment: Some(mib(alignment)),
            maximum: mib(maximum),
            ..Device::new(config).unwrap().snapshot()
        }
    }

    #[test]
    fn a_maximum_that_the_guests_alignment_puts_out_of_reach_is_told_with_the_remedy() {
        assert_eq!(
            shortfall(&guest(1000, 128, 1920)).unwrap(),
            "the guest can have at most 1920M, not --max-memory 2024M: it takes new memory in \
             multiples of 128M on top of the 1024M it boots with; give --max-memory 1920M or 2048M"
        );
        let text = shortfall(&guest(100, 128, 1024)).unwrap();
        assert!(text.ends_with("give --max-memory 1024M or 1152M"), "{text}");
    }

    #[test]
    fn other_reasons_for_a_lower_maximum_are_told_as_such() {
        let text = shortfall(&guest(1024, 128, 1024)).unwrap();
        assert!(
            text.ends_with("its driver takes no new memory; give it more with --memory"),
            "{text}"
        );
        let text = shortfall(&guest(1024, 128, 1920)).unwrap();
        assert!(text.contains("does not fit its address space in multiples of 128M"), "{text}");
    }

    #[test]
    fn a_maximum_that_can_be_reached_is_not_worth_a_word() {
        for (capacity, maximum) in [(0, 1024), (1024, 2048), (896, 1920)] {
            assert_eq!(shortfall(&guest(capacity, 128, maximum)), None);
        }
        // Nothing is known of a guest that has not told its capabilities.
        let unknown = Snapshot { alignment: None, ..guest(1000, 128, 1920) };
        assert_eq!(shortfall(&unknown), None);
    }

    #[test]
    fn sizes_are_those_of_the_options() {
        let text = |kib: u64| size(PageCount::from_bytes(kib << 10));
        assert_eq!((text(1024 * 1024), text(1028)), ("1024M".to_owned(), "1028K".to_owned()));
    }

    #[test]
    fn a_size_that_is_to_be_repeated_is_due_at_once() {
        let limit = Arc::new(std::sync::Mutex::new(crate::log_limit::LogLimit::new("a test")));
        let repeat = Repeat::default();
        let mut notices = Notices::new(
            Arc::default(),
            limit,
            Arc::default(),
            repeat.clone(),
            Alignment::default(),
        );
        assert_eq!(notices.due(), None);
        repeat.ask();
        assert_eq!(notices.due(), Some(Duration::ZERO));
        notices.on_time();
        assert_eq!(notices.due(), None, "once");
    }

    #[test]
    fn the_newest_value_waits_for_its_time() {
        let mut values = Throttled { held: Some(1), last: None };
        assert_eq!(values.take_due(), Some(1));
        assert_eq!(values.due(), None);
        values.held = Some(2);
        assert_eq!(values.take_due(), None);
        values.held = Some(3);
        values.last = Instant::now().checked_sub(EVENT_INTERVAL);
        assert_eq!(values.take_due(), Some(3));
    }
}
