//! The integration services beside other devices on one bus.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus_replay::replay;
use guest_model::services::{Heard, ServiceDriver, ServiceGuest};
use integration_services::protocol::{STATUS_OK, time_flags};
use integration_services::{
    Contact, HeartbeatKind, Kind, NotReady, Notice, ShutdownKind, TimeSyncKind,
};
use kvm_hyperv::memory::GuestBusMemory;
use vmbus::protocol::Guid;
use vmbus_kvm::bus_recording::{self, Event, Header, Line, ToDevice};
use vmbus_kvm::{
    Host, HostBuilder, IntegrationServices, SavedBus, SavedServices, ServiceName, ShutdownError,
    integration_services,
};

use crate::dynmem::{Backed, Driver, HALF, MemoryHost, memory_config};
use crate::echo::{ECHO, Echo, config, echoes};
use crate::guest::{Guest, OpenChannel};
use crate::platform::{FakePlatform, Memory, Quirks, REFERENCE_TIME, Seen};

type Platform = Arc<FakePlatform>;
type Notices = Arc<Mutex<Vec<(ServiceName, Notice)>>>;

/// The services with their channels, in the order in which they are offered.
const CLASSES: [Guid; 3] =
    [ShutdownKind::INTERFACE, HeartbeatKind::INTERFACE, TimeSyncKind::INTERFACE];

/// Where the rings of a service begin: behind those of the Dynamic Memory device.
const fn page(index: u64) -> u64 {
    0x90 + 0x10 * index
}

/// A service in the guest.
struct InGuest {
    service: ServiceGuest<GuestBusMemory<Memory>>,
    channel: Closing,
}

/// What is left of a channel whose rings are in use.
type Closing = (vmbus::protocol::Relid, vmbus::protocol::ConnectionId);

fn open(guest: &mut Guest, index: u64) -> InGuest {
    let class = CLASSES[usize::try_from(index).unwrap()];
    let OpenChannel { rings, relid, connection, .. } = guest.open(class, page(index)).unwrap();
    let service = ServiceGuest { rings, driver: ServiceDriver::linux() };
    InGuest { service, channel: (relid, connection) }
}

fn open_all(guest: &mut Guest) -> [InGuest; 3] {
    [0, 1, 2].map(|index| open(guest, index))
}

fn step(guest: &Guest, all: &mut [InGuest]) {
    for InGuest { service, channel: (_, connection) } in all {
        if service.step() {
            guest.signal(*connection);
        }
    }
}

struct ServiceHost {
    services: IntegrationServices<Platform>,
    notices: Notices,
    host: Host<Platform>,
}

fn attach(builder: &mut HostBuilder<Platform>) -> (IntegrationServices<Platform>, Notices) {
    let notices = Notices::default();
    let sink = Arc::clone(&notices);
    let on_notice = move |name, notice| sink.lock().unwrap().push((name, notice));
    (builder.integration_services(on_notice).unwrap(), notices)
}

/// A host with the services, and an echo before and after them.
fn service_host() -> ServiceHost {
    let mut builder = HostBuilder::new(config(), Seen::default()).unwrap();
    builder.attach(Arc::new(Mutex::new(Echo::new(1))), |_| {}).unwrap();
    let (services, notices) = attach(&mut builder);
    builder.attach(Arc::new(Mutex::new(Echo::new(2))), |_| {}).unwrap();
    ServiceHost { services, notices, host: builder.start().unwrap() }
}

fn is_ready(services: &IntegrationServices<Platform>) -> bool {
    let state = services.snapshot();
    state.shutdown.is_ok() && state.heartbeat == Contact::Ok && state.time_sync.is_ok()
}

#[test]
fn services_and_another_device_are_used_at_once_and_after_a_reset() {
    let ServiceHost { services, notices, host } = service_host();
    let not_connected = Err(ShutdownError::NotReady(NotReady::NotConnected));
    assert_eq!(services.request_shutdown(), not_connected);
    for _ in 0..2 {
        let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
        let mut echo = guest.open(ECHO, page(3)).unwrap();
        let mut all = open_all(&mut guest);
        let mut relids: Vec<_> = all.iter().map(|it| it.channel.0).collect();
        relids.push(echo.relid);
        relids.sort_unstable();
        relids.dedup();
        assert_eq!(relids.len(), 4, "each channel has its own relid");
        guest.until("the services", |guest| {
            step(guest, &mut all);
            is_ready(&services)
        });
        echoes(&mut guest, &mut echo, b"12345678");

        services.request_shutdown().unwrap();
        let answered = (ServiceName::Shutdown, Notice::ShutdownAnswered { status: STATUS_OK });
        guest.until("the answer", |guest| {
            step(guest, &mut all);
            notices.lock().unwrap().contains(&answered)
        });
        notices.lock().unwrap().clear();
        assert!(all[0].service.driver.heard.contains(&Heard::Shutdown));

        sets_the_clock(&mut guest, &mut all);
        services.resync();
        sets_the_clock(&mut guest, &mut all);
        echoes(&mut guest, &mut echo, b"abcdefgh");
        host.reset().unwrap();
        assert_eq!(services.request_shutdown(), not_connected);
        assert_eq!(services.snapshot().heartbeat, Contact::NoContact);
    }
}

