//! The files that the tests need.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};

/// The files that `cargo xtask test` built for the tests.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program under test.
    pub hvb: PathBuf,
    /// Debian's kernel, a bzImage.
    pub kernel: PathBuf,
    /// What most tests boot: the same, unpacked where `xtask` did that.
    pub vmlinux: PathBuf,
    /// An initramfs with `guest_agent`.
    pub initrd: PathBuf,
    /// The same with Debian's `kexec`, and with the kernel and that initramfs in `/next`.
    pub kexec_initrd: PathBuf,
}

impl Setup {
    /// Takes the paths from `HVB_BIN`, `HVB_TEST_KERNEL` and so on.
    ///
    /// # Errors
    ///
    /// The variables are not set, because the tests were not started by `cargo xtask test`.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            hvb: path("HVB_BIN")?,
            kernel: path("HVB_TEST_KERNEL")?,
            vmlinux: path("HVB_TEST_VMLINUX")?,
            initrd: path("HVB_TEST_INITRD")?,
            kexec_initrd: path("HVB_TEST_KEXEC_INITRD")?,
        })
    }

    /// The program of the example `minimal_vmm`, from `HVB_MINIMAL_VMM`.
    ///
    /// # Errors
    ///
    /// As [`Setup::from_env`].
    pub fn minimal_vmm() -> Result<PathBuf> {
        path("HVB_MINIMAL_VMM")
    }
}

pub(crate) fn path(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: run these with `cargo xtask test`"))
}

/// Runs `hvb` to its end, without input.
///
/// # Errors
///
/// `hvb` cannot be started.
pub fn hvb(args: &[&str]) -> Result<Output> {
    let setup = Setup::from_env()?;
    Ok(Command::new(setup.hvb).args(args).stdin(Stdio::null()).output()?)
}

/// Whether tests whose length is a choice are to take their time: `HVB_LONG_TESTS` is set.
#[must_use]
pub fn is_long_run() -> bool {
    std::env::var_os("HVB_LONG_TESTS").is_some()
}
