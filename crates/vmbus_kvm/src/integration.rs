//! The integration services in a running VMM: three devices on the bus, and the handle with which the
//! VMM uses them.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bus_recording::{Event, ServiceSetup, ToDevice};
use integration_services::protocol::Version;
use integration_services::{
    Contact, HeartbeatKind, Kind, NotReady, Notice, SavedService, Service, ShutdownKind,
    TimeSample, TimeSync, TimeSyncKind, Work,
};
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::recording::DeviceRecording;
use crate::shared::{Shared, lock};
use crate::{BusMemory, HostBuilder, Paused, Platform, RestoreError, StartError, Stopped};

/// One of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceName {
    /// Shutdown.
    Shutdown,
    /// Heartbeat.
    Heartbeat,
    /// Time synchronisation.
    TimeSync,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown service",
            Self::Heartbeat => "heartbeat service",
            Self::TimeSync => "time synchronisation service",
        })
    }
}

/// A service on the bus, and its part of a recording.
struct Seat<P: Platform, K> {
    service: Arc<Mutex<Service<BusMemory<P>, K>>>,
    recording: Arc<DeviceRecording>,
}

impl<P: Platform, K> Clone for Seat<P, K> {
    fn clone(&self) -> Self {
        let (service, recording) = (Arc::clone(&self.service), Arc::clone(&self.recording));
        Self { service, recording }
    }
}

impl<P: Platform, K: Kind> Seat<P, K> {
    fn negotiated(&self) -> Result<(Version, Version), NotReady> {
        lock(&self.service).negotiated()
    }
}

/// The services of a VM. Cheap to clone and usable from any thread. While the host is
/// [paused](crate::Host::pause), [`IntegrationServices::request_shutdown`] waits.
pub struct IntegrationServices<P: Platform> {
    shutdown: Seat<P, ShutdownKind>,
    heartbeat: Seat<P, HeartbeatKind>,
    time_sync: Seat<P, TimeSyncKind>,
    shared: Arc<Shared>,
}

impl<P: Platform> Clone for IntegrationServices<P> {
    fn clone(&self) -> Self {
        Self {
            shutdown: self.shutdown.clone(),
            heartbeat: self.heartbeat.clone(),
            time_sync: self.time_sync.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<P: Platform> fmt::Debug for IntegrationServices<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntegrationServices").finish_non_exhaustive()
    }
}

/// The guest was not asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShutdownError {
    /// There is nobody to ask.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The host has failed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The state of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServicesSnapshot {
    /// The version of the shutdown service that was negotiated, or why the guest cannot be asked.
    pub shutdown: Result<Version, NotReady>,
    /// Whether the guest answers heartbeats.
    pub heartbeat: Contact,
    /// The version of the time synchronisation service that was negotiated, or why the guest's clock
    /// cannot be set.
    pub time_sync: Result<Version, NotReady>,
}

/// The saved state of all services. Store it by itself as bytes ([`SavedState`]), or as part of a larger
/// state with its `serde` implementations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedServices(Form);

impl SavedState for SavedServices {
    const FORMAT: Format =
        Format { magic: *b"HVINTSVS", name: "the integration services", newest: 1 };
}

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Form {
    V1 { shutdown: SavedService, heartbeat: SavedService, time_sync: SavedService },
}

impl<P: Platform> IntegrationServices<P> {
    /// The services as the header of a recording names them, in the order in which they are attached.
    pub const SETUP: [ServiceSetup; 3] = [
        ServiceSetup::Shutdown,
        ServiceSetup::Heartbeat,
        ServiceSetup::TimeSync { has_reference: P::HAS_REFERENCE_TIME },
    ];

    /// Asks the guest to shut down, as a power button does. Returns at once; the guest follows later or
    /// not at all, and [`Notice::ShutdownAnswered`] tells what it says. A guest that is held hears of it
    /// when it goes on.
    ///
    /// # Errors
    /// [`ShutdownError`]: nothing was requested.
    pub fn request_shutdown(&self) -> Result<(), ShutdownError> {
        let Seat { service, recording } = &self.shutdown;
        Ok(self.shared.command(|| {
            let (mut service, now) = (lock(service), self.shared.now());
            let result = service.request_shutdown(now);
            recording.tell(now, || ToDevice::RequestShutdown { ok: result.is_ok() });
            result
        })??)
    }

    /// The guest's vCPUs stood still, or the host's clock was set: has the guest's clock set as soon as
    /// possible. Without effect on a guest without the service.
    pub fn resync(&self) {
        let (seat, shared) = (self.time_sync.clone(), Arc::clone(&self.shared));
        self.shared.command_later(move || {
            let (mut service, now) = (lock(&seat.service), shared.now());
            seat.recording.tell(now, || ToDevice::Resync);
            service.resync(now);
        });
    }

    /// The state of the services.
    #[must_use]
    pub fn snapshot(&self) -> ServicesSnapshot {
        ServicesSnapshot {
            shutdown: self.shutdown.negotiated().map(|(_, version)| version),
            heartbeat: lock(&self.heartbeat.service).contact(),
            time_sync: self.time_sync.negotiated().map(|(_, version)| version),
        }
    }

    /// The services' state while the host is paused.
    #[must_use]
    pub fn save(&self, paused: &Paused<'_, P>) -> SavedServices {
        let _ = paused;
        let now = self.shared.now();
        SavedServices(Form::V1 {
            shutdown: lock(&self.shutdown.service).save(now),
            heartbeat: lock(&self.heartbeat.service).save(now),
            time_sync: lock(&self.time_sync.service).save(now),
        })
    }
}

