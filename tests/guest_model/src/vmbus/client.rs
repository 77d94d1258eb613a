//! The guest's bus driver (Linux `drivers/hv/connection.c`, `channel.c`, `channel_mgmt.c`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use page_range::{Gpfn, PageCount};
use vmbus::protocol::{
    ConnectionId, GpadlId, GuestMessage, HostMessage, MAX_MESSAGE_LEN, Message, OpenId, Relid,
    Version, VpIndex, wire,
};
use zerocopy::little_endian::U32;

/// Hypercall statuses that the client knows (TLFS appendix B).
const SUCCESS: u16 = 0;
const INSUFFICIENT_MEMORY: u16 = 11;
const INVALID_CONNECTION_ID: u16 = 18;
const INSUFFICIENT_BUFFERS: u16 = 19;

/// The first GPADL ID that Linux assigns.
const FIRST_GPADL: u32 = 0xe1e10;

/// A message to post with HvPostMessage, with message type 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post {
    /// The connection to post to.
    pub connection_id: ConnectionId,
    /// The message.
    pub message: Message,
}

/// An event for the drivers above the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The host accepted a version.
    Connected(Version),
    /// The host accepted none.
    NotConnected,
    /// The host offers a device.
    Offered(wire::Offer),
    /// The host has offered all devices.
    OffersDelivered,
    /// A GPADL was created, or refused.
    GpadlCreated(GpadlId, bool),
    /// The pages of a GPADL are the guest's again.
    GpadlTorndown(GpadlId),
    /// A channel was opened, or refused.
    Opened(Relid, bool),
    /// A device goes away.
    Rescinded(Relid),
    /// A channel's target VP was changed, or the change was refused.
    Modified(Relid, bool),
    /// The host has forgotten the guest.
    Unloaded,
    /// A socket was refused.
    SocketRefused,
    /// A post failed permanently, with this hypercall status.
    PostFailed(u16),
    /// A message that Linux drops with a warning: unknown, too short, or out of place.
    Unexpected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Disconnected,
    /// Tries the version at this index of the list.
    Contacting(usize, Version),
    Connected(Version),
    Unloading,
}

/// A VMBus client without I/O.
#[derive(Debug)]
pub struct Client {
    /// The versions to try, in this order.
    versions: Vec<Version>,
    target_vp: VpIndex,
    state: State,
    /// The connection for all messages except the contact.
    message_port: ConnectionId,
    next_gpadl: u32,
    posts: VecDeque<Post>,
    events: VecDeque<Event>,
}

impl Client {
    /// A client that tries Linux's versions from `newest` down, and requests its messages on
    /// `target_vp`.
    #[must_use]
    pub fn new(newest: Version, target_vp: VpIndex) -> Self {
        let versions = Version::KNOWN.into_iter().rev().filter(|version| *version <= newest);
        Self::with_versions(versions.collect(), target_vp)
    }

