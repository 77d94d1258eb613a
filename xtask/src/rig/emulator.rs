//! The QEMU that emulates the rig.
//!
//! Old versions corrupt a nested guest's flags when one of its instructions causes a page fault:
//! with 7.2, `RFLAGS` had a value that no guest can set, followed by a fault in `iret`. Guests with
//! two vCPUs then crash while they boot, newer Linux most of all. 10.0 does not have this problem.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::debian::apt::Apt;
use crate::debian::cache::{Cache, write_whole};
use crate::debian::packages::{self, QEMU};

/// The oldest major version that emulates correctly.
const OLDEST: u32 = 10;

/// A QEMU.
#[derive(Debug)]
pub(crate) struct Emulator {
    /// The program.
    pub(crate) program: PathBuf,
    /// The directories of its libraries, in the form of `LD_LIBRARY_PATH`, if they are not the
    /// machine's.
    pub(crate) libraries: Option<OsString>,
    /// The directories of its firmware, in the same form, if it is not where Debian installs it.
    pub(crate) firmware: Option<OsString>,
}

impl Emulator {
    /// The variables that tell the tests of `e2e` how to start it in the rig.
    pub(crate) fn peer_environment(self) -> impl Iterator<Item = (&'static str, OsString)> {
        let paths = [("HVB_PEER_LIBRARIES", self.libraries), ("HVB_PEER_FIRMWARE", self.firmware)];
        let paths = paths.into_iter().filter_map(|(name, paths)| Some((name, paths?)));
        std::iter::once(("HVB_PEER_QEMU", self.program.into())).chain(paths)
    }
}

/// Takes the machine's QEMU if it is new enough, or else that of Debian's backports, which is
/// unpacked but not installed; as a last resort, any QEMU.
///
/// # Errors
///
/// There is none, and none can be downloaded.
pub(crate) fn get() -> Result<Emulator> {
    let installed = Emulator { program: QEMU.file.into(), libraries: None, firmware: None };
    if packages::in_path(QEMU.file) && major_version(&installed)? >= OLDEST {
        return Ok(installed);
    }
    match unpacked() {
        Ok(emulator) => Ok(emulator),
        Err(error) => {
            packages::ensure_installed(&[QEMU])?;
            eprintln!(
                "rig: no QEMU {OLDEST} or newer, so guests with two vCPUs may crash ({error:#})"
            );
            Ok(installed)
        }
    }
}

/// Makes the next [`get`] take the newest version.
///
/// # Errors
///
/// The cache cannot be written to.
pub(crate) fn forget_choice() -> Result<()> {
    let choice = Cache::open()?.path(CHOICE);
    if choice.exists() {
        fs::remove_file(choice)?;
    }
    Ok(())
}

const CHOICE: &str = "qemu-system-x86.backports";

/// Finds QEMU in the cache, or downloads it there.
fn unpacked() -> Result<Emulator> {
    let cache = Cache::open()?;
    let choice = cache.path(CHOICE);
    if let Ok(tree) = fs::read_to_string(&choice)
        && let Some(emulator) = in_tree(&cache.path(&tree))
        // Libraries that the machine had when it was unpacked may have been removed since.
        && major_version(&emulator).is_ok()
    {
        return Ok(emulator);
    }
    eprintln!("downloading Debian's newest QEMU");
    let apt = Apt::of_backports(&cache.path("apt-backports"))?;
    let workshop = cache.workshop()?;
    apt.unpack_with_dependencies(QEMU.package, workshop.path())?;
    let tree = workshop.path().join("tree");
    let version = major_version(&in_tree(&tree).context("the package holds no QEMU")?)?;
    ensure!(version >= OLDEST, "Debian's newest QEMU is {version}");
    let name = format!("qemu-{version}");
    let place = cache.path(&name);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(tree, &place)?;
    write_whole(&choice, name.as_bytes())?;
    in_tree(&place).context("QEMU is gone")
}

fn in_tree(tree: &Path) -> Option<Emulator> {
    // Packages of Debian 12 still have libraries in both directories.
    const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
    let program = tree.join("usr/bin").join(QEMU.file);
    let paths = |dirs: [&str; 2]| std::env::join_paths(dirs.map(|dir| tree.join(dir))).ok();
    let (libraries, firmware) = (paths(LIBRARIES), paths(FIRMWARE));
    program.exists().then_some(Emulator { program, libraries, firmware })
}

impl Emulator {
    /// The options that let it find its firmware, which it does not look for in its own tree.
    pub(crate) fn options(&self) -> Vec<OsString> {
        let dirs = self.firmware.iter().flat_map(std::env::split_paths);
        dirs.flat_map(|dir| ["-L".into(), dir.into_os_string()]).collect()
    }

    /// The variable that lets it find its libraries.
    pub(crate) fn environment(&self) -> Option<(&'static str, OsString)> {
        Some(("LD_LIBRARY_PATH", self.libraries.clone()?))
    }
}

fn major_version(emulator: &Emulator) -> Result<u32> {
    let mut ask = Command::new(&emulator.program);
    ask.arg("--version").envs(emulator.environment()).stdin(Stdio::null());
    let output = ask.output().with_context(|| emulator.program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    parse_major(&text).with_context(|| format!("QEMU does not say its version: {text}{words}"))
}

/// 10 for `QEMU emulator version 10.0.2 (Debian …)`.
fn parse_major(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_qemu_is_understood() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003";
        assert_eq!(parse_major(text), Some(10));
        assert_eq!(parse_major("QEMU emulator version 7.2.22 (Debian)"), Some(7));
        assert_eq!(parse_major("command not found"), None);
    }
}
