//! The client's conversation with the host.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, HostBody, HostMessage, HotAddResponse,
    HotAddResult, MAX_HOST_MESSAGE, MessageType, RangeList, StatusReport, UnballoonRequest,
    UnballoonResponse, Version, VersionRequest,
};
use page_range::PageCount;

use super::{Ending, Memory, Personality, RuleBroken};

/// The most Windows gives for one balloon request, in pages.
const MAX_BALLOON_REQUEST: PageCount = PageCount::new(585_728);

/// Where the driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not loaded, or it gave up.
    Closed,
    /// Asked for the version of this place in the personality's list.
    AskedVersion { attempt: usize, version: Version, id: u32 },
    /// Told its capabilities.
    ToldCapabilities { version: Version, id: u32 },
    /// The handshake is over.
    Running { version: Version },
}

/// The host's request the guest works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    None,
    /// Pages still to give. `large` while runs of 512 are tried.
    Giving {
        left: PageCount,
        large: bool,
    },
    /// Between the messages of an unballoon request.
    Taking {
        id: u32,
    },
    /// An unballoon request is carried out but not answered.
    Taken,
}

/// A Dynamic Memory driver in a guest. Without I/O: [`Client::receive`] what the host sends,
/// [`Client::poll_send`] what the guest sends.
#[derive(Clone, Debug)]
pub struct Client {
    personality: Personality,
    memory: Memory,
    phase: Phase,
    work: Work,
    outbox: VecDeque<Vec<u8>>,
    /// Of the last message; Linux counts on over all sessions and never echoes.
    transaction_id: u32,
}

impl Client {
    /// A driver that is not loaded yet.
    #[must_use]
    pub fn new(personality: Personality, memory: Memory) -> Self {
        Self {
            personality,
            memory,
            phase: Phase::Closed,
            work: Work::None,
            outbox: VecDeque::new(),
            transaction_id: 0,
        }
    }

