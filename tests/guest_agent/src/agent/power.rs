//! `/sbin/poweroff`, which the kernel runs when the host asks for a shutdown (Linux `orderly_poweroff`).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::boot;

/// While this file exists, the guest does not shut down when it is asked to.
const IGNORE: &str = "/ignore-poweroff";

/// Says on the console that it was called, and shuts down unless that is to be ignored.
#[must_use]
pub fn called_by_kernel() -> ExitCode {
    let ignores = Path::new(IGNORE).exists();
    let _ = say(if ignores { "poweroff: ignored" } else { "poweroff: shutting down" });
    if !ignores {
        let _ = say(&boot::power_off().to_string());
    }
    ExitCode::SUCCESS
}

fn say(text: &str) -> io::Result<()> {
    let mut console = OpenOptions::new().write(true).open("/dev/ttyS0")?;
    console.write_all(format!("{text}\n").as_bytes())?;
    Ok(nix::sys::termios::tcdrain(&console)?)
}
