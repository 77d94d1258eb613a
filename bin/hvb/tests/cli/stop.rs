//! `hvb stop` against a monitor with a make-believe guest.

use crate::common::{Guest, Monitor, OnPowerdown, hvb, stderr, stdout};

fn monitor(on_powerdown: OnPowerdown) -> Monitor {
    Monitor::start(Guest::new(1 << 30).on_powerdown(on_powerdown))
}

#[test]
fn a_guest_that_shuts_down_is_told_by_text_and_status() {
    let monitor = monitor(OnPowerdown::ShutsDown);
    let output = hvb(&["stop", monitor.path()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = stdout(&output);
    assert!(text.starts_with(&format!("{}: the guest shut down after ", monitor.path())), "{text}");
    assert_eq!((stderr(&output).as_str(), monitor.guest.times_asked()), ("", 1));
}

#[test]
fn a_guest_that_does_not_is_ended_in_time_and_that_is_said() {
    let monitor = monitor(OnPowerdown::Ignores);
    let output = hvb(&["stop", monitor.path(), "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let expected = format!(
        "{}: the machine was ended, since its guest did not shut down within 1 s\n",
        monitor.path()
    );
    assert_eq!((stdout(&output), monitor.guest.times_asked()), (expected, 1));
}

#[test]
fn without_time_the_guest_is_not_asked() {
    let monitor = monitor(OnPowerdown::ShutsDown);
    let output = hvb(&["stop", monitor.path(), "--timeout", "0"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let expected = format!("{}: the machine was ended without asking its guest\n", monitor.path());
    assert_eq!((stdout(&output), monitor.guest.times_asked()), (expected, 0));
}

#[test]
fn a_guest_that_cannot_be_asked_runs_on() {
    let monitor = monitor(OnPowerdown::CannotBeAsked);
    let output = hvb(&["stop", monitor.path()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = format!("hvb: {}: system_powerdown: nobody to ask; try quit\n", monitor.path());
    assert_eq!(stderr(&output), expected);
    assert!(hvb(&["info", monitor.path()]).status.success(), "the machine is gone");
}