    /// A client that tries these versions in this order, and requests its messages on `target_vp`.
    #[must_use]
    pub fn with_versions(versions: Vec<Version>, target_vp: VpIndex) -> Self {
        Self {
            versions,
            target_vp,
            state: State::Disconnected,
            message_port: ConnectionId::MESSAGE,
            next_gpadl: FIRST_GPADL,
            posts: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Tries the first version, and then the next ones until the host accepts one.
    pub fn connect(&mut self) {
        self.contact(0);
    }

    /// The agreed version.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        if let State::Connected(version) = self.state { Some(version) } else { None }
    }

    /// The next message to post; pass the result to [`posted`](Self::posted).
    pub fn poll_post(&mut self) -> Option<Post> {
        self.posts.pop_front()
    }

    /// Handles the hypercall status of a post.
    pub fn posted(&mut self, post: Post, status: u16) {
        let contacting = match self.state {
            State::Contacting(attempt, _) => Some(attempt),
            State::Disconnected | State::Connected(_) | State::Unloading => None,
        };
        match (status, contacting) {
            (SUCCESS, _) => {}
            (INVALID_CONNECTION_ID, Some(attempt)) => self.contact(attempt + 1),
            (INSUFFICIENT_MEMORY | INSUFFICIENT_BUFFERS, _) => self.posts.push_front(post),
            (other, _) => self.events.push_back(Event::PostFailed(other)),
        }
    }

    /// Handles a message from the host.
    pub fn receive(&mut self, bytes: &[u8]) {
        let version = match self.state {
            State::Connected(version) | State::Contacting(_, version) => version,
            State::Disconnected | State::Unloading => Version::V5_3,
        };
        let event = match HostMessage::parse(bytes, version) {
            Ok((HostMessage::VersionResponse(response), _)) => self.on_version_response(&response),
            Ok((message, _)) => Some(self.event(&message)),
            Err(_) => Some(Event::Unexpected),
        };
        self.events.extend(event);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Requests the offers.
    pub fn request_offers(&mut self) {
        self.post(GuestMessage::RequestOffers.emit());
    }

    /// Creates a GPADL of whole pages, in as many messages as needed.
    ///
    /// # Panics
    /// If there are more than the 8190 pages that a GPADL can list.
    pub fn create_gpadl(&mut self, relid: Relid, pages: &[Gpfn]) -> GpadlId {
        let gpadl = GpadlId::new(self.next_gpadl);
        self.next_gpadl += 1;
        let bytes = PageCount::new(pages.len() as u64).bytes();
        let list_len = u16::try_from(8 + 8 * pages.len()).expect("a GPADL lists 8190 pages");
        let header = GuestMessage::GpadlHeader(wire::GpadlHeader {
            relid: relid.get().into(),
            gpadl: gpadl.get().into(),
            range_buflen: list_len.into(),
            range_count: 1.into(),
        });
        let mut pages = pages.iter().map(|page| page.get());
        let mut message = header.emit();
        fill(&mut message, &mut core::iter::once(bytes).chain(&mut pages));
        self.post(message);
        let body = GuestMessage::GpadlBody(wire::GpadlBody {
            message_number: U32::ZERO,
            gpadl: gpadl.get().into(),
        });
        while pages.len() > 0 {
            let mut message = body.emit();
            fill(&mut message, &mut pages);
            self.post(message);
        }
        gpadl
    }

    /// Tears down a GPADL, whose pages are the guest's again once its channel is closed.
    pub fn teardown_gpadl(&mut self, relid: Relid, gpadl: GpadlId) {
        let (relid, gpadl) = (relid.get().into(), gpadl.get().into());
        self.post(GuestMessage::GpadlTeardown(wire::GpadlTeardown { relid, gpadl }).emit());
    }

    /// Opens a channel; as in Linux, the open ID is the relid.
    pub fn open(&mut self, relid: Relid, gpadl: GpadlId, downstream_offset: u32, vp: VpIndex) {
        let open_id = OpenId::new(relid.get());
        let open = wire::Open {
            relid: relid.get().into(),
            open_id: open_id.get().into(),
            ring_gpadl: gpadl.get().into(),
            target_vp: vp.get().into(),
            downstream_offset: downstream_offset.into(),
            user_data: [0; 120],
        };
        self.post(GuestMessage::Open(open).emit());
    }

    /// Closes a channel.
    pub fn close(&mut self, relid: Relid) {
        let relid = relid.get().into();
        self.post(GuestMessage::Close(wire::Channel { relid }).emit());
    }

    /// Releases the relid of a rescinded channel.
    pub fn release(&mut self, relid: Relid) {
        let relid = relid.get().into();
        self.post(GuestMessage::RelidReleased(wire::Channel { relid }).emit());
    }

    /// Requests that a channel's signals go to another VP.
    pub fn modify(&mut self, relid: Relid, vp: VpIndex) {
        let (relid, target_vp) = (relid.get().into(), vp.get().into());
        self.post(GuestMessage::ModifyChannel(wire::ModifyChannel { relid, target_vp }).emit());
    }

    /// Leaves the bus.
    pub fn unload(&mut self) {
        self.post(GuestMessage::Unload.emit());
        self.state = State::Unloading;
    }

    /// Posts any message, even one that no guest should send.
    pub fn post(&mut self, message: Message) {
        self.posts.push_back(Post { connection_id: self.message_port, message });
    }

    fn contact(&mut self, attempt: usize) {
        let Some(&version) = self.versions.get(attempt) else {
            self.state = State::Disconnected;
            return self.events.push_back(Event::NotConnected);
        };
        let newer = version >= Version::V5_0;
        let connection_id = if newer { ConnectionId::CONTACT_V5 } else { ConnectionId::MESSAGE };
        let contact = wire::InitiateContact {
            version: version.to_wire().into(),
            target_vp: self.target_vp.get().into(),
            // Below 5.0 this is the address of the interrupt page, which Linux still fills in.
            target_sint: if newer { 2 } else { 0 },
            target_vtl: 0,
            reserved: 0.into(),
            feature_flags: 0.into(),
            parent_to_child_monitor: 0.into(),
            child_to_parent_monitor: 0.into(),
        };
        let message = GuestMessage::InitiateContact(contact).emit();
        self.posts.push_back(Post { connection_id, message });
        self.state = State::Contacting(attempt, version);
    }

    fn on_version_response(&mut self, response: &wire::VersionResponse) -> Option<Event> {
        let State::Contacting(attempt, version) = self.state else {
            return Some(Event::Unexpected);
        };
        if response.supported == 0 {
            self.contact(attempt + 1);
            return None;
        }
        let newer = version >= Version::V5_0;
        let named = ConnectionId::new(response.connection_id.get());
        self.message_port = if newer { named } else { ConnectionId::MESSAGE };
        self.state = State::Connected(version);
        Some(Event::Connected(version))
    }

    fn event(&mut self, message: &HostMessage) -> Event {
        let unloading = self.state == State::Unloading;
        match message {
            HostMessage::UnloadResponse if unloading => {
                self.state = State::Disconnected;
                Event::Unloaded
            }
            _ if self.version().is_none() => Event::Unexpected,
            HostMessage::Offer(offer) => Event::Offered(*offer),
            HostMessage::AllOffersDelivered => Event::OffersDelivered,
            HostMessage::GpadlCreated(created) => {
                Event::GpadlCreated(GpadlId::new(created.gpadl.get()), created.status == U32::ZERO)
            }
            HostMessage::GpadlTorndown(torndown) => {
                Event::GpadlTorndown(GpadlId::new(torndown.gpadl.get()))
            }
            // Linux looks up the pending OPEN by both IDs.
            HostMessage::OpenResult(result) if result.open_id == result.relid => {
                Event::Opened(Relid::new(result.relid.get()), result.status == U32::ZERO)
            }
            HostMessage::Rescind(rescind) => Event::Rescinded(Relid::new(rescind.relid.get())),
            HostMessage::ModifyChannelResponse(response) => {
                Event::Modified(Relid::new(response.relid.get()), response.status == U32::ZERO)
            }
            HostMessage::TlConnectResult(_) => Event::SocketRefused,
            HostMessage::OpenResult(_)
            | HostMessage::VersionResponse(_)
            | HostMessage::UnloadResponse
            | HostMessage::CloseReservedResponse(_) => Event::Unexpected,
        }
    }
}

/// Appends words to the message until it is full or none is left.
fn fill(message: &mut Message, words: &mut dyn Iterator<Item = u64>) {
    while message.as_bytes().len() + 8 <= MAX_MESSAGE_LEN
        && let Some(word) = words.next()
    {
        let added = message.append(&word.to_le_bytes());
        debug_assert!(added.is_ok());
    }
}
