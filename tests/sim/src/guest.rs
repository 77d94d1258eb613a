//! A guest: its bus driver, its balloon driver, its rings, and the kernel that loads and unloads
//! them.

use std::collections::VecDeque;
use std::time::Duration;

use guest_model::dynmem::{Client, Memory, MemoryMap, Personality, RuleBroken};
use guest_model::vmbus::{Client as Bus, Event as BusEvent, GuestRings, Post};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::MAX_COMPLETIONS;
use vmbus::protocol::ring::PacketKind;
use vmbus::protocol::{GpadlId, Relid, VpIndex};

use crate::host::Host;
use crate::memory::Ram;

/// The memory maps that a kernel started by kexec may have.
pub(crate) const MAPS: [MemoryMap; 2] = [MemoryMap::Machine, MemoryMap::Boot];

/// How far the kernel has got with the bus and its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The bus driver is not loaded.
    Down,
    /// Host and guest have no version in common.
    OffBus,
    /// The bus driver has requested a version.
    Contacting,
    /// The bus driver has requested the offers.
    AwaitOffers,
    /// The balloon driver is not loaded.
    Unloaded,
    /// The balloon driver waits for the GPADL of its rings.
    AwaitGpadl,
    /// The balloon driver waits for the result of its OPEN.
    AwaitOpen,
    /// The balloon driver runs.
    Running,
    /// The channel is closed; the guest waits for the pages of the rings.
    AwaitTorndown,
    /// The bus driver is unloading; the next kernel follows.
    AwaitUnload,
}

/// A guest and its kernel.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) driver: Client,
    pub(crate) bus: Bus,
    ram: Ram,
    pub(crate) rings: Option<GuestRings<Ram>>,
    pub(crate) stage: Stage,
    pub(crate) relid: Option<Relid>,
    pub(crate) gpadl: Option<GpadlId>,
    /// The pages of the rings: two sets, since a crash kernel leaves the old rings alone.
    places: [Vec<Gpfn>; 2],
    /// The number of pages in the guest-to-host ring.
    pub(crate) downstream_offset: usize,
    place: usize,
    /// A post that the host had no room for.
    refused: Option<Post>,
    /// A packet that the ring had no room for.
    pub(crate) unsent: Option<Vec<u8>>,
    /// The transaction ID of its last packet.
    packets: u64,
    /// The transaction IDs of the completions that it has requested but not received.
    pub(crate) awaited: VecDeque<u64>,
    /// It was signalled and keeps reading until the ring is empty.
    reading: bool,
    /// Pages given by drivers that are gone; no kernel has used them since.
    leaked: PageRangeSet,
    /// The memory map of the kernel that starts after the unload.
    next_map: MemoryMap,
    /// It keeps all rules, and so must its host.
    pub(crate) is_honest: bool,
    /// It has lost track of its transactions because the host gave up on it.
    pub(crate) is_confused: bool,
    /// Whether it masks signals while it is awake.
    masks: bool,
    /// Whether it asks the host to signal when there is room for its packet.
    pub(crate) waits_for_room: bool,
    /// It requests a completion of every packet, whether or not it reads them.
    pub(crate) asks_for_all: bool,
    /// How long it must be left alone after its handshake.
    settle: Duration,
}

impl Guest {
    pub(crate) fn new(
        mut personality: Personality,
        memory: Memory,
        ram: Ram,
        places: [Vec<Gpfn>; 2],
        downstream_offset: usize,
    ) -> Self {
        let bus = Bus::with_versions(personality.vmbus_versions.clone(), VpIndex::new(0));
        let masks = downstream_offset.is_multiple_of(2);
        // The host counts from when it hears of the end of the handshake, so the watch checks this
        // and not the driver.
        let settle = std::mem::take(&mut personality.settle);
        Self {
            driver: Client::new(personality, memory),
            bus,
            ram,
            rings: None,
            stage: Stage::Down,
            relid: None,
            gpadl: None,
            places,
            downstream_offset,
            place: 0,
            refused: None,
            unsent: None,
            packets: 0,
            awaited: VecDeque::new(),
            reading: false,
            leaked: PageRangeSet::new(),
            next_map: MemoryMap::Machine,
            is_honest: true,
            is_confused: false,
            masks,
            waits_for_room: !masks,
            asks_for_all: false,
            settle,
        }
    }

    /// Its personality, to make the same guest again after a reset.
    pub(crate) fn personality(&self) -> Personality {
        Personality { settle: self.settle, ..self.driver.personality().clone() }
    }

