//! The device at a glance.

use core::time::Duration;

use dynmem_protocol::{StatusReport, Version};
use page_range::{Gpfn, PageCount};

use crate::region::Region;
use crate::state::State;
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
        self.state.name()
    }

    /// The device at a glance.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let version = match self.state {
            State::AwaitCaps { version, .. } => Some(version),
            _ => self.state.session().map(|session| session.version),
        };
        let ready_at = match self.state {
            State::Settling { until, .. } => Some(until),
            _ => None,
        };
        let assigned = self.books.assigned();
        let actual = self.books.actual();
        Snapshot {
            state: self.state.name(),
            target: self.goal.map(|goal| goal.target),
            is_pursued: self.goal.is_some_and(Goal::is_open),
            last_stop: self.goal.and_then(Goal::stop_reason),
            actual,
            maximum: self.maximum(),
            boot: self.boot_ram.len(),
            hot_added: self.hot_added(),
            hot_add_capacity: self.region.as_ref().map_or(PageCount::ZERO, Region::capacity),
            hot_add_base: self.region.as_ref().and_then(Region::base),
            assigned,
            ballooned: assigned.saturating_sub(actual),
            in_flight: self.in_flight(),
            discarding: self.discarding(),
            inhibited: self.is_inhibited,
            undiscarded: self.books.undiscarded(),
            held: self.books.held(),
            foreign: self.books.foreign(),
            guest_os_id: self.guest_os_id,
            alignment: self.alignment(),
            version,
            ready_at,
            ready_in: ready_at.map(|at| at.saturating_sub(self.now)),
            status: self.status,
            last_refusal: self.last_refusal,
            faults: self.faults,
        }
    }

    fn alignment(&self) -> Option<PageCount> {
        let of_guest = self.state.session()?.capabilities.hot_add_alignment();
        Some(self.region.as_ref().map_or(of_guest, |region| region.alignment(of_guest)))
    }

    fn in_flight(&self) -> PageCount {
        self.discarding().saturating_add(self.books.pending())
    }

    fn discarding(&self) -> PageCount {
        match &self.state {
            State::Closing { discards, .. } => {
                discards.values().fold(PageCount::ZERO, |sum, &pages| sum.saturating_add(pages))
            }
            _ => self.books.discarding(),
        }
    }
}
