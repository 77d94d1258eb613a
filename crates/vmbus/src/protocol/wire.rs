//! The bodies of the control messages, which follow the 8-byte [`Header`].
//!
//! The offsets in the comments count from the start of the message, header included. Reserved
//! fields are sent as zero and ignored on receipt.

use core::mem::size_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::Guid;

/// Declares wire structs with their common derives, and asserts their sizes with the header.
macro_rules! wire {
    ($($(#[$doc:meta])* $len:literal $name:ident { $($body:tt)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($body)* }

        const _: () = assert!(size_of::<Header>() + size_of::<$name>() == $len);
    )*};
}

/// The header of every message.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// The message's number.
    pub number: U32,
    /// Zero.
    pub padding: U32,
}

const _: () = assert!(size_of::<Header>() == 8);

/// The monitor ID in an offer that has no monitor.
pub const NO_MONITOR: u8 = 0xff;
/// Status of a successful request.
pub const STATUS_SUCCESS: u32 = 0;
/// Status of a refused request: NTSTATUS `STATUS_UNSUCCESSFUL`. Any nonzero value means refused.
pub const STATUS_FAILURE: u32 = 0xc000_0001;
/// Status in TL_CONNECT_RESULT: NTSTATUS `STATUS_CONNECTION_REFUSED`.
pub const STATUS_CONNECTION_REFUSED: u32 = 0xc000_0236;

/// In [`Offer::interrupt_flags`]: the guest signals this channel by its own connection ID.
pub const DEDICATED_INTERRUPT: u16 = 1;

