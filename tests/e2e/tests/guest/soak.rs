//! Many resizes in a row without losing a byte of the guest's data, and a short run of the soak
//! that `cargo xtask soak` continues for as long as asked.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use e2e::soak::{self, Limit, Plan};
use e2e::{MIB, NO_CLEARING, Vm, VmConfig};

const BOOT: u64 = 384 * MIB;
const MOST: u64 = 768 * MIB;
/// About what the guest needs with its data, so it may stop before.
const LEAST: u64 = 256 * MIB;
const ROUNDS: u32 = 100;

#[test]
fn a_hundred_random_resizes_lose_no_data() -> Result<()> {
    let config = VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(MOST),
        append: NO_CLEARING,
        ..Default::default()
    };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    vm.agent.fill(1, 32 * MIB)?;
    vm.resize(MOST)?;
    let total = vm.agent.meminfo()?.total;
    vm.agent.fill(2, 32 * MIB)?;

    let mut random = Random(0x5eed);
    for round in 1..=ROUNDS {
        let target = random.between(LEAST / MIB, MOST / MIB) * MIB;
        resize(&mut vm, target).with_context(|| format!("round {round}"))?;
        if round % 10 == 0 {
            vm.agent.check(1).with_context(|| format!("round {round}"))?;
            vm.agent.check(2).with_context(|| format!("round {round}"))?;
        }
    }

    vm.resize(MOST)?;
    let end = vm.agent.meminfo()?.total;
    ensure!(end == total, "MemTotal is {end} and was {total}");
    let status = vm.dynamic_memory()?;
    ensure!(status.faults.are_none(), "{status:?}");
    ensure!(status.ballooned == 0 && status.undiscarded == 0, "{status:?}");
    vm.power_off()
}

/// The warm-up alone includes a reset, a reload of the driver, and clients that come and go.
#[test]
fn some_steps_of_the_long_soak_leave_nothing_wrong() -> Result<()> {
    let plan = Plan {
        seed: 2,
        limit: Limit::Steps(14),
        keep_size: false,
        hugepages: None,
        devices: true,
        progress: false,
    };
    soak::run(&plan, &AtomicBool::new(false))
}

/// Only a shrink may stop short, at what the guest needs for itself.
fn resize(vm: &mut Vm, target: u64) -> Result<()> {
    let before = vm.actual()?;
    let status = vm.approach(target)?;
    let arrived = status.actual == target;
    let stopped = target < before && status.stopped.is_some() && status.actual > target;
    ensure!(arrived || stopped, "from {before} to {target}: {status:?}");
    Ok(())
}

/// A linear congruential generator: the same sequence each time.
struct Random(u64);

impl Random {
    fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        least + (self.0 >> 33) % (most - least + 1)
    }
}
