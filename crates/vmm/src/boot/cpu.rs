//! The initial state of a vCPU, and its CPUID.

use guest_ram::GuestRam;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_segment,
};
use kvm_hyperv::cpuid::{
    SyntheticTimers, add_crash_msrs, add_hyperv_leaves, offer_extended_hypercalls,
};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::error::{BootError, MachineError};
use crate::machine::Parts;

/// Selectors of the Linux 64-bit boot protocol (`Documentation/arch/x86/boot.rst`).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

const PROTECTED_MODE: u64 = 1;
const PAGING: u64 = 1 << 31;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const LONG_MODE_ENABLE: u64 = 1 << 8;
const LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Page table entry: present and writable; and for a 2 MiB page.
const PRESENT: u64 = 0x03;
const LARGE_PAGE: u64 = 0x83;
const PAGE: u64 = 4096;
/// The identity map covers this much; kernel, initrd and boot data lie within it.
const MAPPED_GIB: u64 = 4;

/// Descriptors for flat 64-bit code and flat data, at the index of their selectors.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// `IA32_MTRR_DEF_TYPE`: MTRRs on, all memory write-back, as firmware leaves it.
const MTRR_DEFAULT_TYPE: kvm_msr_entry =
    kvm_msr_entry { index: 0x2ff, reserved: 0, data: 1 << 11 | 6 };

/// Writes the descriptor table and the page tables for the first vCPU.
pub(crate) fn write_tables(ram: &GuestRam) -> Result<(), BootError> {
    let memory = ram.memory();
    let put = |address: u64, entry: u64| {
        memory.write_obj(entry, GuestAddress(address)).map_err(BootError::Memory)
    };
    for (index, descriptor) in (0_u64..).zip(GDT) {
        put(layout::GDT + index * 8, descriptor)?;
    }
    let (pml4, pdpt, directories) =
        (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE, layout::PAGE_TABLES + 2 * PAGE);
    put(pml4, pdpt | PRESENT)?;
    for gib in 0..MAPPED_GIB {
        put(pdpt + gib * 8, (directories + gib * PAGE) | PRESENT)?;
    }
    for large_page in 0..MAPPED_GIB * 512 {
        put(directories + large_page * 8, large_page << 21 | LARGE_PAGE)?;
    }
    Ok(())
}

/// Sets up the first vCPU to enter the kernel in 64-bit mode at `entry`.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), MachineError> {
    let failed = MachineError::kvm("cannot set the registers of the first vCPU");
    let mut special = vcpu.get_sregs().map_err(failed)?;
    special.gdt.base = layout::GDT;
    special.gdt.limit = 8 * 4 - 1;
    special.cs = segment(CODE_SELECTOR, 0xb, true);
    let data = segment(DATA_SELECTOR, 0x3, false);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cr0 |= PROTECTED_MODE | PAGING;
    special.cr3 = layout::PAGE_TABLES;
    special.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    special.efer |= LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
    vcpu.set_sregs(&special).map_err(failed)?;

    let mut registers = vcpu.get_regs().map_err(failed)?;
    registers.rip = entry;
    registers.rsi = layout::ZERO_PAGE;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(failed)
}

fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// The width of the guest's physical addresses, in bits.
pub(crate) fn address_bits(kvm: &Kvm) -> Result<u32, MachineError> {
    /// The width on processors without this leaf.
    const LEAST: u32 = 36;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("cannot read the CPUID that KVM supports"))?;
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    Ok(leaf.map_or(LEAST, |leaf| (leaf.eax & 0xff).clamp(LEAST, 52)))
}

/// Sets the MSRs with which every vCPU starts.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let msrs = Msrs::from_entries(&[MTRR_DEFAULT_TYPE])
        .map_err(|_| MachineError::Resource("memory for model specific registers"))?;
    vcpu.set_msrs(&msrs).map_err(MachineError::kvm("cannot set the MSRs of a vCPU")).map(|_| ())
}

/// A vCPU's CPUID: the host's features, this machine's processors, and Hyper-V.
pub(crate) fn cpuid(parts: &Parts<'_>, vcpu: &VcpuFd, id: u8) -> Result<CpuId, MachineError> {
    let host = parts
        .kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(MachineError::kvm("cannot read the CPUID that KVM supports"))?;
    let hyperv = kvm_hyperv::cpuid::supported(vcpu).map_err(|source| MachineError::System {
        what: "cannot read KVM's Hyper-V CPUID",
        source,
    })?;
    let mut entries = host.as_slice().to_vec();
    set_topology(&mut entries, id, parts.vcpus);
    // The guest is Linux, which is better off without them.
    add_hyperv_leaves(&mut entries, hyperv.as_slice(), SyntheticTimers::Withheld);
    add_crash_msrs(&mut entries, hyperv.as_slice());
    if parts.takes_reports {
        offer_extended_hypercalls(&mut entries, hyperv.as_slice());
    }
    CpuId::from_entries(&entries).map_err(|_| MachineError::Resource("memory for CPUID leaves"))
}

/// One socket, `vcpus` cores, one thread each; the APIC id is the vCPU number.
fn set_topology(entries: &mut Vec<kvm_cpuid_entry2>, id: u8, vcpus: u8) {
    // The host's own topology leaves describe its processors, not the guest's.
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    let apic_id = u32::from(id);
    let cores = u32::from(vcpus);
    let core_bits = cores.next_power_of_two().trailing_zeros();
    for entry in entries.iter_mut() {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | cores << 16 | apic_id << 24;
                // A hypervisor is present, and KVM's local APIC has the TSC deadline timer.
                entry.ecx |= 1 << 31 | 1 << 24;
                set_bit(&mut entry.edx, 28, vcpus > 1);
            }
            // Every cache belongs to one core; the cores belong to one package.
            0x4 if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | (cores - 1).min(0x3f) << 26;
            }
            0x8000_0001 => set_bit(&mut entry.ecx, 1, vcpus > 1),
            0x8000_0008 => entry.ecx = core_bits << 12 | (cores - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: apic_id,
        ..Default::default()
    };
    entries.extend([level(0, 1, 0, 1), level(1, 2, core_bits, cores), level(2, 0, 0, 0)]);
}

fn set_bit(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}
