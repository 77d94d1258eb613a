//! Errors, with the remedy in the text where there is one.

use std::io;

use kvm_hyperv::synic::SavedSynicError;
use thiserror::Error;
use vmbus::OfferError;
use vmbus::ring::RingError;

/// The host could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// A system call for one of the host's resources failed.
    #[error("{what}{}", remedy(source))]
    System {
        /// What was attempted.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A device could not be offered.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// No guest can have the memory described to the device.
    #[cfg(feature = "dynamic-memory")]
    #[error(transparent)]
    Memory(#[from] dynmem_vsp::ConfigError),
}

impl StartError {
    /// For `map_err` on system calls.
    pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::System { what, source }
    }
}

/// A saved host could not be restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bus.
    #[error(transparent)]
    Bus(#[from] vmbus::RestoreError),
    /// A virtual processor's SynIC.
    #[error(transparent)]
    Synic(#[from] SavedSynicError),
    /// The machine has a different number of virtual processors.
    #[error("{saved} virtual processors were saved, and the machine has {now}")]
    VpCount {
        /// As saved.
        saved: usize,
        /// As configured.
        now: u32,
    },
    /// The Dynamic Memory device.
    #[cfg(feature = "dynamic-memory")]
    #[error(transparent)]
    DynamicMemory(#[from] dynmem_vsp::RestoreError),
    /// An integration service.
    #[cfg(feature = "integration-services")]
    #[error(transparent)]
    Service(#[from] integration_services::RestoreError),
    /// The guest's signals could not be received.
    #[error("cannot receive the signals of an open channel{}", remedy(.0))]
    Signal(#[source] io::Error),
    /// The host could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The host has failed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A channel could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The guest's fault.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The host's fault.
    #[error(
        "cannot receive the channel's signals{}; then have the guest's driver try again",
        remedy(.0)
    )]
    Signal(#[source] io::Error),
}

/// The host has stopped; [`Supervisor::failed`](crate::Supervisor::failed) was given the reason.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the bus has stopped")]
pub struct Stopped;

/// The remedy for the first system error among an error and its causes.
#[cfg(feature = "dynamic-memory")]
pub(crate) fn remedy_of(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return remedy(error);
        }
        next = error.source();
    }
    ""
}

/// A remedy to append to an error's text, if the host has run out of something.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of open files (ulimit -n, prlimit --nofile)",
        Some(libc::ENFILE) => "; raise the host's limit of open files (sysctl fs.file-max)",
        Some(libc::ENOSPC) => {
            "; raise the limit of event sources (sysctl fs.epoll.max_user_watches)"
        }
        Some(libc::EAGAIN) => "; raise the limit of threads (ulimit -u, the cgroup's pids.max)",
        Some(libc::ENOMEM) => "; free memory on the host, or raise a limit that is set for it",
        _ => "",
    }
}
