//! Events that arrived while a client waited for something else.

use std::collections::VecDeque;

use crate::client::ReceivedEvent;

/// The most events kept until they are asked for; the oldest are dropped first.
const MAX_EVENTS: usize = 512;

/// The longest event kept, in bytes of its text; QEMU's longest have a few hundred. The server may be
/// anyone's and must not fill this process's memory.
const MAX_EVENT_BYTES: usize = 16 << 10;

/// The most bytes of text that all kept events have.
const MAX_BYTES: usize = 256 << 10;

/// Events, kept as text: a value takes up to a hundred times as much memory.
#[derive(Debug, Default)]
pub(crate) struct KeptEvents {
    events: VecDeque<Kept>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    name: String,
    data: String,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.name.len() + self.data.len()
    }
}

impl KeptEvents {
    /// Keeps an event, unless it is very long.
    pub(crate) fn keep(&mut self, event: ReceivedEvent) {
        let kept = Kept { name: event.name, data: event.data.to_string() };
        if kept.bytes() > MAX_EVENT_BYTES {
            return;
        }
        self.bytes += kept.bytes();
        self.events.push_back(kept);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.pop_kept();
        }
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<ReceivedEvent> {
        let Kept { name, data } = self.pop_kept()?;
        // The text is that of a value.
        Some(ReceivedEvent { name, data: serde_json::from_str(&data).unwrap_or_default() })
    }

    fn pop_kept(&mut self) -> Option<Kept> {
        let kept = self.events.pop_front()?;
        self.bytes -= kept.bytes();
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(number: usize, data: Value) -> ReceivedEvent {
        ReceivedEvent { name: number.to_string(), data }
    }

    fn rest(mut kept: KeptEvents) -> Vec<ReceivedEvent> {
        let rest: Vec<_> = std::iter::from_fn(|| kept.pop()).collect();
        assert_eq!(kept.bytes, 0);
        rest
    }

    #[test]
    fn events_come_back_as_they_were_and_in_their_order() {
        let events = [event(1, json!({ "actual": 5, "x": [null, "y"] })), event(2, Value::Null)];
        let mut kept = KeptEvents::default();
        events.iter().for_each(|event| kept.keep(event.clone()));
        assert_eq!(rest(kept), events);
    }

    #[test]
    fn the_newest_are_kept_within_a_number_and_a_size() {
        let mut kept = KeptEvents::default();
        (0..MAX_EVENTS + 3).for_each(|number| kept.keep(event(number, Value::Null)));
        let names: Vec<_> = rest(kept).into_iter().map(|event| event.name).collect();
        assert_eq!((names.len(), names[0].as_str()), (MAX_EVENTS, "3"));

        let mut kept = KeptEvents::default();
        let long = json!("x".repeat(MAX_EVENT_BYTES / 2));
        for number in 0..100 {
            kept.keep(event(number, long.clone()));
            assert!(kept.bytes <= MAX_BYTES);
        }
        kept.keep(event(100, json!("x".repeat(MAX_EVENT_BYTES))));
        assert_eq!(rest(kept).last(), Some(&event(99, long)), "too long to be kept");
    }
}
