//! The client against servers that are not ours: odd ones, and none at all.

use qmp::{Client, ClientError, qapi};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const IMPATIENCE: Duration = Duration::from_millis(100);

const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "#,
    r#""package": "Debian 1:10.0.2"}, "capabilities": ["oob"], "new": {}}}"#
);

/// Serves one client with `serve` and returns the socket's path.
fn serve(
    serve: impl FnOnce(BufReader<UnixStream>) + Send + 'static,
) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || serve(BufReader::new(listener.accept().unwrap().0)));
    (directory, path)
}

/// Says each text in turn, waiting for a line from the client between two of them.
fn script(texts: &'static [&'static str]) -> (tempfile::TempDir, PathBuf) {
    serve(move |mut stream| {
        for text in texts {
            stream.get_mut().write_all(text.as_bytes()).unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
        }
    })
}

fn connect_error(path: &Path) -> ClientError {
    Client::connect(path, IMPATIENCE).unwrap_err()
}

#[test]
fn a_server_that_says_more_than_expected_is_understood() {
    let (_directory, path) = script(&[
        GREETING,
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}{"return": {}, "id": 1}"#,
        concat!(
            r#"{"return": {}, "id": 77}{"event": "RTC_CHANGE", "data": {"offset": 78}, "x": 1}"#,
            r#"{"return": {"actual": 5, "unknown": []}, "id": 2}"#
        ),
    ]);
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    assert_eq!(client.version().qemu.major, 10);
    assert_eq!(client.run(&qapi::query_balloon {}).unwrap().actual, 5);
    assert_eq!(client.next_event(PATIENCE).unwrap().unwrap().name, "STOP");
    let event = client.next_event(PATIENCE).unwrap().unwrap();
    assert_eq!((&*event.name, event.data), ("RTC_CHANGE", json!({"offset": 78})));
}

#[test]
fn an_answer_of_another_shape_is_an_error() {
    let (_directory, path) = script(&[
        GREETING,
        r#"{"return": {}, "id": 1}"#,
        r#"{"return": {"actual": "x"}, "id": 2}"#,
    ]);
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let error = client.run(&qapi::query_balloon {}).unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
}

