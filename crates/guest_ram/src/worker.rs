//! A thread for slow work on guest memory.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use page_range::PageRange;

use crate::{AddError, DiscardError, GuestRam, ProvideError};

/// A job of the [`MemoryWorker`] failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Discarding pages.
    #[error(transparent)]
    Discard(#[from] DiscardError),
    /// Providing pages again.
    #[error(transparent)]
    Provide(#[from] ProvideError),
    /// Adding memory.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The error of the caller's own job.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

/// A request to the thread. The frequent jobs are not boxed.
enum Job {
    Discard(Arc<GuestRam>, Vec<PageRange>),
    Provide(Arc<GuestRam>, Vec<PageRange>),
    Other(Box<dyn FnOnce() -> Result<(), WorkError> + Send>),
}

impl Job {
    fn run(self) -> Result<(), WorkError> {
        match self {
            Self::Discard(ram, ranges) => Ok(ram.discard_or_undo(&ranges)?),
            Self::Provide(ram, ranges) => Ok(ram.provide(&ranges)?),
            Self::Other(job) => job(),
        }
    }
}

/// A thread that works on guest memory, in the order of the requests.
///
/// Dropping it waits until all requests are done.
pub struct MemoryWorker<T> {
    jobs: Option<Sender<(T, Job)>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> MemoryWorker<T> {
    /// Starts the thread. `done` is called on it after each job, with the job's tag.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn spawn(
        mut done: impl FnMut(T, Result<(), WorkError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel::<(T, Job)>();
        let thread = Builder::new().name("memory".into()).spawn(move || {
            for (tag, job) in queue {
                done(tag, job.run());
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues ranges for [`GuestRam::discard_or_undo`] and returns at once. After a failure the
    /// guest has all of their pages again, as far as the host's pool can provide them.
    pub fn submit_discard(&self, tag: T, ram: Arc<GuestRam>, ranges: Vec<PageRange>) {
        self.queue(tag, Job::Discard(ram, ranges));
    }

    /// Queues ranges for [`GuestRam::provide`] and returns at once.
    pub fn submit_provide(&self, tag: T, ram: Arc<GuestRam>, ranges: Vec<PageRange>) {
        self.queue(tag, Job::Provide(ram, ranges));
    }

    /// Queues the caller's own job and returns at once.
    pub fn submit(&self, tag: T, job: impl FnOnce() -> Result<(), WorkError> + Send + 'static) {
        self.queue(tag, Job::Other(Box::new(job)));
    }

    fn queue(&self, tag: T, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as `self`, so the send cannot fail.
            let _ = jobs.send((tag, job));
        }
    }
}

impl<T> Drop for MemoryWorker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for MemoryWorker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryWorker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use page_range::{Gpfn, PageCount};

    use super::*;
    use crate::RamConfig;

    #[test]
    fn jobs_end_in_order_and_before_the_drop_returns() {
        let size = PageCount::new(64);
        let config = RamConfig { size, ..Default::default() };
        let ram = Arc::new(GuestRam::new(&config).unwrap());
        let done = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&done);
        let worker =
            MemoryWorker::spawn(move |tag, result| log.lock().unwrap().push((tag, result.is_ok())))
                .unwrap();
        let page = |number| PageRange::new(Gpfn::new(number).unwrap(), PageCount::new(1)).unwrap();
        worker.submit_discard('a', Arc::clone(&ram), vec![page(0)]);
        worker.submit_discard('b', Arc::clone(&ram), vec![page(64)]);
        worker.submit_provide('c', Arc::clone(&ram), vec![page(1)]);
        worker.submit_provide('d', ram, vec![page(64)]);
        worker.submit('e', || Err(WorkError::Other("no".into())));
        worker.submit('f', || Ok(()));
        drop(worker);
        let expected =
            [('a', true), ('b', false), ('c', true), ('d', false), ('e', false), ('f', true)];
        assert_eq!(*done.lock().unwrap(), expected);
    }
}
