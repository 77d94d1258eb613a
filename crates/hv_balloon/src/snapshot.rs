//! A snapshot of the device.

use core::time::Duration;

use dynmem_protocol::{StatusReport, Version};
use page_range::{Gpfn, PageCount};

use crate::closing::Closing;
use crate::machine::Machine;
use crate::placement::HotAddPlacement;
use crate::session::Session;
use crate::target::Goal;
use crate::{Device, FaultCounts, Refusal, StateName, StopReason};

/// The state of the device and its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The state of the device.
    pub state: StateName,
    /// The target in pages, if one is set.
    pub target: Option<PageCount>,
    /// Whether the device still pursues the target.
    pub is_pursued: bool,
    /// Why the device stopped short of the target, if it did.
    pub last_stop: Option<StopReason>,
    /// The guest's size in pages: `assigned` minus `unconfirmed` and the pages whose discard
    /// succeeded. A returned
    /// page counts from the message on, not from the guest's answer, since the guest may touch it
    /// before it answers.
    pub actual: PageCount,
    /// The largest acceptable target, in pages.
    pub maximum: PageCount,
    /// Pages of RAM that the guest booted with.
    pub boot: PageCount,
    /// Pages of RAM added since boot, including those that were ballooned since.
    pub hot_added: PageCount,
    /// Pages that can be added in total, including those already added, whatever the guest's
    /// alignment.
    pub hot_add_capacity: PageCount,
    /// The first page of the added memory, once any was added.
    pub hot_add_base: Option<Gpfn>,
    /// Pages of RAM assigned to the guest: `boot` plus `hot_added`.
    pub assigned: PageCount,
    /// Pages that the host has back: `assigned` minus `actual` and `unconfirmed`.
    pub ballooned: PageCount,
    /// Pages added before the guest's kernel started, of which the kernel has not shown that it knows
    /// them. They are not part of `actual` and are not offered again; the host still provides them.
    pub unconfirmed: PageCount,
    /// Whether the device waits for a status report that tells how much of `hot_added` the guest's
    /// kernel knows. All of it counts meanwhile, and the size does not change.
    pub awaits_report: bool,
    /// Pages that the guest gave and whose discard has not ended, including those of a closed
    /// channel.
    pub in_flight: PageCount,
    /// Pages that are being discarded now, including those of a closed channel; zero if no discard
    /// runs. Part of `in_flight`.
    pub discarding: PageCount,
    /// Whether discards are forbidden: see [`Device::set_inhibited`].
    pub inhibited: bool,
    /// Pages that the guest gave but the host failed to discard.
    pub undiscarded: PageCount,
    /// Pages that the guest gave but the host still provides, since it can discard only whole huge
    /// pages.
    pub held: PageCount,
    /// Pages that the guest gave but that are not its RAM.
    pub foreign: PageCount,
    /// The `HV_X64_MSR_GUEST_OS_ID` of the connected guest.
    pub guest_os_id: Option<u64>,
    /// The alignment of added memory in pages, once the guest has reported its capabilities.
    pub alignment: Option<PageCount>,
    /// The protocol version, once accepted.
    pub version: Option<Version>,
    /// While settling: when the first request may be sent, as time since the VM started.
    pub ready_at: Option<Duration>,
    /// While settling: how long until then, counted from the last event handled.
    pub ready_in: Option<Duration>,
    /// The guest's last status report since it opened the channel.
    pub status: Option<StatusReport>,
    /// The last target that was refused or not reached, and why.
    pub last_refusal: Option<(PageCount, Refusal)>,
    /// The guest's faults since the device was created.
    pub faults: FaultCounts,
}

impl Device {
    /// The state of the device.
    #[must_use]
    pub const fn state(&self) -> StateName {
        self.link.name()
    }

    /// Takes a snapshot of the device.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let Self { link, machine } = self;
        let Machine { ledger, placement, goal, .. } = machine;
        let session = link.session();
        let ready_at = session.and_then(Session::ready_at);
        let discarding = link.closing().map_or_else(|| ledger.discarding(), Closing::discarding);
        let actual = ledger.actual();
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
            assigned: ledger.assigned(),
            ballooned: ledger.known().saturating_sub(actual),
            unconfirmed: ledger.unconfirmed(),
            awaits_report: machine.awaits_report(),
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
