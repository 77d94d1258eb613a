//! The oracle: who has which page, derived from the actions of guest and host, without knowledge of
//! the device's states.
//!
//! The oracle sees each event before the device does and each action after it, and tracks every
//! page. The device's own figures are then compared with the oracle's.

use dynmem_protocol::{GuestBody, GuestMessage, HostBody, HostMessage, MAX_HOST_MESSAGE};
use dynmem_vsp::{HotAdd, JobId, Prepare, Snapshot};
use hv_balloon::{
    MAX_BALLOON_REQUEST, MAX_DISCARD_RANGES, MAX_DISCARDS_IN_FLIGHT, MAX_HOT_ADD_REQUEST,
    MAX_UNBALLOON_MESSAGE, StateName,
};
use page_range::{PageCount, PageRange, PageRangeSet};

/// A discard in flight.
#[derive(Debug)]
pub(crate) struct Flight {
    id: JobId,
    pub(crate) pages: PageRangeSet,
    /// Whether it belongs to a session that has ended.
    is_stale: bool,
}

/// A preparation in progress.
#[derive(Debug)]
struct Preparation {
    id: JobId,
    what: Prepare,
    /// Whether it is for the next kernel.
    for_next: bool,
}

/// The true state of all pages.
#[derive(Debug)]
pub struct Oracle {
    /// The number of pages that the host can only discard together.
    unit: PageCount,
    boot: PageRangeSet,
    hot_add: Option<HotAdd>,
    /// All the guest's RAM: what it booted with, and what it was offered and added since.
    ram: PageRangeSet,
    /// Memory that the guest can access beyond its boot RAM.
    mapped: PageRangeSet,
    /// Pages of RAM that the guest gave in this session and has not got back.
    given: PageRangeSet,
    /// Pages that are not RAM, likewise.
    foreign: PageRangeSet,
    /// Those of `given` whose discard succeeded.
    discarded: PageRangeSet,
    pub(crate) flights: Vec<Flight>,
    preparation: Option<Preparation>,
    /// The memory prepared so far, with its block size. Entries stay when the memory is removed.
    additions: Vec<(PageRange, PageCount)>,
    /// Memory that is being removed.
    removals: Vec<(JobId, PageRange)>,
    /// Discarded huge pages that must be provided before the next kernel starts.
    absent: PageRangeSet,
    /// The range of the hot-add request that is in the ring but not answered.
    offered: Option<PageRange>,
    /// The transaction ID of an unballoon request with more messages to follow.
    returning: Option<u32>,
    /// The block size with which memory was last prepared.
    alignment: PageCount,
    awaits_close: bool,
    /// Discards of the previous VMM, which the next one must begin again.
    unfinished: Vec<(JobId, PageRangeSet)>,
    /// The state after the last event.
    pub state: StateName,
}

impl Oracle {
    /// The pages of a machine that has not started: all its RAM is the guest's. Pages are discarded
    /// in whole `unit`s.
    pub fn new(boot: PageRangeSet, hot_add: Option<HotAdd>, unit: PageCount) -> Self {
        Self {
            unit,
            ram: boot.clone(),
            boot,
            hot_add,
            mapped: PageRangeSet::new(),
            given: PageRangeSet::new(),
            foreign: PageRangeSet::new(),
            discarded: PageRangeSet::new(),
            flights: Vec::new(),
            preparation: None,
            additions: Vec::new(),
            removals: Vec::new(),
            absent: PageRangeSet::new(),
            offered: None,
            returning: None,
            alignment: PageCount::new(1),
            awaits_close: false,
            unfinished: Vec::new(),
            state: StateName::Closed,
        }
    }

    /// The next machine starts, with this memory.
    pub fn replace(&mut self, boot: PageRangeSet, hot_add: Option<HotAdd>) {
        assert!(self.is_quiet(), "the next machine starts while there is work on its memory");
        *self = Self::new(boot, hot_add, self.unit);
    }

