//! A request: the buffers of a descriptor chain, copied once.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use guest_ram::DeviceMemory;

/// The guest broke the rules of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// The buffers of a request: first those that the device reads, then those that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub(crate) head: u16,
    /// The life of the queue that it was taken from.
    pub(crate) life: u64,
    readable: Buffers,
    writable: Buffers,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Buffers {
    parts: Vec<(GuestAddress, u32)>,
    len: u64,
}

impl Buffers {
    fn push(&mut self, address: GuestAddress, len: u32) {
        self.parts.push((address, len));
        self.len += u64::from(len);
    }

    /// The pieces of guest memory that hold `count` bytes from `offset` on, each with its place
    /// among these bytes; `None` if there are fewer.
    fn pieces(
        &self,
        offset: u64,
        count: usize,
    ) -> Option<impl Iterator<Item = (GuestAddress, std::ops::Range<usize>)>> {
        let end = offset.checked_add(count as u64).filter(|end| *end <= self.len)?;
        let mut start = 0;
        let piece = move |(address, len): &(GuestAddress, u32)| {
            let here = start..start + u64::from(*len);
            start = here.end;
            let (from, to) = (here.start.max(offset), here.end.min(end));
            // A sum beyond the address space names no memory, and the access fails.
            let address = GuestAddress(address.0.saturating_add(from.checked_sub(here.start)?));
            let within = |at: u64| usize::try_from(at.checked_sub(offset)?).ok();
            (from < to).then_some((address, within(from)?..within(to)?))
        };
        Some(self.parts.iter().filter_map(piece))
    }
}

impl Chain {
    /// Reads the descriptors, of which there may be `limit` at most.
    pub(crate) fn read(
        mut descriptors: DescriptorChain<&DeviceMemory<'_>>,
        limit: u16,
        life: u64,
    ) -> Result<Self, Broken> {
        let head = descriptors.head_index();
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        // The iterator ends early at a descriptor that it cannot use, and after as many as the
        // table has, which is where a loop is noticed.
        let mut goes_on = true;
        for descriptor in descriptors.by_ref().take(limit.into()) {
            goes_on = descriptor.has_next();
            if descriptor.is_write_only() {
                writable.push(descriptor.addr(), descriptor.len());
            } else if writable.parts.is_empty() {
                readable.push(descriptor.addr(), descriptor.len());
            } else {
                return Err(Broken);
            }
        }
        if goes_on { Err(Broken) } else { Ok(Self { head, life, readable, writable }) }
    }

    /// Bytes that the device reads.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.readable.len
    }

    /// Bytes that the device writes.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable.len
    }

    /// Fills `bytes` from the readable buffers; `None` if they, or the memory, are not there.
    pub(crate) fn copy_from(
        &self,
        memory: &DeviceMemory<'_>,
        offset: u64,
        bytes: &mut [u8],
    ) -> Option<()> {
        for (address, place) in self.readable.pieces(offset, bytes.len())? {
            memory.read_slice(bytes.get_mut(place)?, address).ok()?;
        }
        Some(())
    }

    /// Writes `bytes` to the writable buffers; `None` as above.
    pub(crate) fn copy_to(
        &self,
        memory: &DeviceMemory<'_>,
        offset: u64,
        bytes: &[u8],
    ) -> Option<()> {
        for (address, place) in self.writable.pieces(offset, bytes.len())? {
            memory.write_slice(bytes.get(place)?, address).ok()?;
        }
        Some(())
    }
}
