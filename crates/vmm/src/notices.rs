//! News of the device, passed on to the monitor's clients and the log.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hv_balloon::Notice;
use page_range::PageCount;
use qmp::{Event, EventSender};

/// The monitor sends at most one change of size in this time, the newest; QEMU's interval for the
/// same event.
const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// Most lines logged for faults of the guest in [`LOG_INTERVAL`].
const LOG_BURST: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where notices go.
pub(crate) struct Notices {
    monitor: Arc<OnceLock<EventSender>>,
    last_size: Option<Instant>,
    held_size: Option<PageCount>,
    log_start: Instant,
    logged: u32,
}

impl Notices {
    /// `monitor` is filled once there is one.
    pub(crate) fn new(monitor: Arc<OnceLock<EventSender>>) -> Self {
        Self { monitor, last_size: None, held_size: None, log_start: Instant::now(), logged: 0 }
    }

    pub(crate) fn pass_on(&mut self, notice: &Notice) {
        match *notice {
            Notice::SizeChanged { actual } => {
                self.held_size = Some(actual);
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
            Notice::StatusReport(report) => self.emit(&Event::StatusReport {
                committed: report.committed.bytes(),
                available: report.available.bytes(),
            }),
            Notice::Fault(fault) => self.log_fault(&fault),
            ref other => tracing::info!("{other:?}"),
        }
    }

    /// Sends the size that was held back, if its time has come.
    pub(crate) fn flush(&mut self) {
        if self.due().is_some_and(|wait| wait.is_zero())
            && let Some(actual) = self.held_size.take()
        {
            self.last_size = Some(Instant::now());
            self.emit(&Event::BalloonChange { actual: actual.bytes() });
        }
    }

    /// How long until [`Notices::flush`] has something to send.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.held_size.map(|_| {
            self.last_size
                .map_or(Duration::ZERO, |last| SIZE_INTERVAL.saturating_sub(last.elapsed()))
        })
    }

    fn emit(&self, event: &Event) {
        if let Some(monitor) = self.monitor.get() {
            monitor.emit(event);
        }
    }

    /// A guest can cause faults as fast as it can send; the log must not grow with it.
    fn log_fault(&mut self, fault: &hv_balloon::GuestFault) {
        if self.log_start.elapsed() >= LOG_INTERVAL {
            if self.logged > LOG_BURST {
                tracing::warn!(
                    "{} more faults of the guest's balloon driver were not logged",
                    self.logged - LOG_BURST
                );
            }
            (self.log_start, self.logged) = (Instant::now(), 0);
        }
        self.logged = self.logged.saturating_add(1);
        if self.logged <= LOG_BURST {
            tracing::warn!("the guest's balloon driver: {fault}");
        }
    }
}