wire! {
    /// OFFER: the host has a channel. Linux `vmbus_channel_offer_channel`.
    196 Offer {
        /// @8: class of the device.
        pub interface: Guid,
        /// @24: this device, for the life of the VM.
        pub instance: Guid,
        /// @40: reserved, once timestamps.
        pub reserved: [u8; 16],
        /// @56: channel flags.
        pub flags: U16,
        /// @58: MMIO space the device needs, in MiB.
        pub mmio_megabytes: U16,
        /// @60: for the device class to use.
        pub user_defined: [u8; 120],
        /// @180: 0 for a primary channel.
        pub subchannel_index: U16,
        /// @182: MMIO space the device can use, in MiB.
        pub optional_mmio_megabytes: U16,
        /// @184: the channel's relid.
        pub relid: U32,
        /// @188: monitor ID, where allocated.
        pub monitor_id: u8,
        /// @189: bit 0: the guest signals through a monitor page. This host has none.
        pub monitor_allocated: u8,
        /// @190: [`DEDICATED_INTERRUPT`].
        pub interrupt_flags: U16,
        /// @192: connection ID for HvSignalEvent.
        pub connection_id: U32,
    }

    /// A message about one channel: RESCIND, CLOSE and RELID_RELEASED.
    12 Channel {
        /// @8: the channel.
        pub relid: U32,
    }

    /// OPEN. Linux `vmbus_channel_open_channel`.
    148 Open {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the guest's number for this OPEN; the answer repeats it.
        pub open_id: U32,
        /// @16: the GPADL with both rings.
        pub ring_gpadl: U32,
        /// @20: the VP to interrupt, or [`super::VpIndex::NONE`].
        pub target_vp: U32,
        /// @24: page of the GPADL at which the host-to-guest ring starts.
        pub downstream_offset: U32,
        /// @28: for the device class to use.
        pub user_data: [u8; 120],
    }

    /// OPEN_RESULT. Linux `vmbus_channel_open_result`.
    20 OpenResult {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the guest's number for the OPEN.
        pub open_id: U32,
        /// @16: zero for success.
        pub status: U32,
    }

    /// GPADL_HEADER, followed by the first 8-byte words of the range list.
    20 GpadlHeader {
        /// @8: the channel the pages are for.
        pub relid: U32,
        /// @12: the GPADL's number, chosen by the guest.
        pub gpadl: U32,
        /// @16: bytes of the range list over all messages.
        pub range_buflen: U16,
        /// @18: ranges in the list.
        pub range_count: U16,
    }

    /// GPADL_BODY, followed by the next words of the range list.
    16 GpadlBody {
        /// @8: message number; Linux leaves it zero.
        pub message_number: U32,
        /// @12: the GPADL.
        pub gpadl: U32,
    }

    /// GPADL_CREATED.
    20 GpadlCreated {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the GPADL.
        pub gpadl: U32,
        /// @16: zero for success.
        pub status: U32,
    }

    /// GPADL_TEARDOWN.
    16 GpadlTeardown {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the GPADL.
        pub gpadl: U32,
    }

    /// GPADL_TORNDOWN: the guest may use the pages for something else.
    12 GpadlTorndown {
        /// @8: the GPADL.
        pub gpadl: U32,
    }

    /// INITIATE_CONTACT.
    40 InitiateContact {
        /// @8: the version asked for.
        pub version: U32,
        /// @12: the VP that takes the control messages, from 3.0 on.
        pub target_vp: U32,
        /// @16: from 5.0 on the SINT for control messages; before, this and the next three fields
        /// are the address of the interrupt page, unused from 2.4 on.
        pub target_sint: u8,
        /// @17: from 5.1 on the virtual trust level.
        pub target_vtl: u8,
        /// @18: reserved.
        pub reserved: U16,
        /// @20: feature flags, from 6.0 on.
        pub feature_flags: U32,
        /// @24: monitor page, host to guest.
        pub parent_to_child_monitor: U64,
        /// @32: monitor page, guest to host.
        pub child_to_parent_monitor: U64,
    }

    /// VERSION_RESPONSE in the form for versions below 6.0. Linux drops anything shorter.
    16 VersionResponse {
        /// @8: 1 if the host speaks the version.
        pub supported: u8,
        /// @9: 0 if the connection stands.
        pub connection_state: u8,
        /// @10: reserved.
        pub reserved: U16,
        /// @12: from 5.0 on the connection ID for all further messages.
        pub connection_id: U32,
    }

    /// OPEN_RESERVED: opens a channel for a crash dump, past its owner.
    28 OpenReserved {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the VP to interrupt.
        pub target_vp: U32,
        /// @16: the SINT to interrupt it by.
        pub target_sint: U32,
        /// @20: the GPADL with both rings.
        pub ring_gpadl: U32,
        /// @24: page at which the host-to-guest ring starts.
        pub downstream_offset: U32,
    }

    /// CLOSE_RESERVED.
    20 CloseReserved {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the VP that takes the answer.
        pub target_vp: U32,
        /// @16: the SINT for it.
        pub target_sint: U32,
    }

    /// CLOSE_RESERVED_RESPONSE.
    12 CloseReservedResponse {
        /// @8: the channel.
        pub relid: U32,
    }

    /// TL_CONNECT_REQUEST: the guest wants a socket to the host.
    40 TlConnectRequest {
        /// @8: the endpoint.
        pub endpoint: Guid,
        /// @24: the service.
        pub service: Guid,
    }

    /// TL_CONNECT_RESULT.
    44 TlConnectResult {
        /// @8: the endpoint asked for.
        pub endpoint: Guid,
        /// @24: the service asked for.
        pub service: Guid,
        /// @40: NTSTATUS.
        pub status: U32,
    }

    /// MODIFYCHANNEL: interrupt another VP from now on.
    16 ModifyChannel {
        /// @8: the channel.
        pub relid: U32,
        /// @12: the VP to interrupt.
        pub target_vp: U32,
    }

    /// MODIFYCHANNEL_RESPONSE.
    16 ModifyChannelResponse {
        /// @8: the channel.
        pub relid: U32,
        /// @12: zero for success.
        pub status: U32,
    }
}
