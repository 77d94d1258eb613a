//! One client's unsent output: a bounded queue between the producers of messages and the thread
//! that writes to the socket.

use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The most unsent output kept for one client, in bytes; about 2,000 events. A single answer may be
/// longer if nothing else is queued.
pub const MAX_UNSENT_BYTES: usize = 256 * 1024;

/// The queue. Answers wait for room, events never wait.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Whether the client has negotiated: it gets no events before that.
    wants_events: bool,
    end: End,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// Set for events of which only the newest counts.
    replaceable: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Nothing more comes in; what is queued still goes out.
    Finishing,
    /// Nothing more goes out.
    Closed,
}

/// The outcome of queueing an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It will be sent, or the client does not want it.
    Done,
    /// The queue is full. The outbox is now closed, and the caller must close the connection.
    Overflow,
}

impl Outbox {
    /// Queues an answer (or the greeting) and waits for room, since the client must read it before
    /// its next command is looked at. After this line the client receives events if `wants_events`.
    /// Returns false if the outbox is closed.
    pub(crate) fn push_answer(&self, value: &Value, wants_events: bool) -> bool {
        let text = line(value);
        let full = |s: &mut State| {
            s.end == End::Open && s.bytes > 0 && s.bytes + text.len() > MAX_UNSENT_BYTES
        };
        let mut state =
            self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.end != End::Open {
            return false;
        }
        state.wants_events = wants_events;
        state.push(Line { text, replaceable: None });
        self.changed.notify_all();
        true
    }

    /// Queues an event if the client wants events. `replaceable` names its kind if only the newest
    /// of that kind counts.
    pub(crate) fn push_event(&self, value: &Value, replaceable: Option<&'static str>) -> Queued {
        let mut state = self.lock();
        if state.end != End::Open || !state.wants_events {
            return Queued::Done;
        }
        if replaceable.is_some() {
            state.remove(replaceable);
        }
        let text = line(value);
        if state.bytes + text.len() > MAX_UNSENT_BYTES {
            state.close();
            self.changed.notify_all();
            return Queued::Overflow;
        }
        state.push(Line { text, replaceable });
        self.changed.notify_all();
        Queued::Done
    }

    /// Waits for the next line to write; `None` when there will be no more.
    pub(crate) fn next_line(&self) -> Option<Vec<u8>> {
        let empty = |s: &mut State| s.end == End::Open && s.lines.is_empty();
        let mut state =
            self.changed.wait_while(self.lock(), empty).unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front()?;
        state.bytes -= line.text.len();
        self.changed.notify_all();
        Some(line.text)
    }

    /// Accepts nothing more. Queued lines can still be taken out.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.end = End::Finishing;
        }
        self.changed.notify_all();
    }

    /// Drops what is queued and accepts nothing more.
    pub(crate) fn close(&self) {
        self.lock().close();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }

    /// Removes the unsent event of this kind; there is at most one.
    fn remove(&mut self, kind: Option<&'static str>) {
        if let Some(at) = self.lines.iter().position(|line| line.replaceable == kind) {
            self.bytes -= self.lines.remove(at).map_or(0, |line| line.text.len());
        }
    }

    fn close(&mut self) {
        self.end = End::Closed;
        self.lines.clear();
        self.bytes = 0;
    }
}

/// A message as it goes over the wire. QEMU ends its lines with CR LF.
fn line(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn open() -> Outbox {
        let outbox = Outbox::default();
        assert!(outbox.push_answer(&json!("hello"), true));
        assert_eq!(outbox.next_line().as_deref(), Some(&b"\"hello\"\r\n"[..]));
        outbox
    }

    fn rest(outbox: &Outbox) -> Vec<String> {
        outbox.finish();
        std::iter::from_fn(|| outbox.next_line())
            .map(|text| String::from_utf8(text).unwrap().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn lines_leave_in_order() {
        let outbox = open();
        outbox.push_event(&json!(1), None);
        outbox.push_answer(&json!(2), true);
        outbox.push_event(&json!(3), None);
        assert_eq!(rest(&outbox), ["1", "2", "3"]);
    }

    #[test]
    fn before_negotiation_there_are_no_events() {
        let outbox = Outbox::default();
        outbox.push_answer(&json!("greeting"), false);
        assert_eq!(outbox.push_event(&json!(1), None), Queued::Done);
        outbox.push_answer(&json!("ok"), true);
        outbox.push_event(&json!(2), None);
        assert_eq!(rest(&outbox), ["\"greeting\"", "\"ok\"", "2"]);
    }

    #[test]
    fn a_newer_state_replaces_an_unsent_older_one() {
        let outbox = open();
        for size in 0..100_000 {
            assert_eq!(outbox.push_event(&json!(size), Some("SIZE")), Queued::Done);
        }
        outbox.push_event(&json!("other"), None);
        assert_eq!(rest(&outbox), ["99999", "\"other\""]);
    }

    #[test]
    fn too_many_events_close_the_outbox() {
        let outbox = open();
        let event = json!("x".repeat(1000));
        let fitting = MAX_UNSENT_BYTES / 1004;
        let results: Vec<_> = (0..=fitting).map(|_| outbox.push_event(&event, None)).collect();
        let (last, before) = results.split_last().unwrap();
        assert!(before.iter().all(|&queued| queued == Queued::Done));
        assert_eq!(*last, Queued::Overflow);
        assert_eq!(outbox.next_line(), None);
        assert!(!outbox.push_answer(&json!(1), true));
    }

    #[test]
    fn an_answer_waits_for_room_and_close_ends_the_wait() {
        let outbox = open();
        let big = json!("x".repeat(MAX_UNSENT_BYTES * 2));
        assert!(outbox.push_answer(&big, true), "nothing else waits");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.push_answer(&json!(1), true));
            assert!(outbox.next_line().is_some());
            assert!(waiting.join().unwrap());
            outbox.push_answer(&json!(2), true);
            outbox.next_line();
            outbox.next_line();
            outbox.push_answer(&big, true);
            let waiting = scope.spawn(|| outbox.push_answer(&json!(3), true));
            outbox.close();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn after_finish_nothing_comes_in_and_the_rest_goes_out() {
        let outbox = open();
        outbox.push_answer(&json!(1), true);
        outbox.finish();
        assert!(!outbox.push_answer(&json!(2), true));
        assert_eq!(rest(&outbox), ["1"]);
    }
}
