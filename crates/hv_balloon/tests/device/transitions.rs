//! Every state against every event. The whole table is in `transitions.txt`.

use std::fmt::Write;
use std::time::Duration;

use dynmem_protocol::*;
use hv_balloon::{Action, Event, Job, Notice, Settle, StateName, Task};

use crate::driver::*;

const TABLE: &str = include_str!("transitions.txt");

/// A device in the given state. From `Idle` on, its guest has 8192 pages minus those it gave.
fn in_state(state: StateName) -> Driver {
    let mut driver = Driver::new(Settle::Fixed(Duration::from_secs(50)), true);
    match state {
        StateName::Closed => {}
        StateName::Closing => {
            driver = Driver::ready();
            driver.set_target(4096);
            driver.give(&[range(0, 512)], true);
            driver.handle(Event::ChannelClosed);
        }
        StateName::AwaitVersion => {
            driver.handle(Event::ChannelOpened { guest_os_id: 0, is_reopened: false })
        }
        StateName::AwaitCaps => {
            driver.handle(Event::ChannelOpened { guest_os_id: 0, is_reopened: false });
            driver.packet(&version_request(Version::V2_0));
        }
        StateName::Settling => driver.shake_hands(),
        StateName::Idle => driver = Driver::ready(),
        StateName::Pausing => {
            driver = Driver::ready();
            driver.set_target(4096);
            driver.give(&[range(0, 512)], false);
            driver.finish_discards();
        }
        StateName::Ballooning => {
            driver = Driver::ready();
            driver.set_target(4096);
        }
        StateName::Unballooning => {
            driver = Driver::with_ballooned(4096);
            driver.set_target(8192);
        }
        StateName::Preparing => {
            driver = Driver::growable();
            driver.set_target(RAM_PAGES + 512);
        }
        StateName::HotAdding => {
            driver = Driver::growable();
            driver.set_target(RAM_PAGES + 512);
            driver.prepared(true);
        }
    }
    assert_eq!(driver.state(), state);
    driver.drain();
    driver
}

/// Applies an event to a driver.
type Effect = Box<dyn Fn(&mut Driver)>;

/// The events by name.
fn events() -> Vec<(&'static str, Effect)> {
    fn packet(bytes: Vec<u8>) -> Effect {
        Box::new(move |driver| step(driver, Event::Packet(&bytes)))
    }
    fn event(event: Event<'static>) -> Effect {
        Box::new(move |driver| step(driver, event))
    }
    fn target(target: u64) -> Effect {
        Box::new(move |driver| {
            // The table shows a refusal as an unchanged state.
            let _ = driver.device.set_target(driver.now, pages(target));
        })
    }
    fn inhibited(inhibited: bool) -> Effect {
        Box::new(move |driver| driver.device.set_inhibited(driver.now, inhibited))
    }
    let added = HotAddResponse { pages: pages(512), result: HotAddResult::SUCCESS };
    let refused = HotAddResponse { pages: pages(0), result: HotAddResult::FAILURE };
    vec![
        ("opened", event(Event::ChannelOpened { guest_os_id: 0, is_reopened: false })),
        ("closed", event(Event::ChannelClosed)),
        ("system reset", event(Event::SystemReset)),
        ("version 2.0", packet(version_request(Version::V2_0))),
        ("version 0.7", packet(version_request(Version::from_wire(7)))),
        ("capabilities", packet(capabilities_report(Capabilities::BALLOON))),
        ("status report", packet(StatusReport::default().emit(1))),
        ("balloon response, 512 pages", packet(given(&[range(1024, 512)], false))),
        ("balloon response, 512 pages, more", packet(given(&[range(1024, 512)], true))),
        ("balloon response, empty", packet(given(&[], false))),
        ("unballoon response", packet(UnballoonResponse.emit(1))),
        ("hot-add response, 512 pages", packet(added.emit(1))),
        ("hot-add response, none", packet(refused.emit(1))),
        ("hot-remove response", packet(HotRemoveResponse::emit(1, 0, false, &list(&[])))),
        ("no message", packet(vec![1, 2, 3])),
        ("sent", event(Event::Sent)),
        ("target 2048", target(2048)),
        ("target 8192", target(8192)),
        ("target 0", target(0)),
        ("target 8704", target(8704)),
        ("inhibited", inhibited(true)),
        ("job done", Box::new(|driver| finish_or_stray(driver, true))),
        ("job failed", Box::new(|driver| finish_or_stray(driver, false))),
        (
            "deadline",
            Box::new(|driver| {
                driver.now += Duration::from_secs(3600);
                step(driver, Event::Deadline);
            }),
        ),
    ]
}

