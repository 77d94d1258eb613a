//! The GPADLs of a connection.

use alloc::collections::BTreeMap;

use page_range::Gpfn;

use super::{
    ChannelId,
    gpadl::{Assembly, GpadlPages},
};
use crate::protocol::{GpadlId, Relid, wire};

/// Maximum number of GPADLs of a connection. The balloon has one; network and storage a handful
/// each.
pub const MAX_GPADLS: usize = 256;

/// Maximum number of pages and range headers in all GPADLs of a connection: 384 MiB of guest
/// memory, as in Hyper-V before 2019 (Linux `Documentation/virt/hyperv/vmbus.rst`).
pub const MAX_GPADL_PAGES: usize = 384 << 8;

#[derive(Debug, Default)]
pub(super) struct GpadlTable {
    pub(super) gpadls: BTreeMap<GpadlId, Gpadl>,
    /// Words of the range lists, complete or announced.
    pub(super) words: usize,
}

#[derive(Debug)]
pub(super) struct Gpadl {
    pub(super) channel: ChannelId,
    pub(super) relid: Relid,
    pub(super) words: usize,
    pub(super) state: GpadlState,
}

#[derive(Debug)]
pub(super) enum GpadlState {
    Assembling(Assembly),
    Ready(GpadlPages),
    /// The guest reclaims it, and gets it when the channel has closed.
    TearingDown,
}

/// Progress of a GPADL after one of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More messages must follow.
    Partial,
    /// The GPADL may be used.
    Created(Relid),
    /// The GPADL was refused and is forgotten.
    Refused(Relid),
}

impl GpadlTable {
    /// Starts a GPADL with the list's first words.
    pub(super) fn begin(
        &mut self,
        channel: ChannelId,
        header: &wire::GpadlHeader,
        list: &[u8],
        limit: Gpfn,
    ) -> Progress {
        let id = GpadlId::new(header.gpadl.get());
        let relid = Relid::new(header.relid.get());
        let refused = Progress::Refused(relid);
        // Bodies do not name a channel, so IDs must be unique on the whole bus.
        if self.gpadls.contains_key(&id) || self.gpadls.len() >= MAX_GPADLS {
            return refused;
        }
        let Some(assembly) = Assembly::new(header.range_buflen.get(), header.range_count.get())
        else {
            return refused;
        };
        let words = assembly.wanted();
        if words > MAX_GPADL_PAGES.saturating_sub(self.words) {
            return refused;
        }
        self.words = self.words.saturating_add(words);
        let state = GpadlState::Assembling(assembly);
        self.gpadls.insert(id, Gpadl { channel, relid, words, state });
        self.add(id, list, limit).unwrap_or(refused)
    }

    /// Appends the next words of the list; `None` if no such GPADL is being built.
    pub(super) fn add(&mut self, id: GpadlId, list: &[u8], limit: Gpfn) -> Option<Progress> {
        let gpadl = self.gpadls.get_mut(&id)?;
        let GpadlState::Assembling(assembly) = &mut gpadl.state else { return None };
        if !assembly.add(list) {
            return Some(Progress::Partial);
        }
        let relid = gpadl.relid;
        let Some(pages) = assembly.finish(limit) else {
            self.remove(id);
            return Some(Progress::Refused(relid));
        };
        gpadl.state = GpadlState::Ready(pages);
        Some(Progress::Created(relid))
    }

    /// The pages of a complete GPADL of `channel`.
    pub(super) fn pages(&self, id: GpadlId, channel: ChannelId) -> Option<&GpadlPages> {
        let gpadl = self.gpadls.get(&id).filter(|gpadl| gpadl.channel == channel)?;
        match &gpadl.state {
            GpadlState::Ready(pages) => Some(pages),
            GpadlState::Assembling(_) | GpadlState::TearingDown => None,
        }
    }

    /// The channel that the GPADL is for.
    pub(super) fn channel(&self, id: GpadlId) -> Option<ChannelId> {
        self.gpadls.get(&id).map(|gpadl| gpadl.channel)
    }

    /// Keeps the GPADL's ID in use until its channel has closed.
    pub(super) fn tear_down(&mut self, id: GpadlId) {
        if let Some(gpadl) = self.gpadls.get_mut(&id) {
            gpadl.state = GpadlState::TearingDown;
        }
    }

    /// Removes a GPADL that waits for `channel` to close, if there is one.
    pub(super) fn take_torn_down(&mut self, channel: ChannelId) -> Option<GpadlId> {
        let (id, _) = self.gpadls.iter().find(|(_, gpadl)| {
            gpadl.channel == channel && matches!(gpadl.state, GpadlState::TearingDown)
        })?;
        let id = *id;
        self.remove(id);
        Some(id)
    }

    pub(super) fn remove(&mut self, id: GpadlId) {
        if let Some(gpadl) = self.gpadls.remove(&id) {
            self.words = self.words.saturating_sub(gpadl.words);
        }
    }

    /// Removes all GPADLs of a channel except one that is in use.
    pub(super) fn remove_channel(&mut self, channel: ChannelId, in_use: Option<GpadlId>) {
        self.gpadls.retain(|id, gpadl| gpadl.channel != channel || in_use == Some(*id));
        self.words = self.gpadls.values().map(|gpadl| gpadl.words).sum();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ChannelId = ChannelId(1);
    const OTHER: ChannelId = ChannelId(2);

    /// Announces a list of so many words, none of which has come.
    fn announce(table: &mut GpadlTable, channel: ChannelId, id: u32, words: u16) -> Progress {
        let header = wire::GpadlHeader {
            relid: 1.into(),
            gpadl: id.into(),
            range_buflen: words.checked_mul(8).unwrap().into(),
            range_count: 1.into(),
        };
        table.begin(channel, &header, &[], Gpfn::MAX)
    }

    #[test]
    fn lists_may_have_as_many_words_as_the_limit_and_no_more() {
        let mut table = GpadlTable::default();
        let refused = Progress::Refused(Relid::new(1));
        // The limit is 12 times 8191, the longest list, and 12.
        for id in 0..12 {
            assert_eq!(announce(&mut table, ONE, id, 8191), Progress::Partial);
        }
        assert_eq!(announce(&mut table, ONE, 12, 13), refused);
        assert_eq!(announce(&mut table, ONE, 12, 12), Progress::Partial);
        assert_eq!((table.words, announce(&mut table, ONE, 13, 2)), (MAX_GPADL_PAGES, refused));
    }

    #[test]
    fn a_channel_that_goes_takes_its_own_lists_with_it_except_the_one_in_use() {
        let mut table = GpadlTable::default();
        for (channel, id) in [(ONE, 1), (ONE, 2), (OTHER, 3)] {
            announce(&mut table, channel, id, 10);
        }
        table.remove_channel(ONE, Some(GpadlId::new(2)));
        let left = [1, 2, 3].map(|id| table.channel(GpadlId::new(id)));
        assert_eq!((left, table.words), ([None, Some(ONE), Some(OTHER)], 20));
    }
}
