//! The server as its clients see it, on real sockets.

use qmp::{
    Client, ClientError, DynamicMemoryInfo, ErrorClass, Event, HvBalloonDevice, HvBalloonInfo,
    MAX_CLIENTS, MAX_COMMAND_BYTES, Machine, MemoryDevice, MemoryInfo, MonitorError, Refusal,
    RunState, Server, ServerThread, ShutdownCause, XQueryDynamicMemory, qapi,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Long enough for any machine; nothing here waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct FakeMachine {
    bytes: AtomicU64,
    paused: AtomicBool,
    resets: AtomicU64,
    quits: AtomicU64,
}

impl Machine for FakeMachine {
    fn status(&self) -> RunState {
        match self.paused.load(Ordering::SeqCst) {
            true => RunState::paused,
            false => RunState::running,
        }
    }
    fn stop(&self) -> Result<(), MonitorError> {
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn cont(&self) -> Result<(), MonitorError> {
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        if bytes > 1 << 30 {
            return Err(MonitorError::generic("at most 1073741824 bytes"));
        }
        self.bytes.store(bytes, Ordering::SeqCst);
        Ok(())
    }
    fn query_balloon(&self) -> Result<u64, MonitorError> {
        match self.bytes.load(Ordering::SeqCst) {
            0 => Err(MonitorError::no_balloon_device()),
            bytes => Ok(bytes),
        }
    }
    fn system_reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn quit(&self) {
        self.quits.fetch_add(1, Ordering::SeqCst);
    }
}

/// A machine whose books are full, and which has no status report.
struct BookedMachine(fn() -> MonitorError);

impl Machine for BookedMachine {
    fn status(&self) -> RunState {
        RunState::running
    }
    fn balloon(&self, _: u64) -> Result<(), MonitorError> {
        Ok(())
    }
    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(4096)
    }
    fn system_reset(&self) {}
    fn quit(&self) {}
    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let refusal = Refusal { target: 1 << 40, reason: "too much".to_owned() };
        Ok(DynamicMemoryInfo {
            maximum: 1 << 33,
            held: 4096,
            last_refusal: Some(refusal),
            ..DynamicMemoryInfo::default()
        })
    }
    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Err((self.0)())
    }
    fn memory_devices(&self) -> Vec<MemoryDevice> {
        let device = HvBalloonDevice { max_size: 1 << 32, size: 1 << 27, ..Default::default() };
        vec![MemoryDevice::HvBalloon(device)]
    }
    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Ok(MemoryInfo { base_memory: 1 << 30, plugged_memory: Some(1 << 27) })
    }
}

/// A server, its machine, and the directory of its socket.
struct Fixture {
    server: Server,
    machine: Arc<FakeMachine>,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Arc::new(FakeMachine::default());
        let server = Server::start(&directory.path().join("qmp"), machine.clone()).unwrap();
        Self { server, machine, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), PATIENCE).unwrap()
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.path())
    }
}

/// A client without manners.
struct Raw {
    reader: BufReader<UnixStream>,
}

impl Raw {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Self { reader: BufReader::new(stream) };
        assert!(raw.line()["QMP"].is_object());
        raw
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(text.as_ref()).unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, text: impl AsRef<[u8]>) -> Value {
        self.say(text);
        self.line()
    }

    fn negotiate(mut self) -> Self {
        let answer = self.ask(r#"{"execute":"qmp_capabilities","id":"hello"}"#);
        assert_eq!(answer, json!({"return": {}, "id": "hello"}));
        self
    }
}

#[test]
fn a_client_commands_the_machine() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert!(client.version().package.starts_with("hv-balloon "));
    assert!(client.run(&qapi::query_status {}).unwrap().running);
    let error = client.run(&qapi::query_balloon {}).unwrap_err();
    assert!(error.is_class(&ErrorClass::DeviceNotActive), "{error}");
    client.run(&qapi::balloon { value: 4096 }).unwrap();
    assert_eq!(client.run(&qapi::query_balloon {}).unwrap().actual, 4096);
    let error = client.run(&qapi::balloon { value: 1 << 40 }).unwrap_err();
    assert_eq!(error.to_string(), "balloon: at most 1073741824 bytes");
    client.run(&qapi::system_reset {}).unwrap();
    client.run(&qapi::quit {}).unwrap();
    assert_eq!(fixture.machine.resets.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.machine.quits.load(Ordering::SeqCst), 1);
    assert!(client.run(&XQueryDynamicMemory {}).is_err());
}

