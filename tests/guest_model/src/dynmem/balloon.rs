//! Giving pages to the host, and taking them back.

use alloc::vec::Vec;

use dynmem_protocol::{BalloonResponse, Capabilities, MessageType, UnballoonRequest};
use page_range::{PageCount, PageRange};

use super::client::Work;
use super::{Client, Ending, RuleBroken, Shape};

/// The most pages that Windows gives for one balloon request.
pub(super) const MAX_BALLOON_REQUEST: PageCount = PageCount::new(585_728);

/// The search for pages while a balloon request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// Aligned runs of 512.
    Large,
    /// Single pages, until the request ends.
    Single,
    /// Runs as long as possible.
    Run,
}

impl Client {
    pub(super) fn on_balloon_request(&mut self, wanted: PageCount) -> Result<(), RuleBroken> {
        self.begin(MessageType::BALLOON_REQUEST, Capabilities::BALLOON)?;
        if wanted > MAX_BALLOON_REQUEST {
            self.go_deaf();
            return Err(RuleBroken::TooMuch { pages: wanted });
        }
        if !self.personality.ignores_requests {
            let ballooning = self.personality.ballooning;
            let spare = self.memory.available().saturating_sub(self.memory.floor());
            let left = wanted.min(spare).min(ballooning.most_per_request);
            let search = match ballooning.shape {
                Shape::LargeThenSingle => Search::Large,
                Shape::Runs => Search::Run,
            };
            self.work = Work::Giving { left, search };
        }
        Ok(())
    }

    pub(super) fn on_unballoon_request(
        &mut self,
        id: u32,
        request: UnballoonRequest<'_>,
    ) -> Result<(), RuleBroken> {
        if let Work::Taking { id: expected } = self.work {
            if id != expected {
                return Err(RuleBroken::IdChanged { got: id, expected });
            }
        } else {
            self.begin(MessageType::UNBALLOON_REQUEST, Capabilities::default())?;
        }
        if self.personality.ignores_requests {
            return Ok(());
        }
        for word in request.ranges.iter() {
            let range = word.range().map_err(|_| RuleBroken::BadRange { word: word.to_wire() })?;
            if !self.memory.take_back(range) {
                return Err(RuleBroken::NotBallooned { range });
            }
        }
        self.work = if request.more_pages { Work::Taking { id } } else { Work::Taken };
        Ok(())
    }

    /// Writes one balloon response with as many pages as fit. Linux takes large pages first, and
    /// only single pages after the first failure.
    pub(super) fn give(&mut self, mut left: PageCount, mut search: Search, out: &mut Vec<u8>) {
        let ballooning = self.personality.ballooning;
        let mut list = core::mem::take(&mut self.ranges);
        while !left.is_zero()
            && !list.is_full()
            && list.words().len() < ballooning.ranges_per_message
        {
            if search == Search::Large && left < PageCount::new(512) {
                search = Search::Single;
            }
            match self.take(left, search) {
                Some(range) => {
                    list.push(range).expect("checked for room");
                    left = left.saturating_sub(range.count());
                }
                None if search == Search::Large => search = Search::Single,
                None => left = PageCount::ZERO,
            }
        }
        let is_empty = list.words().is_empty();
        let more_pages = !left.is_zero() || (ballooning.ending == Ending::Separate && !is_empty);
        self.work = if more_pages { Work::Giving { left, search } } else { Work::None };
        BalloonResponse::emit_into(self.next_id(), more_pages, &list, out);
        list.clear();
        self.ranges = list;
    }

    fn take(&mut self, left: PageCount, search: Search) -> Option<PageRange> {
        match search {
            Search::Large => self.memory.take_large(),
            Search::Single => self.memory.take_run(PageCount::new(1)),
            Search::Run => self.memory.take_run(left),
        }
    }
}
