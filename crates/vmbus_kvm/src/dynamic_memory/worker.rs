//! The thread that works on guest memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use dynmem_vsp::{JobId, Prepare};
use page_range::PageRange;

use super::backend::{BackendError, MemoryBackend, WorkError};
use crate::bus_loop::PanicReport;
use crate::shared::Shared;
use crate::{HostFailure, Report, Thread};

/// A request to the thread.
pub(super) enum Job {
    Discard {
        id: JobId,
        ranges: Vec<PageRange>,
    },
    Prepare {
        id: JobId,
        what: Prepare,
    },
    Remove {
        id: JobId,
        range: PageRange,
    },
    /// Work on another machine's memory from now on.
    Replace(Box<dyn MemoryBackend>, Sender<()>),
    /// Answered once all jobs before this one are done.
    Barrier(Sender<()>),
    Stop,
}

/// The running thread. Dropping it waits until all requests are done.
pub(super) struct Worker {
    jobs: Sender<Job>,
    /// Jobs whose end has not been reported to the device.
    open_jobs: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which reports the end of each job to `done`.
    pub(super) fn start(
        backend: Box<dyn MemoryBackend>,
        shared: Arc<Shared>,
        done: impl Fn(JobId, bool) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let open_jobs = Arc::new(AtomicUsize::new(0));
        let run = Run { backend, shared, done, open_jobs: Arc::clone(&open_jobs) };
        let thread = Builder::new()
            .name(Thread::Memory.name().into())
            .spawn(move || run.until_stopped(&queue))?;
        Ok(Self { jobs, open_jobs, thread: Some(thread) })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open_jobs.load(Ordering::Acquire) == 0
    }

    /// The sending end of the queue.
    pub(super) fn jobs(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    /// Queues a job of the device's.
    pub(super) fn submit(&self, job: Job) {
        self.open_jobs.fetch_add(1, Ordering::AcqRel);
        // Fails only if the thread has failed, and with it the host.
        let _ = self.jobs.send(job);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run<F> {
    backend: Box<dyn MemoryBackend>,
    shared: Arc<Shared>,
    done: F,
    open_jobs: Arc<AtomicUsize>,
}

impl<F: Fn(JobId, bool)> Run<F> {
    fn until_stopped(mut self, queue: &Receiver<Job>) {
        let shared = Arc::clone(&self.shared);
        let _end = EndOfHost(&shared);
        let _report = PanicReport { shared: &shared, thread: Thread::Memory };
        if let Err(source) = shared.supervisor.thread_started(Thread::Memory) {
            let failure = HostFailure::Refused { thread: Thread::Memory, source };
            return shared.supervisor.failed(failure);
        }
        for job in queue {
            match job {
                Job::Discard { id, ranges } => {
                    let result = self.backend.discard(&ranges);
                    self.finish(id, "give pages back to the host", result);
                }
                Job::Prepare { id, what: Prepare::Return(ranges) } => {
                    let result = self.backend.provide(&ranges);
                    self.finish(id, "provide pages for the guest", result);
                }
                Job::Prepare { id, what: Prepare::Add { range, offset, alignment } } => {
                    let result = self.backend.add(range, offset, alignment);
                    self.finish(id, "add memory to the guest", result);
                }
                Job::Remove { id, range } => {
                    let result = self.backend.remove(range);
                    self.finish(id, "remove memory from the guest", result);
                }
                Job::Replace(backend, done) => {
                    self.backend = backend;
                    let _ = done.send(());
                }
                Job::Barrier(done) => {
                    let _ = done.send(());
                }
                Job::Stop => return,
            }
        }
    }

    fn finish(&self, id: JobId, what: &'static str, result: Result<(), BackendError>) {
        let ok = result.is_ok();
        if let Err(source) = result {
            self.shared.supervisor.report(Report::Work(WorkError { what, source }));
        }
        (self.done)(id, ok);
        self.open_jobs.fetch_sub(1, Ordering::AcqRel);
        // A host that is pausing waits for this.
        self.shared.wake();
    }
}

/// Stops the host when the thread ends for whatever reason, since its work would be waited for
/// without end.
struct EndOfHost<'a>(&'a Shared);

impl Drop for EndOfHost<'_> {
    fn drop(&mut self) {
        self.0.ask_to_stop();
    }
}