fn given(ranges: &[page_range::PageRange], more_pages: bool) -> Vec<u8> {
    BalloonResponse::emit(1, more_pages, &list(ranges))
}

/// Handles one event. Leaves its actions for [`row`] to read, and does not report the message as
/// sent.
fn step(driver: &mut Driver, event: Event<'_>) {
    driver.device.handle(driver.now, event);
}

/// Ends the job in flight, or reports one that was never begun.
fn finish_or_stray(driver: &mut Driver, ok: bool) {
    let stray = {
        let mut other = Driver::ready();
        other.give(&[range(0, 1)], false);
        other.discards[0].0
    };
    let discard = driver.discards.front().map(|(id, _)| *id);
    let preparation = driver.preparing.front().map(|(id, _)| *id);
    let id = discard.or(preparation).unwrap_or(stray);
    step(driver, Event::JobDone { id, ok });
}

fn describe(action: &Action, message: Option<&[u8]>) -> String {
    match action {
        Action::Send => match HostMessage::parse(message.unwrap()).unwrap().body {
            HostBody::BalloonRequest(request) => format!("send balloon {}", request.pages),
            HostBody::UnballoonRequest(request) => {
                format!("send unballoon {} ranges", request.ranges.len())
            }
            HostBody::VersionResponse(response) => {
                format!("send version {}", if response.is_accepted { "yes" } else { "no" })
            }
            HostBody::CapabilitiesResponse(_) => "send capabilities".into(),
            HostBody::HotAddRequest(request) => {
                format!("send hot-add {}", request.range.range().unwrap())
            }
            other => format!("send {other:?}"),
        },
        Action::Work(Job { task: Task::Discard(ranges), .. }) => format!("discard {ranges:?}"),
        Action::Work(Job { task: Task::Prepare(what), .. }) => format!("prepare {what:?}"),
        Action::Work(Job { task: Task::Remove(range), .. }) => format!("remove {range}"),
        Action::CloseFinished => "close finished".into(),
        Action::Notify(Notice::Fault(fault)) => format!("fault: {fault}"),
        Action::Notify(Notice::StatusReport(_)) => "status report".into(),
        Action::Notify(notice) => format!("{notice:?}"),
    }
}

fn row(state: StateName, name: &str, event: &dyn Fn(&mut Driver)) -> String {
    let mut driver = in_state(state);
    event(&mut driver);
    let mut actions = Vec::new();
    while let Some(action) = driver.device.poll_action() {
        actions.push(describe(&action, driver.device.message()));
    }
    format!("{state} + {name} = {}; {}", driver.state(), actions.join(", "))
        .trim_end_matches("; ")
        .into()
}

#[test]
fn every_state_and_event_give_what_the_table_says() {
    let events = events();
    let mut table = String::new();
    for state in StateName::ALL {
        for (name, event) in &events {
            writeln!(table, "{}", row(state, name, event)).unwrap();
        }
    }
    let differing: Vec<(&str, &str)> =
        table.lines().zip(TABLE.lines()).filter(|(now, then)| now != then).collect();
    assert!(table == TABLE, "rows (now, in transitions.txt): {differing:#?}\nnow:\n{table}");
}
