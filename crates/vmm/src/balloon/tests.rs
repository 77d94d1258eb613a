use std::sync::Mutex;
use std::time::Duration;

use qmp::{Client, ReceivedEvent};
use vmbus::ServerConfig;

use super::*;
use crate::brake::Brake;
use crate::config::tests::{SIZE, small};
use crate::confine::{Confinement, Seccomp};
use crate::control::control_channel;
use crate::flight_recorder::Recorder;
use crate::log_limit::LogLimit;
use crate::monitor::Monitored;
use crate::services::Services;
use crate::watch::Watch;

const PATIENCE: Duration = Duration::from_secs(20);

/// A monitor, its client, and the device behind it, in a VM that has not booted yet.
fn with_a_client(test: impl FnOnce(&mut Client, &Brake)) {
    let (control, _events) = control_channel();
    let confinement = Confinement::new(Seccomp::Off, control.clone()).unwrap();
    let recorder = Arc::new(Recorder::new(1));
    let log: GuestLog = Arc::new(Mutex::new(LogLimit::new("a test")));
    let watch = Watch::new(confinement, Arc::clone(&log), Arc::clone(&recorder), None);
    let mut builder = HostBuilder::<Platform>::new(ServerConfig::default(), watch).unwrap();
    let plan = MemoryPlan::fixed(SIZE);
    let first = plan.first().unwrap();
    let events = Arc::default();
    let to_log = Arc::clone(&log);
    let balloon = attach(&mut builder, &small(), &plan, &first, &events, to_log).unwrap();
    let services = Services::attach(&mut builder, &events, log).unwrap();
    let host = builder.start().unwrap();
    let brake = Arc::<Brake>::default();
    let machine = Monitored {
        balloon: Some(balloon),
        services,
        boot_memory: SIZE,
        control,
        recorder,
        brake: Arc::clone(&brake),
        bus: host.handle(),
        events: Arc::clone(&events),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let server = qmp::Server::start(&path, Arc::new(machine)).unwrap();
    events.set(server.events()).unwrap();
    test(&mut Client::connect(&path, PATIENCE).unwrap(), &brake);
}

fn next_event(client: &mut Client) -> ReceivedEvent {
    client.next_event(PATIENCE).unwrap().expect("no event")
}

fn set_target(client: &mut Client, pages: PageCount) {
    client.execute("balloon", serde_json::json!({ "value": pages.bytes() })).unwrap();
}

#[test]
fn a_client_that_sets_the_size_there_is_already_is_told_it() {
    with_a_client(|client, _| {
        for _ in 0..2 {
            set_target(client, SIZE);
            let event = next_event(client);
            let expected = serde_json::json!({ "actual": SIZE.bytes() });
            assert_eq!((event.name.as_str(), event.data), ("BALLOON_CHANGE", expected));
        }
    });
}

#[test]
fn a_held_machine_takes_a_target_and_says_what_it_waits_for() {
    with_a_client(|client, brake| {
        let ask = |client: &mut Client, what| client.execute(what, qmp::Value::Null).unwrap();
        ask(client, "stop");
        assert_eq!(next_event(client).name, "STOP");
        assert_eq!(brake.status(), qmp::RunState::paused);
        let half = PageCount::new(SIZE.get() / 2);
        set_target(client, half);
        let memory = ask(client, "x-query-dynamic-memory");
        assert_eq!(memory["target"], half.bytes());
        assert!(memory["waiting"].as_str().unwrap().contains("paused"), "{memory}");
        ask(client, "stop");
        ask(client, "cont");
        ask(client, "cont");
        assert_eq!(next_event(client).name, "RESUME");
        let status = ask(client, "query-status");
        assert_eq!(status, serde_json::json!({ "status": "running", "running": true }));
        let memory = ask(client, "x-query-dynamic-memory");
        assert!(memory["waiting"].as_str().unwrap().contains("driver"), "{memory}");
    });
}

#[test]
fn a_guest_without_services_cannot_be_asked_to_shut_down_and_the_client_hears_what_to_do() {
    with_a_client(|client, _| {
        let error = client.execute("system_powerdown", qmp::Value::Null).unwrap_err().to_string();
        assert!(error.contains("modprobe hv_utils") && error.ends_with("quit"), "{error}");
        let services = client.execute("x-query-integration-services", qmp::Value::Null).unwrap();
        assert_eq!(services, serde_json::json!({ "heartbeat": "No Contact" }));
    });
}
