//! Memory added by the host (Linux `hv_balloon.c`, `hot_add_req` and `hv_mem_hot_add`).

use core::time::Duration;

use dynmem_protocol::{Capabilities, HotAddRequest, HotAddResponse, HotAddResult, MessageType};
use page_range::{PageCount, PageRange};

use super::outbox::Message;
use super::{Client, HotAdd, HotAddAnswer, RuleBroken};

/// The longest request known to work, unless one alignment block is larger.
const MAX_REQUEST: PageCount = PageCount::from_bytes(2 << 30);

/// A hot-add request that has not been answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adding {
    /// The pages still to be added.
    rest: Option<PageRange>,
    taken: PageCount,
    /// Pages to claim on top of those added.
    excess: PageCount,
    /// The time between the last block and the answer.
    delay: Duration,
    /// When the next block is due or, after the last block, the answer.
    due: Duration,
    /// The time until which the host must wait for the answer before it makes another request.
    awaited_until: Duration,
}

impl Adding {
    pub(super) const fn due(&self) -> Duration {
        self.due
    }

    /// Whether the host must wait for the answer.
    pub(super) fn is_awaited(&self, now: Duration) -> bool {
        now < self.awaited_until
    }
}

/// How long a host must wait for an answer. Linux takes 5 s for each 128 MiB that nobody brings
/// online.
fn patience(range: PageRange) -> Duration {
    Duration::from_secs(10 + range.count().bytes().div_ceil(128 << 20) * 5)
}

impl Client {
    pub(super) fn on_hot_add_request(&mut self, request: HotAddRequest) -> Result<(), RuleBroken> {
        self.begin(MessageType::HOT_ADD_REQUEST, Capabilities::HOT_ADD)?;
        let range = self.check(request)?;
        let mut adding = Adding {
            rest: Some(range),
            taken: PageCount::ZERO,
            excess: PageCount::ZERO,
            delay: Duration::ZERO,
            due: self.now,
            awaited_until: self.now + patience(range),
        };
        match self.personality.hot_add.answer {
            HotAddAnswer::TakesAll => {}
            HotAddAnswer::AtMost(limit) => {
                let room = limit.saturating_sub(self.memory.hot_added());
                adding.rest = first(range, self.whole_blocks(room));
            }
            HotAddAnswer::Refuses => return self.answer(PageCount::ZERO, HotAddResult::SUCCESS),
            HotAddAnswer::Fails { times: 0 } => {}
            HotAddAnswer::Fails { times } => {
                self.personality.hot_add.answer = HotAddAnswer::Fails { times: times - 1 };
                return self.answer(PageCount::ZERO, HotAddResult::FAILURE);
            }
            HotAddAnswer::FailsAlways => {
                return self.answer(PageCount::ZERO, HotAddResult::FAILURE);
            }
            HotAddAnswer::Silent => return Ok(()),
            HotAddAnswer::Late(delay) => adding.delay = delay,
            HotAddAnswer::ClaimsMore(excess) => adding.excess = excess,
            HotAddAnswer::ClaimsOdd => {
                adding.rest = first(range, range.count().saturating_sub(PageCount::new(1)));
            }
        }
        self.adding.push_back(adding);
        Ok(())
    }

    /// Adds the blocks that are due, and answers each request after its last block.
    pub(super) fn go_on_adding(&mut self) {
        let HotAdd { block, online_wait, onlines, .. } = self.personality.hot_add;
        while let Some(adding) = self.adding.front_mut()
            && adding.due <= self.now
        {
            let Some(rest) = adding.rest else {
                let pages = adding.taken.saturating_add(adding.excess);
                self.adding.pop_front();
                let answered = self.answer(pages, HotAddResult::SUCCESS);
                debug_assert_eq!(answered, Ok(()), "an answer breaks no rule");
                continue;
            };
            let next = first(rest, block).unwrap_or(rest);
            adding.rest = PageRange::between(next.end(), rest.end());
            adding.taken = adding.taken.saturating_add(next.count());
            adding.due += online_wait;
            if adding.rest.is_none() {
                adding.due += adding.delay;
            }
            self.memory.add(next, onlines);
            // Linux reports after each block, but at most once a second.
            if !online_wait.is_zero() {
                self.report_status();
            }
        }
    }

    fn check(&self, request: HotAddRequest) -> Result<PageRange, RuleBroken> {
        let word = request.range;
        let range = word.range().map_err(|_| RuleBroken::BadRange { word: word.to_wire() })?;
        let alignment = self.personality.capabilities.hot_add_alignment();
        let is_aligned = |pages: u64| pages.is_multiple_of(alignment.get());
        if !is_aligned(range.start().get()) || !is_aligned(range.count().get()) {
            return Err(RuleBroken::HotAddNotAligned { range, alignment });
        }
        if range.count() > MAX_REQUEST.max(alignment) {
            return Err(RuleBroken::HotAddTooLong { range });
        }
        match request.region {
            None if self.personality.hot_add.wants_region => {
                return Err(RuleBroken::HotAddNoRegion { range });
            }
            None => {}
            Some(word) => {
                let region =
                    word.range().map_err(|_| RuleBroken::BadRange { word: word.to_wire() })?;
                // Linux adds from the region's start, wherever the range is.
                if region.start() != range.start() || region.end() < range.end() {
                    return Err(RuleBroken::HotAddRegion { range, region });
                }
            }
        }
        let limit = self.personality.hot_add.address_limit;
        if range.end() > limit {
            return Err(RuleBroken::HotAddAboveLimit { range, limit });
        }
        if self.memory.has_part_of(range) || self.is_adding(range) {
            return Err(RuleBroken::HotAddOverlap { range });
        }
        Ok(range)
    }

    fn is_adding(&self, range: PageRange) -> bool {
        self.adding
            .iter()
            .filter_map(|adding| adding.rest)
            .any(|rest| rest.intersection(range).is_some())
    }

    fn answer(&mut self, pages: PageCount, result: HotAddResult) -> Result<(), RuleBroken> {
        let id = self.next_id();
        self.outbox.push(id, Message::HotAdd(HotAddResponse { pages, result }));
        Ok(())
    }

    fn whole_blocks(&self, pages: PageCount) -> PageCount {
        let alignment = self.personality.capabilities.hot_add_alignment().get();
        PageCount::new(pages.get() / alignment * alignment)
    }
}

/// The first `count` pages of `range`, or all of it; `None` if `count` is zero.
fn first(range: PageRange, count: PageCount) -> Option<PageRange> {
    PageRange::new(range.start(), count.min(range.count())).ok()
}
