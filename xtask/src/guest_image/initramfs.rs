//! Writing of an initramfs.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use cpio::NewcBuilder;
use guest_agent::boot::{MODULE_ORDER, MODULES};

use super::modules::Module;

/// An initramfs under construction. It is not compressed, because unpacking takes longer than
/// loading, especially in an emulated machine.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    directories: BTreeSet<String>,
    modules: BTreeSet<String>,
    inodes: u32,
}

impl Initramfs {
    /// Adds an executable file.
    ///
    /// # Errors
    ///
    /// The content is too big for the format.
    pub(crate) fn add_program(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.add(path, 0o100_755, content)
    }

    /// Adds a plain file.
    ///
    /// # Errors
    ///
    /// The content is too big for the format.
    pub(crate) fn add_file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.add(path, 0o100_644, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// None, for a path that the format can hold.
    pub(crate) fn add_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, 0o120_777, target.as_bytes())
    }

    /// Adds a list of modules in the order to load them, and the listed modules that are not yet in
    /// the image, where the init programs look for them.
    ///
    /// # Errors
    ///
    /// The content is too big for the format.
    pub(crate) fn add_modules(&mut self, list: &str, modules: &[Module]) -> Result<()> {
        for module in modules {
            if self.modules.insert(module.name.clone()) {
                self.add_file(&format!("{MODULES}/{}.ko", module.name), &module.bytes)?;
            }
        }
        let names: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
        self.add_file(&format!("{MODULES}/{MODULE_ORDER}{list}"), names.join("\n").as_bytes())
    }

    /// The whole archive.
    ///
    /// # Errors
    ///
    /// None, for an archive in memory.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(cpio::newc::trailer(self.archive)?)
    }

    fn add(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.trim_start_matches('/');
        let parents: Vec<&str> = Path::new(path).ancestors().filter_map(Path::to_str).collect();
        for parent in parents.into_iter().skip(1).filter(|p| !p.is_empty()).rev() {
            if self.directories.insert(parent.to_owned()) {
                self.append(parent, 0o040_755, &[])?;
            }
        }
        self.append(path, mode, content)
    }

    fn append(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inodes += 1;
        let entry = NewcBuilder::new(path).ino(self.inodes).mode(mode).nlink(1);
        let mut writer = entry.write(std::mem::take(&mut self.archive), content.len().try_into()?);
        std::io::Write::write_all(&mut writer, content)?;
        self.archive = writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back_with_each_directory_once_and_before_its_files() {
        let mut image = Initramfs::default();
        image.add_program("/init", b"run").unwrap();
        let module = |name: &str| Module { name: name.to_owned(), bytes: vec![1, 2, 3] };
        image.add_modules("usual", &[module("b"), module("a")]).unwrap();
        image.add_modules("other", &[module("c"), module("a")]).unwrap();
        let archive = image.finish().unwrap();

        let mut rest = archive.as_slice();
        let mut names = Vec::new();
        loop {
            let reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("init", 0o100_755),
            ("modules", 0o040_755),
            ("modules/b.ko", 0o100_644),
            ("modules/a.ko", 0o100_644),
            ("modules/order-usual", 0o100_644),
            ("modules/c.ko", 0o100_644),
            ("modules/order-other", 0o100_644),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
