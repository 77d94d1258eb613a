//! Debian's kernels, unpacked but not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::apt::Apt;
use crate::debian::cache::{Cache, write_whole};

/// A kernel to get: the package that depends on the current one, and its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    package: &'static str,
    backports: bool,
}

/// A kernel for the rig; the cloud kernel lacks 9p.
pub(crate) const RIG: Source = Source { package: "linux-image-amd64", backports: false };

/// A newer kernel for the rig.
pub(crate) const NEWER_RIG: Source = Source { backports: true, ..RIG };

/// The test guest's kernel.
pub(crate) const GUEST: Source = Source { package: "linux-image-cloud-amd64", backports: false };

/// A newer kernel for the test guest.
pub(crate) const NEWER_GUEST: Source = Source { backports: true, ..GUEST };

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its release, as printed by `uname -r`.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The directory with its modules.
    pub(crate) modules: PathBuf,
}

/// Finds a kernel in the cache, or downloads it there.
///
/// A cached kernel stays in use until [`forget_choices`], so that results remain comparable and
/// work continues without a network.
///
/// # Errors
///
/// It cannot be downloaded, or has an unknown layout.
pub(crate) fn get(source: Source) -> Result<Kernel> {
    let cache = Cache::open()?;
    let choice = cache.path(&choice_name(source));
    if let Ok(package) = fs::read_to_string(&choice)
        && let Ok(kernel) = locate(&cache.path(&package), &package)
    {
        return Ok(kernel);
    }
    let apt = match source.backports {
        true => Apt::of_backports(&cache.path("apt-backports"))?,
        false => Apt::of_machine(),
    };
    let package = apt
        .depends(source.package)?
        .into_iter()
        .find(|name| name.starts_with(IMAGE))
        .with_context(|| format!("{} does not depend on a kernel", source.package))?;
    let tree = cache.path(&package);
    if locate(&tree, &package).is_err() {
        download(&cache, &apt, &package, &tree)?;
    }
    let kernel = locate(&tree, &package)?;
    write_whole(&choice, package.as_bytes())?;
    Ok(kernel)
}

/// Makes the next [`get`] take the newest kernels.
///
/// # Errors
///
/// The cache cannot be written to.
pub(crate) fn forget_choices() -> Result<()> {
    let cache = Cache::open()?;
    for source in [RIG, NEWER_RIG, GUEST, NEWER_GUEST] {
        let choice = cache.path(&choice_name(source));
        if choice.exists() {
            fs::remove_file(choice)?;
        }
    }
    Ok(())
}

const IMAGE: &str = "linux-image-";

fn choice_name(source: Source) -> String {
    format!("{}.{}", source.package, if source.backports { "backports" } else { "current" })
}

fn download(cache: &Cache, apt: &Apt, package: &str, tree: &Path) -> Result<()> {
    eprintln!("downloading Debian's {package}");
    // Newer kernels come in parts: the image's package depends on those that contain the files.
    let parts = apt.depends(package)?;
    let holds_files =
        |p: &String| p.starts_with("linux-binary-") || p.starts_with("linux-modules-");
    let mut wanted: Vec<String> = parts.into_iter().filter(holds_files).collect();
    wanted.push(package.to_owned());
    let workshop = cache.workshop()?;
    apt.unpack(&wanted, workshop.path())?;
    if tree.exists() {
        fs::remove_dir_all(tree)?;
    }
    fs::rename(workshop.path().join("tree"), tree)?;
    Ok(())
}

/// Finds the files of a kernel, by its release or its package, in either layout: `/lib` and `/boot`,
/// or everything under `/usr/lib/modules`.
///
/// # Errors
///
/// It is not there.
pub(crate) fn locate(tree: &Path, package: &str) -> Result<Kernel> {
    let release = package.strip_prefix(IMAGE).unwrap_or(package);
    let find = |candidates: [PathBuf; 2]| {
        candidates.into_iter().map(|c| tree.join(c)).find(|path| path.exists())
    };
    let images = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let modules = [format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")];
    let image = find(images.map(PathBuf::from));
    let modules = find(modules.map(PathBuf::from));
    let (Some(image), Some(modules)) = (image, modules) else {
        anyhow::bail!("no kernel {release} in {}", tree.display());
    };
    Ok(Kernel { release: release.to_owned(), image, modules })
}
