//! `hvb balloon` against a monitor with a make-believe guest.

use crate::common::{self, Guest, Monitor, hvb, stderr, stdout};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const MIB: u64 = 1 << 20;

#[test]
fn without_wait_the_target_is_set_and_the_command_returns() {
    let monitor = Monitor::start(Guest::new(1024 * MIB));
    let output = hvb(&["balloon", monitor.path(), "512M"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output), "target 512 MiB set, guest has 1 GiB\n");
    assert_eq!(monitor.guest.target(), 512 * MIB);
}

#[test]
fn with_wait_the_last_line_tells_both_sizes() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).with_step(100 * MIB));
    for (size, from, to) in [("512M", "1 GiB", "512 MiB"), ("1G", "512 MiB", "1 GiB")] {
        let output = hvb(&["balloon", monitor.path(), size, "--wait"]);
        assert!(output.status.success(), "{output:?}");
        let text = stdout(&output);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.first(), Some(&&*format!("{from} → {to}")));
        assert!(lines.last().unwrap().starts_with(&format!("{to} (was {from}) after ")), "{text}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn a_size_the_guest_already_has_is_reached_at_once() {
    let monitor = Monitor::start(Guest::new(1024 * MIB));
    let output = hvb(&["balloon", monitor.path(), "1G", "--wait"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_monitor_with_only_qemus_commands_is_enough() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).with_step(256 * MIB).without_status());
    let output = hvb(&["balloon", monitor.path(), "512M", "--wait"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_guest_that_says_it_stopped_fails_the_command_at_once() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).with_step(256 * MIB).with_floor(300 * MIB));
    let output = hvb(&["balloon", monitor.path(), "128M", "--wait", "--timeout", "600"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!(
            "hvb: {}: stopped at 300 MiB, 172 MiB above the target of 128 MiB: \
             no more to give; free memory in the guest or ask for more\n",
            monitor.path()
        )
    );
    assert_eq!(monitor.guest.target(), 128 * MIB, "the target stays");
}

#[test]
fn a_guest_that_silently_stays_fails_the_command_in_time() {
    let guest = Guest::new(1024 * MIB).with_step(256 * MIB).with_floor(300 * MIB).without_status();
    let monitor = Monitor::start(guest);
    let output = hvb(&["balloon", monitor.path(), "128M", "--wait", "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("stopped at 300 MiB"), "{output:?}");
    assert!(stderr(&output).contains("no progress for 1 s"), "{output:?}");
}

#[test]
fn a_refused_target_is_told_with_its_reason() {
    let monitor = Monitor::start(Guest::new(1024 * MIB));
    let output = hvb(&["balloon", monitor.path(), "4G", "--wait"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("hvb: {}: balloon: more than the guest has\n", monitor.path());
    assert_eq!(stderr(&output), expected);
}

#[test]
fn a_target_refused_later_ends_the_wait() {
    let monitor = Monitor::start(Guest::new(1536 * MIB).that_refuses_late());
    let output = hvb(&["balloon", monitor.path(), "512M", "--wait", "--timeout", "600"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!(
            "hvb: {}: the target of 512 MiB is refused: the guest cannot balloon\n",
            monitor.path()
        )
    );
}

#[test]
fn a_device_that_waits_is_asked_why() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).that_waits("the guest has no driver"));
    let output = hvb(&["balloon", monitor.path(), "512M", "--wait", "--timeout", "2"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("1 GiB, waiting: the guest has no driver\n"), "{text}");
    assert_eq!(
        stderr(&output),
        format!(
            "hvb: {}: still at 1 GiB after 2 s: the guest has no driver; the target of 512 MiB \
             stands, and the guest follows once it can\n",
            monitor.path()
        )
    );
    assert_eq!(monitor.guest.target(), 512 * MIB, "the target stays");
}

#[test]
fn a_guest_without_driver_is_explained() {
    let monitor = Monitor::start(Guest::new(0));
    let output = hvb(&["balloon", monitor.path(), "512M"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No balloon device has been activated"), "{output:?}");
    assert!(stderr(&output).contains("guest's kernel log"), "{output:?}");
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn a_machine_that_ends_ends_the_wait() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).with_floor(1024 * MIB).without_status());
    let command = common::command(&["balloon", monitor.path(), "512M", "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while monitor.guest.target() != 512 * MIB {
        std::thread::yield_now();
    }
    drop(monitor);
    let output = command.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("has shut down") || text.contains("has gone"), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn a_reader_that_goes_away_does_not_stop_the_resize() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).with_step(256 * MIB));
    let mut command = common::command(&["balloon", monitor.path(), "512M", "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(command.stdout.take());
    let output = command.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "");
}

/// Whoever waits may be killed at any moment; the machine goes on with what it was told.
#[test]
fn a_command_that_is_killed_while_it_waits_leaves_its_target_and_nothing_else() {
    let monitor = Monitor::start(Guest::new(1024 * MIB).that_waits("it is starting"));
    // More than there may be clients at a time.
    for _ in 0..20 {
        let mut waiting = common::command(&["balloon", monitor.path(), "512M", "--wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It has set its target by the time it says where it goes.
        let mut route = String::new();
        let stdout = waiting.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut route).unwrap();
        assert_eq!(route, "1 GiB → 512 MiB\n");
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        assert_eq!(monitor.guest.target(), 512 * MIB);
    }
    let output = hvb(&["balloon", monitor.path(), "768M"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(monitor.guest.target(), 768 * MIB);
}

#[test]
fn what_failed_on_the_host_is_not_blamed_on_the_guest() {
    let guest = Guest::new(1024 * MIB).with_floor(300 * MIB).that_stops("no memory; make room");
    let monitor = Monitor::start(guest);
    let output = hvb(&["balloon", monitor.path(), "128M", "--wait"]);
    let expected = "above the target of 128 MiB: no memory; make room\n";
    assert!(stderr(&output).ends_with(expected), "{output:?}");
}
