//! Server and client in one machine, with a device that the test drives.

use std::{collections::VecDeque, mem::take, sync::Arc};

use guest_model::vmbus::{Client, Event, GuestRings, Post, SharedMemory};
use page_range::Gpfn;
use vmbus::{
    Action, ChannelId, Offer, PostError, Server, ServerConfig,
    protocol::{
        ConnectionId, GpadlId, GuestMessage, Guid, HostMessage, Message, Relid, Version, VpIndex,
        wire,
    },
    ring::ChannelRings,
};

pub(crate) const OFFER: Offer =
    Offer { interface: Guid::from_digits(0xb0b), instance: Guid::from_digits(0x1) };
pub(crate) const MEMORY_PAGES: u64 = 1024;

pub(crate) struct Pair {
    pub(crate) mem: Arc<SharedMemory>,
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) channel: ChannelId,
    /// The device's rings while the channel is open.
    pub(crate) rings: Option<ChannelRings<Arc<SharedMemory>>>,
    /// The VP on which the device would signal the guest.
    pub(crate) target_vp: Option<VpIndex>,
    /// Whether the channel was opened again by the same kernel.
    pub(crate) is_reopened: bool,
    /// Whether the device is slow to close: closes wait for [`Pair::finish_closing`].
    pub(crate) slow_device: bool,
    pub(crate) closing: Vec<ChannelId>,
    /// Whether the host is saved and restored at every opportunity.
    pub(crate) saves: bool,
    /// Whether the guest takes its messages out of the slots.
    pub(crate) guest_reads: bool,
    pub(crate) slots: VecDeque<(VpIndex, Message)>,
    /// The VP that the last message went to.
    pub(crate) message_vp: Option<VpIndex>,
    events: Vec<Event>,
    config: ServerConfig,
}

impl Pair {
    /// A host with four VPs and one device that supports versions up to `host`, and a guest that
    /// supports versions up to `guest` and requests its messages on VP 3.
    pub(crate) fn new(host: Version, guest: Version) -> Self {
        let page_limit = Gpfn::new(MEMORY_PAGES).unwrap();
        let config = ServerConfig { vp_count: 4, page_limit, max_version: host };
        let mut server = Server::new(config);
        let channel = server.offer(OFFER).unwrap();
        Self {
            mem: Arc::new(SharedMemory::new(usize::try_from(MEMORY_PAGES).unwrap())),
            server,
            client: Client::new(guest, VpIndex::new(3)),
            channel,
            rings: None,
            target_vp: None,
            is_reopened: false,
            slow_device: false,
            closing: Vec::new(),
            saves: false,
            guest_reads: true,
            slots: VecDeque::new(),
            message_vp: None,
            events: Vec::new(),
            config,
        }
    }

    /// Saves the host and continues with a restored one. Unfinished actions are void.
    pub(crate) fn save_and_restore(&mut self) {
        self.server = Server::restore(self.config, &self.server.save()).unwrap();
        self.closing.clear();
        // `None` for a channel that is closing: the server asks its device to close again.
        let opened = self.server.opened(self.channel);
        self.rings = self.rings.take().zip(opened).map(|(rings, opened)| {
            self.target_vp = opened.target_vp;
            ChannelRings::restore(self.mem.clone(), &opened.rings, &rings.save()).unwrap()
        });
    }

    fn may_save(&mut self) {
        if self.saves {
            self.save_and_restore();
        }
    }

    /// A connection, with the device offered under the relid returned.
    pub(crate) fn connected(version: Version) -> (Self, Relid) {
        let mut pair = Self::new(Version::V5_3, version);
        let relid = pair.connect();
        (pair, relid)
    }

    /// Connects and requests the offers; returns the device's relid.
    pub(crate) fn connect(&mut self) -> Relid {
        self.client.connect();
        self.run();
        self.client.request_offers();
        let events = self.run();
        let [.., Event::Offered(offer), Event::OffersDelivered] = events[..] else {
            panic!("{events:?}")
        };
        Relid::new(offer.relid.get())
    }

    /// A connection with the channel open on pages 10 to 19.
    pub(crate) fn opened(
        version: Version,
    ) -> (Self, Relid, GpadlId, GuestRings<Arc<SharedMemory>>) {
        let (mut pair, relid) = Self::connected(version);
        let (gpadl, rings) = pair.open(relid);
        (pair, relid, gpadl, rings)
    }

    /// Opens the channel on pages 10 to 19.
    pub(crate) fn open(&mut self, relid: Relid) -> (GpadlId, GuestRings<Arc<SharedMemory>>) {
        let pages = pages(10, 10);
        let gpadl = self.client.create_gpadl(relid, &pages);
        assert_eq!(self.run(), [Event::GpadlCreated(gpadl, true)]);
        let rings = GuestRings::new(self.mem.clone(), &pages, 5);
        self.client.open(relid, gpadl, 5, VpIndex::new(1));
        assert_eq!(self.run(), [Event::Opened(relid, true)]);
        (gpadl, rings)
    }