#[test]
fn events_too_long_to_keep_are_dropped() {
    let (_directory, path) = serve(|mut stream| {
        let long = "x".repeat(100_000);
        let said = format!(
            "{GREETING}{{\"event\": \"LONG\", \"data\": \"{long}\"}}\
             {{\"event\": \"SHORT\"}}{{\"return\": {{}}, \"id\": 1}}"
        );
        stream.get_mut().write_all(said.as_bytes()).unwrap();
        keep_open(stream);
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    assert_eq!(client.next_event(PATIENCE).unwrap().unwrap().name, "SHORT");
    assert_eq!(client.next_event(IMPATIENCE).unwrap(), None);
}

#[test]
fn without_patience_what_has_arrived_is_read_and_half_a_message_is_kept() {
    let (said, says) = mpsc::channel::<()>();
    let (go, goes) = mpsc::channel::<()>();
    let (_directory, path) = serve(move |mut stream| {
        let rest = [r#"{"return": {}, "id": 1}"#, r#"{"event": "ONE"}{"eve"#, r#"nt": "TWO"}"#];
        stream.get_mut().write_all(GREETING.as_bytes()).unwrap();
        for text in rest {
            stream.get_mut().write_all(text.as_bytes()).unwrap();
            said.send(()).unwrap();
            goes.recv().unwrap();
        }
        keep_open(stream);
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let mut all = Vec::new();
    for names in [&[][..], &["ONE"], &["TWO"]] {
        says.recv().unwrap();
        while let Some(event) = client.next_event(Duration::ZERO).unwrap() {
            all.push(event.name);
        }
        assert_eq!(std::mem::take(&mut all), names);
        go.send(()).unwrap();
    }
}

#[test]
fn one_read_brings_what_is_at_hand_and_no_more() {
    const EVENT: &str = r#"{"event": "X", "data": {"actual": 1}}"#;
    const COUNT: usize = 1000;
    let (_directory, path) = serve(move |mut stream| {
        let kept = format!(r#"{GREETING}{{"event": "KEPT"}}{{"return": {{}}, "id": 1}}"#);
        stream.get_mut().write_all(kept.as_bytes()).unwrap();
        assert!(stream.read_line(&mut String::new()).unwrap() > 0);
        let late = r#"{"return": {}, "id": 77}"#;
        stream.get_mut().write_all(format!("{late}{}", EVENT.repeat(COUNT)).as_bytes()).unwrap();
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let mut rounds = 0;
    let mut names = Vec::new();
    let error = loop {
        match client.events_at_hand() {
            Ok(events) => {
                rounds += usize::from(!events.is_empty());
                names.extend(events.into_iter().map(|event| event.name));
            }
            Err(error) => break error,
        }
        std::thread::yield_now();
    };
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
    assert_eq!((names[0].as_str(), names.len()), ("KEPT", COUNT + 1));
    assert!(names[1..].iter().all(|name| name == "X"));
    // It would be three or fewer if one call read on for as long as there is something.
    assert!(rounds > COUNT * EVENT.len() / 4096, "{rounds} rounds");
}

#[test]
fn events_before_something_bad_come_before_the_error() {
    for (bad, words) in [
        ("", "the connection ended"),
        ("}", "not JSON"),
        (r#"["X", null, 1, {}, null]"#, r#"["X",null"#),
        (r#"{"event": 5}"#, r#"{"event":5}"#),
        (r#"{"id": 7, "error": "x"}"#, r#""error":"x""#),
    ] {
        let (_directory, path) = serve(move |mut stream| {
            let said = format!(r#"{GREETING}{{"return": {{}}, "id": 1}}"#);
            stream.get_mut().write_all(said.as_bytes()).unwrap();
            assert!(stream.read_line(&mut String::new()).unwrap() > 0);
            let said = format!(r#"{{"event": "LAST"}}{bad}"#);
            stream.get_mut().write_all(said.as_bytes()).unwrap();
        });
        let mut client = Client::connect(&path, PATIENCE).unwrap();
        let mut names = Vec::new();
        let error = loop {
            match client.events_at_hand() {
                Ok(events) => names.extend(events.into_iter().map(|event| event.name)),
                Err(error) => break error,
            }
            std::thread::yield_now();
        };
        assert_eq!(names, ["LAST"], "{bad}");
        assert!(error.to_string().contains(words), "{bad}: {error}");
    }
}

#[test]
fn a_server_that_only_sends_events_is_given_up_in_time() {
    let flood = |after: &'static str| {
        serve(move |mut stream| {
            stream.get_mut().write_all(GREETING.as_bytes()).unwrap();
            stream.get_mut().write_all(after.as_bytes()).unwrap();
            let events = r#"{"event": "X"}{"return": {}, "id": 77}"#.repeat(1000);
            while stream.get_mut().write_all(events.as_bytes()).is_ok() {}
        })
    };
    let (_directory, path) = flood("");
    let error = Client::connect(&path, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    let (_directory, path) = flood(r#"{"return": {}, "id": 1}"#);
    let mut client = Client::connect(&path, Duration::from_millis(300)).unwrap();
    let error = client.run(&qapi::query_status {}).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[test]
fn blanks_without_end_are_no_answer() {
    let (_directory, path) = serve(|stream| {
        // Two, so that there is always something to read.
        for _ in 0..2 {
            let mut stream = stream.get_ref().try_clone().unwrap();
            thread::spawn(move || while stream.write_all(&[b' '; 100_000]).is_ok() {});
        }
        keep_open(stream);
    });
    let begin = Instant::now();
    let error = Client::connect_limited(&path, IMPATIENCE, 1 << 16).unwrap_err();
    assert!(matches!(error, ClientError::NoGreeting { .. }), "{error}");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}

#[test]
fn a_server_that_answers_what_nobody_asked_is_given_up() {
    let (_directory, path) = serve(|mut stream| {
        stream.get_mut().write_all(GREETING.as_bytes()).unwrap();
        let answers = r#"{"return": {}, "id": 1}"#.repeat(5000);
        stream.get_mut().write_all(answers.as_bytes()).unwrap();
        keep_open(stream);
    });
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let error = client.next_event(PATIENCE).unwrap_err();
    assert!(error.to_string().contains("nobody asked"), "{error}");
}

#[test]
fn a_silent_server_is_given_up() {
    let (_directory, path) = serve(keep_open);
    assert!(matches!(connect_error(&path), ClientError::NoGreeting { .. }));
}

/// Keeps the connection open until the process ends.
fn keep_open(stream: BufReader<UnixStream>) {
    std::mem::forget(stream);
}

#[test]
fn a_server_that_never_accepts_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(connect_error(&path), ClientError::NoGreeting { .. }));
}

#[test]
fn a_server_of_another_protocol_is_named_so() {
    for said in ["SSH-2.0-OpenSSH_9.2\r\n", "220 mail ready\n", "{\"jsonrpc\": \"2.0\"}\n"] {
        let (_directory, path) = serve(move |mut stream| {
            stream.get_mut().write_all(said.as_bytes()).unwrap();
            keep_open(stream);
        });
        let error = connect_error(&path);
        assert!(matches!(error, ClientError::NotQmp { .. }), "{said}: {error}");
    }
}

#[test]
fn a_server_that_hangs_up_is_noticed() {
    let (_directory, path) = script(&[GREETING, r#"{"return": {}, "id": 1}"#]);
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let error = client.run(&qapi::query_status {}).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error}");
}

#[test]
fn a_command_without_an_answer_times_out() {
    let (_directory, path) = serve(|mut stream| {
        stream.get_mut().write_all(GREETING.as_bytes()).unwrap();
        stream.get_mut().write_all(br#"{"return": {}, "id": 1}"#).unwrap();
        keep_open(stream);
    });
    let mut client = Client::connect(&path, Duration::from_secs(1)).unwrap();
    let error = client.run(&qapi::query_status {}).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    assert_eq!(client.next_event(IMPATIENCE).unwrap(), None);
}

#[test]
fn what_is_no_server_is_said_plainly() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing");
    assert!(matches!(connect_error(&path), ClientError::NoSocket { .. }));
    let path = directory.path().join("file");
    std::fs::write(&path, "").unwrap();
    assert!(matches!(connect_error(&path), ClientError::NotASocket { .. }));
    assert!(matches!(connect_error(directory.path()), ClientError::NotASocket { .. }));
    let path = directory.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(connect_error(&path), ClientError::NobodyListens { .. }));
    let path = directory.path().join("x".repeat(200));
    assert!(matches!(connect_error(&path), ClientError::PathLength { .. }));
    assert!(matches!(connect_error(Path::new("")), ClientError::PathLength { .. }));
}
