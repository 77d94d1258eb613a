//! The cache of downloads: `$HV_BALLOON_CACHE`, or `hv-balloon` in the user's cache directory.
//!
//! Everything in it under its final name is complete: it is made under another name and then
//! renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::{NamedTempFile, TempDir};

/// The cache directory, locked against other runs until dropped.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache; waits while another run holds it.
    ///
    /// # Errors
    ///
    /// The directory cannot be created or locked.
    pub(crate) fn open() -> Result<Self> {
        Self::at(location()?).context("cannot use the cache: set HV_BALLOON_CACHE")
    }

    /// Opens a cache in a directory of the user's choice.
    ///
    /// # Errors
    ///
    /// As [`Cache::open`].
    pub(crate) fn at(dir: PathBuf) -> Result<Self> {
        let at = || format!("cannot write to {}", dir.display());
        fs::create_dir_all(&dir).with_context(at)?;
        let lock = File::create(dir.join("lock")).with_context(at)?;
        lock.lock().with_context(at)?;
        Ok(Self { dir, _lock: lock })
    }

    /// The path of an entry, whether it exists or not.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in which to make an entry; rename part of it to [`Self::path`].
    ///
    /// # Errors
    ///
    /// The cache is not writable.
    pub(crate) fn workshop(&self) -> Result<TempDir> {
        // Left behind by an interrupted run; nothing else is at work, as this run holds the lock.
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WORKSHOP) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(tempfile::Builder::new().prefix(WORKSHOP).tempdir_in(&self.dir)?)
    }
}

const WORKSHOP: &str = "unfinished-";

/// Writes a file so that no reader ever sees part of it.
///
/// # Errors
///
/// The directory cannot be created or written to.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().context("no directory to write to")?;
    fs::create_dir_all(dir)?;
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(content)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn location() -> Result<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    given("HV_BALLOON_CACHE")
        .or_else(|| Some(given("XDG_CACHE_HOME")?.join("hv-balloon")))
        .or_else(|| Some(given("HOME")?.join(".cache/hv-balloon")))
        .context("no place for the cache: set HV_BALLOON_CACHE or HOME")
}
