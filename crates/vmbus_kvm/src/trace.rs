//! The host's actions on the bus, one by one, for a flight recorder.

use std::fmt;

use vmbus::protocol::VpIndex;

/// An action of the host or the guest on the bus, for
/// [`Supervisor::trace`](crate::Supervisor::trace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trace {
    /// A hypercall left the guest and was answered. Traced by the vCPU's thread.
    Hypercall {
        /// The caller.
        vp: VpIndex,
        /// The call code (TLFS 3.10).
        code: u16,
        /// The answer's status (TLFS, appendix B).
        status: u16,
    },
    /// The guest set one of its SynIC's registers. Traced by the vCPU's thread.
    SynicSet {
        /// The VP.
        vp: VpIndex,
    },
    /// A message went into the VP's slot, and its interrupt was raised, or could not be. Traced by the
    /// vCPU's thread.
    Delivered {
        /// The VP.
        vp: VpIndex,
    },
    /// A message waits because the slot is taken or missing. Traced by the vCPU's thread.
    SlotBusy {
        /// The VP.
        vp: VpIndex,
    },
    /// The bus has a message for the VP, whose vCPU is kicked to deliver it.
    Posted {
        /// The VP.
        vp: VpIndex,
    },
    /// The guest acknowledged the interrupt of SINT 2.
    Acknowledged {
        /// The VP.
        vp: VpIndex,
        /// Whether messages wait for the slot, in which case the vCPU is kicked.
        kicked: bool,
    },
    /// The host signalled a channel to the guest, by its event flag.
    EventSet {
        /// The VP.
        vp: VpIndex,
        /// The flag's number: the channel's relid.
        flag: u16,
        /// Whether the flag was clear until now, so that the interrupt was raised. It is not raised if
        /// the flag was already set, or the guest has no event page.
        raised: bool,
    },
    /// The guest signalled a channel.
    Signalled {
        /// The device, in the order in which they were attached.
        device: u32,
    },
    /// The bus was woken by a message of the guest, a command, or the end of a job.
    Woken,
}

impl Trace {
    /// The VP on whose vCPU's thread this was traced; `None` if on another thread.
    #[must_use]
    pub const fn vcpu(&self) -> Option<VpIndex> {
        match self {
            Self::Hypercall { vp, .. }
            | Self::SynicSet { vp }
            | Self::Delivered { vp }
            | Self::SlotBusy { vp } => Some(*vp),
            Self::Posted { .. }
            | Self::Acknowledged { .. }
            | Self::EventSet { .. }
            | Self::Signalled { .. }
            | Self::Woken => None,
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypercall { code, status, .. } => {
                write!(f, "hypercall {code:#x} status {status:#x}")
            }
            Self::SynicSet { .. } => f.write_str("SynIC register set"),
            Self::Delivered { .. } => f.write_str("message delivered, SINT raised"),
            Self::SlotBusy { .. } => f.write_str("message waits for its slot"),
            Self::Posted { vp } => write!(f, "message posted to VP {vp}, kicked"),
            Self::Acknowledged { vp, kicked: true } => write!(f, "EOI of VP {vp}, kicked"),
            Self::Acknowledged { vp, kicked: false } => write!(f, "EOI of VP {vp}"),
            Self::EventSet { vp, flag, raised: true } => {
                write!(f, "event flag {flag} of VP {vp} set, SINT raised")
            }
            Self::EventSet { vp, flag, raised: false } => {
                write!(f, "event flag {flag} of VP {vp} was already set, or has no page")
            }
            Self::Signalled { device } => write!(f, "signal for device {device}"),
            Self::Woken => f.write_str("woken"),
        }
    }
}
