//! The guest's memory pressure report (message 5).

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Frame, emit, emitted};
use crate::{MessageType, ParseError, RangeWords};

/// Linux `struct dm_status`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StatusReportBody {
    available: U64,
    committed: U64,
    page_file: U64,
    zero_and_free: U64,
    page_file_writes: U32,
    io_difference: U32,
}
const _: () = assert!(size_of::<StatusReportBody>() == 48 - 8);

/// Message 5: how much memory the guest has and wants, sent about once a second. Never answered.
///
/// All numbers are the guest's claims and may be anything. Linux fills in only the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusReport {
    /// Pages the guest can use without swapping.
    pub available: PageCount,
    /// Pages committed. Linux adds ballooned pages, hot-added pages not yet online and its floor.
    pub committed: PageCount,
    /// Pages in all page files together.
    pub page_file: PageCount,
    /// Pages on the zeroed and free lists.
    pub zero_and_free: PageCount,
    /// Running count of page file writes.
    pub page_file_writes: u32,
    /// How well the file cache works.
    pub io_difference: u32,
}

impl StatusReport {
    /// The floor that a Linux guest with `managed` pages keeps available and adds to
    /// [`StatusReport::committed`] (`hv_balloon.c`, `compute_balloon_floor`).
    #[must_use]
    pub const fn linux_floor(managed: PageCount) -> PageCount {
        let mib = managed.bytes() >> 20;
        let (least, share) = match mib {
            0..128 => (8, mib / 2),
            128..512 => (40, mib / 4),
            512..2048 => (104, mib / 8),
            2048..8192 => (232, mib / 16),
            _ => (488, mib / 32),
        };
        PageCount::from_bytes(least << 20).saturating_add(PageCount::from_bytes(share << 20))
    }

    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<StatusReportBody>()?;
        Ok(Self {
            available: PageCount::new(body.available.get()),
            committed: PageCount::new(body.committed.get()),
            page_file: PageCount::new(body.page_file.get()),
            zero_and_free: PageCount::new(body.zero_and_free.get()),
            page_file_writes: body.page_file_writes.get(),
            io_difference: body.io_difference.get(),
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = StatusReportBody {
            available: U64::new(self.available.get()),
            committed: U64::new(self.committed.get()),
            page_file: U64::new(self.page_file.get()),
            zero_and_free: U64::new(self.zero_and_free.get()),
            page_file_writes: U32::new(self.page_file_writes),
            io_difference: U32::new(self.io_difference),
        };
        emit(out, MessageType::STATUS_REPORT, transaction_id, &body, RangeWords::default())
    }
}
