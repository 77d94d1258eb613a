//! Sleeping and signalling by eventfd, as in the device loop.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};

/// Longer than any signal takes. It ends a test that would hang, and has no other effect.
const MINUTE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// An eventfd with one sleeper.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
    signals: AtomicUsize,
    sleeps: AtomicUsize,
}

impl Wake {
    /// An eventfd that has not been signalled.
    ///
    /// # Panics
    /// If the system has no more descriptors.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it takes a descriptor")]
    pub fn new() -> Self {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        Self { fd, signals: AtomicUsize::new(0), sleeps: AtomicUsize::new(0) }
    }

    /// Signals, if the ring says so.
    pub fn signal(&self, wanted: bool) {
        if wanted {
            self.signals.fetch_add(1, Ordering::Relaxed);
            write(&self.fd, &1_u64.to_ne_bytes()).expect("the counter is read often enough");
        }
    }

    /// Sleeps until there is a signal.
    ///
    /// # Panics
    /// If there is none within a minute.
    pub fn sleep(&self) {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        let mut count = [0; 8];
        while read(&self.fd, &mut count) == Err(Errno::AGAIN) {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&MINUTE)).expect("poll works");
            assert_ne!(ready, 0, "a signal was lost: there was none in a minute");
        }
    }

    /// How often it was signalled, and how often a thread slept for that.
    pub fn counts(&self) -> (usize, usize) {
        (self.signals.load(Ordering::Relaxed), self.sleeps.load(Ordering::Relaxed))
    }
}
