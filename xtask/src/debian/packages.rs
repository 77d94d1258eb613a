//! Programs that this project calls, and their installation as Debian packages.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;

/// A program that this project calls, and the Debian package that contains it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The file to find in `PATH`.
    pub(crate) file: &'static str,
    /// The package to install if it is missing.
    pub(crate) package: &'static str,
}

pub(crate) const QEMU: Program = Program { file: "qemu-system-x86_64", package: "qemu-system-x86" };
pub(crate) const MMDEBSTRAP: Program = Program { file: "mmdebstrap", package: "mmdebstrap" };
pub(crate) const MKE2FS: Program = Program { file: "mke2fs", package: "e2fsprogs" };
pub(crate) const LZ4: Program = Program { file: "lz4", package: "lz4" };
pub(crate) const CHROMIUM: Program = Program { file: "chromium", package: "chromium" };
pub(crate) const PASST: Program = Program { file: "passt", package: "passt" };
pub(crate) const TMUX: Program = Program { file: "tmux", package: "tmux" };
pub(crate) const XZ: Program = Program { file: "xz", package: "xz-utils" };
pub(crate) const ZSTD: Program = Program { file: "zstd", package: "zstd" };

/// Installs the packages of those programs that are missing.
///
/// # Errors
///
/// They cannot be installed from here; the error says what to install.
pub(crate) fn ensure_installed(programs: &[Program]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|p| !in_path(p.file)).map(|p| p.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(in_path("apt-get"), "please install the programs of these Debian packages: {names}");
    ensure!(rustix::process::geteuid().is_root(), "please run as root: apt-get install {names}");
    eprintln!("installing {names} with apt-get");
    Apt::of_machine().install(&missing)
}

/// Runs a tool without input and, unless it fails, without output.
///
/// # Errors
///
/// It cannot be run, or fails; the error contains its output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&words).trim());
    }
    Ok(())
}

/// Whether a program can be called by its name.
pub(crate) fn in_path(file: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(file).is_file())
}