/// The destination of notices.
type OnNotice = Arc<dyn Fn(ServiceName, Notice) + Send + Sync>;

impl<P: Platform> HostBuilder<P> {
    /// Puts the integration services on the bus: shutdown, heartbeat and time synchronisation.
    ///
    /// `on_notice` receives their notices on the bus thread. It must not wait.
    ///
    /// # Errors
    /// [`StartError::Offer`] if they are on the bus already, or there are too many devices.
    pub fn integration_services(
        &mut self,
        on_notice: impl Fn(ServiceName, Notice) + Send + Sync + 'static,
    ) -> Result<IntegrationServices<P>, StartError> {
        let on_notice: OnNotice = Arc::new(on_notice);
        let time_sync = TimeSync::new();
        let services = (Service::new(), Service::new(), with_reference::<P>(time_sync));
        self.attach_services(services, &on_notice)
    }

    /// Restores saved services and puts them on the bus as [`HostBuilder::integration_services`] does.
    /// `platform` is the machine with the memory of the saved guest, whose clock is then set.
    ///
    /// # Errors
    /// [`RestoreError`] if it is not the state of such services.
    pub fn restore_integration_services(
        &mut self,
        on_notice: impl Fn(ServiceName, Notice) + Send + Sync + 'static,
        platform: &P,
        saved: &SavedServices,
    ) -> Result<IntegrationServices<P>, RestoreError> {
        let on_notice: OnNotice = Arc::new(on_notice);
        let SavedServices(Form::V1 { shutdown, heartbeat, time_sync }) = saved;
        let services = (
            self.restored(Service::new(), shutdown, platform)?,
            self.restored(Service::new(), heartbeat, platform)?,
            self.restored(with_reference::<P>(TimeSync::new()), time_sync, platform)?,
        );
        Ok(self.attach_services(services, &on_notice)?)
    }

    fn restored<K: Kind + Default>(
        &self,
        service: Service<BusMemory<P>, K>,
        saved: &SavedService,
        platform: &P,
    ) -> Result<Service<BusMemory<P>, K>, RestoreError> {
        let open = {
            let server = self.shared().server();
            server.channel_of(&Service::<BusMemory<P>, K>::OFFER).and_then(|id| server.opened(id))
        };
        let open = open.map(|open| (BusMemory::<P>::new(platform.memory().clone()), open));
        Ok(service.restored(saved, open, self.shared().now())?)
    }

    fn attach_services(
        &mut self,
        (shutdown, heartbeat, time_sync): Services<P>,
        on_notice: &OnNotice,
    ) -> Result<IntegrationServices<P>, StartError> {
        let shared = Arc::clone(self.shared());
        let no_sample = |_: &Seat<P, _>| {};
        let shutdown = self.seat(ServiceName::Shutdown, shutdown, on_notice, no_sample)?;
        let no_sample = |_: &Seat<P, _>| {};
        let heartbeat = self.seat(ServiceName::Heartbeat, heartbeat, on_notice, no_sample)?;
        let for_samples = Arc::clone(&shared);
        let sample = move |seat: &Seat<P, _>| give_sample(seat, &for_samples);
        let time_sync = self.seat(ServiceName::TimeSync, time_sync, on_notice, sample)?;
        Ok(IntegrationServices { shutdown, heartbeat, time_sync, shared })
    }

    /// Puts a service on the bus. `on_sample` answers [`Work::Sample`].
    fn seat<K: Kind + Send + 'static>(
        &mut self,
        name: ServiceName,
        service: Service<BusMemory<P>, K>,
        on_notice: &OnNotice,
        on_sample: impl Fn(&Seat<P, K>) + Send + 'static,
    ) -> Result<Seat<P, K>, StartError> {
        let is_recording = self.shared().is_recording();
        let service = if is_recording { service.with_trace() } else { service };
        let recording = self.next_recording();
        let seat = Seat { service: Arc::new(Mutex::new(service)), recording };
        let (on_notice, own) = (Arc::clone(on_notice), seat.clone());
        let sink = move |work| match work {
            Work::Notify(notice) => on_notice(name, notice),
            Work::Sample => on_sample(&own),
            // Recorded as they were taken.
            Work::Trace(_) => {}
        };
        let (service, recording) = (Arc::clone(&seat.service), Arc::clone(&seat.recording));
        self.attach_recorded(service, sink, recording, Event::of_service)?;
        Ok(seat)
    }
}

type Services<P> = (
    Service<BusMemory<P>, ShutdownKind>,
    Service<BusMemory<P>, HeartbeatKind>,
    Service<BusMemory<P>, TimeSyncKind>,
);

const fn with_reference<P: Platform>(service: TimeSync<BusMemory<P>>) -> TimeSync<BusMemory<P>> {
    if P::HAS_REFERENCE_TIME { service.with_reference_time() } else { service }
}

/// Tells the time. A host that cannot is asked again after a few seconds.
fn give_sample<P: Platform>(seat: &Seat<P, TimeSyncKind>, shared: &Shared) {
    let reference = shared.reference_time();
    // The two clocks are read one right after the other.
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    if P::HAS_REFERENCE_TIME && reference.is_none() {
        return;
    }
    let sample = TimeSample::since_unix_epoch(wall, reference);
    let (mut service, now) = (lock(&seat.service), shared.now());
    let TimeSample { host, reference } = sample;
    seat.recording.tell(now, || ToDevice::TimeSample { host, reference });
    service.sample(now, sample);
}