/// The guest's clock is set to the host's, with the reference time of the moment.
fn sets_the_clock(guest: &mut Guest, all: &mut [InGuest]) {
    let is_sync = |heard: &Heard| match heard {
        Heard::Time { host, reference, flags: time_flags::SYNC } => {
            assert_eq!(*reference, Some(REFERENCE_TIME));
            Some(*host)
        }
        _ => None,
    };
    let mut found = None;
    guest.until("a clock that is set", |guest| {
        step(guest, all);
        found = all[2].service.driver.heard.iter().find_map(is_sync);
        found.is_some()
    });
    all[2].service.driver.heard.clear();
    let since_1601 = Duration::from_micros(found.unwrap() / 10);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let late = (now + Duration::from_secs(11_644_473_600)).abs_diff(since_1601);
    assert!(late < Duration::from_secs(20), "{late:?}");
}

#[test]
fn services_cannot_be_attached_twice() {
    let mut builder = HostBuilder::<Platform>::new(config(), Seen::default()).unwrap();
    attach(&mut builder);
    assert!(builder.integration_services(|_, _| {}).is_err());
}

/// Bus and services are saved with a request under way, and go on in another host.
#[test]
fn services_move_to_another_host() {
    let mut builder = HostBuilder::new(config(), Seen::default()).unwrap();
    let (services, _) = attach(&mut builder);
    let host = builder.start().unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    let mut all = open_all(&mut guest);
    guest.until("the services", |guest| {
        step(guest, &mut all);
        is_ready(&services)
    });
    services.request_shutdown().unwrap();
    all[2].service.driver.heard.clear();

    let paused = host.pause().unwrap();
    let saved = postcard::to_allocvec(&(paused.save(), services.save(&paused))).unwrap();
    paused.stop();
    let (bus, saved): (SavedBus, SavedServices) = postcard::from_bytes(&saved).unwrap();
    let platform = FakePlatform::with_memory(Quirks::default(), Arc::clone(&guest.platform.memory));
    let mut builder = HostBuilder::restore(config(), Seen::default(), &bus).unwrap();
    let services = builder.restore_integration_services(|_, _| {}, &platform, &saved).unwrap();
    let host = builder.start().unwrap();
    guest.machine = host.restore_machine(Arc::clone(&platform), &bus).unwrap();
    guest.platform = platform;

    assert!(is_ready(&services));
    guest.until("the request", |guest| {
        step(guest, &mut all);
        all[0].service.driver.heard.contains(&Heard::Shutdown)
    });
    sets_the_clock(&mut guest, &mut all);
}

/// A conversation with all devices at once is recorded, and replayed word for word.
#[test]
fn a_recorded_guest_with_all_devices_hears_the_same_again() {
    let seen = Arc::new(Seen { recorded: Some(Mutex::default()), ..Seen::default() });
    let backend = Arc::default();
    let mut builder = HostBuilder::new(config(), Arc::clone(&seen)).unwrap();
    let memory =
        builder.dynamic_memory(memory_config(), Backed(Arc::clone(&backend)), |_| {}).unwrap();
    let (services, _) = attach(&mut builder);
    let host = builder.start().unwrap();
    let host = MemoryHost { memory, host, backend, notices: Arc::default(), seen };

    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    let mut all = open_all(&mut driver.guest);
    host.memory.set_target(HALF).unwrap();
    driver.until("the shrink and the services", |driver| {
        step(&driver.guest, &mut all);
        host.is_at_target() && is_ready(&services)
    });
    services.request_shutdown().unwrap();
    services.resync();
    driver.until("the request", |driver| {
        step(&driver.guest, &mut all);
        all[0].service.driver.heard.contains(&Heard::Shutdown)
    });
    drop(driver);
    host.host.reset().unwrap();
    let MemoryHost { memory, host, seen, .. } = host;
    drop((memory, services, host));

    let header = Header::new((&config()).into(), (&memory_config()).into())
        .with_services(&IntegrationServices::<Platform>::SETUP);
    let mut text = Vec::new();
    bus_recording::write(&mut text, &header);
    for line in &*seen.recorded.as_ref().unwrap().lock().unwrap() {
        bus_recording::write(&mut text, line);
    }
    bus_recording::write(&mut text, &Line { t: 0, device: 0, event: Event::End });
    let mut recording = bus_recording::read(&text).unwrap();
    let compared = replay(&recording).unwrap_or_else(|error| panic!("{error}"));
    // Each service: versions, and a message. The device's handshake and its request.
    assert!(compared.packets >= 9, "{compared:?}");
    let asked = Event::ToDevice(ToDevice::RequestShutdown { ok: true });
    let asked = recording.lines.iter().position(|read| read.line.event == asked).unwrap();
    assert_eq!(recording.lines[asked].line.device, 1);
    // Without the request, the service would not have said what it did.
    recording.lines.remove(asked);
    replay(&recording).unwrap_err();
}
