//! Kernel modules: their dependencies, the order to load them, and their uncompressed content.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

use crate::debian::packages;

/// A module, ready to be put into an image.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, with `_` for `-`.
    pub(crate) name: String,
    /// The ELF file, uncompressed.
    pub(crate) bytes: Vec<u8>,
}

/// Reads the named modules and all their dependencies, in the order to load them.
///
/// The dependencies come from the modules themselves, because `modules.dep` exists only where a
/// kernel is installed. A module that is built into the kernel is omitted.
///
/// # Errors
///
/// A module is missing, or is not an ELF file.
pub(crate) fn with_dependencies(dir: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let built_in = fs::read_to_string(dir.join("modules.builtin"))?;
    let built_in = built_in.lines().filter_map(|l| module_name(Path::new(l))).collect();
    let mut loader = Loader { files, built_in, seen: BTreeSet::new(), ordered: Vec::new() };
    for name in names {
        loader.add(&name.replace('-', "_"))?;
    }
    Ok(loader.ordered)
}

struct Loader {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    ordered: Vec<Module>,
}

impl Loader {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let file =
            self.files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        let bytes = read_plain(file)?;
        for needed in depends(&bytes).with_context(|| file.display().to_string())? {
            self.add(&needed)?;
        }
        self.ordered.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module name, such as `kvm_amd` for `…/kvm-amd.ko` with any compression suffix; `None` for
/// other files.
pub(crate) fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".zst"].contains(&rest).then(|| name.replace('-', "_"))
}

fn read_plain(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => packages::XZ,
        Some("zst") => packages::ZSTD,
        _ => return Ok(fs::read(file)?),
    };
    packages::ensure_installed(&[tool])?;
    let mut unpack = Command::new(tool.file);
    let output = unpack.arg("-dc").arg(file).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{} cannot unpack {}", tool.file, file.display());
    Ok(output.stdout)
}

/// The `depends=` entry of the module's `.modinfo`.
fn depends(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf)?;
    let section = file.section_by_name(".modinfo").context("no .modinfo")?;
    for entry in section.data()?.split(|byte| *byte == 0) {
        if let Some(list) = entry.strip_prefix(b"depends=") {
            let names = std::str::from_utf8(list)?.split(',').filter(|name| !name.is_empty());
            return Ok(names.map(|name| name.replace('-', "_")).collect());
        }
    }
    bail!("no dependencies in .modinfo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_lose_directory_dashes_and_compression() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/arch/x86/kvm/kvm-amd.ko").as_deref(), Some("kvm_amd"));
        assert_eq!(name("a/hv_vmbus.ko.xz").as_deref(), Some("hv_vmbus"));
        assert_eq!(name("a/overlay.ko.zst").as_deref(), Some("overlay"));
        assert_eq!(name("a/modules.builtin"), None);
        assert_eq!(name("a/x.ko.gz"), None);
    }
}
