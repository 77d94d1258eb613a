//! The events of a recording.

use serde::{Deserialize, Serialize};

use crate::{HotAddSetup, Pages};

/// A line: an event and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The time since the VM started, in microseconds. For [`Event::ToDevice`] it is the time that the
    /// device was told. Threads read the clock before they take their turn, so it may go back a little.
    pub t: u64,
    /// The device that it concerns, in the order of the offers, from 0; 0 for what concerns none. Files of
    /// version 1 have one device, and none of them says so.
    #[serde(default, skip_serializing_if = "is_first")]
    pub device: u32,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_first(device: &u32) -> bool {
    *device == 0
}

/// Something that bus or device were told or said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "dir", content = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The bus was told this.
    ToBus(ToBus),
    /// The bus said this.
    FromBus(FromBus),
    /// The device was told this, or commanded.
    ToDevice(ToDevice),
    /// The device took this packet of the guest out of the ring.
    FromGuest(Packet),
    /// The device said or did this.
    FromDevice(FromDevice),
    /// The recording ended in an orderly way.
    End,
}

/// What the bus is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToBus {
    /// The guest posted a message.
    Message {
        /// The connection ID.
        connection: u32,
        /// The status that the hypercall returned.
        status: u16,
        /// The message.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// The device opened its channel, or could not.
    OpenFinished {
        /// Whether it did.
        ok: bool,
    },
    /// The device closed its channel.
    CloseFinished,
    /// The machine was stopped for a reset.
    Reset,
}

/// What the bus says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromBus {
    /// A message to the guest.
    Message {
        /// The VP whose message slot it goes to.
        vp: u32,
        /// The message.
        #[serde(with = "hex")]
        bytes: Vec<u8>,
    },
    /// Messages that have not reached a slot are dropped.
    DropMessages,
    /// The device must open its channel.
    Open {
        /// The event flag by which to signal the guest.
        relid: u32,
        /// The connection by which the guest signals the device.
        connection: u32,
        /// The VP to signal; `None` if the guest wants no signals.
        target_vp: Option<u32>,
        /// The page numbers of the ring to the host.
        to_host: Vec<u64>,
        /// The page numbers of the ring to the guest.
        to_guest: Vec<u64>,
    },
    /// The device must close its channel.
    Close,
    /// The device must signal another VP.
    SetTargetVp {
        /// The VP.
        vp: u32,
    },
    /// The bus had nothing more to say.
    Idle,
}

/// What the device is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToDevice {
    /// The guest opens the channel, as the last [`FromBus::Open`] said.
    Open {
        /// `HV_X64_MSR_GUEST_OS_ID`, 0 if unknown.
        guest_os_id: u64,
    },
    /// Signals go to another VP.
    SetTargetVp {
        /// The VP.
        vp: u32,
    },
    /// The guest signalled the channel, or the ring is looked at again.
    Signalled,
    /// The channel must close.
    Close,
    /// A deadline has come.
    Timeout,
    /// The machine was stopped for a reset.
    Reset,
    /// A command: the guest's target size.
    SetTarget {
        /// The target, in pages.
        pages: u64,
        /// The target as the device took it, in pages; `None` if it refused.
        taken: Option<u64>,
    },
    /// A job of the device's has ended.
    JobDone {
        /// The job.
        id: u64,
        /// Whether it succeeded.
        ok: bool,
    },
    /// A command: discards are forbidden, or allowed.
    SetInhibited {
        /// Whether they are forbidden.
        inhibited: bool,
    },
    /// A command: the machine is about to be reset.
    AnnounceReset,
    /// A command: the VMM took what is kept over a reset.
    TakeKept,
    /// A command: the memory of the machine that starts next.
    StartMachine {
        /// Boot RAM.
        boot_ram: Vec<Pages>,
        /// Memory that can be added.
        hot_add: Option<HotAddSetup>,
        /// The target for its guest, in pages.
        target: Option<u64>,
        /// Whether the device accepted it.
        ok: bool,
    },
    /// A command to the shutdown service: the guest is to shut down.
    RequestShutdown {
        /// Whether there was a guest to ask.
        ok: bool,
    },
    /// A command to the time synchronisation service: the guest's clock is to be set.
    Resync,
    /// The time that the time synchronisation service asked for.
    TimeSample {
        /// The wall clock, in units of 100 ns since 1601 UTC.
        host: u64,
        /// The guest's reference counter, in units of 100 ns, if it is known.
        reference: Option<u64>,
    },
}

/// A packet in a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// The packet type: 6 for data, 11 for a completion.
    pub kind: u16,
    /// The flags: 1 if the sender wants a completion, else 0.
    pub flags: u16,
    /// The transaction ID.
    pub transaction: u64,
    /// The payload.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

/// What the device says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromDevice {
    /// A packet that the device wrote to the ring, without padding.
    Packet(Packet),
    /// The guest must be signalled.
    Signal {
        /// The VP.
        vp: u32,
        /// The event flag.
        flag: u16,
    },
    /// The channel is open, or could not be opened.
    OpenFinished {
        /// Whether it is open.
        ok: bool,
    },
    /// The channel is closed.
    CloseFinished,
    /// The guest corrupted its ring.
    Broken {
        /// How.
        reason: String,
    },
    /// Work on the guest's memory.
    Job {
        /// The job.
        id: u64,
        /// What is to be done.
        task: Task,
    },
    /// The device had nothing more to say, and no packet of the guest's to take.
    Idle {
        /// Whether something waits for room in the ring to the guest.
        waits_for_room: bool,
    },
}

/// Work on the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The contents of these pages are no longer needed.
    Discard(Vec<Pages>),
    /// These pages must be provided again before they are offered.
    Return(Vec<Pages>),
    /// Memory must be added.
    Add {
        /// Where.
        pages: Pages,
        /// The position in the memory that can be added, in pages.
        offset: u64,
        /// The size of a memory block, in pages.
        alignment: u64,
    },
    /// Added memory must be removed.
    Remove(Pages),
}
