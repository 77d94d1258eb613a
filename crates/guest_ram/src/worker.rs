//! Discarding on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use page_range::PageRange;

use crate::{DiscardError, GuestRam};

/// A thread that gives pages back to the host, in the order asked for.
///
/// Dropping it waits until everything asked for is done.
#[derive(Debug)]
pub struct DiscardWorker<T> {
    jobs: Option<Sender<(T, Vec<PageRange>)>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> DiscardWorker<T> {
    /// Starts the thread. `done` is called on it after each job, with the job's tag.
    ///
    /// # Errors
    /// Where the system has no room for a thread.
    pub fn spawn(
        ram: Arc<GuestRam>,
        mut done: impl FnMut(T, Result<(), DiscardError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel::<(T, Vec<PageRange>)>();
        let thread = Builder::new().name("discard".into()).spawn(move || {
            for (tag, ranges) in queue {
                done(tag, ram.discard(&ranges));
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues ranges to be discarded. Returns at once.
    pub fn submit(&self, tag: T, ranges: Vec<PageRange>) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as `self`, so the send cannot fail.
            let _ = jobs.send((tag, ranges));
        }
    }
}

impl<T> Drop for DiscardWorker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use page_range::{Gpfn, PageCount};

    use super::*;
    use crate::{Backend, HugePages, RamConfig};

    #[test]
    fn jobs_end_in_order_and_before_the_drop_returns() {
        let size = PageCount::new(64);
        let config = RamConfig { size, backend: Backend::Anonymous, huge_pages: HugePages::Off };
        let ram = Arc::new(GuestRam::new(&config).unwrap());
        let done = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&done);
        let worker = DiscardWorker::spawn(ram, move |tag, result| {
            log.lock().unwrap().push((tag, result.is_ok()))
        })
        .unwrap();
        let page = |number| PageRange::new(Gpfn::new(number).unwrap(), PageCount::new(1)).unwrap();
        worker.submit('a', vec![page(0)]);
        worker.submit('b', vec![page(64)]);
        worker.submit('c', vec![page(1)]);
        drop(worker);
        assert_eq!(*done.lock().unwrap(), [('a', true), ('b', false), ('c', true)]);
    }
}
