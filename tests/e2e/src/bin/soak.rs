//! The soak, run by `cargo xtask soak`.
//!
//! `soak SECONDS SEED boot-size|keep-size off|thp devices|none`. A line `stop` on standard input ends it early.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use e2e::soak::{self, Limit, Plan};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = match plan(&arguments) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match soak::run(&plan, &watch_for_stop()) {
        Ok(()) => ExitCode::SUCCESS,
        // The error was already printed, below the table.
        Err(_) => ExitCode::FAILURE,
    }
}

fn plan(arguments: &[String]) -> Result<Plan> {
    let [seconds, seed, on_reset, hugepages, devices] = arguments else {
        bail!("wrong number of arguments: run cargo xtask soak")
    };
    Ok(Plan {
        seed: seed.parse()?,
        limit: Limit::Time(Duration::from_secs(seconds.parse()?)),
        keep_size: on_reset == "keep-size",
        hugepages: Some(if hugepages == "off" { "off" } else { "thp" }),
        devices: devices == "devices",
        progress: true,
    })
}

/// A flag that is set once standard input has the line.
fn watch_for_stop() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        if io::stdin().lines().map_while(Result::ok).any(|line| line.trim() == "stop") {
            flag.store(true, Ordering::Relaxed);
        }
    });
    stop
}
