//! Records a guest for replays, run by `cargo xtask record-bus`: `record_bus FILE`.
//!
//! An existing file is replaced only by a recording whose replay agrees.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match record(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn record(arguments: &[String]) -> Result<()> {
    let [file] = arguments else { bail!("give a file; or run cargo xtask record-bus") };
    let new = format!("{file}.new");
    let compared = e2e::recorded::session(Path::new(&new))?;
    fs::rename(&new, file).with_context(|| file.clone())?;
    println!("{file}: {compared:?}");
    Ok(())
}
