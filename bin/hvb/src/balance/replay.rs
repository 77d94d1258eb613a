//! `hvb balance replay`: the decisions of a recording once more.

use std::path::Path;

use anyhow::{Result, ensure};
use balance_host::{Order, Replay, Step};
use time::OffsetDateTime;

use super::file;
use crate::report;

/// Prints all orders, and whether they are those of then.
pub(super) fn run(recording: &Path, config: Option<&Path>) -> Result<()> {
    let other = config.map(file::read).transpose()?;
    let is_other = other.is_some();
    let mut replay = Replay::open(recording, other)?;
    let recorded_by = replay.recorded_by().to_owned();
    report::line(&format!("recorded by hvb {recorded_by} from {}", began(&replay)))?;
    let mut sums = Sums::default();
    let end = replay.by_ref().try_for_each(|step| {
        let step = step?;
        sums.add(&step);
        show(&step)
    });
    let text = sums.text(is_other);
    report::line(&text)?;
    end?;
    if !replay.is_complete() {
        report::line(UNENDED)?;
    }
    let at = sums.first_different.filter(|_| !is_other).map(seconds);
    ensure!(
        at.is_none(),
        "{}: the decision at {} is not that of then: hvb {recorded_by} recorded it, and this is \
         another version of hvb",
        recording.display(),
        at.unwrap_or_default()
    );
    Ok(())
}

/// What is said of a recording that [`Replay::is_complete`] denies.
pub(super) const UNENDED: &str = "the recording has no end: the balancer still runs, or was \
                                  killed, or the file was cut off";

/// When a recording begins, for people.
pub(super) fn began<R>(replay: &Replay<R>) -> String
where
    R: std::io::Read,
{
    let seconds = i64::try_from(replay.began_unix_ms() / 1000).unwrap_or(i64::MAX);
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return "a time that no clock shows".to_owned();
    };
    let (hour, minute, second) = time.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", time.date())
}

#[derive(Default)]
struct Sums {
    decisions: u64,
    orders: usize,
    recorded: usize,
    different: usize,
    first_different: Option<u64>,
}

impl Sums {
    fn add(&mut self, step: &Step) {
        self.decisions += 1;
        self.orders += step.orders.len();
        self.recorded += step.recorded.len();
        self.different += pairs(step).filter(|(now, then)| now != then).count();
        if !step.is_same && self.first_different.is_none() {
            self.first_different = Some(step.at_ms);
        }
    }

    fn text(&self, is_other: bool) -> String {
        let Self { decisions, orders, recorded, different, first_different } = self;
        let head = format!("{decisions} decisions, {orders} orders");
        match first_different {
            None => format!("{head}, all as they were"),
            Some(_) if !is_other => format!("{head}; {recorded} were given then"),
            Some(at_ms) => format!(
                "{head}; {recorded} were given then, {different} are different, and the first \
                 different decision is at {}",
                seconds(*at_ms)
            ),
        }
    }
}

/// What each VM of either is told now, and was told then.
fn pairs(step: &Step) -> impl Iterator<Item = (Option<&Order>, Option<&Order>)> {
    let of = |orders: &'_ [Order], name: &str| orders.iter().position(|order| order.name == name);
    let now = step.orders.iter().map(move |now| {
        let then = of(&step.recorded, &now.name).and_then(|at| step.recorded.get(at));
        (Some(now), then)
    });
    let then = step.recorded.iter().filter(move |then| of(&step.orders, &then.name).is_none());
    now.chain(then.map(|then| (None, Some(then))))
}

fn show(step: &Step) -> Result<()> {
    for (now, then) in pairs(step) {
        let name = now.or(then).map_or("", |order| &order.name);
        let head = format!("{} {name}:", seconds(step.at_ms));
        report::line(&format!("{head} {}", now.map_or_else(|| "nothing".to_owned(), told)))?;
        if now != then {
            let then = then.map_or_else(|| "nothing".to_owned(), told);
            report::line(&format!("{:1$}then: {then}", "", head.chars().count() + 1))?;
        }
    }
    Ok(())
}

fn told(order: &Order) -> String {
    let Order { actual_kib, target_kib, reason, is_reminder, .. } = order;
    let (from, to) = (actual_kib / 1024, target_kib / 1024);
    let again = if *is_reminder { ", told again" } else { "" };
    format!("{from} to {to} MiB{again}: {reason}")
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}
