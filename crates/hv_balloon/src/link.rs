//! The life cycle of the channel. Each state owns the data that is valid only in that state, and
//! closing consumes it.
//!
//! ```text
//!           opened               capabilities
//!  Closed ─────────► Handshake ───────────────► Ready (see `session`)
//!    ▲                   │                        │
//!    │ no job            │ closed, or the         │
//!    │ in flight         ▼ machine was reset      ▼
//!    └──────────────── Closing ◄──────────────────┘
//! ```

use dynmem_protocol::{CapabilitiesReport, Version};

use crate::closing::Closing;
use crate::handshake::Handshake;
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::session::Session;
use crate::{JobId, StateName};

/// The state of the channel.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a device has one, and it seldom changes")]
pub(crate) enum Link {
    /// No channel.
    Closed,
    /// The channel is open, but the guest has not reported its capabilities.
    Handshake(Handshake),
    /// The handshake is complete.
    Ready(Session),
    /// No channel, but jobs are still in flight.
    Closing(Closing),
}

impl Link {
    /// Changes the state; nothing else does.
    fn change(&mut self, to: impl FnOnce(Self) -> Self) {
        *self = to(core::mem::replace(self, Self::Closed));
    }

    pub(crate) fn open(&mut self, machine: &mut Machine, guest_os_id: u64, is_reopened: bool) {
        self.change(|link| match link {
            Self::Closed => {
                if !is_reopened {
                    machine.doubt_added();
                }
                Self::Handshake(Handshake::new(guest_os_id))
            }
            same @ (Self::Handshake(_) | Self::Ready(_) | Self::Closing(_)) => same,
        });
    }

    /// Handles the guest's report of its capabilities.
    pub(crate) fn agree(&mut self, machine: &mut Machine, id: u32, report: CapabilitiesReport) {
        self.change(|link| match link {
            Self::Handshake(handshake) => handshake.agree(machine, id, report),
            same @ (Self::Closed | Self::Ready(_) | Self::Closing(_)) => same,
        });
    }

    /// Ends the session. A guest without a driver, or a new guest, uses all RAM, so every page
    /// counts as the guest's. Added memory stays: Windows keeps using it, and a kernel
    /// started by kexec may. A target still pursued is kept for the next session; one reached or given
    /// up is dropped.
    pub(crate) fn close(&mut self, machine: &mut Machine) {
        machine.announce_stopping();
        self.change(|link| {
            let closing = match link {
                Self::Closed | Self::Handshake(_) => Closing::default(),
                Self::Ready(session) => Closing::after(session, machine),
                Self::Closing(closing) => closing,
            };
            machine.forget_what_is_done();
            machine.removals.retry();
            closing.go_on(machine)
        });
    }

    /// Like [`Link::close`], but removes added memory and drops the target.
    pub(crate) fn reset(&mut self, machine: &mut Machine) {
        machine.drop_target();
        self.change(|link| {
            let closing = match link {
                Self::Closed | Self::Handshake(_) => Closing::default(),
                Self::Ready(session) => Closing::after(session, machine).reset(),
                Self::Closing(closing) => closing.reset(),
            };
            machine.reset_memory();
            closing.go_on(machine)
        });
    }

    /// Handles the end of a job other than a removal. A job that nothing waits for changes nothing.
    pub(crate) fn job_done(&mut self, machine: &mut Machine, id: JobId, ok: bool) {
        match self {
            Self::Closed | Self::Handshake(_) => {}
            Self::Ready(session) => session.job_done(machine, id, ok),
            Self::Closing(closing) => {
                closing.job_done(machine, id, ok);
                self.finish_closing(machine);
            }
        }
    }

    /// Handles the end of a removal.
    pub(crate) fn removed(&mut self, machine: &mut Machine, ok: bool) {
        match self {
            Self::Closed | Self::Handshake(_) => {}
            Self::Ready(session) => session.removed(machine, ok),
            Self::Closing(_) => self.finish_closing(machine),
        }
    }

    /// Continues a close, which ends when nothing is in flight any more.
    pub(crate) fn finish_closing(&mut self, machine: &mut Machine) {
        self.change(|link| match link {
            Self::Closing(closing) => closing.go_on(machine),
            same @ (Self::Closed | Self::Handshake(_) | Self::Ready(_)) => same,
        });
    }

    pub(crate) const fn name(&self) -> StateName {
        match self {
            Self::Closed => StateName::Closed,
            Self::Handshake(handshake) => handshake.name(),
            Self::Ready(session) => session.name(),
            Self::Closing(_) => StateName::Closing,
        }
    }

    pub(crate) const fn session(&self) -> Option<&Session> {
        match self {
            Self::Ready(session) => Some(session),
            Self::Closed | Self::Handshake(_) | Self::Closing(_) => None,
        }
    }

    pub(crate) const fn session_mut(&mut self) -> Option<&mut Session> {
        match self {
            Self::Ready(session) => Some(session),
            Self::Closed | Self::Handshake(_) | Self::Closing(_) => None,
        }
    }

    pub(crate) const fn closing(&self) -> Option<&Closing> {
        match self {
            Self::Closing(closing) => Some(closing),
            Self::Closed | Self::Handshake(_) | Self::Ready(_) => None,
        }
    }

    /// Messages to the guest, while the channel is open.
    pub(crate) const fn outbox(&self) -> Option<&Outbox> {
        match self {
            Self::Handshake(handshake) => Some(handshake.outbox()),
            Self::Ready(session) => Some(session.outbox()),
            Self::Closed | Self::Closing(_) => None,
        }
    }

    pub(crate) const fn outbox_mut(&mut self) -> Option<&mut Outbox> {
        match self {
            Self::Handshake(handshake) => Some(handshake.outbox_mut()),
            Self::Ready(session) => Some(session.outbox_mut()),
            Self::Closed | Self::Closing(_) => None,
        }
    }

    /// OS ID of the connected guest.
    pub(crate) const fn guest_os_id(&self) -> Option<u64> {
        match self {
            Self::Handshake(handshake) => Some(handshake.guest_os_id()),
            Self::Ready(session) => Some(session.guest_os_id()),
            Self::Closed | Self::Closing(_) => None,
        }
    }

    /// The protocol version, once accepted.
    pub(crate) const fn version(&self) -> Option<Version> {
        match self {
            Self::Handshake(handshake) => handshake.version(),
            Self::Ready(session) => Some(session.version()),
            Self::Closed | Self::Closing(_) => None,
        }
    }
}
