//! `hvb stop`: asks the guest to shut down, and ends its machine if it does not.

use crate::cli::StopArgs;
use crate::monitor::{connect, explain};
use crate::report;
use anyhow::{Result, anyhow};
use qmp::{Client, ClientError, ReceivedEvent, Value, qapi};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit status if the machine was ended without its guest's consent.
const ENDED: u8 = 3;

/// How long the end of a machine may take that has announced it, or was told to end.
const LAST: Duration = Duration::from_secs(30);

/// Stops the machine. The exit status tells whether the guest shut down.
pub(crate) fn run(args: &StopArgs) -> Result<ExitCode> {
    let mut client = connect(&args.socket)?;
    let explained = |error| explain(&args.socket, error);
    let name = args.socket.display();
    let begun = Instant::now();
    let how = if args.timeout.is_zero() {
        "was ended without asking its guest".to_owned()
    } else {
        client.run(&qapi::system_powerdown {}).map_err(explained)?;
        match wait_for_end(&mut client, args.timeout).map_err(explained)? {
            Wait::Ended(End::Guest) => {
                let seconds = begun.elapsed().as_secs_f64();
                report::line(&format!("{name}: the guest shut down after {seconds:.1} s"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Wait::Ended(End::Other(reason)) => format!("was ended by another ({reason})"),
            Wait::Announced => return Err(is_still_there(args, &client)),
            Wait::Silence => {
                let seconds = args.timeout.as_secs();
                format!("was ended, since its guest did not shut down within {seconds} s")
            }
        }
    };
    // Without effect on a machine that has ended.
    if let Err(error) = client.run(&qapi::quit {})
        && !has_closed(&error)
    {
        return Err(explained(error));
    }
    if !matches!(wait_for_end(&mut client, LAST).map_err(explained)?, Wait::Ended(_)) {
        return Err(is_still_there(args, &client));
    }
    report::line(&format!("{name}: the machine {how}"))?;
    Ok(ExitCode::from(ENDED))
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its guest shut down.
    Guest,
    /// Somebody ended it; QEMU's word for what it was.
    Other(String),
}

fn is_still_there(args: &StopArgs, client: &Client) -> anyhow::Error {
    let process = client.server_process();
    let process = process.map_or_else(|| "its process".to_owned(), |id| format!("process {id}"));
    let (name, seconds) = (args.socket.display(), LAST.as_secs());
    anyhow!("{name}: the machine was to end, and is there after {seconds} s: kill {process}")
}

/// What came of waiting for the end of a machine.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// It has ended: its sockets and files are free again.
    Ended(End),
    /// It has announced its end, and is there after [`LAST`].
    Announced,
    /// It has not announced its end in time.
    Silence,
}

/// Waits until the machine has ended, if it announces that within `timeout`.
fn wait_for_end(client: &mut Client, timeout: Duration) -> Result<Wait, ClientError> {
    let mut deadline = Instant::now() + timeout;
    let mut end = None;
    loop {
        let event = client.next_event(deadline.saturating_duration_since(Instant::now()));
        let is_late = Instant::now() >= deadline;
        match event {
            Ok(Some(event)) if event.name == "SHUTDOWN" && end.is_none() => {
                end = Some(how(&event));
                deadline = Instant::now() + LAST;
            }
            Ok(Some(_)) if !is_late => {}
            Ok(_) => return Ok(if end.is_some() { Wait::Announced } else { Wait::Silence }),
            Err(error) if has_closed(&error) => {
                let other = || End::Other("the monitor closed".to_owned());
                return Ok(Wait::Ended(end.unwrap_or_else(other)));
            }
            Err(error) => return Err(error),
        }
    }
}

fn how(event: &ReceivedEvent) -> End {
    if event.data.get("guest").and_then(Value::as_bool) == Some(true) {
        return End::Guest;
    }
    let reason = event.data.get("reason").and_then(Value::as_str);
    End::Other(reason.unwrap_or("for no reason given").to_owned())
}

/// Whether the monitor has closed the connection.
const fn has_closed(error: &ClientError) -> bool {
    matches!(error, ClientError::Closed { .. } | ClientError::Io { .. })
}
