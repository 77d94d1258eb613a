//! Sizes of the pages that back guest memory, and the host's pool of huge pages.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use page_range::{PAGE_SIZE, PageCount};
use thiserror::Error;

/// Size of the pages that back guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Pages of 4 KiB only.
    Off,
    /// Transparent huge pages, if the kernel has them.
    #[default]
    Transparent,
    /// Huge pages of 2 MiB, from the host's pool.
    Pool2M,
    /// Huge pages of 1 GiB, from the host's pool.
    Pool1G,
}

impl HugePages {
    /// The unit in which memory is given back to the host, in pages of 4 KiB: one page, or a whole
    /// huge page of the pool.
    #[must_use]
    pub const fn page_size(self) -> PageCount {
        match self {
            Self::Off | Self::Transparent => PageCount::new(1),
            Self::Pool2M => PageCount::new((2 << 20) / PAGE_SIZE),
            Self::Pool1G => PageCount::new((1 << 30) / PAGE_SIZE),
        }
    }

    /// Whether the pages come from the host's pool.
    #[must_use]
    pub const fn from_pool(self) -> bool {
        matches!(self, Self::Pool2M | Self::Pool1G)
    }
}

/// The name of the page size: `4 KiB`, `2 MiB`, `1 GiB`.
impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off | Self::Transparent => "4 KiB",
            Self::Pool2M => "2 MiB",
            Self::Pool1G => "1 GiB",
        })
    }
}

/// The host's pool of huge pages could not meet a request.
#[derive(Debug, Error)]
pub enum PoolError {
    /// The pool is too small.
    #[error(
        "{needed} huge pages of {size} are needed and {available} are free; \
         write at least {enough} to {}", file(*size, "nr_hugepages")
    )]
    Short {
        /// The page size.
        size: HugePages,
        /// Huge pages asked for.
        needed: u64,
        /// Huge pages that are free and not reserved.
        available: u64,
        /// The pool size that would suffice.
        enough: u64,
    },
    /// The host has no pool of this page size.
    #[error(
        "this host has no huge pages of {size}: boot it with hugepagesz={}", size.kernel_name()
    )]
    NoSuchSize {
        /// The page size.
        size: HugePages,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl PoolError {
    /// Interprets the `error` of a system call that asked the pool for `bytes`. Returns the error
    /// itself if it has nothing to do with the pool.
    pub(crate) fn explain(
        size: HugePages,
        bytes: u64,
        error: io::Error,
    ) -> Result<Self, io::Error> {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC) => {
                Ok(Self::short(size, bytes / size.page_size().bytes()))
            }
            Some(libc::EINVAL | libc::ENOENT | libc::ENODEV | libc::ENOSYS) => {
                Ok(Self::NoSuchSize { size, source: error })
            }
            _ => Err(error),
        }
    }

    fn short(size: HugePages, needed: u64) -> Self {
        let pool = PoolFiles::of(size);
        let all = pool.all.number();
        let available = pool.free.number().saturating_sub(pool.promised.number());
        let enough = all.saturating_add(needed).saturating_sub(available);
        Self::Short { size, needed, available, enough }
    }
}

/// The host's figures for a pool. The files are opened once, so that a process can still read them
/// after it was confined.
#[derive(Debug)]
pub(crate) struct PoolFiles {
    all: NumberFile,
    free: NumberFile,
    promised: NumberFile,
}

impl PoolFiles {
    /// The files for a page size; the first call opens them.
    pub(crate) fn of(size: HugePages) -> &'static Self {
        static MIB_2: OnceLock<PoolFiles> = OnceLock::new();
        static GIB_1: OnceLock<PoolFiles> = OnceLock::new();
        let files = if size == HugePages::Pool1G { &GIB_1 } else { &MIB_2 };
        let open = |name| NumberFile(File::open(file(size, name)).ok());
        files.get_or_init(|| Self {
            all: open("nr_hugepages"),
            free: open("free_hugepages"),
            promised: open("resv_hugepages"),
        })
    }
}

/// A file that holds a number, which changes.
#[derive(Debug)]
struct NumberFile(Option<File>);

impl NumberFile {
    /// The number, for an error text; zero if it cannot be read.
    fn number(&self) -> u64 {
        let mut text = [0; 24];
        let length = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = length.and_then(|length| text.get(..length));
        text.and_then(|text| str::from_utf8(text).ok())
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_default()
    }
}

impl HugePages {
    /// The size as written on the kernel's command line.
    fn kernel_name(self) -> &'static str {
        match self {
            Self::Pool1G => "1G",
            _ => "2M",
        }
    }
}

/// A file of the pool (Linux `Documentation/admin-guide/mm/hugetlbpage.rst`).
fn file(size: HugePages, name: &str) -> String {
    let kib = size.page_size().bytes() >> 10;
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_pool_is_told_with_numbers_and_remedy() {
        let size = HugePages::Pool2M;
        let error = PoolError::Short { size, needed: 8, available: 3, enough: 15 };
        assert_eq!(
            error.to_string(),
            "8 huge pages of 2 MiB are needed and 3 are free; write at least 15 to \
             /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
        );
    }

    #[test]
    fn errors_that_are_not_the_pools_are_passed_on() {
        let explain = |code| {
            PoolError::explain(HugePages::Pool1G, 1 << 30, io::Error::from_raw_os_error(code))
        };
        assert!(matches!(explain(libc::ENOSPC), Ok(PoolError::Short { needed: 1, .. })));
        assert!(matches!(explain(libc::EINVAL), Ok(PoolError::NoSuchSize { .. })));
        assert!(explain(libc::EIO).is_err());
    }

    #[test]
    fn a_number_is_read_anew_from_the_file_that_was_opened_first() {
        let path = std::env::temp_dir().join(format!("hvb-number-{}", std::process::id()));
        std::fs::write(&path, "12\n").unwrap();
        let number = NumberFile(File::open(&path).ok());
        assert_eq!(number.number(), 12);
        std::fs::write(&path, "345\n").unwrap();
        assert_eq!(number.number(), 345);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(number.number(), 345);
        assert_eq!(NumberFile(None).number(), 0);
    }
}
