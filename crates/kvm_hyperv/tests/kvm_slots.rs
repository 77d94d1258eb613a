//! Memory slots of a running VM, seen by a few bytes of guest code.

use std::sync::Arc;

use host_faults::Refusal;
use kvm_hyperv::vm::{GuestVm, slot_limit};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::guest_memory::Result as AccessResult;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionMmap, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

type Region = GuestRegionMmap<()>;

const PAGE: usize = 4096;
/// Where the guest's code is.
const CODE: u64 = 0x1000;
/// Where memory comes and goes.
const ADDED: u64 = 0x8000;

/// In a loop: asks port 0x10 for a byte, writes it to memory, reads it back, and tells port 0x10
/// what it read.
const PROGRAM: [u8; 10] = [
    0xe4, 0x10, // in al, 0x10
    0x88, 0x07, // mov [bx], al
    0x8a, 0x07, // mov al, [bx]
    0xe6, 0x10, // out 0x10, al
    0xeb, 0xf6, // jmp to the start
];

/// What reads as all ones where no memory is.
const NO_MEMORY: u8 = 0xff;

fn region(start: u64) -> Arc<Region> {
    Arc::new(Region::from_range(GuestAddress(start), PAGE, None).unwrap())
}

/// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)` (Linux `include/uapi/linux/kvm.h`).
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

/// Runs `body` while KVM takes and gives no memory slots.
fn without_slots<T: Send>(errno: i32, body: impl FnOnce() -> T + Send) -> T {
    let slots = Refusal::of(libc::SYS_ioctl, errno).with_argument(1, KVM_SET_USER_MEMORY_REGION);
    host_faults::with(&[slots], body)
}

fn errno(result: Result<(), kvm_ioctls::Error>) -> i32 {
    result.unwrap_err().errno()
}

struct Guest<R = Region> {
    vcpu: VcpuFd,
    vm: GuestVm<R>,
}

impl Guest {
    /// A guest whose program writes to `address`.
    fn new(address: u64) -> Self {
        let code = region(CODE);
        code.write_slice(&PROGRAM, MemoryRegionAddress(0)).unwrap();
        Self::on(code, address)
    }
}

