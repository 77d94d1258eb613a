//! How an image is made: mmdebstrap fills a directory, and `mke2fs -d` makes a file system of it,
//! which needs no loop device.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::DiskImage;
use super::recipe::Recipe;
use crate::debian::apt::Apt;
use crate::debian::cache::write_whole;
use crate::debian::packages::{MKE2FS, MMDEBSTRAP, run};
use crate::debian::release::Release;
use crate::guest_image::kernels::{self, Kernel};
use crate::guest_image::modules;
use crate::workspace;

/// Makes the files of `to`, all in `dir`, which must be empty.
///
/// # Errors
///
/// A download fails, the content is larger than the image, or the initramfs lacks a driver.
pub(super) fn build(recipe: &Recipe, dir: &Path, to: &DiskImage, log: &Path) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "please run as root: the files of an image belong to many users"
    );
    let tree = dir.join("tree");
    install(recipe, dir, &tree, log)?;
    let kernel = cloud_kernel(&tree)?;
    let initrd = format!("boot/initrd.img-{}", kernel.release);
    check_initrd(recipe, &tree, &kernel, &initrd)?;
    fs::copy(&kernel.image, &to.kernel).context("the image's kernel")?;
    fs::copy(tree.join(&initrd), &to.initrd).context("the image's initramfs")?;
    let mut mke2fs = Command::new(MKE2FS.file);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "debian", "-d"]).arg(&tree).arg(&to.image);
    run(mke2fs.arg(format!("{}M", recipe.size_mib)))
        .with_context(|| format!("the image may be too small: {} MiB", recipe.size_mib))
}

/// Fills `tree` with the packages and files of the recipe.
fn install(recipe: &Recipe, dir: &Path, tree: &Path, log: &Path) -> Result<()> {
    let files = dir.join("files");
    for (path, text) in &recipe.files {
        write_whole(&files.join(path), text.as_bytes())?;
    }
    let (sources, settings) = (dir.join("sources.list"), dir.join("apt.conf"));
    write_whole(&sources, Release::named(&recipe.suite)?.with_updates().as_bytes())?;
    write_whole(&settings, Apt::of_machine().download_settings()?.as_bytes())?;

    eprintln!("installing Debian {} (about three minutes)", recipe.suite);
    // In its own mount namespace: nothing stays mounted in the tree, however this ends.
    let mut command = workspace::mortal("TERM", "unshare".as_ref());
    command.args(["--mount", "--", MMDEBSTRAP.file, "--mode=root", "--variant=minbase"]);
    command.args(["--architectures=amd64", "--include", &recipe.packages.join(",")]);
    command.arg("--aptopt").arg(&settings);
    // `/etc` and `/root` are there by then, and the packages that read these files are not.
    command.arg("--essential-hook");
    command
        .arg(r#"cp --recursive --no-preserve=mode --remove-destination "$HVB_IMAGE_FILES/." "$1""#);
    command.args(["--customize-hook", recipe.last_steps]);
    command.arg(&recipe.suite).arg(tree).arg(&sources);
    command.env("HVB_IMAGE_FILES", &files);
    // PostgreSQL takes its encoding from here.
    command.env("LANG", "C.UTF-8").env_remove("LC_ALL").env_remove("LANGUAGE");
    let output = File::create(log).with_context(|| log.display().to_string())?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    if !command.status().context("cannot run setpriv (of util-linux)")?.success() {
        let text = fs::read(log).unwrap_or_default();
        let reason = reason(&String::from_utf8_lossy(&text));
        bail!("mmdebstrap failed: {reason} (all it said is in {})", log.display());
    }
    Ok(())
}

/// The line that says most: the first error of apt, or else the last line.
fn reason(log: &str) -> String {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("E: "));
    error.or_else(|| lines().next_back()).unwrap_or("it said nothing").to_owned()
}

/// The cloud kernel, which is the only one unless the user asked for another besides.
fn cloud_kernel(tree: &Path) -> Result<Kernel> {
    for entry in fs::read_dir(tree.join("usr/lib/modules"))? {
        if let Ok(release) = entry?.file_name().into_string()
            && release.ends_with("-cloud-amd64")
        {
            return kernels::locate(tree, &release);
        }
    }
    bail!("no cloud kernel in the image")
}

/// Looks for the drivers without which the guest would not find its disk.
fn check_initrd(recipe: &Recipe, tree: &Path, kernel: &Kernel, initrd: &str) -> Result<()> {
    let mut list = Command::new("chroot");
    list.arg(tree).args(["lsinitramfs", &format!("/{initrd}")]).stdin(Stdio::null());
    let output = list.output()?;
    ensure!(output.status.success(), "{initrd}: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout)?;
    let there: BTreeSet<String> =
        names.lines().filter_map(|line| modules::module_name(Path::new(line))).collect();
    for module in modules::with_dependencies(&kernel.modules, &recipe.disk_modules)? {
        ensure!(there.contains(&module.name), "{initrd} lacks the module {}", module.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_reason() {
        let log =
            "I: installing\nE: Unable to locate package nonesuch\nE: apt-get failed\nI: done\n";
        assert_eq!(reason(log), "Unable to locate package nonesuch");
        assert_eq!(reason("I: one\nI: two\n\n"), "I: two");
        assert_eq!(reason(""), "it said nothing");
    }
}
