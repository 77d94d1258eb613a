//! `hvb stop`: asks the guest to shut down, and ends its machine if it does not.

use crate::cli::StopArgs;
use crate::monitor::{connect, explain};
use crate::report;
use anyhow::{Result, bail};
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
            Some(End::Guest) => {
                let seconds = begun.elapsed().as_secs_f64();
                report::line(&format!("{name}: the guest shut down after {seconds:.1} s"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(End::Other(reason)) => format!("was ended by another ({reason})"),
            None => {
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
    if wait_for_end(&mut client, LAST).map_err(explained)?.is_none() {
        let process = client.server_process();
        let process =
            process.map_or_else(|| "its process".to_owned(), |id| format!("process {id}"));
        let seconds = LAST.as_secs();
        bail!(
            "{name}: the machine was told to end, and is there after {seconds} s: kill {process}"
        );
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

/// Waits until the machine has ended, so that its sockets and files are free again; `None` if it has not
/// announced its end within `timeout`.
fn wait_for_end(client: &mut Client, timeout: Duration) -> Result<Option<End>, ClientError> {
    let mut deadline = Instant::now() + timeout;
    let mut end = None;
    loop {
        match client.next_event(deadline.saturating_duration_since(Instant::now())) {
            Ok(None) => return Ok(end),
            Ok(Some(event)) if event.name == "SHUTDOWN" => {
                end = Some(how(&event));
                deadline = Instant::now() + LAST;
            }
            Ok(Some(_)) if Instant::now() >= deadline => return Ok(end),
            Ok(Some(_)) => {}
            Err(error) if has_closed(&error) => {
                return Ok(end.or_else(|| Some(End::Other("the monitor closed".to_owned()))));
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
