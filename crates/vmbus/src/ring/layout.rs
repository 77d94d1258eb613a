//! The guest pages of a channel's two rings.

use alloc::vec::Vec;

use page_range::Gpfn;

/// Maximum number of pages in both rings together: 256 MiB. A GPADL cannot describe that many; the
/// limit keeps ring offsets far below `u32::MAX`.
pub const MAX_RING_PAGES: usize = 1 << 16;

/// The guest pages of a channel's rings, in ring order; each ring has a control page and at least
/// one page of data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingLayout {
    incoming: Vec<Gpfn>,
    outgoing: Vec<Gpfn>,
}

/// The pages do not form two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{pages} pages split at page {downstream_offset} do not make two rings of at least two pages \
     and at most {MAX_RING_PAGES} together"
)]
pub struct LayoutError {
    /// Number of pages.
    pub pages: usize,
    /// The page at which the guest splits them.
    pub downstream_offset: usize,
}

impl RingLayout {
    /// The rings in a GPADL's pages: the guest-to-host ring ends at page `downstream_offset`, where
    /// the host-to-guest ring starts (Linux
    /// `vmbus_channel_open_channel.downstream_ringbuffer_pageoffset`).
    ///
    /// # Errors
    /// [`LayoutError`] if a ring would have fewer than two pages, or both together too many.
    pub fn new(pages: &[Gpfn], downstream_offset: usize) -> Result<Self, LayoutError> {
        let error = LayoutError { pages: pages.len(), downstream_offset };
        let (incoming, outgoing) = pages.split_at_checked(downstream_offset).ok_or(error)?;
        if incoming.len() < 2 || outgoing.len() < 2 || pages.len() > MAX_RING_PAGES {
            return Err(error);
        }
        Ok(Self { incoming: incoming.to_vec(), outgoing: outgoing.to_vec() })
    }

    /// Pages of the guest-to-host ring, control page first.
    #[must_use]
    pub fn incoming(&self) -> &[Gpfn] {
        &self.incoming
    }

    /// Pages of the host-to-guest ring, control page first.
    #[must_use]
    pub fn outgoing(&self) -> &[Gpfn] {
        &self.outgoing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ring_needs_a_control_page_and_a_data_page() {
        let pages: Vec<_> = (0..10).map(|n| Gpfn::new(n).unwrap()).collect();
        let layout = RingLayout::new(&pages, 4).unwrap();
        assert_eq!((layout.incoming(), layout.outgoing()), (&pages[..4], &pages[4..]));
        for offset in [0, 1, 9, 10, 11, usize::MAX] {
            assert!(RingLayout::new(&pages, offset).is_err(), "{offset}");
        }
    }
}
