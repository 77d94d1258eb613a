//! What comes from Debian: packages, the programs in them, and the cache of what was downloaded.

pub(crate) mod apt;
pub(crate) mod cache;
pub(crate) mod packages;
