//! A guest whose conversation with bus and device is recorded, and replayed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bus_replay::Compared;
use serde_json::json;

use crate::{MIB, NO_CLEARING, Vm, VmConfig};

/// Its size at boot, in bytes.
const BOOT: u64 = 512 * MIB;

/// The sizes it gets: less, more than at boot, and what it had.
const SIZES: [u64; 3] = [384 * MIB, 768 * MIB, BOOT];

/// Boots a guest that reports its pressure, shrinks it, grows it past its boot size, has it give that
/// back, closes its channel and opens it again, resets it and powers it off, while `hvb` records it to
/// `path`; then replays the recording.
///
/// # Errors
///
/// The guest does not get there, or the replay differs.
pub fn session(path: &Path) -> Result<Compared> {
    let config = VmConfig {
        memory: BOOT,
        max_memory: Some(2 * BOOT),
        record_bus: Some(path.to_owned()),
        status_report: true,
        append: NO_CLEARING,
        ..VmConfig::default()
    };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    for size in SIZES {
        vm.resize(size)?;
    }
    vm.rebind_driver()?;
    vm.resize(448 * MIB)?;
    vm.monitor.execute("system_reset", json!(null))?;
    vm.agent.wait_up()?;
    vm.wait_for_driver()?;
    vm.power_off()?;
    let name = path.display().to_string();
    let recording = bus_recording::read(&fs::read(path)?).with_context(|| name.clone())?;
    ensure!(!recording.is_cut_off, "{name} has no end, although hvb ended");
    let compared = bus_replay::replay(&recording).with_context(|| format!("replay of {name}"))?;
    // The 256 MiB past the boot size were added, and some of the guest's memory was discarded.
    ensure!(compared.added > 0 && compared.jobs > compared.added, "{compared:?}");
    Ok(compared)
}
