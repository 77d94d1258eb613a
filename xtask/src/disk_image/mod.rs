//! A disk image with Debian, for guests that run what a real machine runs.

mod build;
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::debian::cache::{Cache, write_whole};
use crate::debian::packages::{MKE2FS, MMDEBSTRAP, ensure_installed};
use crate::debian::release::Release;
use crate::workspace;
pub(crate) use recipe::Recipe;

/// The files that boot the guest.
#[derive(Debug)]
pub(crate) struct DiskImage {
    /// The file system, raw.
    pub(crate) image: PathBuf,
    /// The bzImage of the kernel in the image.
    pub(crate) kernel: PathBuf,
    /// Its initramfs.
    pub(crate) initrd: PathBuf,
}

/// What the kernel's command line must contain: where the root is, and where people log in.
/// New memory comes online without it, by a udev rule in the image; the kernel is faster.
pub(crate) const COMMAND_LINE: &str = "root=LABEL=debian console=ttyS0 memhp_default_state=online";

/// The size of an image for which no other is given, in MiB.
pub(crate) const USUAL_MIB: u64 = 2048;

/// The recipe of the image in a directory, written when that is complete.
const RECIPE: &str = "recipe.json";

impl DiskImage {
    fn in_dir(dir: &Path) -> Self {
        let [image, kernel, initrd] =
            ["debian.img", "vmlinuz", "initrd.img"].map(|name| dir.join(name));
        Self { image, kernel, initrd }
    }

    fn files(&self) -> [&Path; 3] {
        [&self.image, &self.kernel, &self.initrd]
    }
}

/// The image without options, as `cargo xtask image` makes it.
///
/// # Errors
///
/// As [`build()`].
pub(crate) fn usual() -> Result<DiskImage> {
    let recipe = Recipe::new(Release::of_machine()?.codename, USUAL_MIB, &[], None);
    build(&recipe, &directory(), false)
}

/// Where an image goes for which no other directory is given.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("image")
}

/// Makes an image in `dir`, unless one made by the same recipe is there.
///
/// # Errors
///
/// The directory cannot be used, a tool is missing, a download fails, or the content is larger than
/// the image.
pub(crate) fn build(recipe: &Recipe, dir: &Path, refresh: bool) -> Result<DiskImage> {
    let cache = Cache::at(dir.to_owned())?;
    let stamp = cache.path(RECIPE);
    let wanted = serde_json::to_string_pretty(recipe)?;
    let done = DiskImage::in_dir(dir);
    let is_there = fs::read_to_string(&stamp).is_ok_and(|there| there == wanted)
        && done.files().into_iter().all(Path::exists);
    if is_there && !refresh {
        return Ok(done);
    }
    ensure_installed(&[MMDEBSTRAP, MKE2FS])?;
    let workshop = cache.workshop()?;
    let made = DiskImage::in_dir(workshop.path());
    build::build(recipe, workshop.path(), &made, &cache.path("mmdebstrap.log"))?;
    if stamp.exists() {
        fs::remove_file(&stamp)?;
    }
    for (from, to) in made.files().into_iter().zip(done.files()) {
        fs::rename(from, to)?;
    }
    write_whole(&stamp, wanted.as_bytes())?;
    Ok(done)
}
