#![forbid(unsafe_code)]
//! The host's side of the end-to-end tests: runs `hvb` with a real Linux guest and talks to both.
//!
//! The tests need a KVM with Hyper-V, a guest kernel and an initramfs with `guest_agent`, which
//! `cargo xtask test` provides. Under a plain `cargo test` they fail with a message that says so,
//! because silently skipped tests would be worse.

mod agent;
pub mod cgroup;
mod config;
mod console;
pub mod debian;
pub mod disk;
pub mod peer;
pub mod ping;
pub mod process;
pub mod recorded;
mod setup;
pub mod soak;
pub mod tap;
mod vm;

pub use agent::{Agent, Answer, Checked, Meminfo};
pub use config::{NO_CLEARING, VmConfig};
pub use setup::{Setup, hvb, is_long_run};
pub use vm::{Vm, has_size, resident};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The one limit for whatever a guest has to do. It is generous, since a guest on a slow, busy
/// machine needed 80 s for a boot that takes 4 s elsewhere. A limit that is hit says which condition
/// did not come.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Polls `probe` until it returns a value.
///
/// # Errors
///
/// `probe` fails, or returns no value within [`PATIENCE`]; the error then says what was awaited:
/// `what`.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    match poll_for(PATIENCE, probe)? {
        Some(found) => Ok(found),
        None => bail!("{what}: not within {PATIENCE:?}"),
    }
}

/// Polls `probe` until it returns a value; `None` if it has returned none within `limit`.
///
/// # Errors
///
/// `probe` fails.
pub fn poll_for<T>(
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        let found = probe()?;
        if found.is_some() || Instant::now() > deadline {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
