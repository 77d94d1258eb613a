//! The work a guest makes for the host's set of pages, and the sets that could do it.
//!
//! `cargo run --release -p page_sets` prints the tables, `cargo bench -p page_sets` is the same in
//! criterion. Both use the workloads and peers here, and compare what the peers answer.

mod flat;
mod glib;
mod gtree;
pub mod heap;
pub mod peer;
mod rivals;
pub mod work;

pub use peer::{PageSet, Peer};
pub use work::{Size, Work};

/// Whether glib is there.
///
/// # Errors
/// What is missing, and how to install it.
pub fn find_glib() -> anyhow::Result<()> {
    glib::Glib::get().map(|_| ())
}