    /// The pages that the rings are in.
    pub(crate) fn ring_pages(&self) -> &[Gpfn] {
        &self.places[self.place]
    }

    pub(crate) const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Loads the bus driver, in this kernel or the next.
    pub(crate) fn boot(&mut self, host: &mut Host) {
        let personality = self.driver.personality();
        host.guest_os_id = personality.guest_os_id;
        host.watch.settle = self.settle;
        self.bus = Bus::with_versions(personality.vmbus_versions.clone(), VpIndex::new(0));
        self.forget_channel(host);
        self.refused = None;
        host.synic.enable();
        self.bus.connect();
        self.stage = Stage::Contacting;
    }

    /// Loads the balloon driver.
    pub(crate) fn load(&mut self) {
        if self.stage == Stage::Unloaded
            && let Some(relid) = self.relid
        {
            self.place = 1 - self.place;
            self.gpadl = Some(self.bus.create_gpadl(relid, &self.places[self.place]));
            self.stage = Stage::AwaitGpadl;
        }
    }

    /// Unloads the balloon driver.
    pub(crate) fn unload(&mut self, host: &mut Host) {
        if let (Stage::Running, Some(relid), Some(gpadl)) = (self.stage, self.relid, self.gpadl) {
            self.leaked.insert_set(self.driver.memory().ballooned());
            self.driver.close();
            self.forget_channel(host);
            self.bus.close(relid);
            self.bus.teardown_gpadl(relid, gpadl);
            self.stage = Stage::AwaitTorndown;
        }
    }

    /// Leaves the bus for the next kernel, which starts when the host has answered the unload.
    pub(crate) fn kexec(&mut self, host: &mut Host, map: MemoryMap) {
        if !matches!(
            self.stage,
            Stage::Down | Stage::OffBus | Stage::Contacting | Stage::AwaitUnload
        ) {
            self.bus.unload();
            self.forget_channel(host);
            self.next_map = map;
            self.stage = Stage::AwaitUnload;
        }
    }

    /// A crash kernel takes over at once, in memory of its own.
    pub(crate) fn crash(&mut self, host: &mut Host) {
        let reserved: PageRangeSet = self
            .places
            .iter()
            .flatten()
            .filter_map(|page| PageRange::new(*page, PageCount::new(1)).ok())
            .collect();
        self.leaked.insert_set(self.driver.memory().ballooned());
        self.driver.crash(&reserved);
        self.boot(host);
    }

    pub(crate) fn forget_channel(&mut self, host: &mut Host) {
        self.rings = None;
        self.unsent = None;
        self.awaited.clear();
        self.reading = false;
        host.expected = None;
        host.sent = None;
    }

    pub(crate) fn can_post(&mut self) -> bool {
        if self.refused.is_none() {
            self.refused = self.bus.poll_post();
        }
        self.refused.is_some()
    }

    /// Posts one bus message.
    pub(crate) fn post(&mut self, host: &mut Host) {
        let Some(post) = self.refused.take() else { return };
        let status = host.post(post.connection_id, post.message.as_bytes());
        host.watch.note(host.now, || {
            format!("guest posts {}: {status}", crate::watch::bus_message(post.message.as_bytes()))
        });
        self.bus.posted(post, status);
        self.bus_events(host);
    }

    /// Takes a bus message.
    pub(crate) fn take_message(&mut self, host: &mut Host) {
        let Some(message) = host.synic.take() else { return };
        host.watch.note(host.now, || {
            format!("guest takes {:02x?}", &message.as_bytes()[..12.min(message.as_bytes().len())])
        });
        self.bus.receive(message.as_bytes());
        self.bus_events(host);
    }

    fn bus_events(&mut self, host: &mut Host) {
        while let Some(event) = self.bus.poll_event() {
            host.watch.note(host.now, || format!("guest sees {event:?}"));
            self.bus_event(event, host);
        }
    }