#[test]
fn a_client_holds_the_machine_and_learns_of_it() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.run(&qapi::stop {}).unwrap();
    let status = client.run(&qapi::query_status {}).unwrap();
    assert_eq!((status.running, status.status), (false, RunState::paused));
    client.run(&qapi::cont {}).unwrap();
    assert!(client.run(&qapi::query_status {}).unwrap().running);
    for (event, name) in [(Event::Stop, "STOP"), (Event::Resume, "RESUME")] {
        fixture.server.events().emit(&event);
        let event = client.next_event(PATIENCE).unwrap().unwrap();
        assert_eq!((event.name.as_str(), event.data), (name, Value::Null));
    }
}

#[test]
fn the_schema_reaches_a_client_of_qemu() {
    let fixture = Fixture::new();
    let schema = fixture.client().run(&qapi::query_qmp_schema {}).unwrap();
    let is_stop = |info: &&qapi::SchemaInfo| matches!(info, qapi::SchemaInfo::command { base, .. } if base.name == "stop");
    assert_eq!(schema.iter().filter(is_stop).count(), 1);
}

#[test]
fn the_machines_books_reach_the_client_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let machine = Arc::new(BookedMachine(MonitorError::status_report_none_yet));
    let _server = Server::start(&path, machine.clone()).unwrap();
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let books = client.run(&XQueryDynamicMemory {}).unwrap();
    assert_eq!(books, machine.dynamic_memory().unwrap());
    let devices = client.execute("query-memory-devices", Value::Null).unwrap();
    let data = json!({ "max-size": 1_u64 << 32, "size": 1 << 27 });
    assert_eq!(devices, json!([{ "type": "hv-balloon", "data": data }]));
    assert_eq!(client.run(&qapi::query_memory_devices {}).unwrap().len(), 1);
    let sizes = client.run(&qapi::query_memory_size_summary {}).unwrap();
    assert_eq!((sizes.base_memory, sizes.plugged_memory), (1 << 30, Some(1 << 27)));
}

#[test]
fn a_machine_without_memory_devices_lists_none() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert!(client.run(&qapi::query_memory_devices {}).unwrap().is_empty());
    assert!(client.run(&qapi::query_memory_size_summary {}).is_err());
}

#[test]
fn a_missing_status_report_is_told_in_qemus_words() {
    let check = |error: fn() -> MonitorError, desc: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let _server = Server::start(&path, Arc::new(BookedMachine(error))).unwrap();
        let mut raw = Raw::connect(&path).negotiate();
        let answer = raw.ask(r#"{"execute":"query-hv-balloon-status-report"}"#);
        assert_eq!(answer, json!({ "error": { "class": "GenericError", "desc": desc } }));
    };
    check(MonitorError::status_report_no_device, "no hv-balloon device present");
    check(MonitorError::status_report_not_enabled, "guest memory status reporting not enabled");
    check(MonitorError::status_report_none_yet, "no guest memory status report received yet");
}

#[test]
fn the_size_of_a_memory_device_is_an_event_of_which_the_newest_counts() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let events = fixture.server.events();
    let size = |size| Event::MemoryDeviceSizeChange {
        id: Some("b0".to_owned()),
        size,
        qom_path: "/machine/peripheral/b0".to_owned(),
    };
    let slow = fixture.raw().negotiate();
    // Far more than queue and socket hold: only an event that replaces its elder gets through.
    for bytes in 0..20_000 {
        events.emit(&size(bytes));
    }
    let lines = slow.reader.lines().map(|line| line.unwrap());
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let last = events.find(|event| event["data"]["size"] == 19_999).unwrap();
    assert_eq!(last["event"], "MEMORY_DEVICE_SIZE_CHANGE");
    let expected = json!({ "id": "b0", "size": 19_999, "qom-path": "/machine/peripheral/b0" });
    assert_eq!(last["data"], expected);
    assert!(client.run(&qapi::query_status {}).is_ok());
}

