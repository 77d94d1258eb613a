//! The layout of a ring in guest memory: its control page and its packets.

use core::mem::size_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U64},
};

/// Control page offset of the write index: where the sender's next packet will start, in bytes from
/// the start of the data area.
pub const WRITE_INDEX: u64 = 0;
/// Control page offset of the read index: where the receiver's next packet starts.
pub const READ_INDEX: u64 = 4;
/// Offset of the interrupt mask, by which the receiver turns off "ring is not empty" signals.
pub const INTERRUPT_MASK: u64 = 8;
/// Offset of the number of bytes a blocked sender waits for, or 0.
pub const PENDING_SEND_SIZE: u64 = 12;
/// Offset of the feature bits.
pub const FEATURE_BITS: u64 = 64;

/// Feature bit: the sender of this ring uses `pending_send_size`.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// Packets start and end at multiples of this, in bytes.
pub const PACKET_ALIGN: u32 = 8;
/// Size in bytes of the footer after each packet; not included in the packet's length.
pub const FOOTER_LEN: u32 = 8;
/// Size in bytes of a [`PacketDescriptor`].
pub const DESCRIPTOR_LEN: u32 = 16;

/// The kind of a packet: where its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketKind(pub u16);

impl PacketKind {
    /// The data is in the packet.
    pub const DATA_IN_BAND: Self = Self(6);
    /// The data is in pages of a transfer page set.
    pub const DATA_TRANSFER_PAGES: Self = Self(7);
    /// The data is in a GPADL.
    pub const DATA_GPADL: Self = Self(8);
    /// The data is in guest pages that the packet lists.
    pub const DATA_GPA_DIRECT: Self = Self(9);
    /// The completion of a packet that requested one; it repeats that packet's transaction ID.
    pub const COMPLETION: Self = Self(0xb);
}

/// The first 16 bytes of every packet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PacketDescriptor {
    /// A [`PacketKind`].
    pub kind: U16,
    /// Offset of the payload from the start of the packet, in units of 8 bytes; at least 2.
    pub data_offset8: U16,
    /// Length of the packet without its footer, in units of 8 bytes.
    pub len8: U16,
    /// [`PacketDescriptor::COMPLETION_REQUESTED`]; other bits are ignored.
    pub flags: U16,
    /// Chosen by the sender; a completion repeats it.
    pub transaction_id: U64,
}

impl PacketDescriptor {
    /// Flag: the sender wants a [`PacketKind::COMPLETION`].
    pub const COMPLETION_REQUESTED: u16 = 1;
}

const _: () = assert!(size_of::<PacketDescriptor>() == DESCRIPTOR_LEN as usize);