    /// Lets both sides act until nothing is left to do; returns the events for the guest's drivers.
    pub(crate) fn run(&mut self) -> Vec<Event> {
        loop {
            self.may_save();
            let mut idle = true;
            while let Some(post) = self.client.poll_post() {
                idle = false;
                let status = self.post(post).map_or_else(|error| error.hypercall_status(), |()| 0);
                self.client.posted(post, status);
                self.may_save();
                self.act();
            }
            self.act();
            while self.guest_reads
                && let Some((vp, message)) = self.slots.pop_front()
            {
                idle = false;
                self.message_vp = Some(vp);
                self.client.receive(message.as_bytes());
            }
            while let Some(event) = self.client.poll_event() {
                self.events.push(event);
            }
            if idle {
                return take(&mut self.events);
            }
        }
    }

    /// Posts one message; the actions stay with the server.
    pub(crate) fn post(&mut self, post: Post) -> Result<(), PostError> {
        self.server.handle_message(post.connection_id, post.message.as_bytes())
    }

    /// Posts a message, bypassing the client, and returns the host's answers.
    pub(crate) fn raw(&mut self, message: Message) -> Vec<HostMessage> {
        self.post(Post { connection_id: ConnectionId::MESSAGE, message }).unwrap();
        self.answers()
    }

    /// Takes the host's messages out of the slots, bypassing the client.
    pub(crate) fn answers(&mut self) -> Vec<HostMessage> {
        self.act();
        let slots = take(&mut self.slots);
        slots
            .into_iter()
            .map(|(vp, message)| {
                self.message_vp = Some(vp);
                HostMessage::parse(message.as_bytes(), Version::V5_3).unwrap().0
            })
            .collect()
    }

    /// Carries out all the server's actions.
    pub(crate) fn act(&mut self) {
        while let Some(action) = self.server.poll_action() {
            // A polled message belongs to the driver, but a restored server repeats channel
            // actions.
            let is_message = matches!(action, Action::Send { .. } | Action::DropQueuedMessages);
            if !is_message && std::mem::take(&mut self.saves) {
                self.save_and_restore();
                self.act();
                self.saves = true;
                continue;
            }
            match action {
                Action::Send { vp, message } => self.slots.push_back((vp, message)),
                Action::DropQueuedMessages => self.slots.clear(),
                Action::Open { channel, rings, target_vp, is_reopened, .. } => {
                    self.is_reopened = is_reopened;
                    self.rings = ChannelRings::open(self.mem.clone(), &rings).ok();
                    self.target_vp = target_vp;
                    self.server.open_finished(channel, self.rings.is_some());
                }
                Action::Close { channel } => {
                    self.rings = None;
                    self.closing.push(channel);
                    if !self.slow_device {
                        self.finish_closing();
                    }
                }
                Action::SetTargetVp { target_vp, .. } => self.target_vp = Some(target_vp),
            }
        }
    }

    /// The device finishes all pending closes.
    pub(crate) fn finish_closing(&mut self) {
        for channel in take(&mut self.closing) {
            self.server.close_finished(channel);
        }
    }

    /// Sends one packet in each direction.
    pub(crate) fn exchange(&mut self, guest: &mut GuestRings<Arc<SharedMemory>>) {
        assert_eq!(guest.send(b"guest to host 16", 1), Ok(true));
        self.may_save();
        let host = self.rings.as_mut().expect("the channel is open");
        let packet = host.receive().unwrap().unwrap();
        assert_eq!((packet.payload, packet.transaction_id), (&b"guest to host 16"[..], 1));
        assert_eq!(host.receive(), Ok(None));
        assert!(!host.end_receive());
        self.may_save();
        let host = self.rings.as_mut().expect("the channel is open");
        let sent = host.send(b"host to guest 16", 2).unwrap();
        assert_eq!(sent, vmbus::ring::Sent::Written { signal: true });
        let packet = guest.receive().unwrap();
        assert_eq!((&packet.payload[..], packet.transaction_id), (&b"host to guest 16"[..], 2));
    }
}

pub(crate) fn pages(first: u64, count: u64) -> Vec<Gpfn> {
    (first..first + count).map(|number| Gpfn::new(number).unwrap()).collect()
}

/// INITIATE_CONTACT of a guest that has monitor pages.
pub(crate) fn contact(version: u32, vp: u32, sint: u8, vtl: u8) -> Message {
    contact_with_monitors(version, vp, sint, vtl, [0x1000, 0x2000])
}

pub(crate) fn contact_with_monitors(
    version: u32,
    vp: u32,
    sint: u8,
    vtl: u8,
    [there, back]: [u64; 2],
) -> Message {
    GuestMessage::InitiateContact(wire::InitiateContact {
        version: version.into(),
        target_vp: vp.into(),
        target_sint: sint,
        target_vtl: vtl,
        reserved: 0.into(),
        feature_flags: 0.into(),
        parent_to_child_monitor: there.into(),
        child_to_parent_monitor: back.into(),
    })
    .emit()
}
