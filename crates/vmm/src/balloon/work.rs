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

fn remove(ram: &GuestRam, vm: &Vm, range: PageRange) -> Result<(), WorkError> {
    let regions = match ram.remove(range) {
        // Nothing was ever added there.
        Err(DiscardError::NotRam(_)) => return Ok(()),
        other => other?,
    };
    for region in regions {
        match vm.remove(region.start_addr()) {
            // Not there: adding it failed.
            Err(error) if error.errno() == libc::ENOENT => {}
            Err(error) => {
                let what = "cannot take memory out of the VM";
                return Err(other(MachineError::kvm(what)(error)));
            }
            Ok(()) => {}
        }
    }
    match ram.discard(&[range]) {
        // The guest took a part of a huge page, and with that the host keeps all of it.
        Err(DiscardError::Unaligned { .. }) => Ok(()),
        other => Ok(other?),
    }
}

fn other(error: MachineError) -> WorkError {
    WorkError::Other(Box::new(error))
}