#[test]
fn the_human_monitor_is_reached_through_qmp() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut say = |line: &str| {
        let command_line = line.to_owned();
        client.run(&qapi::human_monitor_command { command_line, cpu_index: None }).unwrap()
    };
    assert_eq!(say("balloon 64"), "");
    assert_eq!(say("info balloon"), "balloon: actual=64\r\n");
    assert_eq!(say("balloon 2000"), "Error: at most 1073741824 bytes\r\n");
}

#[test]
fn garbage_from_one_client_and_the_end_of_another_disturb_nobody() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut garbage = fixture.raw();
    let mut leaving = fixture.raw().negotiate();
    leaving.say(r#"{"execute":"balloon","argum"#);
    assert_eq!(garbage.ask("@@@")["error"]["class"], "GenericError");
    drop(leaving);
    garbage.say(b"\xff\xfe\0{{{]]]");
    client.run(&qapi::balloon { value: 8192 }).unwrap();
    fixture.server.events().emit(&Event::BalloonChange { actual: 8192 });
    let event = client.next_event(PATIENCE).unwrap().unwrap();
    assert_eq!((&*event.name, &event.data), ("BALLOON_CHANGE", &json!({"actual": 8192})));
    assert_eq!(client.run(&qapi::query_balloon {}).unwrap().actual, 8192);
}

#[test]
fn a_client_that_sent_garbage_is_still_served() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw();
    raw.say("GET / HTTP/1.1\n");
    raw.say(b"\xff\n");
    raw.say(r#"{"execute":"qmp_capabilities","id":"later"}"#);
    while raw.line() != json!({"return": {}, "id": "later"}) {}
}

#[test]
fn a_command_over_the_limit_is_refused_and_the_next_one_served() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw().negotiate();
    let long = "x".repeat(MAX_COMMAND_BYTES);
    raw.say(format!("{{\"execute\":\"query-status\",\"id\":\"{long}\"}}\n"));
    assert_eq!(raw.line()["error"]["desc"], "JSON value is longer than 65536 bytes");
    assert_eq!(raw.ask(r#"{"execute":"query-status"}"#)["return"]["running"], true);
}

#[test]
fn ids_of_any_kind_come_back() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw().negotiate();
    for id in [json!(1), json!("x"), json!({"a": [1]}), json!(null), json!(1.5)] {
        let answer = raw.ask(json!({"execute": "query-status", "id": id}).to_string());
        assert_eq!(answer.get("id"), Some(&id));
    }
}

#[test]
fn a_client_that_half_closes_still_gets_its_answers() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw();
    raw.say(r#"{"execute":"qmp_capabilities"}{"execute":"query-status","id":2}"#);
    raw.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    raw.reader.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\"running\":true,\"status\":\"running\"}}\r\n"), "{rest}");
}

#[test]
fn only_negotiated_clients_get_events() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut raw = fixture.raw();
    let reset = Event::Reset { guest: true, reason: ShutdownCause::guest_reset };
    fixture.server.events().emit(&reset);
    assert_eq!(client.next_event(PATIENCE).unwrap().unwrap().name, "RESET");
    let mut raw = {
        assert_eq!(raw.ask("[]")["error"]["class"], "GenericError");
        raw.negotiate()
    };
    fixture.server.events().emit(&reset);
    let event = raw.line();
    assert_eq!(event["event"], "RESET");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-reset"}));
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
    assert!(event["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
}

#[test]
fn a_client_that_never_reads_is_dropped_and_nobody_waits_for_it() {
    let fixture = Fixture::new();
    let mut slow = fixture.raw().negotiate();
    let mut client = fixture.client();
    let events = fixture.server.events();
    let reason = "x".repeat(10_000);
    // More than the queue and any socket buffer hold.
    for _ in 0..2_000 {
        let reason = reason.clone();
        events.emit(&Event::BalloonStopped { target: 1, actual: 2, reason });
        assert_eq!(client.next_event(PATIENCE).unwrap().unwrap().name, "X_BALLOON_STOPPED");
    }
    let mut rest = vec![];
    slow.reader.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 2_000 * reason.len(), "the connection ended early");
}

