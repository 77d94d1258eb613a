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
use watch::{Sample, Verdict, Watch};

/// How often the size is asked for. QEMU's hv-balloon sends no event when it changes.
const POLL: Duration = Duration::from_millis(100);

/// The most a device rounds a target by; more, and the target is another client's.
const MAX_ROUNDING: u64 = 2 << 20;

/// Sets the size, and waits.
pub(crate) fn run(args: &BalloonArgs) -> Result<()> {
    let mut client = connect(&args.socket)?;
    resize(&mut client, args)
}

fn resize(client: &mut Client, args: &BalloonArgs) -> Result<()> {
    let explained = |error| explain(&args.socket, error);
    let target = args.size.bytes();
    let start = actual(client).map_err(explained)?;
    let begun = Instant::now();
    // A size fits, see `ByteSize`.
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

/// Waits until the guest has the size, or will not have it. Returns the size.
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
            Verdict::Stuck(reason) => return Err(short(socket, actual, watch.target(), &reason)),
        }
        if let Some(event) = client.next_event(POLL).map_err(explained)? {
            heed(socket, &event)?;
        }
    }
}

/// The failure of a guest that stays at `actual` bytes.
fn short(socket: &Path, actual: u64, target: u64, reason: &str) -> anyhow::Error {
    let (side, remedy) = if actual > target {
        ("above", "free memory in the guest or ask for more")
    } else {
        ("below", "check the guest's kernel log or ask for less")
    };
    anyhow!(
        "{}: stopped at {}, {} {side} the target of {}: {reason}; {remedy}",
        socket.display(),
        human(actual),
        human(actual.abs_diff(target)),
        human(target),
    )
}

/// Gives up where an event says that waiting is pointless.
fn heed(socket: &Path, event: &ReceivedEvent) -> Result<()> {
    if event.name == "SHUTDOWN" {
        bail!("{}: the virtual machine has shut down", socket.display());
    }
    Ok(())
}

fn actual(client: &mut Client) -> Result<u64, ClientError> {
    Ok(client.run(&qapi::query_balloon {})?.actual.unsigned_abs())
}

fn sample(client: &mut Client, wanted: u64) -> Result<Sample, ClientError> {
    match client.run(&XQueryDynamicMemory {}) {
        Ok(status) => Ok(Sample::new(status, wanted)),
        // QEMU, or a machine without the books.
        Err(ClientError::Command { .. } | ClientError::Answer { .. }) => {
            let actual = actual(client)?;
            Ok(Sample { actual, ..Sample::default() })
        }
        Err(error) => Err(error),
    }
}

impl Sample {
    fn new(status: DynamicMemoryInfo, wanted: u64) -> Self {
        // Where another client has set another target since, its books are not about ours.
        let target = status.target.filter(|target| target.abs_diff(wanted) < MAX_ROUNDING);
        Self {
            actual: status.actual,
            target,
            ready_in: status.ready_in_ms.map(Duration::from_millis),
            stopped: status.stopped.filter(|_| target.is_some()),
        }
    }
}
