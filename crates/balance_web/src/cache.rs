//! What is served, made at most twice a second however many ask.

use std::time::{Duration, Instant};

use balance_host::{ActionStatus, Status, View};
use hyper::body::Bytes;
use serde::Serialize;

use crate::metrics::metrics;

/// Answers are at most this old.
const FRESH: Duration = Duration::from_millis(500);

/// Tells what is served.
pub trait Source {
    /// What is known of everything.
    fn status(&self) -> Status;

    /// What was done last, the newest first.
    fn actions(&self) -> Vec<ActionStatus>;
}

impl Source for View {
    fn status(&self) -> Status {
        Self::status(self)
    }

    fn actions(&self) -> Vec<ActionStatus> {
        Self::actions(self)
    }
}

/// The answer of `/api/v1/decisions`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Decisions<'a> {
    dry_run: bool,
    decisions: Vec<&'a ActionStatus>,
}

/// The newest answers.
pub(crate) struct Cache {
    source: Box<dyn Source>,
    made_at: Option<Instant>,
    status: Status,
    actions: Vec<ActionStatus>,
    vms: Option<Bytes>,
    metrics: Option<Bytes>,
    event: Option<Bytes>,
}

impl Cache {
    pub(crate) fn new(source: Box<dyn Source>) -> Self {
        Self {
            source,
            made_at: None,
            status: Status::default(),
            actions: Vec::new(),
            vms: None,
            metrics: None,
            event: None,
        }
    }

    fn refresh(&mut self, now: Instant) {
        if self.made_at.is_some_and(|made_at| now.duration_since(made_at) < FRESH) {
            return;
        }
        self.made_at = Some(now);
        (self.status, self.actions) = (self.source.status(), self.source.actions());
        (self.vms, self.metrics, self.event) = (None, None, None);
    }

    /// All machines and the host, as JSON.
    pub(crate) fn vms(&mut self, now: Instant) -> Bytes {
        self.refresh(now);
        let status = &self.status;
        self.vms.get_or_insert_with(|| json(status)).clone()
    }

    /// The actions with a greater number, as JSON.
    pub(crate) fn decisions(&mut self, now: Instant, after: u64) -> Bytes {
        self.refresh(now);
        let newer: Vec<&ActionStatus> =
            self.actions.iter().take_while(|action| action.number > after).collect();
        json(&Decisions { dry_run: self.status.dry_run, decisions: newer })
    }

    /// All metrics, as text.
    pub(crate) fn metrics(&mut self, now: Instant) -> Bytes {
        self.refresh(now);
        let status = &self.status;
        self.metrics.get_or_insert_with(|| metrics(status).into()).clone()
    }

    /// All machines and the host, as an event of a stream.
    pub(crate) fn event(&mut self, now: Instant) -> Bytes {
        let vms = self.vms(now);
        let event = || {
            // JSON has no line ends of its own.
            let parts: [&[u8]; 3] = [b"event: status\ndata: ", vms.trim_ascii(), b"\n\n"];
            parts.concat().into()
        };
        self.event.get_or_insert_with(event).clone()
    }
}

fn json(value: &impl Serialize) -> Bytes {
    // Names of fields are texts, so nothing in it is refused.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tests::Counted;
    use std::sync::atomic::Ordering;

    #[test]
    fn however_many_ask_the_balancer_is_looked_at_twice_a_second() {
        let source = Counted::default();
        let mut cache = Cache::new(Box::new(source.clone()));
        let begin = Instant::now();
        let mut answers = Vec::new();
        // A thousand clients in a second.
        for ms in 0..1000 {
            let now = begin + Duration::from_millis(ms);
            answers.push(cache.vms(now));
            cache.metrics(now);
            cache.event(now);
            cache.decisions(now, 0);
        }
        assert_eq!(source.looks.load(Ordering::Relaxed), 2);
        answers.dedup();
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        let mut cache = Cache::new(Box::new(Counted::default()));
        let event = cache.event(Instant::now());
        let text = std::str::from_utf8(&event).unwrap();
        assert!(text.starts_with("event: status\ndata: {") && text.ends_with("}\n\n"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
