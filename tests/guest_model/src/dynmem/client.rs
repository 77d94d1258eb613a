//! The client's dialogue with the host.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use dynmem_protocol::{
    Capabilities, CapabilitiesReport, HostBody, HostMessage, MAX_HOST_MESSAGE, MessageType,
    RangeList, StatusReport, UnballoonResponse, Version, VersionRequest,
};
use page_range::{PageCount, PageRangeSet};

use super::balloon::Search;
use super::hot_add::Adding;
use super::outbox::{Message, Outbox};
use super::{Memory, MemoryMap, Personality, RuleBroken};

/// The driver's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not loaded, or it gave up.
    Closed,
    /// It requested the version at this index of the personality's list.
    AskedVersion { attempt: usize, version: Version, id: u32 },
    /// It reported its capabilities.
    ToldCapabilities { version: Version, id: u32 },
    /// The handshake ended at this time.
    Running { version: Version, since: Duration },
}

/// The host's balloon or unballoon request on which the guest is working.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    None,
    /// A balloon request with pages still to give.
    Giving {
        left: PageCount,
        search: Search,
    },
    /// Between the messages of an unballoon request.
    Taking {
        id: u32,
    },
    /// An unballoon request was carried out but not answered yet.
    Taken,
}

/// A Dynamic Memory driver in a guest, with the parts of the guest that it needs. It has no I/O and
/// no clock: pass it the host's messages with [`Client::receive`], take the guest's with
/// [`Client::poll_send`], and let time pass with [`Client::advance`].
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) personality: Personality,
    pub(super) memory: Memory,
    phase: Phase,
    pub(super) work: Work,
    /// Hot-adds in progress or not yet answered. Linux works on them independently of balloon
    /// requests.
    pub(super) adding: VecDeque<Adding>,
    pub(super) outbox: Outbox,
    /// Reused for the ranges of each message; empty in between.
    pub(super) ranges: RangeList,
    /// The transaction ID of the last message sent. Linux keeps counting across sessions and never
    /// echoes the host's IDs.
    transaction_id: u32,
    /// The driver ignores the host until it is loaded again.
    is_deaf: bool,
    pub(super) now: Duration,
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
            adding: VecDeque::new(),
            outbox: Outbox::default(),
            ranges: RangeList::new(),
            transaction_id: 0,
            is_deaf: false,
            now: Duration::ZERO,
        }
    }

    /// The guest's behaviour.
    #[must_use]
    pub const fn personality(&self) -> &Personality {
        &self.personality
    }

    /// The guest's behaviour, for a test that changes it midway.
    pub const fn personality_mut(&mut self) -> &mut Personality {
        &mut self.personality
    }

    /// The guest's memory.
    #[must_use]
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The guest's memory, for a test that simulates other activity in the guest.
    pub const fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The agreed version, once the handshake is over.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        match self.phase {
            Phase::Running { version, .. } => Some(version),
            _ => None,
        }
    }

    /// Sets the time to `now`, on any clock; an earlier time than before has no effect.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// When [`Client::poll_send`] may have a message even if nothing is received until then; `None`
    /// if it may have one now, or never will.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.adding.front().map(Adding::due).filter(|due| *due > self.now)
    }

    /// The driver is loaded and has opened the channel.
    pub fn open(&mut self) {
        self.is_deaf = false;
        self.ask_version(0);
    }

    /// The driver is unloaded and has closed the channel. Ballooned pages are lost to the guest;
    /// added memory stays.
    pub fn close(&mut self) {
        self.hang_up();
        self.memory.leak();
    }

    /// A new kernel takes over without a reset, with the driver not loaded. All memory in its map is
    /// its own RAM, ballooned pages included; it does not know of any other.
    pub fn kexec(&mut self, map: MemoryMap) {
        self.hang_up();
        self.transaction_id = 0;
        self.memory.kexec(map);
    }

    /// A crash kernel takes over in the memory reserved for it, with the driver not loaded. It only
    /// reads all other memory.
    pub fn crash(&mut self, reserved: &PageRangeSet) {
        self.hang_up();
        self.transaction_id = 0;
        self.memory.crash(reserved);
    }

    /// The machine restarts with its boot RAM, with the driver not loaded.
    pub fn reset(&mut self) {
        self.hang_up();
        self.transaction_id = 0;
        self.memory.reset();
    }

    /// The guest reports its memory pressure, as Linux does every second or two once the handshake
    /// is over. The caller decides whether to keep Linux's silence in the first 45 s.
    pub fn report_status(&mut self) {
        if self.version().is_none() {
            return;
        }
        let report = StatusReport {
            available: self.memory.available(),
            committed: [
                self.memory.in_use(),
                self.memory.ballooned().len(),
                self.memory.offline().len(),
                // As far as is known, only Linux adds its floor.
                if self.personality.is_linux() { self.memory.floor() } else { PageCount::ZERO },
            ]
            .into_iter()
            .fold(PageCount::ZERO, PageCount::saturating_add),
            ..StatusReport::default()
        };
        let id = self.next_id();
        self.outbox.push(id, Message::Status(report));
    }

    /// Handles a message that the host put into the ring.
    ///
    /// # Errors
    /// [`RuleBroken`] if a real guest would be harmed or stop listening.
    pub fn receive(&mut self, packet: &[u8]) -> Result<(), RuleBroken> {
        let len = packet.len().next_multiple_of(8);
        if len > MAX_HOST_MESSAGE {
            return Err(RuleBroken::TooLong { len });
        }
        if self.is_deaf {
            return Ok(());
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
            HostBody::HotAddRequest(request) => self.on_hot_add_request(request),
            HostBody::InfoMessage(_) => self.on_info(),
            HostBody::HotRemoveRequest(_) => {
                Err(RuleBroken::NotCapable { message: MessageType::HOT_REMOVE_REQUEST })
            }
        }
    }

    /// The next message for the host. As in Linux, pages are allocated when the message that lists
    /// them is built.
    pub fn poll_send(&mut self) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        self.poll_send_into(&mut message).then_some(message)
    }

    /// Like [`Client::poll_send`], but writes the message to `out` to reuse its allocation; returns
    /// false if there is none.
    pub fn poll_send_into(&mut self, out: &mut Vec<u8>) -> bool {
        if self.outbox.is_empty() {
            self.go_on_adding();
        }
        if self.outbox.pop_into(out) {
            return true;
        }
        match self.work {
            Work::None | Work::Taking { .. } => return false,
            Work::Giving { left, search } => self.give(left, search, out),
            Work::Taken => {
                self.work = Work::None;
                UnballoonResponse.emit_into(self.next_id(), out);
            }
        }
        true
    }

    /// Checks that the host may make a request now.
    pub(super) fn begin(
        &self,
        message: MessageType,
        needs: Capabilities,
    ) -> Result<(), RuleBroken> {
        let (_, since) = self.running(message)?;
        let after = self.now.saturating_sub(since);
        let settle = self.personality.settle;
        if after < settle {
            return Err(RuleBroken::TooSoon { message, after, settle });
        }
        if self.work != Work::None || self.adding.iter().any(|adding| adding.is_awaited(self.now)) {
            return Err(RuleBroken::TwoTransactions { message });
        }
        if !self.personality.capabilities.contains(needs) {
            return Err(RuleBroken::NotCapable { message });
        }
        Ok(())
    }

    /// The driver answers nothing until it is loaded again.
    pub(super) fn go_deaf(&mut self) {
        self.hang_up();
        self.is_deaf = true;
    }

    pub(super) const fn next_id(&mut self) -> u32 {
        self.transaction_id = self.transaction_id.wrapping_add(1);
        self.transaction_id
    }

    fn hang_up(&mut self) {
        self.phase = Phase::Closed;
        self.work = Work::None;
        self.adding.clear();
        self.outbox.clear();
    }

    fn ask_version(&mut self, attempt: usize) {
        let Some(&version) = self.personality.versions.get(attempt) else {
            self.phase = Phase::Closed;
            return;
        };
        let is_last_attempt = attempt + 1 == self.personality.versions.len();
        let id = self.next_id();
        self.outbox.push(id, Message::Version(VersionRequest { version, is_last_attempt }));
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
        self.outbox.push(id, Message::Capabilities(report));
        self.phase = Phase::ToldCapabilities { version, id };
        Ok(())
    }

    fn on_capabilities(&mut self, got: u32, is_accepted: bool) -> Result<(), RuleBroken> {
        let Phase::ToldCapabilities { version, id } = self.phase else {
            return Err(RuleBroken::Unexpected { message: MessageType::CAPABILITIES_RESPONSE });
        };
        expect_echo(got, id)?;
        let since = self.now;
        self.phase = if is_accepted { Phase::Running { version, since } } else { Phase::Closed };
        Ok(())
    }

    fn on_info(&self) -> Result<(), RuleBroken> {
        let message = MessageType::INFO_MESSAGE;
        let (version, _) = self.running(message)?;
        if version == Version::V0_3 {
            return Err(RuleBroken::NotInVersion { message, version });
        }
        Ok(())
    }

    const fn running(&self, message: MessageType) -> Result<(Version, Duration), RuleBroken> {
        match self.phase {
            Phase::Running { version, since } => Ok((version, since)),
            _ => Err(RuleBroken::Unexpected { message }),
        }
    }
}

const fn expect_echo(got: u32, expected: u32) -> Result<(), RuleBroken> {
    if got == expected { Ok(()) } else { Err(RuleBroken::NotEchoed { got, expected }) }
}
