//! Slow work on guest memory, done on a thread of its own and in the order asked for.

use std::io;
use std::sync::Arc;

use guest_ram::{DiscardError, GuestRam, MemoryWorker, WorkError};
use hv_balloon::{JobId, Prepare};
use page_range::{PageCount, PageRange};
use vm_memory::GuestMemoryRegion;

use super::log_limit::LogLimit;
use crate::confine::{Confinement, Thread};
use crate::error::MachineError;
use crate::machine::{MachineHandle, Vm};

/// Work that the device waits for.
pub(crate) enum Task {
    Discard(Vec<PageRange>),
    Prepare(Prepare),
}

/// What the worker's thread does when a job has ended.
enum Ending {
    /// Tells the device.
    Report(JobId),
    /// Nothing: nobody waits.
    Silent,
    /// Calls this.
    Call(Box<dyn FnOnce() + Send>),
}

/// The worker; dropping it waits until everything is done.
pub(crate) struct Worker(MemoryWorker<Ending>);

impl Worker {
    /// Starts the thread. `done` is told of each task and whether it succeeded.
    pub(crate) fn start(
        confinement: &Confinement,
        done: impl Fn(JobId, bool) + Send + 'static,
    ) -> io::Result<Self> {
        // A guest that gives pages causes work, and where that fails, lines.
        let mut log = LogLimit::new();
        let worker = MemoryWorker::spawn(move |ending, result: Result<(), WorkError>| {
            if let Err(error) = &result {
                log.log(|| tracing::error!("{}", crate::error::chain(error)));
            }
            match ending {
                Ending::Report(id) => done(id, result.is_ok()),
                Ending::Silent => {}
                Ending::Call(call) => call(),
            }
        })?;
        // Before any work there is. If it fails the machine ends.
        let confinement = confinement.clone();
        worker.submit(Ending::Silent, move || {
            confinement.enter(Thread::Memory).map_err(|error| WorkError::Other(Box::new(error)))
        });
        Ok(Self(worker))
    }

    /// Does a task on a machine's memory.
    pub(crate) fn submit(&self, id: JobId, machine: &MachineHandle, task: Task) {
        let ram = Arc::clone(&machine.ram);
        let tag = Ending::Report(id);
        match task {
            Task::Discard(ranges) => self.0.submit_discard(tag, ram, ranges),
            Task::Prepare(Prepare::Return(ranges)) => self.0.submit_provide(tag, ram, ranges),
            Task::Prepare(Prepare::Add { range, offset, alignment }) => {
                let vm = Arc::clone(&machine.vm);
                self.0.submit(tag, move || add(&ram, &vm, range, offset, alignment));
            }
        }
    }

    /// Takes added memory out of a machine.
    pub(crate) fn remove(&self, machine: &MachineHandle, range: PageRange) {
        let (ram, vm) = (Arc::clone(&machine.ram), Arc::clone(&machine.vm));
        self.0.submit(Ending::Silent, move || remove(&ram, &vm, range));
    }

    /// Calls `call` when all that was asked for before is done.
    pub(crate) fn when_idle(&self, call: impl FnOnce() + Send + 'static) {
        self.0.submit(Ending::Call(Box::new(call)), || Ok(()));
    }
}

fn add(
    ram: &GuestRam,
    vm: &Vm,
    range: PageRange,
    offset: PageCount,
    alignment: PageCount,
) -> Result<(), WorkError> {
    for region in ram.add(range, offset, alignment)? {
        if let Err(error) = vm.add(region) {
            // What the error is about is worth more than what undoing it meets with.
            let _ = remove(ram, vm, range);
            return Err(other(MachineError::kvm("cannot give the VM more memory")(error)));
        }
    }
    Ok(())
}

/// Does all of it that can be done, and says what failed first.
fn remove(ram: &GuestRam, vm: &Vm, range: PageRange) -> Result<(), WorkError> {
    let regions = match ram.remove(range) {
        // Nothing was ever added there.
        Err(DiscardError::NotRam(_)) => return Ok(()),
        other => other?,
    };
    let mut result = Ok(());
    for region in regions {
        match vm.remove(region.start_addr()) {
            // Not there: adding it failed.
            Err(error) if error.errno() == libc::ENOENT => {}
            // The guest reaches it until memory is added again: that begins with removing this.
            Err(error) => {
                let what = "cannot take memory out of the VM, which the guest can reach until \
                            memory is added again";
                result = result.and(Err(other(MachineError::kvm(what)(error))));
            }
            Ok(()) => {}
        }
    }
    match ram.discard(&[range]) {
        // The guest took a part of a huge page, and with that the host keeps all of it.
        Ok(()) | Err(DiscardError::Unaligned { .. }) => result,
        Err(error) => result.and(Err(error.into())),
    }
}

fn other(error: MachineError) -> WorkError {
    WorkError::Other(Box::new(error))
}

#[cfg(test)]
mod tests {
    use guest_ram::RamConfig;
    use host_faults::Refusal;
    use kvm_hyperv::vm::GuestVm;
    use kvm_ioctls::Kvm;
    use page_range::Gpfn;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)`.
    const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;

    /// What is added at a time: two blocks.
    const BLOCK: u64 = 1 << 15;
    const BASE: u64 = 1 << 20;

    struct Fixture {
        // Before the memory: KVM lets go of it first.
        vm: Vm,
        ram: GuestRam,
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
            let ram = ram.unwrap();
            let vm = GuestVm::new(fd, ram.boot_regions()).unwrap();
            Some(Self { vm, ram })
        }

        fn add(&self) -> Result<(), WorkError> {
            add(&self.ram, &self.vm, range(), PageCount::ZERO, PageCount::new(BLOCK))
        }

        fn remove(&self) -> Result<(), WorkError> {
            remove(&self.ram, &self.vm, range())
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

    fn range() -> PageRange {
        PageRange::new(Gpfn::new(BASE).unwrap(), PageCount::new(2 * BLOCK)).unwrap()
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
        let text = crate::error::chain(&error);
        assert!(text.starts_with("cannot give the VM more memory; free memory"), "{text}");
        assert!(text.contains("os error 12"), "{text}");
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
        let second = PageRange::new(Gpfn::new(BASE + BLOCK).unwrap(), PageCount::new(BLOCK));
        let other = other.unwrap().add(second.unwrap(), PageCount::ZERO, PageCount::new(BLOCK));
        guest.vm.add(other.unwrap().remove(0)).unwrap();

        let error = guest.add().unwrap_err();
        assert!(crate::error::chain(&error).contains("os error 17"), "{error}");
        assert_eq!(guest.ram.regions().len(), 1);
        let first = guest.vm.remove(GuestAddress(BASE << 12)).unwrap_err();
        assert_eq!(first.errno(), libc::ENOENT, "the first block is still the guest's");
    }

    #[test]
    fn memory_that_kvm_does_not_let_go_of_goes_before_it_is_added_again() {
        let Some(guest) = Fixture::new() else { return };
        guest.add().unwrap();
        guest.mark();
        let error = without_slots(|| guest.remove().unwrap_err());
        assert!(error.to_string().contains("the guest can reach"), "{error}");
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
}
