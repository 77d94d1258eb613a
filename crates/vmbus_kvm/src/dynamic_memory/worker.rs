//! The thread that works on guest memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dynmem_vsp::{Job, Prepare, Task};

use super::Control;
use super::backend::{MemoryBackend, WorkError};
use crate::bus_loop::PanicReport;
use crate::shared::Shared;
use crate::{HostFailure, Platform, Report, Thread};

/// A request to the thread.
pub(super) enum Request {
    Job(Job),
    /// Tell the backend what is out, after this time.
    Settle {
        after: Duration,
    },
    /// Work on another machine's memory from now on.
    Replace(Box<dyn MemoryBackend>, Sender<()>),
    /// Answered once all jobs before this one are done.
    Barrier(Sender<()>),
    Stop,
}

/// The running thread. Dropping it waits until all requests are done.
pub(super) struct Worker {
    requests: Sender<Request>,
    /// Jobs whose end has not been reported to the device.
    open_jobs: Arc<AtomicUsize>,
    /// Whether the thread knows that it has to settle.
    is_to_settle: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start<P: Platform>(
        backend: Box<dyn MemoryBackend>,
        shared: Arc<Shared>,
        control: Arc<Control<P>>,
    ) -> io::Result<Self> {
        let (requests, queue) = channel();
        let open_jobs = Arc::new(AtomicUsize::new(0));
        let is_to_settle = Arc::new(AtomicBool::new(false));
        let run = Run {
            backend,
            shared,
            control,
            open_jobs: Arc::clone(&open_jobs),
            is_to_settle: Arc::clone(&is_to_settle),
            settles_at: None,
        };
        let thread = Thread::Memory.builder().spawn(move || run.until_stopped(&queue))?;
        Ok(Self { requests, open_jobs, is_to_settle, thread: Some(thread) })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open_jobs.load(Ordering::Acquire) == 0
    }

    /// The sending end of the queue.
    pub(super) fn requests(&self) -> Sender<Request> {
        self.requests.clone()
    }

    /// Queues a job of the device's.
    pub(super) fn submit(&self, job: Job) {
        self.open_jobs.fetch_add(1, Ordering::AcqRel);
        // Fails only if the thread has failed, and with it the host.
        let _ = self.requests.send(Request::Job(job));
    }

    /// Tells the backend what is out, after some time; once for all calls in the meantime. A pause
    /// does not wait for that.
    pub(super) fn settle(&self, after: Duration) {
        if !self.is_to_settle.swap(true, Ordering::AcqRel) {
            let _ = self.requests.send(Request::Settle { after });
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run<P: Platform> {
    backend: Box<dyn MemoryBackend>,
    shared: Arc<Shared>,
    control: Arc<Control<P>>,
    open_jobs: Arc<AtomicUsize>,
    is_to_settle: Arc<AtomicBool>,
    settles_at: Option<Instant>,
}

impl<P: Platform> Run<P> {
    fn until_stopped(mut self, queue: &Receiver<Request>) {
        let shared = Arc::clone(&self.shared);
        let _end = EndOfHost(&shared);
        let _report = PanicReport { shared: &shared, thread: Thread::Memory };
        if let Err(source) = shared.supervisor.thread_started(Thread::Memory) {
            let failure = HostFailure::Refused { thread: Thread::Memory, source };
            return shared.supervisor.failed(failure);
        }
        while let Some(request) = self.next(queue) {
            match request {
                Request::Job(job) => self.carry_out(job),
                Request::Settle { after } => self.settles_at = Instant::now().checked_add(after),
                Request::Replace(backend, done) => {
                    self.backend = backend;
                    let _ = done.send(());
                }
                Request::Barrier(done) => {
                    let _ = done.send(());
                }
                Request::Stop => return,
            }
        }
    }

    /// The next request; settles when it is time, also while requests wait.
    fn next(&mut self, queue: &Receiver<Request>) -> Option<Request> {
        loop {
            let Some(at) = self.settles_at else { return queue.recv().ok() };
            let left = at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                match queue.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => {}
                    request => return request.ok(),
                }
            }
            self.settles_at = None;
            // Before the look at the books, so that no later change is missed.
            self.is_to_settle.store(false, Ordering::Release);
            let out = self.control.out();
            self.backend.settle(&out);
        }
    }

    fn carry_out(&mut self, Job { id, task }: Job) {
        let (what, result) = match task {
            Task::Discard(ranges) => ("give pages back to the host", self.backend.discard(&ranges)),
            Task::Prepare(Prepare::Return(ranges)) => {
                ("provide pages for the guest", self.backend.provide(&ranges))
            }
            Task::Prepare(Prepare::Add { range, offset, alignment }) => {
                ("add memory to the guest", self.backend.add(range, offset, alignment))
            }
            Task::Remove(range) => ("remove memory from the guest", self.backend.remove(range)),
        };
        let ok = result.is_ok();
        if let Err(source) = result {
            self.shared.supervisor.report(Report::Work(WorkError { what, source }));
        }
        self.control.job_done(id, ok);
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
