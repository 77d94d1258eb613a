//! Monitors that hang, flood, lie or break off: they are named, and nobody waits for them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use crate::world::{GIB, Host, eventually, is_gone};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}"#;

/// Serves each connection with `body`.
fn serve(path: &Path, body: impl Fn(UnixStream) + Send + Sync + Clone + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let body = body.clone();
            thread::spawn(move || body(stream));
        }
    });
}

fn say(mut stream: &UnixStream, text: &str) -> bool {
    match stream.write_all(text.as_bytes()) {
        Ok(()) => true,
        Err(error) if is_gone(&error) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Reads until the other side is gone, and answers each line by `answer`.
fn converse(mut stream: UnixStream, mut answer: impl FnMut(usize) -> Option<String>) {
    let mut lines = 0;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        for _ in buffer[..count].iter().filter(|byte| **byte == b'\n') {
            lines += 1;
            let said = answer(lines).is_none_or(|text| say(&stream, &text));
            if !said {
                return;
            }
        }
    }
}

/// Answers as one of our own monitors at rest, and once it has been read says the same without end.
fn rest_and_say(stream: UnixStream, text: &'static str) {
    say(&stream, GREETING);
    let other = stream.try_clone().unwrap();
    converse(stream, |line| {
        let info = r#"{"state": "idle", "actual": 1073741824, "boot": 1073741824}"#;
        let answer = if line == 1 { "{}" } else { info };
        let answer = format!(r#"{{"return": {answer}, "id": {line}}}"#);
        if line == 4 {
            let other = other.try_clone().unwrap();
            let text = text.repeat(100);
            thread::spawn(move || while say(&other, &text) {});
        }
        Some(answer)
    });
}

#[test]
fn bad_monitors_are_named_and_delay_nobody() {
    let host = Host::new();
    let socket = |name: &str| host.path(&format!("{name}.sock"));
    let _never_accepts = UnixListener::bind(socket("never-accepts")).unwrap();
    serve(&socket("silent"), |stream| converse(stream, |_| None));
    serve(&socket("hangs-up"), drop);
    serve(&socket("garbage"), |stream| {
        say(&stream, "\x00\x01 hello, this is no QMP\n");
        converse(stream, |_| None);
    });
    serve(&socket("half-a-line"), |stream| {
        say(&stream, &GREETING[..20]);
    });
    serve(&socket("answers-nothing"), |stream| {
        say(&stream, GREETING);
        converse(stream, |line| (line == 1).then(|| r#"{"return": {}, "id": 1}"#.to_owned()));
    });
    serve(&socket("spaces"), |stream| while say(&stream, &" ".repeat(1 << 16)) {});
    serve(&socket("brackets"), |stream| {
        let greets = say(&stream, &format!("{GREETING}{{\"a\": [\""));
        while greets && say(&stream, &"x".repeat(1 << 16)) {}
    });
    serve(&socket("events"), |stream| {
        say(&stream, GREETING);
        let events = r#"{"event": "BALLOON_CHANGE", "data": {"actual": 1}}"#.repeat(5000);
        // It answers that it is our own monitor, each time with a flood.
        converse(stream, |line| {
            let info = r#"{"state": "idle", "actual": 1073741824, "boot": 1073741824}"#;
            let answer = if line == 1 { "{}" } else { info };
            Some(format!(r#"{{"return": {answer}, "id": {line}}}{events}"#))
        });
    });
    serve(&socket("reports"), |stream| {
        let data = r#"{"committed": 536870912, "available": 536870912}"#;
        let report = format!(r#"{{"event": "HV_BALLOON_STATUS_REPORT", "data": {data}}}"#);
        rest_and_say(stream, report.leak());
    });
    serve(&socket("blanks"), |stream| rest_and_say(stream, "          "));
    serve(&socket("absurd"), |stream| {
        say(&stream, GREETING);
        converse(stream, |line| {
            let info = r#"{"state": 5, "actual": -1, "boot": "x"}"#;
            let answer = if line == 1 { "{}" } else { info };
            Some(format!(r#"{{"return": {answer}, "id": {line}}}"#))
        });
    });

    let (one, two) = (host.vm("one", 4 * GIB, GIB), host.vm("two", 4 * GIB, 4 * GIB));
    let balance = host.balance(host.configuration(16 * GIB));
    eventually("two grows", || two.guest.actual() > 9 * GIB / 2);
    eventually("one shrinks", || one.guest.actual() < 3 * GIB);
    for (name, problem) in [
        ("never-accepts", "no QMP greeting"),
        ("silent", "no QMP greeting"),
        ("hangs-up", "the connection ended"),
        ("garbage", "not a QMP socket"),
        ("half-a-line", "the connection ended"),
        ("answers-nothing", "no answer to 'x-query-dynamic-memory'"),
        ("spaces", "no QMP greeting"),
        ("brackets", "JSON value is longer than"),
        ("events", "sends without end"),
        ("reports", "sends without end"),
        ("blanks", "sends without end"),
        ("absurd", "unexpected answer"),
    ] {
        eventually(&format!("{name}: {problem}"), || balance.problem(name).contains(problem));
    }
    // They go on, and so do the others.
    two.guest.uses(6 * GIB);
    eventually("two grows again", || two.guest.actual() > 6 * GIB);
    assert_eq!(balance.problem("one") + &balance.problem("two"), "");
}

#[test]
fn a_vm_that_refuses_says_why() {
    let host = Host::new();
    // It uses more than it can ever have.
    let vm = host.vm("db", GIB, GIB);
    let mut configuration = host.configuration(64 * GIB);
    configuration.policy.stuck_after_ms = 1000;
    let balance = host.balance(configuration);
    eventually("it grows to its maximum", || vm.guest.actual() > GIB);
    vm.guest.uses(40 * GIB);
    eventually("it has its maximum", || vm.guest.actual() == 4 * GIB);
    let explanation = balance.operator().explain("db").unwrap();
    assert!(explanation.sentences[0].contains("Its maximum is 4.0 GiB"), "{explanation:?}");
}
