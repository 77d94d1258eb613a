//! `cargo xtask soak`: a guest is resized and reset and has its driver reloaded, at random.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::tasks::test;
use crate::{guest_image, workspace};

/// The additional time that the rig may take: for the warm-ups, and for the evidence of a guest that
/// hangs.
const MORE_TIME: u64 = 1800;

/// `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// How long to run.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10080))]
    minutes: u64,
    /// The seed of all random choices [default: the time].
    #[arg(long)]
    seed: Option<u64>,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
    /// Lets the guest keep its size over a reset, instead of its boot size.
    #[arg(long)]
    keep_size: bool,
    /// The backing of the guest's memory.
    #[arg(long, value_parser = ["off", "thp"], default_value = "thp")]
    hugepages: String,
    /// Gives the machine a disk and a network card, which the guest uses all the time.
    #[arg(long)]
    devices: bool,
}

/// Builds what is needed, runs the soak where KVM has Hyper-V, and returns its exit status. The
/// first Ctrl-C ends it after the current step, with all its figures; the second ends it at once.
pub(crate) fn main(args: &SoakArgs) -> Result<ExitCode> {
    eprintln!("soak: building hvb and the guest (a few minutes the first time)");
    let guest = guest_image::build(args.kernel)?;
    let hvb = test::build_program("hvb", "hvb")?;
    let soak = test::build_program("e2e", "soak")?;
    let seconds = args.minutes * 60;
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("soak: seed {seed}, Linux {}", guest.release);

    let mut rig = workspace::mortal("TERM", std::env::current_exe()?.as_os_str());
    rig.args(["rig", "--timeout", &(seconds + MORE_TIME).to_string(), "--", &soak]);
    rig.args([seconds.to_string(), seed.to_string()]);
    rig.args([if args.keep_size { "keep-size" } else { "boot-size" }, &args.hugepages]);
    rig.arg(if args.devices { "devices" } else { "none" });
    rig.env("HVB_BIN", hvb).envs(guest.environment()?);
    let status = run(rig)?;
    Ok(ExitCode::from(status))
}

/// Runs the rig in its own process group, so that a terminal's Ctrl-C reaches only this process.
fn run(mut rig: Command) -> Result<u8> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut child =
        rig.process_group(0).stdin(Stdio::piped()).spawn().context("cannot start the rig")?;
    let mut input = child.stdin.take();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        for _ in signals.pending() {
            stop(&mut child, &mut input)?;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn stop(rig: &mut Child, input: &mut Option<ChildStdin>) -> Result<()> {
    match input.take() {
        Some(mut input) => {
            eprintln!("soak: ending after this step; press Ctrl-C again to end at once");
            // If the rig is gone, the soak has ended already.
            let _ = writeln!(input, "stop");
        }
        None => rig.kill()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(script: &str) -> (Child, Option<ChildStdin>) {
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        (child, input)
    }

    #[test]
    fn the_first_signal_asks_the_soak_to_end() {
        let (mut child, mut input) = waiting("read line; test \"$line\" = stop && exit 7");
        stop(&mut child, &mut input).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn the_second_signal_ends_it_at_once() {
        let (mut child, mut input) = waiting("exec sleep 600");
        stop(&mut child, &mut input).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        stop(&mut child, &mut input).unwrap();
        assert_eq!(child.wait().unwrap().code(), None);
    }

    #[test]
    fn the_exit_status_is_that_of_the_soak() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        assert_eq!(run(command).unwrap(), 3);
    }
}
