//! Everything from Debian: packages, the programs in them, and the cache of downloads.

pub(crate) mod apt;
pub(crate) mod cache;
pub(crate) mod packages;
pub(crate) mod release;