impl<R: GuestMemoryRegion + 'static> Guest<R> {
    /// The same for memory that begins with the program.
    fn on(memory: Arc<R>, address: u64) -> Self {
        let start = memory.start_addr().0;
        let fd = Kvm::new().unwrap().create_vm().unwrap();
        fd.set_tss_address(0xfffb_d000).unwrap();
        let vm = GuestVm::new(fd, [memory]).unwrap();
        let vcpu = vm.fd().create_vcpu(0).unwrap();
        let mut special = vcpu.get_sregs().unwrap();
        (special.cs.base, special.cs.selector) = (0, 0);
        vcpu.set_sregs(&special).unwrap();
        let mut registers = vcpu.get_regs().unwrap();
        (registers.rip, registers.rbx, registers.rflags) = (start, address, 2);
        vcpu.set_regs(&registers).unwrap();
        Self { vcpu, vm }
    }

    /// Lets the guest write `value`; returns what it reads then, and where a write left the VM.
    fn write(&mut self, value: u8) -> (u8, Option<u64>) {
        let mut left = None;
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoIn(0x10, data) => data.fill(value),
                VcpuExit::MmioWrite(address, _) => left = Some(address),
                VcpuExit::MmioRead(_, data) => data.fill(NO_MEMORY),
                VcpuExit::IoOut(0x10, data) => return (data[0], left),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_running_guest_gets_memory_and_loses_it_again() {
    let mut guest = Guest::new(ADDED);
    assert_eq!(guest.write(1), (NO_MEMORY, Some(ADDED)));

    let added = region(ADDED);
    guest.vm.add(Arc::clone(&added)).unwrap();
    assert_eq!(guest.write(2), (2, None));
    assert_eq!(added.read_obj::<u8>(MemoryRegionAddress(0)).unwrap(), 2);

    guest.vm.remove(GuestAddress(ADDED)).unwrap();
    assert_eq!(guest.write(3), (NO_MEMORY, Some(ADDED)));
    assert_eq!(added.read_obj::<u8>(MemoryRegionAddress(0)).unwrap(), 2);

    // It may come back.
    guest.vm.add(added).unwrap();
    assert_eq!(guest.write(4), (4, None));
}

#[test]
fn a_region_is_held_as_long_as_its_slot() {
    let guest = Guest::new(ADDED);
    let added = region(ADDED);
    guest.vm.add(Arc::clone(&added)).unwrap();
    assert_eq!(Arc::strong_count(&added), 2);
    guest.vm.remove(GuestAddress(ADDED)).unwrap();
    assert_eq!(Arc::strong_count(&added), 1);
    guest.vm.add(Arc::clone(&added)).unwrap();
    drop(guest);
    assert_eq!(Arc::strong_count(&added), 1);
}

#[test]
fn what_is_refused_leaves_no_trace() {
    let mut guest = Guest::new(ADDED);
    let over_code = region(CODE);
    assert_eq!(errno(guest.vm.add(Arc::clone(&over_code))), libc::EEXIST);
    assert_eq!(Arc::strong_count(&over_code), 1);
    assert_eq!(errno(guest.vm.remove(GuestAddress(ADDED))), libc::ENOENT);
    assert_eq!(errno(guest.vm.remove(GuestAddress(CODE + 1))), libc::ENOENT);

    // The slot that was tried in vain is free, and the program is still there.
    guest.vm.add(region(ADDED)).unwrap();
    assert_eq!(guest.write(5), (5, None));
}

#[test]
fn there_are_slots_for_boot_memory_and_more() {
    let limit = slot_limit(&Kvm::new().unwrap());
    assert!(limit >= 32, "{limit}");
}

#[test]
fn a_slot_that_kvm_refuses_can_be_had_later() {
    let mut guest = Guest::new(ADDED);
    let added = region(ADDED);
    for code in [libc::ENOMEM, libc::EINVAL] {
        let vm = &guest.vm;
        assert_eq!(without_slots(code, || errno(vm.add(Arc::clone(&added)))), code);
        assert_eq!(Arc::strong_count(&added), 1);
        assert_eq!(guest.write(6), (NO_MEMORY, Some(ADDED)));
    }
    guest.vm.add(added).unwrap();
    assert_eq!(guest.write(7), (7, None));
}

#[test]
fn a_slot_that_kvm_does_not_let_go_of_is_held_and_goes_before_the_next_one() {
    let mut guest = Guest::new(ADDED);
    let added = region(ADDED);
    guest.vm.add(Arc::clone(&added)).unwrap();
    let vm = &guest.vm;
    let result = without_slots(libc::ENOMEM, || vm.remove(GuestAddress(ADDED)));
    assert_eq!(errno(result), libc::ENOMEM);
    // The guest still reaches it, so it must stay mapped.
    assert_eq!(Arc::strong_count(&added), 2);
    assert_eq!(guest.write(8), (8, None));

    let vm = &guest.vm;
    let elsewhere = region(ADDED + 0x4000);
    let result = without_slots(libc::ENOMEM, || vm.add(Arc::clone(&elsewhere)));
    assert_eq!(errno(result), libc::ENOMEM);
    assert_eq!(Arc::strong_count(&elsewhere), 1);
    // Other memory at the same place: what was left over is gone by then.
    let other = region(ADDED);
    guest.vm.add(Arc::clone(&other)).unwrap();
    assert_eq!(Arc::strong_count(&added), 1);
    assert_eq!(guest.write(9), (9, None));
    assert_eq!(other.read_obj::<u8>(MemoryRegionAddress(0)).unwrap(), 9);
}

#[test]
fn a_removal_can_be_tried_again() {
    let guest = Guest::new(ADDED);
    guest.vm.add(region(ADDED)).unwrap();
    let vm = &guest.vm;
    let result = without_slots(libc::ENOMEM, || vm.remove(GuestAddress(ADDED)));
    assert_eq!(errno(result), libc::ENOMEM);
    guest.vm.remove(GuestAddress(ADDED)).unwrap();
    assert_eq!(errno(guest.vm.remove(GuestAddress(ADDED))), libc::ENOENT);
}

/// Whether a vCPU can still run the program, or finds no memory to run in.
fn runs_the_program(vcpu: &mut VcpuFd) -> bool {
    matches!(vcpu.run(), Ok(VcpuExit::IoIn(0x10, _)))
}

#[test]
fn a_region_that_kvm_does_not_let_go_of_is_leaked() {
    let Guest { mut vcpu, vm } = Guest::new(ADDED);
    let added = region(ADDED);
    vm.add(Arc::clone(&added)).unwrap();
    without_slots(libc::ENOMEM, || drop(vm));
    assert_eq!(Arc::strong_count(&added), 2);
    assert!(runs_the_program(&mut vcpu), "its memory must still be mapped");
}

/// A region that lies about where its memory is, or how much there is, as safe code can.
struct Liar {
    region: Region,
    len: GuestUsize,
    victim: Region,
    has_slice: bool,
}

impl GuestMemoryRegion for Liar {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> AccessResult<*mut u8> {
        self.victim.get_host_address(address)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> AccessResult<VolatileSlice<'_>> {
        if self.has_slice {
            self.region.get_slice(offset, count.min(PAGE))
        } else {
            Err(vm_memory::GuestMemoryError::HostAddressNotAvailable)
        }
    }
}

impl GuestMemoryRegionBytes for Liar {}

impl Liar {
    fn new(len: usize, has_slice: bool) -> Arc<Self> {
        let map = || Region::from_range(GuestAddress(ADDED), PAGE, None).unwrap();
        let len = GuestUsize::try_from(len).unwrap();
        Arc::new(Self { region: map(), len, victim: map(), has_slice })
    }
}

#[test]
fn the_guest_gets_memory_that_somebody_vouches_for_and_no_address_beside_it() {
    let vm = || Kvm::new().unwrap().create_vm().unwrap();
    let without_slice = GuestVm::new(vm(), [Liar::new(PAGE, false)]);
    assert_eq!(without_slice.map(drop).unwrap_err().errno(), libc::EINVAL);
    let too_long = GuestVm::new(vm(), [Liar::new(2 * PAGE, true)]);
    assert_eq!(too_long.map(drop).unwrap_err().errno(), libc::EINVAL);
    GuestVm::new(vm(), [Liar::new(PAGE, true)]).unwrap();
}

#[test]
fn the_guest_writes_to_the_slice_and_not_to_the_address() {
    let liar = Liar::new(PAGE, true);
    liar.region.write_slice(&PROGRAM, MemoryRegionAddress(0)).unwrap();
    let mut guest = Guest::on(Arc::clone(&liar), ADDED + 0x800);
    assert_eq!(guest.write(5), (5, None));
    let at = |region: &Region| region.read_obj::<u8>(MemoryRegionAddress(0x800)).unwrap();
    assert_eq!((at(&liar.region), at(&liar.victim)), (5, 0));
}

#[test]
fn all_memory_can_be_taken_away_and_then_a_drop_asks_nothing_of_kvm() {
    let Guest { mut vcpu, vm } = Guest::new(ADDED);
    let added = region(ADDED);
    vm.add(Arc::clone(&added)).unwrap();
    assert!(runs_the_program(&mut vcpu));
    vm.remove_all().unwrap();
    assert_eq!(Arc::strong_count(&added), 1);
    assert!(!runs_the_program(&mut vcpu));

    vm.add(Arc::clone(&added)).unwrap();
    assert_eq!(without_slots(libc::ENOMEM, || errno(vm.remove_all())), libc::ENOMEM);
    assert_eq!(Arc::strong_count(&added), 2);
    vm.remove_all().unwrap();
    // Had it to ask, the region would be leaked.
    without_slots(libc::ENOMEM, || drop(vm));
    assert_eq!(Arc::strong_count(&added), 1);
}
