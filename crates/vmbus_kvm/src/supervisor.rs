//! Reports to the VMM: threads that start, failures of the host, and news for the log.

use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use bus_recording::Event;
use thiserror::Error;
use vmbus::Offer;
use vmbus::protocol::VpIndex;
use vmbus::ring::RingError;

#[cfg(feature = "dynamic-memory")]
use crate::WorkError;
use crate::{OpenError, Trace};

/// A thread of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Drives the bus and its devices.
    Bus,
    /// Calls the memory backend.
    Memory,
}

/// The size of the stacks of this crate's threads, in bytes, and a good one for a VMM's others. Smaller than a
/// huge page, so that the kernel cannot back a whole one with memory because of the few pages that a thread
/// uses, as it does where transparent huge pages are always on.
pub const THREAD_STACK_BYTES: usize = 512 << 10;

impl Thread {
    /// The thread's name, as debuggers show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bus => "vmbus",
            Self::Memory => "memory",
        }
    }

    /// What such a thread starts with.
    pub(crate) fn builder(self) -> Builder {
        Builder::new().name(self.name().into()).stack_size(THREAD_STACK_BYTES)
    }
}

/// Receives the host's reports. All methods are called on the threads concerned.
pub trait Supervisor: Send + Sync + 'static {
    /// A thread starts and has not done anything yet: this is the place to confine it or to set its
    /// priority.
    ///
    /// # Errors
    /// If the thread must not run. [`Supervisor::failed`] is called as well.
    fn thread_started(&self, thread: Thread) -> io::Result<()> {
        let _ = thread;
        Ok(())
    }

    /// The host has stopped by itself. The guest may run on, but nothing answers it on the bus any
    /// more: the machine should end.
    fn failed(&self, failure: HostFailure);

    /// Something happened that is worth a line in the log. A guest can cause any number of reports,
    /// so limit the log.
    fn report(&self, report: Report);

    /// The host or the guest did something. This is called very often, also on vCPU threads, and must
    /// not wait: it is meant for a recorder in memory.
    fn trace(&self, trace: Trace) {
        let _ = trace;
    }

    /// Whether [`Supervisor::record`] wants the conversation with the guest. It is asked once, before
    /// the first device is attached.
    fn records(&self) -> bool {
        false
    }

    /// Something was said on the bus, word for word, at this time of the host's clock
    /// ([`BusHandle::now`](crate::BusHandle::now)). `device` is the number of the device that it concerns,
    /// in the order in which they were attached, from 0; 0 for what concerns none. Called only if
    /// [`Supervisor::records`].
    ///
    /// In contrast to [`Supervisor::trace`] this is a complete account: from the events, in the order
    /// of the calls, the conversation can be replayed, if the devices are Dynamic Memory and the integration
    /// services, and the host was not restored. It is called under the locks of the bus and the device, also on
    /// vCPU threads, so it must neither wait nor call the host.
    fn record(&self, at: Duration, device: u32, event: Event) {
        let _ = (at, device, event);
    }
}

impl<S: Supervisor + ?Sized> Supervisor for Arc<S> {
    fn thread_started(&self, thread: Thread) -> io::Result<()> {
        (**self).thread_started(thread)
    }

    fn failed(&self, failure: HostFailure) {
        (**self).failed(failure);
    }

    fn report(&self, report: Report) {
        (**self).report(report);
    }

    fn trace(&self, trace: Trace) {
        (**self).trace(trace);
    }

    fn records(&self) -> bool {
        (**self).records()
    }

    fn record(&self, at: Duration, device: u32, event: Event) {
        (**self).record(at, device, event);
    }
}

/// Why the host stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostFailure {
    /// A thread panicked: a defect of this crate, of a device or of the backend.
    #[error("the {} thread panicked", .0.name())]
    Panicked(Thread),
    /// [`Supervisor::thread_started`] refused a thread.
    #[error("the {} thread was not allowed to run", thread.name())]
    Refused {
        /// The thread.
        thread: Thread,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `epoll_wait` failed.
    #[error("cannot wait for the events of the bus")]
    Wait(#[source] io::Error),
}

/// News for the log.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Report {
    /// The guest opened a device's channel.
    #[error("the guest opened the channel of {}", .0.instance)]
    ChannelOpened(Offer),
    /// A device's channel closed.
    #[error("the channel of {} closed", .0.instance)]
    ChannelClosed(Offer),
    /// A channel could not be opened. The guest's driver was told.
    #[error("cannot open the channel of {}", offer.instance)]
    OpenFailed {
        /// The device.
        offer: Offer,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The guest corrupted its ring. The channel cannot be used until the guest opens it anew.
    #[error("the guest corrupted a ring of the channel of {}, which is now stopped", offer.instance)]
    ChannelBroken {
        /// The device.
        offer: Offer,
        /// How.
        #[source]
        source: RingError,
    },
    /// An interrupt could not be raised. The guest may miss a signal.
    #[error("cannot raise the synthetic interrupt of VP {vp}")]
    Interrupt {
        /// The VP.
        vp: VpIndex,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The eventfd of a VP's acknowledgements could not be added to the event loop. A message that
    /// waits for its slot is retried every 10 milliseconds instead.
    #[error("cannot wait for the acknowledgements of VP {vp}")]
    Acknowledgements {
        /// The VP.
        vp: VpIndex,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Work on guest memory failed.
    #[cfg(feature = "dynamic-memory")]
    #[error(transparent)]
    Work(#[from] WorkError),
}

impl Report {
    /// Whether the guest is to blame, rather than the host.
    #[must_use]
    pub const fn is_guest_fault(&self) -> bool {
        matches!(
            self,
            Self::ChannelBroken { .. } | Self::OpenFailed { source: OpenError::Ring(_), .. }
        )
    }
}
