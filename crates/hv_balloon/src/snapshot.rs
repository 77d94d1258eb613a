//! The device at a glance.

use core::time::Duration;

use dynmem_protocol::{StatusReport, Version};
use page_range::{Gpfn, PageCount};

use crate::closing::Closing;
use crate::machine::Machine;
use crate::placement::HotAddPlacement;
use crate::session::Session;
use crate::target::Goal;
use crate::{Device, FaultCounts, Refusal, StateName, StopReason};

/// What the device knows of itself and the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it is.
    pub state: StateName,
    /// Pages the operator wants the guest to have, since a target was set.
    pub target: Option<PageCount>,
    /// Whether the device is still to do something for the target.
    pub is_pursued: bool,
    /// Why the device stopped short of the target, when it did.
    pub last_stop: Option<StopReason>,
    /// Pages the host provides or owes: `assigned` less those whose discard succeeded. A page that
    /// is given back counts from the message on, not from the guest's answer: it may be touched
    /// before that.
    pub actual: PageCount,
    /// The largest target that would be taken, in pages.
    pub maximum: PageCount,
    /// Pages of RAM the guest booted with.
    pub boot: PageCount,
    /// Pages of RAM the guest was given since, and has whatever became of them.
    pub hot_added: PageCount,
    /// Pages there are to add in all, added or not, whatever the guest's alignment.
    pub hot_add_capacity: PageCount,
    /// Where the added memory begins, once any was.
    pub hot_add_base: Option<Gpfn>,
    /// Pages of RAM the guest was given.
    pub assigned: PageCount,
    /// Pages the host has back: `assigned` less `actual`.
    pub ballooned: PageCount,
    /// Pages the guest gave whose discard has not ended, those of a closed channel included.
    pub in_flight: PageCount,
    /// Pages that are being discarded now, those of a closed channel included; zero where no discard
    /// runs. Part of `in_flight`.
    pub discarding: PageCount,
    /// Whether discards are forbidden: see [`Device::set_inhibited`].
    pub inhibited: bool,
    /// Pages the guest gave that the host failed to discard.
    pub undiscarded: PageCount,
    /// Pages the guest gave that the host still provides, since it can only discard whole huge
    /// pages.
    pub held: PageCount,
    /// Pages the guest gave that are not its RAM.
    pub foreign: PageCount,
    /// The `HV_X64_MSR_GUEST_OS_ID` of the guest that has the channel open.
    pub guest_os_id: Option<u64>,
    /// Memory is added in multiples of this, in pages; known once the guest told its capabilities.
    pub alignment: Option<PageCount>,
    /// The protocol version, from its acceptance on.
    pub version: Option<Version>,
    /// While settling: when the guest may be asked first, as time since the VM started.
    pub ready_at: Option<Duration>,
    /// While settling: how long until then, counted from the last event handled.
    pub ready_in: Option<Duration>,
    /// The guest's last status report since it opened the channel.
    pub status: Option<StatusReport>,
    /// The last target that was refused or not reached, and why.
    pub last_refusal: Option<(PageCount, Refusal)>,
    /// What the guest did wrong since the device was made.
    pub faults: FaultCounts,
}

impl Device {
    /// The state alone.
    #[must_use]
    pub const fn state(&self) -> StateName {
        self.link.name()
    }

    /// The device at a glance.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let Self { link, machine } = self;
        let Machine { ledger, placement, goal, .. } = machine;
        let session = link.session();
        let ready_at = session.and_then(Session::ready_at);
        let discarding = link.closing().map_or_else(|| ledger.discarding(), Closing::discarding);
        let (assigned, actual) = (ledger.assigned(), ledger.actual());
        Snapshot {
            state: link.name(),
            target: goal.map(|goal| goal.target),
            is_pursued: machine.has_open_target(),
            last_stop: goal.and_then(Goal::stop_reason),
            actual,
            maximum: machine.maximum(session.map(Session::capabilities)),
            boot: machine.boot_ram.len(),
            hot_added: machine.hot_added(),
            hot_add_capacity: placement.as_ref().map_or(PageCount::ZERO, HotAddPlacement::capacity),
            hot_add_base: placement.as_ref().and_then(HotAddPlacement::base),
            assigned,
            ballooned: assigned.saturating_sub(actual),
            in_flight: discarding.saturating_add(ledger.pending()),
            discarding,
            inhibited: machine.is_inhibited,
            undiscarded: ledger.undiscarded(),
            held: ledger.held(),
            foreign: ledger.foreign(),
            guest_os_id: link.guest_os_id(),
            alignment: session.map(|session| machine.alignment(session.guest_alignment())),
            version: link.version(),
            ready_at,
            ready_in: ready_at.map(|at| at.saturating_sub(machine.now)),
            status: session.and_then(Session::status),
            last_refusal: machine.last_refusal,
            faults: machine.faults,
        }
    }
}