    fn bus_event(&mut self, event: BusEvent, host: &mut Host) {
        match (self.stage, event) {
            (Stage::Contacting, BusEvent::Connected(_)) => {
                // From here on the kernel uses all its memory.
                self.check_lent(host);
                self.bus.request_offers();
                self.stage = Stage::AwaitOffers;
            }
            (Stage::Contacting, BusEvent::NotConnected) => {
                let versions = &self.driver.personality().vmbus_versions;
                let has_any = versions.iter().any(|version| version.is_known());
                assert!(!has_any || !self.is_honest, "the host refuses all versions");
                self.stage = Stage::OffBus;
            }
            (_, BusEvent::Offered(offer)) => self.relid = Some(Relid::new(offer.relid.get())),
            (Stage::AwaitOffers, BusEvent::OffersDelivered) => {
                self.stage = Stage::Unloaded;
                self.load();
            }
            (Stage::AwaitGpadl, BusEvent::GpadlCreated(gpadl, true))
                if Some(gpadl) == self.gpadl =>
            {
                self.open_channel(gpadl, host);
            }
            (Stage::AwaitOpen, BusEvent::Opened(_, true)) => {
                self.stage = Stage::Running;
                self.driver.advance(host.now);
                self.driver.open();
            }
            (Stage::AwaitTorndown, BusEvent::GpadlTorndown(_)) => self.stage = Stage::Unloaded,
            (Stage::AwaitUnload, BusEvent::Unloaded) => {
                self.driver.kexec(self.next_map);
                self.leaked.clear();
                self.check_lent(host);
                self.boot(host);
            }
            (_, other) => {
                // These may have been on their way when the guest moved on.
                let may_be = matches!(
                    other,
                    BusEvent::GpadlCreated(_, true)
                        | BusEvent::Opened(_, true)
                        | BusEvent::GpadlTorndown(_)
                        | BusEvent::OffersDelivered
                        | BusEvent::Modified(_, _)
                        | BusEvent::Unexpected
                );
                assert!(may_be || !self.is_honest, "{other:?} in {:?}", self.stage);
            }
        }
    }

    /// Puts the next rings into other pages.
    pub(crate) fn use_place(&mut self, pages: Vec<Gpfn>, downstream_offset: usize) {
        self.places[1 - self.place] = pages;
        self.downstream_offset = downstream_offset;
    }

    /// Whether the pages form two rings that a driver can use.
    fn has_usable_pages(&self) -> bool {
        let pages = self.ring_pages();
        let rest = pages.len().saturating_sub(self.downstream_offset);
        let mut sorted = pages.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let is_there = pages.iter().all(|page| self.ram.has(*page));
        self.downstream_offset >= 2 && rest >= 2 && sorted.len() == pages.len() && is_there
    }

    fn open_channel(&mut self, gpadl: GpadlId, host: &mut Host) {
        let Some(relid) = self.relid else { return };
        self.ram.take_tampered();
        self.rings = self.has_usable_pages().then(|| {
            let pages = &self.places[self.place];
            GuestRings::new(self.ram.clone(), pages, self.downstream_offset)
        });
        host.watch.lost_ring = false;
        // A hostile guest may do this while the host still has its old rings.
        host.expected = (!host.uses_rings()).then(VecDeque::new);
        host.sent = (!host.uses_rings()).then(VecDeque::new);
        let offset = u32::try_from(self.downstream_offset).unwrap_or(0);
        self.bus.open(relid, gpadl, offset, VpIndex::new(0));
        self.stage = Stage::AwaitOpen;
    }

    /// Whether the content of the rings can still be read as packets.
    pub(crate) fn has_sound_rings(&self, host: &mut Host) -> bool {
        if self.ram.take_tampered() {
            host.watch.lost_ring = true;
        }
        if host.watch.lost_ring {
            host.expected = None;
            host.sent = None;
        }
        self.rings.is_some() && !host.watch.lost_ring
    }

    pub(crate) const fn wants_to_read(&self, host: &Host) -> bool {
        self.rings.is_some() && (self.reading || host.event_flag)
    }

    /// Reads one packet, or finds that there is none and sleeps.
    pub(crate) fn read_packet(&mut self, host: &mut Host) {
        if !self.has_sound_rings(host) {
            self.reading = false;
            host.event_flag = false;
            return;
        }
        let Some(rings) = &mut self.rings else { return };
        if std::mem::take(&mut host.event_flag) {
            self.reading = true;
            if self.masks {
                rings.mask(true);
            }
        }
        let Some(packet) = rings.receive() else {
            // Check the ring once more after unmasking signals.
            rings.mask(false);
            self.reading = !rings.is_empty();
            return;
        };
        host.has_new_room = true;
        if packet.signal {
            host.signalled = true;
        }
        if packet.kind == PacketKind::COMPLETION {
            return self.completed(packet.transaction_id);
        }
        if let Some(sent) = &mut host.sent {
            let sent = sent.pop_front().expect("a message that the device did not send");
            assert_eq!(packet.payload, sent, "not the message that was sent");
        }
        self.driver.advance(host.now);
        let result = self.driver.receive(&packet.payload);
        host.watch.note(host.now, || format!("guest reads a packet: {result:?}"));
        self.judge(result, host);
        self.check_lent(host);
    }

