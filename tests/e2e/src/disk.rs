//! Disk images with a file system.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::MIB;

/// Runs a program of the host.
///
/// # Errors
///
/// It cannot be run, or fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().context(program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(())
}

/// A directory with a raw image of `mib` MiB that holds an empty ext4.
///
/// # Errors
///
/// There is no room for it, or no `mke2fs`.
pub fn ext4(mib: u64) -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk.img");
    File::create(&image)?.set_len(mib * MIB)?;
    run("mke2fs", &["-q", "-t", "ext4", &image.display().to_string()])?;
    Ok((dir, image))
}
