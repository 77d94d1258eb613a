//! Transfer of input, output and exit status between the caller and the command in the machine.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::rig::{Kind, read_frame, write_frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::machine::Machine;
use super::terminal::RawMode;

/// How long the machine may take to come up: about 5 s on an idle machine.
const BOOT: Duration = Duration::from_secs(180);

/// The exit status of a command that ran out of time, as in timeout(1).
const TIMED_OUT: u8 = 124;

enum Event {
    Frame(Kind, Vec<u8>),
    Closed(io::Result<()>),
    Signal(i32),
}

/// Runs the machine until its command ends; returns the command's exit status.
///
/// # Errors
///
/// The machine did not come up or died, or the command could not be started.
pub(crate) fn relay(
    mut machine: Machine,
    terminal: bool,
    limit: Option<Duration>,
) -> Result<ExitCode> {
    let (sender, events) = channel();
    watch_signals(sender.clone())?;
    watch_link(machine.link.try_clone()?, sender);
    let mut boot_deadline = Some(Instant::now() + BOOT);
    let mut deadline = None;
    // Leaves raw mode however this function ends.
    let mut _raw = None;
    loop {
        match next(&events, boot_deadline.or(deadline))? {
            None if boot_deadline.is_some() => {
                bail!("the machine is not up after {BOOT:?}:\n{}", machine.last_words())
            }
            None => {
                eprintln!("rig: ended after {:?}", limit.unwrap_or_default());
                return Ok(ExitCode::from(TIMED_OUT));
            }
            Some(Event::Frame(Kind::Started, _)) => {
                boot_deadline = None;
                deadline = limit.map(|limit| Instant::now() + limit);
                if terminal {
                    _raw = Some(RawMode::enter()?);
                }
                feed_input(machine.link.try_clone()?);
            }
            Some(Event::Frame(Kind::Stdout, bytes)) => pass_on(&mut io::stdout(), &bytes)?,
            Some(Event::Frame(Kind::Stderr, bytes)) => pass_on(&mut io::stderr(), &bytes)?,
            Some(Event::Frame(Kind::Exited, status)) => return exit_code(&status),
            Some(Event::Frame(Kind::Failed, why)) => bail!("{}", String::from_utf8_lossy(&why)),
            Some(Event::Frame(Kind::Stdin, _)) => bail!("the machine sent input"),
            Some(Event::Closed(how)) => {
                let how = how.err().map(|e| format!(" ({e})")).unwrap_or_default();
                let end = machine.end();
                bail!("the machine died{how}, its QEMU {end}:\n{}", machine.last_words());
            }
            Some(Event::Signal(number)) => {
                eprintln!("rig: ended by signal {number}");
                return Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX)));
            }
        }
    }
}

/// The next event, or nothing if the deadline passes.
fn next(events: &Receiver<Event>, deadline: Option<Instant>) -> Result<Option<Event>> {
    let Some(deadline) = deadline else { return Ok(Some(events.recv()?)) };
    match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(event) => Ok(Some(event)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => bail!("no thread watches the machine"),
    }
}

fn exit_code(payload: &[u8]) -> Result<ExitCode> {
    let status = i32::from_le_bytes(payload.try_into().context("no exit status")?);
    ensure!((0..=255).contains(&status), "no exit status: {status}");
    Ok(ExitCode::from(u8::try_from(status)?))
}

/// If nobody reads the output any more, the run ends, as the command itself would.
fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("cannot pass output on")
}

fn watch_signals(sender: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for number in signals.forever() {
            if sender.send(Event::Signal(number)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn watch_link(mut link: UnixStream, sender: Sender<Event>) {
    thread::spawn(move || {
        let how = loop {
            match read_frame(&mut link) {
                Ok(Some((kind, payload))) => {
                    if sender.send(Event::Frame(kind, payload)).is_err() {
                        return;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let _ = sender.send(Event::Closed(how));
    });
}

/// Sends the caller's standard input, then its end.
fn feed_input(mut link: UnixStream) {
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut buffer = [0; 4096];
        loop {
            let length = input.read(&mut buffer).unwrap_or(0);
            // The end of the command closes the link; there is no one left to tell.
            if write_frame(&mut link, Kind::Stdin, &buffer[..length]).is_err() || length == 0 {
                return;
            }
        }
    });
}
