//! The test guests: Debian's cloud kernels and initramfs images with this project's agent.

pub(crate) mod initramfs;
pub(crate) mod kernels;
mod kexec;
pub(crate) mod modules;
mod vmlinux;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use guest_agent::boot::{SERVICES_MODULES, USUAL_MODULES};

use crate::debian::cache::write_whole;
use crate::workspace;
use initramfs::Initramfs;

/// The drivers under test.
const MODULES: [&str; 2] = ["hv_vmbus", "hv_balloon"];

/// The drivers of `hvb`'s virtio devices, which tests load that need them.
const DEVICE_MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng"];
/// Those, and the drivers of the integration services.
const WITH_SERVICES: [&str; 3] = ["hv_vmbus", "hv_balloon", "hv_utils"];

/// The drivers of the balloon that is compared with this project's, in place of those.
const VIRTIO_MODULES: [&str; 2] = ["virtio_pci", "virtio_balloon"];

/// The kernel of a test guest, or of the rig.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum GuestKernel {
    /// The kernel of this machine's Debian release.
    Stable,
    /// The newer kernel of its backports.
    Backports,
}

impl GuestKernel {
    /// All kernels.
    pub(crate) const ALL: [Self; 2] = [Self::Stable, Self::Backports];

    fn source(self) -> kernels::Source {
        match self {
            Self::Stable => kernels::GUEST,
            Self::Backports => kernels::NEWER_GUEST,
        }
    }

    /// The same for the rig, with more drivers.
    pub(crate) fn for_rig(self) -> kernels::Source {
        match self {
            Self::Stable => kernels::RIG,
            Self::Backports => kernels::NEWER_RIG,
        }
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Backports => "backports",
        }
    }
}

/// The files that boot the test guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The kernel's release, as printed by `uname -r`.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) kernel: PathBuf,
    /// What is in it.
    vmlinux: PathBuf,
    /// The initramfs.
    pub(crate) initrd: PathBuf,
    /// The initramfs of a guest that starts this kernel again with `kexec`: it also has the kernel
    /// and the other initramfs, as `/next/kernel` and `/next/initrd`.
    kexec_initrd: PathBuf,
}

impl Guest {
    /// The variables that tell the tests of `e2e` what to boot.
    ///
    /// # Errors
    ///
    /// A path is not UTF-8.
    pub(crate) fn environment(&self) -> Result<[(&'static str, String); 4]> {
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.with_context(|| format!("{}: the path is not UTF-8", path.display()))
        };
        Ok([
            ("HVB_TEST_KERNEL", text(&self.kernel)?),
            ("HVB_TEST_VMLINUX", text(&self.vmlinux)?),
            ("HVB_TEST_INITRD", text(&self.initrd)?),
            ("HVB_TEST_KEXEC_INITRD", text(&self.kexec_initrd)?),
        ])
    }
}

/// Builds a test guest, or those parts of it that are out of date.
///
/// # Errors
///
/// The kernel cannot be downloaded, or the agent does not compile.
pub(crate) fn build(kernel: GuestKernel) -> Result<Guest> {
    let file =
        |kind: &str| workspace::target().join(format!("guest-{}{kind}.initramfs", kernel.name()));
    let (initrd, kexec_initrd) = (file(""), file("-kexec"));
    let kernel = kernels::get(kernel.source())?;
    let usual = usual_image(&kernel)?.finish()?;
    write_whole(&initrd, &usual)?;
    let mut image = usual_image(&kernel)?;
    kexec::add(&mut image)?;
    image.add_file("/next/kernel", &std::fs::read(&kernel.image)?)?;
    image.add_file("/next/initrd", &usual)?;
    write_whole(&kexec_initrd, &image.finish()?)?;
    let vmlinux = vmlinux::beside(&kernel.image)?;
    Ok(Guest { release: kernel.release, kernel: kernel.image, vmlinux, initrd, kexec_initrd })
}

fn usual_image(kernel: &kernels::Kernel) -> Result<Initramfs> {
    let mut image = Initramfs::default();
    image.add_program("/init", &static_program("guest_agent")?)?;
    let with_dependencies = |names: &[&str]| modules::with_dependencies(&kernel.modules, names);
    image.add_modules(USUAL_MODULES, &with_dependencies(&MODULES)?)?;
    image.add_modules("devices", &with_dependencies(&DEVICE_MODULES)?)?;
    // The kernel runs this when the host asks for a shutdown.
    image.add_link("/sbin/poweroff", "/init")?;
    image.add_modules(SERVICES_MODULES, &with_dependencies(&WITH_SERVICES)?)?;
    image.add_modules("virtio", &with_dependencies(&VIRTIO_MODULES)?)?;
    Ok(image)
}

/// Builds one of the init programs, which run without a C library, and returns the file.
///
/// # Errors
///
/// It does not compile.
pub(crate) fn static_program(name: &str) -> Result<Vec<u8>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    // A separate directory: other flags in the shared one would rebuild everything each time.
    let dir = workspace::target().join("static");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "guest_agent", "--bin", name]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols");
    ensure!(cargo.status()?.success(), "{name} does not build");
    Ok(std::fs::read(dir.join(TARGET).join("release").join(name))?)
}