#[test]
fn a_client_that_never_reads_its_answers_delays_only_itself() {
    let fixture = Fixture::new();
    let mut greedy = fixture.raw().negotiate();
    greedy.reader.get_ref().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let command = br#"{"execute":"query-commands"}"#.repeat(100);
    while greedy.reader.get_mut().write_all(&command).is_ok() {}
    let mut client = fixture.client();
    assert!(client.run(&qapi::query_status {}).unwrap().running);
}

#[test]
fn one_client_too_many_is_told_so() {
    let fixture = Fixture::new();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.client()).collect();
    let error = Client::connect(&fixture.path(), PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::TurnedAway { .. }), "{error}");
    for client in &mut clients {
        assert!(client.run(&qapi::query_status {}).is_ok());
    }
    clients.pop();
    // The server learns of the hang-up in its own time.
    while Client::connect(&fixture.path(), PATIENCE).is_err() {}
}

#[test]
fn the_last_event_arrives_before_the_server_goes() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let mut client = fixture.client();
    let events = fixture.server.events();
    events.emit(&Event::Shutdown { guest: false, reason: ShutdownCause::host_qmp_quit });
    drop(fixture.server);
    assert!(!path.exists());
    let event = client.next_event(PATIENCE).unwrap().unwrap();
    assert_eq!(event.name, "SHUTDOWN");
    assert_eq!(event.data, json!({"guest": false, "reason": "host-qmp-quit"}));
    assert!(matches!(client.next_event(PATIENCE), Err(ClientError::Closed { .. })));
    events.emit(&Event::BalloonChange { actual: 1 });
}

#[test]
fn the_server_ends_though_a_client_does_not_read() {
    let fixture = Fixture::new();
    let slow = fixture.raw().negotiate();
    let events = fixture.server.events();
    let reason = "x".repeat(200_000);
    events.emit(&Event::BalloonStopped { target: 1, actual: 2, reason: reason.clone() });
    events.emit(&Event::BalloonStopped { target: 1, actual: 2, reason });
    drop(fixture.server);
    drop(slow);
}

#[test]
fn every_thread_is_prepared_before_it_does_anything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let (prepared, threads) = std::sync::mpsc::channel();
    let _server = Server::start_with(&path, Arc::new(FakeMachine::default()), move |thread| {
        prepared.send((thread, std::thread::current().name().map(str::to_owned))).unwrap();
        Ok(())
    })
    .unwrap();
    let _client = Client::connect(&path, PATIENCE).unwrap();
    let mut seen: Vec<_> = (0..3).map(|_| threads.recv_timeout(PATIENCE).unwrap()).collect();
    seen.sort_by_key(|(thread, _)| *thread as u8);
    let expected = [
        (ServerThread::Accept, "qmp-accept"),
        (ServerThread::Read, "qmp-read"),
        (ServerThread::Write, "qmp-write"),
    ];
    assert_eq!(seen, expected.map(|(thread, name)| (thread, Some(name.to_owned()))));
}

#[test]
fn a_client_is_not_served_by_a_thread_that_cannot_be_prepared() {
    for broken in [ServerThread::Read, ServerThread::Write] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let _server = Server::start_with(&path, Arc::new(FakeMachine::default()), move |thread| {
            if thread == broken { Err(std::io::Error::other("no")) } else { Ok(()) }
        })
        .unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut words = Vec::new();
        stream.read_to_end(&mut words).unwrap();
        assert!(words.is_empty(), "{broken:?}: {}", String::from_utf8_lossy(&words));
    }
}
