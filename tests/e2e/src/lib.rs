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
pub mod peer;
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
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
