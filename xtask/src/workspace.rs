//! Paths in the source tree, and calls of cargo.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The files under version control whose names match, relative to the root, including those that
/// are about to be added.
pub(crate) fn files(pattern: &str) -> Result<Vec<PathBuf>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern];
    let output = Command::new("git").current_dir(root()).args(list).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let names = String::from_utf8(output.stdout)?;
    let names = names.split_terminator('\0').map(PathBuf::from);
    Ok(names.filter(|name| root().join(name).exists()).collect())
}

/// The `cargo` that runs this task, in the root of the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// A command that receives `signal` when this process ends, however it ends.
///
/// setpriv(1) is part of every Debian; Rust's library cannot do this without unsafe code.
pub(crate) fn mortal(signal: &str, program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command
}
