//! Standard input: commands, and the guest's console.

use std::io::{self, BufRead};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::End;
use crate::devices::Devices;
use crate::dynamic_memory::Control;
use crate::memory::parse_size;

/// How often to check whether the guest has read the earlier input.
const INPUT_RETRY: Duration = Duration::from_millis(10);

/// Starts a thread that reads standard input until the input or the process ends.
pub(crate) fn start(devices: Arc<Devices>, control: Control, ends: Sender<End>) -> Result<()> {
    let read = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line.strip_prefix('!') {
                Some("quit") => {
                    // The receiver is gone if the machine is already ending.
                    let _ = ends.send(End::Quit);
                }
                Some(command) => match execute(&control, command) {
                    Ok(reply) => eprintln!("{reply}"),
                    Err(error) => eprintln!("error: {error:#}"),
                },
                None => type_in(&devices, &line),
            }
        }
    };
    thread::Builder::new().name("console".into()).spawn(read)?;
    Ok(())
}

fn execute(control: &Control, command: &str) -> Result<String> {
    match command.split_once(' ') {
        Some(("target", size)) => control.set_target(parse_size(size)?),
        None if command == "status" => Ok(control.status()),
        _ => bail!("the commands are !target SIZE, !status and !quit"),
    }
}

/// Feeds a line to the guest's serial port, and waits while its FIFO is full.
fn type_in(devices: &Devices, line: &str) {
    let bytes = [line.as_bytes(), b"\n"].concat();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let taken = devices.enqueue(rest);
        rest = &rest[taken..];
        if taken == 0 {
            thread::sleep(INPUT_RETRY);
        }
    }
}
