//! The test guest: Debian's cloud kernel and an initramfs with our agent.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::cache::write_whole;
use crate::image::Initramfs;
use crate::{kernels, modules, workspace};

/// The drivers under test.
const MODULES: [&str; 2] = ["hv_vmbus", "hv_balloon"];

/// What boots the test guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The bzImage.
    pub(crate) kernel: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
}

/// Builds the test guest, or what of it is out of date.
///
/// # Errors
///
/// The kernel cannot be downloaded or the agent not be built.
pub(crate) fn build() -> Result<Guest> {
    let kernel = kernels::get(kernels::GUEST)?;
    let mut image = Initramfs::default();
    image.add_program("/init", &static_program("guest_agent")?)?;
    image.add_modules(&modules::with_dependencies(&kernel.modules, &MODULES)?)?;
    let initrd = workspace::target().join("guest.initramfs");
    write_whole(&initrd, &image.finish()?)?;
    Ok(Guest { kernel: kernel.image, initrd })
}

/// Builds one of the init programs, which run where there is no C library, and returns the file.
///
/// # Errors
///
/// It does not compile.
pub(crate) fn static_program(name: &str) -> Result<Vec<u8>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    // Its own directory: other flags in the shared one would rebuild everything each time.
    let dir = workspace::target().join("static");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "guest_agent", "--bin", name]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols");
    ensure!(cargo.status()?.success(), "{name} does not build");
    Ok(std::fs::read(dir.join(TARGET).join("release").join(name))?)
}
