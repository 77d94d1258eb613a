//! `hvb balloon`: sets the memory of a running machine, and waits for the guest if asked to.

mod progress;
mod watch;

use crate::cli::BalloonArgs;
use crate::monitor::{connect, explain};
use crate::report;
use crate::size::human;
use anyhow::{Result, anyhow, bail};
use progress::Progress;
use qmp::{Client, ClientError, DynamicMemoryInfo, ReceivedEvent, XQueryDynamicMemory, qapi};
use std::path::Path;
use std::time::{Duration, Instant};
use watch::{Failure, Sample, Verdict, Watch};

/// Polling interval for the size. QEMU's hv-balloon sends no event when the size changes.
const POLL: Duration = Duration::from_millis(100);

/// Largest unit to which a device rounds a target up: the host's page size. A target that differs
/// by more was set by another client.
const PAGE_SIZES: [u64; 3] = [4 << 10, 2 << 20, 1 << 30];

/// Sets the size and waits if asked to.
pub(crate) fn run(args: &BalloonArgs) -> Result<()> {
    let mut client = connect(&args.socket)?;
    resize(&mut client, args)
}

fn resize(client: &mut Client, args: &BalloonArgs) -> Result<()> {
    let explained = |error| explain(&args.socket, error);
    let target = args.size.bytes();
    let start = actual(client).map_err(explained)?;
    let begun = Instant::now();
    // Every `ByteSize` fits.
    let value = i64::try_from(target).unwrap_or(i64::MAX);
    client.run(&qapi::balloon { value }).map_err(explained)?;
    if !args.wait {
        return report::line(&format!("target {} set, guest has {}", args.size, human(start)));
    }
    let mut watch = Watch::new(target, start, args.timeout);
    let mut progress = Progress::new(start, target)?;
    let end = follow(client, &args.socket, &mut watch, &mut progress, begun);
    progress.finish();
    let seconds = begun.elapsed().as_secs_f64();
    let reached = end?;
    report::line(&format!("{} (was {}) after {seconds:.1} s", human(reached), human(start)))
}

/// Waits until the guest has reached the size or cannot reach it. Returns the size.
fn follow(
    client: &mut Client,
    socket: &Path,
    watch: &mut Watch,
    progress: &mut Progress,
    begun: Instant,
) -> Result<u64> {
    let explained = |error| explain(socket, error);
    loop {
        let sample = sample(client, watch.target()).map_err(explained)?;
        let actual = sample.actual;
        progress.show(&sample)?;
        match watch.observe(begun.elapsed(), sample) {
            Verdict::Reached => return Ok(actual),
            Verdict::Moving => {}
            Verdict::Failed(why) => return Err(failure(why, socket, actual, watch)),
        }
        if let Some(event) = client.next_event(POLL).map_err(explained)? {
            heed(socket, &event)?;
        }
    }
}

/// The error for a guest of `actual` bytes that is not worth waiting for any longer.
fn failure(why: Failure, socket: &Path, actual: u64, watch: &Watch) -> anyhow::Error {
    let (socket, target) = (socket.display(), human(watch.target()));
    let distance = human(actual.abs_diff(watch.target()));
    let actual_is_above = actual > watch.target();
    let actual = human(actual);
    match why {
        Failure::Refused(reason) => {
            anyhow!("{socket}: the target of {target} is refused: {reason}")
        }
        Failure::Waiting(reason) => anyhow!(
            "{socket}: still at {actual} after {} s: {reason}; the target of {target} stands, and \
             the guest follows once it can",
            watch.patience().as_secs(),
        ),
        Failure::Unused(reason) => anyhow!("{socket}: the guest has {actual}, but {reason}"),
        Failure::Stuck(reason) => {
            // Reasons that keep a guest from growing, and faults of the host, name their own
            // remedy.
            let side = if actual_is_above { "above" } else { "below" };
            let remedy = match actual_is_above && !reason.contains(';') {
                true => "; free memory in the guest or ask for more",
                false => "",
            };
            anyhow!(
                "{socket}: stopped at {actual}, {distance} {side} the target of {target}: \
                 {reason}{remedy}"
            )
        }
    }
}

/// Gives up if an event shows that waiting is pointless.
fn heed(socket: &Path, event: &ReceivedEvent) -> Result<()> {
    if event.name == "SHUTDOWN" {
        bail!("{}: the virtual machine has shut down", socket.display());
    }
    Ok(())
}

fn actual(client: &mut Client) -> Result<u64, ClientError> {
    // Less than nothing is nothing.
    Ok(u64::try_from(client.run(&qapi::query_balloon {})?.actual).unwrap_or(0))
}

fn sample(client: &mut Client, wanted: u64) -> Result<Sample, ClientError> {
    match client.run(&XQueryDynamicMemory {}) {
        Ok(status) => Ok(Sample::new(status, wanted)),
        // QEMU, or a machine that does not keep these figures.
        Err(ClientError::Command { .. } | ClientError::Answer { .. }) => {
            let actual = actual(client)?;
            Ok(Sample { actual, ..Sample::default() })
        }
        Err(error) => Err(error),
    }
}

/// Whether a device that was asked for `wanted` may have this target.
fn is_rounded(target: u64, wanted: u64) -> bool {
    let pages = wanted & !0xfff;
    PAGE_SIZES.iter().any(|&size| pages.checked_next_multiple_of(size) == Some(target))
}

/// The device's state name while pages are being returned.
const UNBALLOONING: &str = "unballooning";

impl Sample {
    fn new(status: DynamicMemoryInfo, wanted: u64) -> Self {
        // If another client has since set a different target, the figures do not concern ours.
        let is_ours = |&target: &u64| is_rounded(target, wanted);
        let target = status.target.filter(is_ours);
        // The current target was accepted, so any earlier refusal is stale.
        let refusal = status.last_refusal.filter(|_| target.is_none());
        Self {
            actual: status.actual,
            target,
            ready_in: status.ready_in_ms.map(Duration::from_millis),
            waiting: status.waiting,
            refused: refusal.filter(|it| is_ours(&it.target)).map(|it| it.reason),
            stopped: status.stopped.filter(|_| target.is_some()),
            unconfirmed: status.state == UNBALLOONING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmp::Refusal;

    const WANTED: u64 = 4 << 30;

    fn books(target: Option<u64>, refused: u64) -> DynamicMemoryInfo {
        DynamicMemoryInfo {
            target,
            stopped: Some("stop".to_owned()),
            last_refusal: Some(Refusal { target: refused, reason: "no".to_owned() }),
            ..DynamicMemoryInfo::default()
        }
    }

    #[test]
    fn only_what_is_said_of_our_target_counts() {
        for (wanted, target) in [
            (WANTED, WANTED),
            (WANTED + 100, WANTED),
            (WANTED + 4096, WANTED + (2 << 20)),
            (WANTED + 4096, WANTED + (1 << 30)),
        ] {
            let ours = Sample::new(books(Some(target), wanted), wanted);
            assert_eq!((ours.target, ours.refused), (Some(target), None));
            assert!(ours.stopped.is_some());
        }
        let anothers = Sample::new(books(Some(1 << 30), 1 << 40), WANTED);
        assert_eq!((anothers.target, anothers.refused, anothers.stopped), (None, None, None));
    }

    #[test]
    fn a_refusal_counts_unless_the_target_is_held() {
        for held in [None, Some(1 << 30)] {
            let sample = Sample::new(books(held, WANTED), WANTED);
            assert_eq!(sample.refused.as_deref(), Some("no"));
        }
    }
}