    /// Whether no work is in progress.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.preparation.is_none() && self.removals.is_empty()
    }

    /// Whether a discard belongs to the current session.
    pub(crate) fn is_wanted(&self, id: JobId) -> bool {
        self.flights.iter().any(|flight| flight.id == id && !flight.is_stale)
    }

    /// Another VMM takes over: unfinished work never ends, and is begun again.
    pub fn begin_move(&mut self) {
        let flights = self.flights.drain(..).filter(|flight| !flight.is_stale);
        self.unfinished = flights.map(|Flight { id, pages, .. }| (id, pages)).collect();
        self.preparation = None;
        self.removals.clear();
    }

    /// Discards are forbidden: the next VMM takes unfinished ones back and does not begin them
    /// again.
    pub fn forget_unfinished(&mut self) {
        self.unfinished.clear();
    }

    /// The next VMM has done everything that it can do at once.
    pub fn end_move(&mut self) {
        for (id, pages) in self.unfinished.drain(..) {
            let mut again = self.flights.iter().filter(|flight| flight.id == id);
            let is_same = again.next().is_some_and(|flight| flight.pages == pages);
            assert!(is_same, "a discard is forgotten: job {}", id.get());
        }
    }

    /// Pages that the guest gave and has not got back.
    pub(crate) const fn given(&self) -> PageCount {
        self.given.len()
    }

    /// The guest's pages that the host has not got back.
    pub(crate) const fn actual(&self) -> PageCount {
        self.ram.len().saturating_sub(self.discarded.len())
    }

    /// The device hears that the channel is open.
    pub fn opened(&self) {
        assert!(self.is_quiet(), "a session begins while work of the last one goes on");
    }

    /// Compares the device's books with the truth: present + in flight + ballooned = assigned.
    pub fn check(&self, device: &Snapshot) {
        assert_eq!(device.assigned, self.ram.len(), "assigned");
        let added = self.ram.len().saturating_sub(self.boot.len());
        assert_eq!(device.hot_added, added, "hot-added");
        let known = device.actual.saturating_add(device.unconfirmed);
        assert_eq!(known, self.actual(), "actual: what the host has not got back");
        assert!(device.unconfirmed <= added, "boot memory is in doubt");
        assert_eq!(device.ballooned, self.discarded.len(), "ballooned");
        if has_session(device.state) {
            let present = self.ram.len().saturating_sub(self.given.len());
            let sum = [device.in_flight, device.undiscarded, device.held, device.ballooned]
                .into_iter()
                .fold(present, PageCount::saturating_add);
            if device.faults.forgotten_pages == 0 {
                assert_eq!(sum, device.assigned, "present + in flight + ballooned = assigned");
                assert_eq!(device.foreign, self.foreign.len(), "pages that are not RAM");
            } else {
                assert!(sum <= device.assigned, "more pages than there are");
                assert!(device.foreign <= self.foreign.len(), "pages that nobody gave");
            }
        }
    }

    /// The device hands a message to its driver.
    pub fn message(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= MAX_HOST_MESSAGE && bytes.len().is_multiple_of(8), "message length");
        let message = HostMessage::parse(bytes).expect("the device speaks the protocol");
        match message.body {
            HostBody::BalloonRequest(request) => {
                assert!(request.pages <= MAX_BALLOON_REQUEST, "asks for {}", request.pages);
                assert!(!request.pages.is_zero(), "asks for nothing");
            }
            HostBody::UnballoonRequest(request) => {
                let id = message.transaction_id;
                assert!(self.returning.is_none_or(|of| of == id), "one request, two transactions");
                self.returning = request.more_pages.then_some(id);
                let mut pages = PageCount::ZERO;
                for word in request.ranges.iter() {
                    let range = word.range().expect("a range of pages");
                    pages = pages.saturating_add(range.count());
                    self.take_back(range);
                }
                assert!(pages <= MAX_UNBALLOON_MESSAGE, "returns {pages} at once");
            }
            HostBody::HotAddRequest(request) => {
                let range = request.range.range().expect("a range of pages");
                assert!(
                    self.mapped.contains_range(range),
                    "{range} is offered before it is mapped"
                );
                assert!(range.count() <= MAX_HOT_ADD_REQUEST.max(self.alignment), "offers {range}");
                // What the guest said about this range earlier is void.
                self.foreign.remove(range);
            }
            _ => {}
        }
    }

    /// The device asks for a discard.
    pub fn discard(&mut self, id: JobId, ranges: &[PageRange]) {
        assert!(!ranges.is_empty() && ranges.len() <= MAX_DISCARD_RANGES, "ranges in a discard");
        assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()), "not merged");
        for range in ranges {
            assert!(self.ram.contains_range(*range), "{range} to be discarded is not RAM");
            assert!(self.given.contains_range(*range), "{range} was not handed over");
            assert!(self.discarded.is_disjoint(*range), "{range} is discarded already");
            assert!(!self.is_in_flight(*range), "{range} is being discarded already");
            assert_eq!(range.units_within(self.unit), Some(*range), "a part of a huge page");
        }
        let pages = ranges.iter().copied().collect();
        self.flights.push(Flight { id, pages, is_stale: false });
        assert!(self.flights.len() <= MAX_DISCARDS_IN_FLIGHT, "too many discards");
    }

    /// The device asks for a preparation.
    pub fn prepare(&mut self, id: JobId, what: &Prepare) {
        assert!(self.preparation.is_none(), "two preparations at a time");
        assert!(self.removals.is_empty(), "memory is prepared while some is being removed");
        match what {
            Prepare::Add { range, offset, alignment } => {
                let hot_add = self.hot_add.expect("there is memory to add");
                self.alignment = *alignment;
                assert_eq!(range.units_within(*alignment), Some(*range), "{range} not aligned");
                let window = hot_add.window;
                assert_eq!(window.intersection(*range), Some(*range), "{range} outside the window");
                let end = offset.saturating_add(range.count());
                assert!(end <= hot_add.capacity, "{range} beyond the capacity");
                assert!(self.ram.is_disjoint(*range), "{range} is RAM already");
                self.additions.retain(|(other, _)| other.intersection(*range).is_none());
                self.additions.push((*range, *alignment));
            }
            Prepare::Return(ranges) => {
                assert!(self.unit > PageCount::new(1), "single pages come back by themselves");
                for range in ranges {
                    // One list may name pages of both sets, so each part is checked by itself.
                    let outside = self.discarded.difference(*range);
                    let mut missing = outside.filter(|part| !self.absent.contains_range(*part));
                    assert_eq!(missing.next(), None, "provided, though it was never discarded");
                }
            }
        }
        let for_next = self.awaits_close;
        self.preparation = Some(Preparation { id, what: what.clone(), for_next });
    }

    /// The device asks for memory to be removed.
    pub fn remove(&mut self, id: JobId, range: PageRange) {
        assert!(self.ram.is_disjoint(range), "{range} is removed while it is the guest's");
        assert!(
            self.flights.iter().all(|flight| flight.pages.is_disjoint(range)),
            "{range} is removed while it is being discarded"
        );
        if let Some(hot_add) = self.hot_add {
            assert_eq!(
                hot_add.window.intersection(range),
                Some(range),
                "{range} is outside the window"
            );
        }
        for (added, alignment) in &self.additions {
            let part = added.intersection(range);
            let whole = part.and_then(|part| part.units_within(*alignment));
            assert_eq!(part, whole, "{range} is removed and holds a part of a block of {added}");
        }
        self.mapped.remove(range);
        self.removals.push((id, range));
    }

    /// The device has finished its last session.
    pub fn close_finished(&mut self) {
        assert!(self.awaits_close, "no close to finish");
        assert!(self.is_quiet(), "the close ends while there is work on the guest's memory");
        assert!(self.absent.is_empty(), "pages are missing for the next kernel");
        self.awaits_close = false;
    }

    fn is_in_flight(&self, range: PageRange) -> bool {
        self.flights.iter().any(|flight| !flight.is_stale && !flight.pages.is_disjoint(range))
    }

    /// The device is about to handle a packet from the guest.
    pub fn packet(&mut self, packet: &[u8]) {
        if !has_session(self.state) {
            return;
        }
        match GuestMessage::parse(packet).map(|message| message.body) {
            Ok(GuestBody::BalloonResponse(response)) => {
                for range in response.ranges.iter().filter_map(|word| word.range().ok()) {
                    for part in self.ram.intersection(range) {
                        self.given.insert(part);
                    }
                    for part in self.ram.difference(range) {
                        self.foreign.insert(part);
                    }
                }
            }
            Ok(GuestBody::HotAddResponse(response)) => {
                if let Some(range) = self.offered.take() {
                    let blocks = response.pages.align_up(self.alignment).unwrap_or(range.count());
                    if let Ok(taken) = PageRange::new(range.start(), blocks.min(range.count())) {
                        self.is_added(taken);
                    }
                }
            }
            _ => {}
        }
    }

    fn is_added(&mut self, range: PageRange) {
        assert!(self.mapped.contains_range(range), "{range} became RAM but is not mapped");
        self.ram.insert(range);
        let given: Vec<_> = self.foreign.intersection(range).collect();
        for part in given {
            self.foreign.remove(part);
            self.given.insert(part);
        }
    }

    /// A message from the device is in the ring.
    pub fn sent(&mut self, message: &[u8]) {
        let message = HostMessage::parse(message).expect("the device speaks the protocol");
        if let HostBody::HotAddRequest(request) = message.body {
            let range = request.range.range().expect("a range of pages");
            assert_eq!(self.offered.replace(range), None, "two offers at a time");
        }
    }

    /// Pages go back to the guest.
    fn take_back(&mut self, range: PageRange) {
        assert!(!self.is_in_flight(range), "{range} is returned while it is being discarded");
        let known = self.given.contains_range(range) || self.foreign.contains_range(range);
        assert!(known, "{range} is returned but was not given");
        if self.unit > PageCount::new(1) {
            assert!(self.discarded.is_disjoint(range), "{range} is returned before it is provided");
        }
        self.given.remove(range);
        self.foreign.remove(range);
        self.discarded.remove(range);
    }

    /// The device hears that the channel is closed.
    pub fn channel_closed(&mut self) {
        // The guest may be using the memory that it was offered.
        if let Some(range) = self.offered.take() {
            self.is_added(range);
        }
        if self.unit > PageCount::new(1) {
            self.absent.insert_set(&self.discarded);
            for flight in self.flights.iter().filter(|flight| !flight.is_stale) {
                self.absent.insert_set(&flight.pages);
            }
        }
        self.end_session();
    }

    /// The machine was stopped; the device is about to hear of it.
    pub fn system_reset(&mut self) {
        self.offered = None;
        self.ram = self.boot.clone();
        self.absent.clear();
        self.end_session();
    }

    fn end_session(&mut self) {
        self.given.clear();
        self.foreign.clear();
        self.discarded.clear();
        self.flights.iter_mut().for_each(|flight| flight.is_stale = true);
        self.returning = None;
        self.awaits_close = true;
    }

    /// A job has ended; the device is about to hear of it.
    pub fn job_done(&mut self, id: JobId, ok: bool) {
        if let Some(at) = self.flights.iter().position(|flight| flight.id == id) {
            let Flight { pages, is_stale, .. } = self.flights.remove(at);
            if ok && !is_stale {
                self.discarded.insert_set(&pages);
            }
        } else if let Some(done) = self.preparation.take_if(|at| at.id == id) {
            match done.what {
                Prepare::Add { range, .. } if ok => {
                    self.mapped.insert(range);
                }
                Prepare::Return(ranges) => {
                    for range in ranges {
                        // If the host has no pages left, nothing more can be done for the guest.
                        if done.for_next {
                            self.absent.remove(range);
                        }
                        if ok {
                            self.discarded.remove(range);
                        }
                    }
                }
                Prepare::Add { .. } => {}
            }
        } else if let Some(at) = self.removals.iter().position(|(removal, _)| *removal == id) {
            self.removals.remove(at);
        } else {
            panic!("job {} ended but was never begun", id.get());
        }
    }
}

/// Whether the guest's handshake is over, so that what it says about pages counts.
pub(crate) fn has_session(state: StateName) -> bool {
    !matches!(
        state,
        StateName::Closed | StateName::Closing | StateName::AwaitVersion | StateName::AwaitCaps
    )
}
