//! The guest's memory, and the VM that it belongs to.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap};

/// The guest's memory. Regions come and go while the guest runs.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The VM, with a memory slot for each region.
pub(crate) type Vm = GuestVm<GuestRegionMmap>;

/// The end of RAM below 4 GiB; the interrupt controllers lie above it.
const LOW_RAM_LIMIT: u64 = 3 << 30;

/// The start of RAM above the interrupt controllers.
pub(crate) const HIGH_RAM_START: u64 = 4 << 30;

/// Pages that KVM needs on Intel processors, next to the interrupt controllers.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A VM with interrupt controllers, a timer, and `bytes` of RAM from address 0.
pub(crate) fn create(kvm: &Kvm, bytes: u64) -> Result<(Vm, Memory)> {
    ensure!(bytes <= LOW_RAM_LIMIT, "this machine boots with at most 3G");
    let region = GuestRegionMmap::from_range(GuestAddress(0), usize::try_from(bytes)?, None)
        .context("cannot map the guest's memory")?;
    let region = Arc::new(region);

    let vm = kvm.create_vm().context("cannot create a VM")?;
    vm.set_tss_address(TSS_ADDRESS)?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)?;
    vm.create_irq_chip().context("cannot create the interrupt controllers")?;
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(timer).context("cannot create the timer")?;
    let vm = GuestVm::new(vm, [Arc::clone(&region)]).context("cannot give the VM its memory")?;
    let memory = GuestMemoryMmap::from_arc_regions(vec![region])?;
    Ok((vm, GuestMemoryAtomic::new(memory)))
}

/// The width of a guest physical address, in bits.
pub(crate) fn address_bits(kvm: &Kvm) -> Result<u32> {
    /// The width on processors without the CPUID leaf.
    const LEAST: u32 = 36;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    Ok(leaf.map_or(LEAST, |leaf| (leaf.eax & 0xff).clamp(LEAST, 52)))
}

/// Parses a size with the suffix M or G; returns bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.strip_suffix('G') {
        Some(digits) => (digits, 30),
        None => (text.strip_suffix('M').context("not a size such as 512M or 4G")?, 20),
    };
    let count: u64 = digits.parse().context("not a size such as 512M or 4G")?;
    count.checked_mul(1 << shift).filter(|bytes| *bytes <= 1 << 52).context("too large")
}
