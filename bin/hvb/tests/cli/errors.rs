//! What goes wrong is told in one line that names the thing, with status 1, or 2 for the command
//! line itself.

use crate::common::{self, Guest, Monitor, hvb, stderr, stdout};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::Output;
use std::thread;

/// The one line on stderr of a command that ended with this status.
fn complaint(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("hvb: "), "{text}");
    assert_eq!(stdout(output), "");
    text
}

/// A server that greets one client with `said` and keeps the connection.
fn odd_server(said: &'static [u8]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The client may have gone already.
        let _ = stream.write_all(said);
        std::mem::forget(stream);
    });
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn sizes_are_checked_before_anything_is_done() {
    for size in ["12Q", "", "0", "1.5", "9999999999999G", "-5"] {
        let text = complaint(&hvb(&["balloon", "/nonexistent", "--", size]), 2);
        assert!(text.contains(&format!("invalid size '{size}': ")), "{text}");
    }
    let text = complaint(&hvb(&["balloon", "/nonexistent", "12Q"]), 2);
    assert!(text.contains("for example 512M or 4G"), "{text}");
}

#[test]
fn options_of_run_are_checked() {
    let with = |name, value| complaint(&hvb(&["run", "--kernel", "k", name, value]), 2);
    assert!(with("--cpus", "0").contains("at least 1"));
    assert!(with("--memory", "12Q").contains("--memory <SIZE>: invalid size '12Q'"));
    assert!(with("--memory", "4097").contains("4096"));
    assert!(with("--settle", "soon").contains("auto or seconds"));
    assert!(with("--serial", "tcp:1").contains("stdio, file:PATH or none"));
    assert!(with("--hugepages", "3M").contains("2M"));
    assert!(with("--on-reset", "never").contains("keep-size"));
}

#[test]
fn sizes_that_do_not_go_together_are_told_with_a_remedy() {
    let run =
        |arguments: &[&str]| complaint(&hvb(&[&["run", "--kernel", "k"], arguments].concat()), 1);
    let text = run(&["--memory", "1G", "--max-memory", "512M"]);
    assert!(text.contains("--max-memory 512M is below --memory 1G"), "{text}");
    let text = run(&["--memory", "513M", "--hugepages", "2M"]);
    assert!(text.contains("give a size such as 514M"), "{text}");
}

#[test]
fn words_that_are_no_command_are_named() {
    assert!(complaint(&hvb(&["baloon"]), 2).contains("'baloon'"));
    assert!(complaint(&hvb(&["balloon"]), 2).contains("<VM>"));
    assert!(complaint(&hvb(&["run"]), 2).contains("--kernel <FILE>"));
    assert!(complaint(&hvb(&["info", "x", "--frobnicate"]), 2).contains("--frobnicate"));
}

#[test]
fn a_missing_socket_is_named() {
    for command in [&["info", "/nonexistent/qmp"][..], &["balloon", "/nonexistent/qmp", "1G"]] {
        let text = complaint(&hvb(command), 1);
        assert!(text.contains("/nonexistent/qmp: no such socket"), "{text}");
    }
}

#[test]
fn a_file_is_no_socket() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = complaint(&hvb(&["info", file.path().to_str().unwrap()]), 1);
    assert!(text.contains("not a socket"), "{text}");
}

#[test]
fn a_socket_nobody_listens_on_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let text = complaint(&hvb(&["info", path.to_str().unwrap()]), 1);
    assert!(text.contains("nobody listens"), "{text}");
}

#[test]
fn a_path_too_long_for_a_socket_is_explained() {
    let path = format!("/tmp/{}", "x".repeat(200));
    let text = complaint(&hvb(&["info", &path]), 1);
    assert!(text.contains("bytes long"), "{text}");
}

#[test]
fn a_socket_of_another_protocol_is_named_so() {
    for said in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"{\"hello\": 1}\n", b"\x00\x01\xff\x1b[2J"] {
        let (_directory, path) = odd_server(said);
        let text = complaint(&hvb(&["info", &path]), 1);
        assert!(text.contains("not a QMP socket"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
}

#[test]
fn a_server_that_talks_nonsense_after_the_greeting_is_given_up() {
    let (_directory, path) = odd_server(
        br#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, "package": ""},
            "capabilities": []}} {"return": {}, "id": 1} @@@"#,
    );
    let text = complaint(&hvb(&["balloon", &path, "1G", "--wait"]), 1);
    assert!(text.contains("not a QMP socket"), "{text}");
}

#[test]
fn a_bad_log_filter_is_named() {
    let output = common::command(&["info", "x"]).env("HVB_LOG", "a=b=c").output().unwrap();
    assert!(complaint(&output, 1).contains("HVB_LOG=a=b=c"));
}

#[test]
fn help_and_version_succeed() {
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["help", "balloon"]] {
        let output = hvb(arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(!stdout(&output).is_empty());
    }
    assert_eq!(hvb(&[]).status.code(), Some(2));
}

#[test]
fn info_shows_a_table() {
    let monitor = Monitor::start(Guest::new(1024 << 20));
    let output = hvb(&["info", monitor.path()]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    let column = "ballooned ".len();
    let value = |name: &str| {
        let line = text.lines().find(|line| line[..column].trim_end() == name);
        line.unwrap_or_else(|| panic!("no {name} in {text}"))[column..].to_owned()
    };
    assert_eq!(value("socket"), monitor.path());
    assert!(value("monitor").starts_with("hv-balloon "));
    assert_eq!(value("status"), "running");
    assert_eq!(value("memory"), "1 GiB");
    assert_eq!(value("target"), "1 GiB");
    assert_eq!(value("balloon"), "idle");
    assert_eq!(value("maximum"), "1 GiB");
    assert_eq!(value("boot"), "1 GiB");
    assert_eq!(value("hot-added"), "0 B");
    assert_eq!(value("ballooned"), "0 B");
    assert_eq!(value("protocol"), "2.0");
    assert_eq!(value("faults"), "3 floods");
}

#[test]
fn info_without_a_balloon_says_so_and_succeeds() {
    let monitor = Monitor::start(Guest::new(0).without_status());
    let output = hvb(&["info", monitor.path()]);
    assert!(output.status.success(), "{output:?}");
    let expected = "memory  unknown: No balloon device has been activated\n";
    assert!(stdout(&output).ends_with(expected), "{output:?}");
}

/// `hvb run` of a build without the device says so before it does anything.
#[cfg(not(feature = "hv-balloon"))]
#[test]
fn what_needs_the_device_is_told_where_it_was_left_out() {
    let options: [&[&str]; 3] =
        [&["--max-memory", "2G"], &["--status-report"], &["--on-reset", "keep-size"]];
    for option in options {
        let text = complaint(&hvb(&[&["run", "--kernel", "k"], option].concat()), 1);
        let [name, ..] = option else { unreachable!() };
        assert!(text.contains(name) && text.contains("the feature hv-balloon"), "{text}");
    }
}