    /// The guest's memory.
    #[must_use]
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The guest's memory, for what else goes on in the guest.
    pub const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The version agreed on, once the handshake is over.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        match self.phase {
            Phase::Running { version } => Some(version),
            _ => None,
        }
    }

    /// The driver is loaded and has opened the channel.
    pub fn open(&mut self) {
        self.ask_version(0);
    }

    /// The driver is unloaded and has closed the channel. Pages out are lost to the guest.
    pub fn close(&mut self) {
        self.phase = Phase::Closed;
        self.work = Work::None;
        self.outbox.clear();
        self.memory.leak();
    }

    /// The guest reports its memory pressure, as it does once the handshake is over.
    pub fn report_status(&mut self) {
        if self.version().is_none() {
            return;
        }
        let report = StatusReport {
            available: self.memory.available(),
            committed: self.memory.floor().saturating_add(self.memory.ballooned().len()),
            ..StatusReport::default()
        };
        let message = report.emit(self.next_id());
        self.outbox.push_back(message);
    }

    /// Takes a message of the host from the ring.
    ///
    /// # Errors
    /// [`RuleBroken`] where a real guest would be harmed or deaf.
    pub fn receive(&mut self, packet: &[u8]) -> Result<(), RuleBroken> {
        let len = packet.len().next_multiple_of(8);
        if len > MAX_HOST_MESSAGE {
            return Err(RuleBroken::TooLong { len });
        }
        let message = HostMessage::parse(packet).map_err(RuleBroken::Malformed)?;
        let id = message.transaction_id;
        match message.body {
            HostBody::VersionResponse(response) => self.on_version(id, response.is_accepted),
            HostBody::CapabilitiesResponse(response) => {
                self.on_capabilities(id, response.is_accepted)
            }
            HostBody::BalloonRequest(request) => self.on_balloon_request(request.pages),
            HostBody::UnballoonRequest(request) => self.on_unballoon_request(id, request),
            HostBody::HotAddRequest(_) => self.on_hot_add_request(),
            HostBody::InfoMessage(_) => self.running(MessageType::INFO_MESSAGE),
            HostBody::HotRemoveRequest(_) => {
                Err(RuleBroken::NotCapable { message: MessageType::HOT_REMOVE_REQUEST })
            }
        }
    }

    /// The next message for the host. Pages are allocated when their message is made, as in Linux.
    pub fn poll_send(&mut self) -> Option<Vec<u8>> {
        if let Some(message) = self.outbox.pop_front() {
            return Some(message);
        }
        match self.work {
            Work::None | Work::Taking { .. } => None,
            Work::Giving { left, large } => Some(self.give(left, large)),
            Work::Taken => {
                self.work = Work::None;
                Some(UnballoonResponse.emit(self.next_id()))
            }
        }
    }

    fn ask_version(&mut self, attempt: usize) {
        let Some(&version) = self.personality.versions.get(attempt) else {
            self.phase = Phase::Closed;
            return;
        };
        let is_last_attempt = attempt + 1 == self.personality.versions.len();
        let id = self.next_id();
        self.outbox.push_back(VersionRequest { version, is_last_attempt }.emit(id));
        self.phase = Phase::AskedVersion { attempt, version, id };
    }

    fn on_version(&mut self, got: u32, is_accepted: bool) -> Result<(), RuleBroken> {
        let Phase::AskedVersion { attempt, version, id } = self.phase else {
            return Err(RuleBroken::Unexpected { message: MessageType::VERSION_RESPONSE });
        };
        expect_echo(got, id)?;
        if !is_accepted {
            self.ask_version(attempt + 1);
            return Ok(());
        }
        let id = self.next_id();
        let report = CapabilitiesReport {
            capabilities: self.personality.capabilities,
            minimum_pages: PageCount::ZERO,
            highest_page: u64::MAX,
        };
        self.outbox.push_back(report.emit(id));
        self.phase = Phase::ToldCapabilities { version, id };
        Ok(())
    }

    fn on_capabilities(&mut self, got: u32, is_accepted: bool) -> Result<(), RuleBroken> {
        let Phase::ToldCapabilities { version, id } = self.phase else {
            return Err(RuleBroken::Unexpected { message: MessageType::CAPABILITIES_RESPONSE });
        };
        expect_echo(got, id)?;
        self.phase = if is_accepted { Phase::Running { version } } else { Phase::Closed };
        Ok(())
    }

    fn on_balloon_request(&mut self, wanted: PageCount) -> Result<(), RuleBroken> {
        let message = MessageType::BALLOON_REQUEST;
        self.begin(message, Capabilities::BALLOON)?;
        if wanted > MAX_BALLOON_REQUEST {
            return Err(RuleBroken::TooMuch { pages: wanted });
        }
        if !self.personality.ignores_requests {
            let spare = self.memory.available().saturating_sub(self.memory.floor());
            self.work = Work::Giving { left: wanted.min(spare), large: true };
        }
        Ok(())
    }

    fn on_unballoon_request(
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

    /// This guest refuses hot-add for good.
    fn on_hot_add_request(&mut self) -> Result<(), RuleBroken> {
        self.begin(MessageType::HOT_ADD_REQUEST, Capabilities::HOT_ADD)?;
        let refusal = HotAddResponse { pages: PageCount::ZERO, result: HotAddResult::SUCCESS };
        let message = refusal.emit(self.next_id());
        self.outbox.push_back(message);
        Ok(())
    }

    /// Checks that the host may make a request now.
    fn begin(&self, message: MessageType, needs: Capabilities) -> Result<(), RuleBroken> {
        self.running(message)?;
        if self.work != Work::None {
            return Err(RuleBroken::TwoTransactions { message });
        }
        if !self.personality.capabilities.contains(needs) {
            return Err(RuleBroken::NotCapable { message });
        }
        Ok(())
    }

    const fn running(&self, message: MessageType) -> Result<(), RuleBroken> {
        match self.phase {
            Phase::Running { .. } => Ok(()),
            _ => Err(RuleBroken::Unexpected { message }),
        }
    }

    /// One balloon response: as many pages as fit, large pages first.
    fn give(&mut self, mut left: PageCount, mut large: bool) -> Vec<u8> {
        let mut list = RangeList::new();
        while !left.is_zero() && !list.is_full() {
            large = large && left >= PageCount::new(512);
            let range = if large { self.memory.take_large() } else { self.memory.take_single() };
            match range {
                Some(range) => {
                    list.push(range).expect("checked for room");
                    left = left.saturating_sub(range.count());
                }
                None if large => large = false,
                None => left = PageCount::ZERO,
            }
        }
        let is_empty = list.words().is_empty();
        let more_pages =
            !left.is_zero() || (self.personality.ending == Ending::Separate && !is_empty);
        self.work = if more_pages { Work::Giving { left, large } } else { Work::None };
        BalloonResponse::emit(self.next_id(), more_pages, &list)
    }

    const fn next_id(&mut self) -> u32 {
        self.transaction_id = self.transaction_id.wrapping_add(1);
        self.transaction_id
    }
}

const fn expect_echo(got: u32, expected: u32) -> Result<(), RuleBroken> {
    if got == expected { Ok(()) } else { Err(RuleBroken::NotEchoed { got, expected }) }
}