    /// Checks that completions come in the order in which they were requested, each once.
    fn completed(&mut self, id: u64) {
        let awaited = self.awaited.pop_front();
        assert!(awaited == Some(id) || !self.is_honest, "completion {id}, not {awaited:?}");
    }

    /// Whether the guest has read all that the host has put into the ring, and has all completions.
    pub(crate) fn has_heard_all(&self, host: &Host) -> bool {
        let is_lost = host.sent.as_ref().is_some_and(|sent| !sent.is_empty());
        !is_lost && self.awaited.is_empty()
    }

    fn judge(&mut self, result: Result<(), RuleBroken>, host: &Host) {
        let Err(broken) = result else { return };
        let given_up = matches!(
            broken,
            RuleBroken::TwoTransactions { .. }
                | RuleBroken::IdChanged { .. }
                | RuleBroken::Unexpected { .. }
        );
        if given_up && host.watch.timed_out {
            self.is_confused = true;
        }
        assert!(self.is_confused || !self.is_honest, "the host broke a rule: {broken}");
    }

    /// Checks that no page that the guest uses is being discarded.
    pub(crate) fn check_lent(&self, host: &Host) {
        if !self.is_honest || self.is_confused {
            return;
        }
        let ballooned = self.driver.memory().ballooned();
        for range in host.watch.oracle.flights.iter().flat_map(|flight| flight.pages.iter()) {
            let is_lent = ballooned.contains_range(range) || self.leaked.contains_range(range);
            assert!(is_lent, "{range} is being discarded while the guest uses it");
        }
    }

    /// Whether the driver has something to send. It is asked for a packet only once its last one is
    /// in the ring.
    pub(crate) fn wants_to_send(&mut self, now: Duration) -> bool {
        if self.rings.is_none() || self.stage != Stage::Running {
            return false;
        }
        if self.unsent.is_none() {
            self.driver.advance(now);
            self.unsent = self.driver.poll_send();
        }
        self.unsent.is_some()
    }

    /// Writes the driver's packet to the ring; returns false if there is no room.
    pub(crate) fn send_packet(&mut self, host: &mut Host) -> bool {
        let Some(packet) = self.unsent.take() else { return false };
        let sent = self.send(&packet, host);
        if !sent {
            self.unsent = Some(packet);
        }
        sent
    }

    /// Writes a packet of a kind that no balloon driver sends; the host drops and completes it.
    fn send_other_kind(&mut self, host: &mut Host) {
        let Some(rings) = &mut self.rings else { return };
        let id = u64::MAX - self.packets;
        if let Ok(signal) = rings.send_of_kind(PacketKind::DATA_GPA_DIRECT, &[0xff; 32], id) {
            self.awaited.push_back(id);
            host.signalled |= signal;
            host.watch.note(host.now, || format!("guest sends another kind, signal {signal}"));
        }
    }

    /// Writes any packet to the ring; returns false if there is no room.
    pub(crate) fn send(&mut self, packet: &[u8], host: &mut Host) -> bool {
        if !self.has_sound_rings(host) {
            return false;
        }
        self.packets += 1;
        let id = self.packets;
        // Drivers other than Linux's request completions, but no more than the host keeps for a
        // guest that does not read.
        let asks = id.is_multiple_of(3) && self.awaited.len() + 1 < MAX_COMPLETIONS;
        let asks = asks && !self.waits_for_room || self.asks_for_all;
        if asks && self.is_honest && id.is_multiple_of(2) {
            self.send_other_kind(host);
        }
        let Some(rings) = &mut self.rings else { return false };
        let sent = match (asks, self.waits_for_room) {
            (true, _) => rings.send_for_completion(packet, id),
            (false, true) => rings.send_or_wait(packet, id),
            (false, false) => rings.send(packet, id),
        };
        let Ok(signal) = sent else {
            host.hears_of_room = false;
            return false;
        };
        if asks {
            self.awaited.push_back(id);
        }
        if let Some(expected) = &mut host.expected {
            let mut padded = packet.to_vec();
            padded.resize(packet.len().next_multiple_of(8), 0);
            expected.push_back(padded);
        }
        host.signalled |= signal;
        host.watch
            .note(host.now, || format!("guest sends {} bytes, signal {signal}", packet.len()));
        true
    }
}
