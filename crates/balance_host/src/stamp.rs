//! Whether a file or a directory has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What changes when a file does, and for a directory when a name in it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl FileStamp {
    /// That of a file; `None` if there is none.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let data = fs::metadata(file).ok()?;
        Some(Self { modified: data.modified().ok(), len: data.len(), inode: data.ino() })
    }

    /// Whether the last change was at least so long ago. The kernel's time stamps are no finer than its ticks, so
    /// soon after a change there may have been another.
    pub(crate) fn has_rested(&self, time: Duration) -> bool {
        let age = self.modified.and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_some_and(|age| age >= time)
    }
}
