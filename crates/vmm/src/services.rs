//! The guest's integration services, for the operator: shutdown, heartbeat, and its clock.

use std::sync::{Arc, OnceLock};

use qmp::{Event, EventSender, IntegrationServicesInfo, MonitorError};
use vmbus_kvm::integration_services::{NotReady, Notice, protocol::STATUS_OK};
use vmbus_kvm::{HostBuilder, IntegrationServices, ServiceName, ShutdownError};

use crate::error::VmmError;
use crate::machine::Platform;
use crate::watch::{GuestLog, log};

/// The services, as the monitor and the signals' thread use them.
#[derive(Clone)]
pub(crate) struct Services {
    services: IntegrationServices<Platform>,
    /// The monitor's clients, once there is a monitor.
    events: Arc<OnceLock<EventSender>>,
}

impl Services {
    /// Puts the services on the bus.
    pub(crate) fn attach(
        host: &mut HostBuilder<Platform>,
        events: &Arc<OnceLock<EventSender>>,
        guest_log: GuestLog,
    ) -> Result<Self, VmmError> {
        let on_notice = move |name, notice| tell(&guest_log, name, notice);
        let services = host.integration_services(on_notice)?;
        Ok(Self { services, events: Arc::clone(events) })
    }

    /// Asks the guest to shut down, and tells the monitor's clients.
    pub(crate) fn power_down(&self) -> Result<(), PowerDownError> {
        self.services.request_shutdown().map_err(PowerDownError)?;
        if let Some(clients) = self.events.get() {
            clients.emit(&Event::Powerdown);
        }
        Ok(())
    }

    /// Has the guest's clock set, since its vCPUs stood still.
    pub(crate) fn set_clock(&self) {
        self.services.resync();
    }

    /// The state of the services, for the monitor.
    pub(crate) fn info(&self) -> IntegrationServicesInfo {
        let state = self.services.snapshot();
        IntegrationServicesInfo {
            heartbeat: state.heartbeat.as_str().into(),
            shutdown: state.shutdown.ok().map(|version| version.to_string()),
            time_sync: state.time_sync.ok().map(|version| version.to_string()),
        }
    }
}

/// The guest cannot be asked to shut down. The text says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", text(.0))]
pub(crate) struct PowerDownError(ShutdownError);

impl From<PowerDownError> for MonitorError {
    fn from(error: PowerDownError) -> Self {
        Self::generic(error.to_string())
    }
}

const fn text(error: &ShutdownError) -> &'static str {
    match error {
        ShutdownError::NotReady(NotReady::NotConnected) => {
            "the guest has no shutdown service, or has not started it yet: load hv_utils in it \
             (modprobe hv_utils) and try again, or end the machine with quit"
        }
        ShutdownError::NotReady(NotReady::Negotiating) => {
            "the guest's shutdown service is starting: try again in a moment, or end the machine \
             with quit"
        }
        ShutdownError::NotReady(NotReady::NoCommonVersion) => {
            "the guest's shutdown service has no version that this machine has: shut it down from \
             inside, or end the machine with quit"
        }
        ShutdownError::NotReady(NotReady::Broken) => {
            "the guest corrupted the channel of its shutdown service: shut it down from inside, or \
             end the machine with quit"
        }
        ShutdownError::Stopped(_) => "the machine has ended, or its bus has failed",
    }
}

/// Writes a notice to the log.
fn tell(guest_log: &GuestLog, name: ServiceName, notice: Notice) {
    log(guest_log, || match notice {
        Notice::Fault(fault) => tracing::warn!("the guest's {name}: {fault}"),
        Notice::NoCommonVersion => tracing::warn!("the guest's {name}: {notice}"),
        Notice::ShutdownAnswered { status } if status != STATUS_OK => {
            tracing::warn!("the guest's {name}: {notice}");
        }
        other => tracing::info!("the guest's {name}: {other}"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_cannot_ask_the_guest_hears_why_and_what_to_do() {
        for reason in [
            NotReady::NotConnected,
            NotReady::Negotiating,
            NotReady::NoCommonVersion,
            NotReady::Broken,
        ] {
            let text = PowerDownError(reason.into()).to_string();
            assert!(text.starts_with("the guest") && text.ends_with("quit"), "{text}");
        }
        let text = PowerDownError(NotReady::NotConnected.into()).to_string();
        assert!(text.contains("modprobe hv_utils"), "{text}");
    }
}
