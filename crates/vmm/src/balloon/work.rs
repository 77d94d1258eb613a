//! Slow work on guest memory, done on a thread of its own and in the order asked for.

use std::io;
use std::sync::Arc;

use guest_ram::{BackendError, MemorySlots, MemoryWorker, RamBackend, RamRegion, WorkError};
use hv_balloon::{JobId, Prepare};
use page_range::PageRange;
use vm_memory::GuestAddress;

use super::log_limit::LogLimit;
use crate::confine::{Confinement, Thread};
use crate::error::MachineError;
use crate::machine::{MachineHandle, Vm};

/// Work that the device waits for.
pub(crate) enum Task {
    Discard(Vec<PageRange>),
    Prepare(Prepare),
    Remove(PageRange),
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
                let backend = backend(machine);
                self.0.submit(tag, move || backend.add(range, offset, alignment).map_err(explain));
            }
            Task::Remove(range) => {
                let backend = backend(machine);
                self.0.submit(tag, move || backend.remove(range).map_err(explain));
            }
        }
    }

    /// Calls `call` when all that was asked for before is done.
    pub(crate) fn when_idle(&self, call: impl FnOnce() + Send + 'static) {
        self.0.submit(Ending::Call(Box::new(call)), || Ok(()));
    }
}

/// The slots of a machine's VM.
struct Slots(Arc<Vm>);

impl MemorySlots for Slots {
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()> {
        self.0.add(region).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn remove(&self, start: GuestAddress) -> io::Result<()> {
        self.0.remove(start).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

fn backend(machine: &MachineHandle) -> RamBackend<Slots> {
    RamBackend::new(Arc::clone(&machine.ram), Slots(Arc::clone(&machine.vm)))
}

/// Says what helps against KVM's errors.
fn explain(error: BackendError) -> WorkError {
    let (what, source) = match error {
        BackendError::AddSlot { source, .. } => ("cannot give the VM more memory", source),
        BackendError::RemoveSlot { source, .. } => (
            "cannot take memory out of the VM, which the guest can reach until memory is added \
             again",
            source,
        ),
        BackendError::Add(error) => return error.into(),
        BackendError::Discard(error) => return error.into(),
    };
    WorkError::Other(Box::new(MachineError::System { what, source }))
}

#[cfg(test)]
mod tests {
    use page_range::{Gpfn, PageCount};

    use super::*;

    #[test]
    fn what_the_host_lacks_for_a_slot_is_told_with_a_remedy() {
        let range = PageRange::new(Gpfn::default(), PageCount::new(1)).unwrap();
        let source = || io::Error::from_raw_os_error(libc::ENOMEM);
        let add = explain(BackendError::AddSlot { range, source: source() });
        let remove = explain(BackendError::RemoveSlot { range, source: source() });
        for (error, start) in [
            (add, "cannot give the VM more memory; free memory"),
            (remove, "cannot take memory out of the VM, which the guest can reach"),
        ] {
            let text = crate::error::chain(&error);
            assert!(text.starts_with(start), "{text}");
            assert!(text.contains("; free memory on the host"), "{text}");
            assert!(text.ends_with("(os error 12)"), "{text}");
        }
    }
}
