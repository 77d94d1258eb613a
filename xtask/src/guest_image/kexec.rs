//! Debian's `kexec`, and what it needs to run in a test guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::initramfs::Initramfs;
use crate::debian::apt::Apt;
use crate::debian::cache::Cache;

/// The package, and its program.
const PACKAGE: &str = "kexec-tools";
const PROGRAM: &str = "sbin/kexec";

/// Where packages have their libraries, and where a guest's programs find them.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const GUEST_LIBRARIES: &str = "/lib";

/// Adds `/sbin/kexec` with its libraries.
///
/// # Errors
///
/// The package cannot be downloaded, or a library is missing.
pub(super) fn add(image: &mut Initramfs) -> Result<()> {
    let tree = unpacked()?;
    let program = tree.join(PROGRAM);
    let ldd = Command::new("ldd")
        .arg(&program)
        .env("LD_LIBRARY_PATH", tree.join(LIBRARIES))
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8(ldd.stdout)?;
    ensure!(ldd.status.success() && !text.contains("not found"), "{PACKAGE}: {text}");
    image.add_program(&format!("/{PROGRAM}"), &fs::read(&program)?)?;
    for (path, file) in libraries(&text) {
        image.add_program(&path, &fs::read(&file).with_context(|| file.display().to_string())?)?;
    }
    Ok(())
}

/// The path in the guest and the file here of each library that `ldd` lists. The program loader is
/// listed by its path alone, and stays there.
fn libraries(ldd: &str) -> Vec<(String, PathBuf)> {
    let listed = |line: &str| {
        let line = line.rsplit_once(" (0x")?.0.trim();
        match line.split_once(" => ") {
            Some((name, file)) => Some((format!("{GUEST_LIBRARIES}/{name}"), file.into())),
            None if line.starts_with('/') => Some((line.to_owned(), line.into())),
            None => None,
        }
    };
    ldd.lines().filter_map(listed).collect()
}

/// The unpacked package, from the cache or downloaded to it.
fn unpacked() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let tree = cache.path(PACKAGE);
    if !tree.join(PROGRAM).exists() {
        eprintln!("downloading Debian's {PACKAGE}");
        let workshop = cache.workshop()?;
        Apt::of_machine().unpack_with_dependencies(PACKAGE, workshop.path())?;
        ensure!(workshop.path().join("tree").join(PROGRAM).exists(), "no {PROGRAM} in {PACKAGE}");
        move_dir(&workshop.path().join("tree"), &tree)?;
    }
    Ok(tree)
}

fn move_dir(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    Ok(fs::rename(from, to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_goes_where_the_loader_looks_for_it() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f01)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f03)\n";
        let loader = "/lib64/ld-linux-x86-64.so.2";
        let expected = [("/lib/libz.so.1", "/lib/x86_64-linux-gnu/libz.so.1"), (loader, loader)];
        let expected = expected.map(|(path, file)| (path.to_owned(), PathBuf::from(file)));
        assert_eq!(libraries(ldd), expected);
    }
}
