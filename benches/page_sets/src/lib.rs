//! The workloads that guests cause for the host's set of pages, and the sets that could handle
//! them.
//!
//! `cargo run --release -p page_sets` prints the tables; `cargo bench -p page_sets` does the same
//! in criterion. Both use the workloads and peers in this crate, and compare the peers' answers.

mod flat;
mod glib;
mod gtree;
pub mod heap;
pub mod peer;
mod rivals;
pub mod work;

pub use peer::{PageSet, Peer};
pub use work::{Size, Work};

/// Checks that glib is installed.
///
/// # Errors
/// What is missing, and how to install it.
pub fn find_glib() -> anyhow::Result<()> {
    glib::Glib::get().map(|_| ())
}
