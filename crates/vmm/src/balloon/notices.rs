//! The device's notices, passed on to the monitor's clients and the log.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hv_balloon::{Notice, StatusReport};
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
}

impl Notices {
    /// `monitor` and `device` are set once these exist.
    pub(crate) fn new(
        monitor: Arc<OnceLock<EventSender>>,
        log: GuestLog,
        device: Arc<OnceLock<DynamicMemoryHandle<Platform>>>,
    ) -> Self {
        Self {
            monitor,
            size: Throttled::default(),
            hot_added: Throttled::default(),
            report: Throttled::default(),
            log,
            device,
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
            ref other => log(&self.log, || tracing::info!("{other:?}")),
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
        [self.size.due(), self.hot_added.due(), self.report.due()].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        self.flush();
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
    use super::*;

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
