//! Memory added to a VM of KVM and taken out of it, with a kernel that refuses.

use std::error::Error;
use std::io;
use std::sync::Arc;

use guest_ram::{BackendError, GuestRam, MemorySlots, RamBackend, RamConfig, RamRegion};
use host_faults::Refusal;
use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::Kvm;
use page_range::{Gpfn, PageCount, PageRange};
use vm_memory::{Bytes, GuestAddress};

/// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)`.
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

/// What is added at a time: two blocks.
const BLOCK: u64 = 1 << 15;
const BASE: u64 = 1 << 20;

struct Slots(GuestVm<RamRegion>);

impl MemorySlots for Slots {
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()> {
        self.0.add(region).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn remove(&self, start: GuestAddress) -> io::Result<()> {
        self.0.remove(start).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

struct Fixture {
    vm: Arc<Slots>,
    ram: Arc<GuestRam>,
    backend: RamBackend<Arc<Slots>>,
}

impl Fixture {
    /// `None`, with a word why, where there is no KVM.
    fn new() -> Option<Self> {
        let fd = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
            Ok(fd) => fd,
            Err(error) => {
                println!("NOT TESTED: no /dev/kvm here: {error}");
                return None;
            }
        };
        let ram = GuestRam::new(&RamConfig {
            size: PageCount::from_bytes(16 << 20),
            hot_add: PageCount::from_bytes(1 << 30),
            max_pieces: 16,
            ..Default::default()
        });
        let ram = Arc::new(ram.unwrap());
        let vm = Arc::new(Slots(GuestVm::new(fd, ram.boot_regions()).unwrap()));
        let backend = RamBackend::new(Arc::clone(&ram), Arc::clone(&vm));
        Some(Self { vm, ram, backend })
    }

    fn add(&self) -> Result<(), BackendError> {
        self.backend.add(range(), PageCount::ZERO, PageCount::new(BLOCK))
    }

    fn remove(&self) -> Result<(), BackendError> {
        self.backend.remove(range())
    }

    /// Whether VM and books both have just boot RAM.
    fn has_nothing_added(&self) -> bool {
        let starts = [BASE, BASE + BLOCK].map(|page| GuestAddress(page << 12));
        let of_vm = starts.iter().filter(|start| self.vm.remove(**start).is_ok());
        of_vm.count() == 0 && self.ram.regions().len() == self.ram.boot_regions().len()
    }

    fn byte(&self) -> u8 {
        self.ram.memory().read_obj(GuestAddress((BASE + BLOCK) << 12)).unwrap()
    }

    fn mark(&self) {
        self.ram.memory().write_obj(7_u8, GuestAddress((BASE + BLOCK) << 12)).unwrap();
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn range() -> PageRange {
    pages(BASE, 2 * BLOCK)
}

fn cause(error: &dyn Error) -> Option<i32> {
    error.source()?.downcast_ref::<io::Error>()?.raw_os_error()
}

fn without_slots<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let slots =
        Refusal::of(libc::SYS_ioctl, libc::ENOMEM).with_argument(1, KVM_SET_USER_MEMORY_REGION);
    host_faults::with(&[slots], body)
}

#[test]
fn memory_that_kvm_does_not_take_is_not_added_and_can_be_later() {
    let Some(guest) = Fixture::new() else { return };
    let error = without_slots(|| guest.add().unwrap_err());
    let first = pages(BASE, BLOCK);
    assert!(matches!(error, BackendError::AddSlot { range, .. } if range == first), "{error}");
    assert_eq!(cause(&error), Some(libc::ENOMEM));
    assert!(guest.has_nothing_added());
    guest.add().unwrap();
    assert_eq!(guest.ram.regions().len(), 3);
}

#[test]
fn of_blocks_that_cannot_all_be_added_none_is_left_behind() {
    let Some(guest) = Fixture::new() else { return };
    // Something is in the place of the second block.
    let other = GuestRam::new(&RamConfig {
        size: PageCount::from_bytes(1 << 20),
        hot_add: PageCount::new(BLOCK),
        max_pieces: 1,
        ..Default::default()
    });
    let second = pages(BASE + BLOCK, BLOCK);
    let other = other.unwrap().add(second, PageCount::ZERO, PageCount::new(BLOCK));
    guest.vm.add(other.unwrap().remove(0)).unwrap();

    let error = guest.add().unwrap_err();
    assert!(matches!(error, BackendError::AddSlot { range, .. } if range == second), "{error}");
    assert_eq!(cause(&error), Some(libc::EEXIST));
    assert_eq!(guest.ram.regions().len(), 1);
    let first = guest.vm.remove(GuestAddress(BASE << 12)).unwrap_err();
    assert_eq!(first.kind(), io::ErrorKind::NotFound, "the first block is still the guest's");
}

#[test]
fn memory_that_kvm_does_not_let_go_of_goes_before_it_is_added_again() {
    let Some(guest) = Fixture::new() else { return };
    guest.add().unwrap();
    guest.mark();
    let error = without_slots(|| guest.remove().unwrap_err());
    assert!(error.to_string().contains("the guest can reach"), "{error}");
    assert_eq!(cause(&error), Some(libc::ENOMEM));
    // Not in the host's view of the guest, and with the host.
    assert_eq!(guest.ram.regions().len(), 1);

    without_slots(|| guest.add().unwrap_err());
    guest.add().unwrap();
    assert_eq!((guest.ram.regions().len(), guest.byte()), (3, 0));
    guest.remove().unwrap();
    assert!(guest.has_nothing_added());
}

#[test]
fn memory_that_the_host_cannot_take_back_is_out_of_the_guests_reach() {
    let Some(guest) = Fixture::new() else { return };
    guest.add().unwrap();
    let calls = [libc::SYS_madvise, libc::SYS_process_madvise];
    let refusals = calls.map(|call| Refusal::of(call, libc::EIO));
    let error = host_faults::with(&refusals, || guest.remove().unwrap_err());
    assert!(error.to_string().contains("cannot give pages"), "{error}");
    assert!(guest.has_nothing_added());
    guest.add().unwrap();
}

#[test]
fn what_cannot_have_been_added_is_not_removed() {
    let Some(guest) = Fixture::new() else { return };
    guest.remove().unwrap();
    guest.add().unwrap();
    guest.mark();
    guest.ram.memory().write_obj(7_u8, GuestAddress(0)).unwrap();
    let end = BASE + (1 << 18);
    for range in [pages(0, 1), pages(end, BLOCK), pages(end - BLOCK, 2 * BLOCK)] {
        guest.backend.remove(range).unwrap();
    }
    assert_eq!((guest.ram.regions().len(), guest.byte()), (3, 7));
    assert_eq!(guest.ram.memory().read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
    // From boot RAM to beyond the end of what can be added.
    guest.backend.remove(pages(0, end + BLOCK)).unwrap();
    assert!(guest.has_nothing_added());
    assert_eq!(guest.ram.memory().read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
}
