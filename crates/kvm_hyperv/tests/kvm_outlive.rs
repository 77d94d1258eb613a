//! What a vCPU can write after its VM is dropped. Alone in its process: nothing else must map memory
//! at the address that becomes free.

// UNSAFETY: other memory is mapped where that of the VM was.
#![expect(unsafe_code, reason = "memory is mapped at a given address")]

use std::sync::Arc;

use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
    VolatileMemory,
};

type Region = GuestRegionMmap<()>;

const PAGE: usize = 4096;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x8000;

/// Asks port 0x10 for a byte, writes it to memory and tells port 0x10.
const PROGRAM: [u8; 6] = [
    0xe4, 0x10, // in al, 0x10
    0x88, 0x07, // mov [bx], al
    0xe6, 0x10, // out 0x10, al
];

fn region(start: u64) -> Arc<Region> {
    Arc::new(Region::from_range(GuestAddress(start), PAGE, None).unwrap())
}

/// Maps a page at an address that is free.
fn map_at(address: *mut u8) -> MmapRegion {
    let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel maps nothing over what is mapped.
    let mapped = unsafe { libc::mmap(address.cast(), PAGE, access, flags, -1, 0) };
    assert_eq!(mapped.cast(), address);
    // SAFETY: it was mapped above and is never unmapped.
    unsafe { MmapRegion::build_raw(address, PAGE, access, flags) }.unwrap()
}

#[test]
fn a_vcpu_that_outlives_its_vm_does_not_write_what_is_mapped_there_next() {
    let (code, data) = (region(CODE), region(DATA));
    code.write_slice(&PROGRAM, MemoryRegionAddress(0)).unwrap();
    let fd = Kvm::new().unwrap().create_vm().unwrap();
    fd.set_tss_address(0xfffb_d000).unwrap();
    // The program stays mapped whatever happens to the VM.
    let vm = GuestVm::new(fd, [Arc::clone(&code), Arc::clone(&data)]).unwrap();
    let mut vcpu = vm.fd().create_vcpu(0).unwrap();
    let mut special = vcpu.get_sregs().unwrap();
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special).unwrap();
    let mut registers = vcpu.get_regs().unwrap();
    (registers.rip, registers.rbx, registers.rflags) = (CODE, DATA, 2);
    vcpu.set_regs(&registers).unwrap();
    match vcpu.run().unwrap() {
        VcpuExit::IoIn(0x10, byte) => byte.fill(7),
        other => panic!("{other:?}"),
    }

    let address = data.get_host_address(MemoryRegionAddress(0)).unwrap();
    drop((vm, data));
    let other = map_at(address);
    let _ = vcpu.run();
    let written: u8 = other.as_volatile_slice().read_obj(0).unwrap();
    assert_eq!(written, 0, "the guest wrote memory that is not its own");
}
