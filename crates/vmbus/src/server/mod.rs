//! The server: the state machines of the connection and of each channel.
//!
//! ```text
//!                INITIATE_CONTACT             channels closed
//! Disconnected ───────────────────► Draining ─────────────────► Connected
//!      ▲                            │      ▲                        │
//!      └────────────────────────────┘      └────────────────────────┘
//!       channels closed after UNLOAD,      INITIATE_CONTACT, UNLOAD, reset
//!       reset or a refused contact
//!
//!          OPEN             open_finished(true)
//! Closed ─────────► Opening ───────────────────► Open
//!  ▲ ▲                │ │                          │
//!  │ └────────────────┘ │ CLOSE, GPADL_TEARDOWN,   │
//!  │  open_finished     │ rescind, end of the      │
//!  │  (false)           ▼ connection               │
//!  └───────────────── Closing ◄────────────────────┘
//!     close_finished
//! ```
//!
//! A kernel started by kexec reuses all memory as soon as it is connected, and any kernel reuses
//! its ring pages once it has them back. GPADL_TORNDOWN, UNLOAD_RESPONSE and the VERSION_RESPONSE
//! of the next connection therefore wait until the devices report that they are quiet.

mod action;
mod channels;
mod connection;
mod fault;
mod gpadl;
mod gpadl_table;
mod opening;
mod outbox;
mod saved;

use page_range::Gpfn;

pub use action::{Action, ChannelId, PostError};
pub use channels::MAX_CHANNELS;
pub use fault::Faults;
pub use gpadl_table::{MAX_GPADL_PAGES, MAX_GPADLS};
pub use opening::OpenChannel;
pub use outbox::MAX_QUEUED_MESSAGES;
pub use saved::SavedServer;

use self::{
    channels::{Channel, Channels, Presence},
    connection::Connection,
    fault::count,
    gpadl_table::{GpadlTable, Progress},
    outbox::Outbox,
};
use crate::protocol::{
    ConnectionId, GpadlId, GuestMessage, Guid, HostMessage, MAX_MESSAGE_LEN, ParseError, Relid,
    Version, wire,
};

/// Configuration of a [`Server`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Number of virtual processors; their indices are below it.
    pub vp_count: u32,
    /// Guest pages lent to the host must be below this page. If a page below it is not memory,
    /// opening the rings fails.
    pub page_limit: Gpfn,
    /// The newest version to accept.
    pub max_version: Version,
}

impl Default for ServerConfig {
    /// One VP, any page, the newest version.
    fn default() -> Self {
        Self { vp_count: 1, page_limit: Gpfn::MAX, max_version: Version::V5_3 }
    }
}

/// A device on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The device class, by which the guest finds a driver.
    pub interface: Guid,
    /// The device within its class. It must not change while the virtual machine exists, because
    /// Linux looks for it after hibernation.
    pub instance: Guid,
}

/// Error when offering a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// A channel with the same interface and instance is offered already.
    #[error("device {instance} of class {interface} is offered already; choose another instance")]
    Duplicate {
        /// The device's class.
        interface: Guid,
        /// The device.
        instance: Guid,
    },
    /// All [`MAX_CHANNELS`] channels are in use.
    #[error("{MAX_CHANNELS} channels are the most there can be")]
    TooMany,
}

/// The host side of the bus. Pass it the guest's messages and the driver's results; after each call
/// carry out the actions from [`poll_action`](Self::poll_action) until it returns `None`.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    connection: Connection,
    channels: Channels,
    gpadls: GpadlTable,
    outbox: Outbox,
    faults: Faults,
}

impl Server {
    /// A server without channels, to which no guest is connected.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        Self {
            config,
            connection: Connection::Disconnected,
            channels: Channels::default(),
            gpadls: GpadlTable::default(),
            outbox: Outbox::default(),
            faults: Faults::default(),
        }
    }

    /// Offers a device to the current guest, if it has requested offers, and to all later guests.
    ///
    /// # Errors
    /// [`OfferError`] if the device is offered already, or there are too many.
    pub fn offer(&mut self, offer: Offer) -> Result<ChannelId, OfferError> {
        if self.channels.has_live(&offer) {
            let Offer { interface, instance } = offer;
            return Err(OfferError::Duplicate { interface, instance });
        }
        let id = self.channels.add(offer).ok_or(OfferError::TooMany)?;
        self.announce();
        Ok(id)
    }

    /// The channel of a device that is offered and not withdrawn.
    #[must_use]
    pub fn channel_of(&self, offer: &Offer) -> Option<ChannelId> {
        let mut channels = self.channels.channels.iter();
        channels.find_map(|(id, channel)| channel.is_live(offer).then_some(*id))
    }

    /// Withdraws a device. An [`Action::Close`] follows if its channel is open.
    pub fn rescind(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(id) else { return };
        match channel.presence {
            Presence::Unannounced | Presence::Released => {
                channel.presence = Presence::Gone;
                self.remove_if_gone(id);
            }
            Presence::Offered => {
                channel.presence = Presence::Rescinded;
                let relid = channel.relid.get().into();
                self.send(HostMessage::Rescind(wire::Channel { relid }));
                self.close(id);
            }
            Presence::Rescinded | Presence::Gone => {}
        }
    }

    /// Handles a message that the guest posts with message type 1.
    ///
    /// # Errors
    /// [`PostError`], whose status the hypercall returns. Any other fault is answered by a message,
    /// or counted.
    pub fn handle_message(
        &mut self,
        connection_id: ConnectionId,
        bytes: &[u8],
    ) -> Result<(), PostError> {
        if !self.has_port(connection_id) {
            count(&mut self.faults.unknown_connections);
            return Err(PostError::UnknownConnection(connection_id));
        }
        if bytes.len() > MAX_MESSAGE_LEN {
            count(&mut self.faults.malformed_messages);
            return Err(PostError::TooLong(bytes.len()));
        }
        let version = self.version().unwrap_or(Version::V2_4);
        match GuestMessage::parse(bytes, version) {
            Ok((message, list)) => self.dispatch(connection_id, &message, list),
            Err(error @ ParseError::TooShort { .. }) => {
                count(&mut self.faults.malformed_messages);
                Err(PostError::Malformed(error))
            }
            Err(ParseError::UnknownNumber(_) | ParseError::NotInVersion { .. }) => {
                count(&mut self.faults.unknown_messages);
                Ok(())
            }
        }
    }

    /// Whether there is room for answers. If not, [`handle_message`](Self::handle_message) accepts
    /// only messages that end the connection. A driver with a queue of its own between
    /// `poll_action` and the message slots must bound it too, or leave messages here while a slot
    /// is full and use [`poll_channel_action`](Self::poll_channel_action) meanwhile.
    #[must_use]
    pub fn can_accept(&self) -> bool {
        !self.outbox.is_full()
    }

    /// The next action; actions on channels come before messages.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.next()
    }

    /// The next action on a channel: [`Action::Open`], [`Action::Close`] or
    /// [`Action::SetTargetVp`].
    pub fn poll_channel_action(&mut self) -> Option<Action> {
        self.outbox.next_channel_action()
    }

    /// The version of the connection, if there is one.
    #[must_use]
    pub const fn version(&self) -> Option<Version> {
        match self.connection {
            Connection::Connected { version, .. } => Some(version),
            Connection::Disconnected | Connection::Draining(_) => None,
        }
    }

    /// Counters of guest faults so far.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    fn dispatch(
        &mut self,
        port: ConnectionId,
        message: &GuestMessage,
        list: &[u8],
    ) -> Result<(), PostError> {
        // These end a connection, so accept them even from a guest that no longer takes its
        // messages.
        match message {
            GuestMessage::InitiateContact(contact) => self.on_contact(port, contact),
            GuestMessage::Unload => self.on_unload(),
            _ if self.version().is_none() => count(&mut self.faults.out_of_state),
            _ if !self.can_accept() => {
                count(&mut self.faults.queue_full);
                return Err(PostError::QueueFull);
            }
            GuestMessage::RequestOffers => self.on_request_offers(),
            GuestMessage::Open(open) => self.on_open(open),
            GuestMessage::Close(close) => self.on_close(close.relid.get()),
            GuestMessage::GpadlHeader(header) => self.on_gpadl_header(header, list),
            GuestMessage::GpadlBody(body) => self.on_gpadl_body(body, list),
            GuestMessage::GpadlTeardown(teardown) => self.on_gpadl_teardown(teardown),
            GuestMessage::RelidReleased(released) => self.on_relid_released(released.relid.get()),
            GuestMessage::OpenReserved(open) => self.on_open_reserved(open),
            GuestMessage::CloseReserved(close) => self.on_close_reserved(close),
            GuestMessage::TlConnectRequest(request) => self.on_tl_connect_request(request),
            GuestMessage::ModifyChannel(modify) => self.on_modify_channel(modify),
        }
        Ok(())
    }

    /// A guest that has not seen the rescind yet goes on setting the channel up. Hyper-V lets it, and
    /// some guests do not survive a refusal, so only a released relid is unknown here.
    fn on_gpadl_header(&mut self, header: &wire::GpadlHeader, list: &[u8]) {
        let limit = self.config.page_limit;
        let progress = match self.channels.by_relid(header.relid.get()) {
            Some((id, _)) => self.gpadls.begin(id, header, list, limit),
            None => Progress::Refused(Relid::new(header.relid.get())),
        };
        self.answer_gpadl(progress, header.gpadl.get());
    }

    fn on_gpadl_body(&mut self, body: &wire::GpadlBody, list: &[u8]) {
        let id = GpadlId::new(body.gpadl.get());
        match self.gpadls.add(id, list, self.config.page_limit) {
            Some(progress) => self.answer_gpadl(progress, id.get()),
            // Without a channel no answer can be addressed.
            None => count(&mut self.faults.unknown_gpadls),
        }
    }

    fn answer_gpadl(&mut self, progress: Progress, gpadl: u32) {
        let (relid, status) = match progress {
            Progress::Partial => return,
            Progress::Created(relid) => (relid, wire::STATUS_SUCCESS),
            Progress::Refused(relid) => {
                count(&mut self.faults.gpadls_refused);
                (relid, wire::STATUS_FAILURE)
            }
        };
        self.send(HostMessage::GpadlCreated(wire::GpadlCreated {
            relid: relid.get().into(),
            gpadl: gpadl.into(),
            status: status.into(),
        }));
    }

    /// Linux waits forever for the answer, so even a nonexistent GPADL gets one.
    fn on_gpadl_teardown(&mut self, teardown: &wire::GpadlTeardown) {
        let id = GpadlId::new(teardown.gpadl.get());
        let Some(owner) = self.gpadls.channel(id) else {
            count(&mut self.faults.unknown_gpadls);
            return self.send_torndown(id);
        };
        let Some(channel) = self.channels.get(owner) else { return };
        if channel.relid.get() != teardown.relid.get() {
            // An answer would say that the pages are free, and another channel's device may be
            // using them.
            return count(&mut self.faults.unknown_gpadls);
        }
        if channel.ring_gpadl() == Some(id) {
            self.gpadls.tear_down(id);
            self.close_for_guest(owner);
        } else {
            self.gpadls.remove(id);
            self.send_torndown(id);
        }
    }

    fn send_torndown(&mut self, id: GpadlId) {
        self.send(HostMessage::GpadlTorndown(wire::GpadlTorndown { gpadl: id.get().into() }));
    }

    fn on_relid_released(&mut self, relid: u32) {
        let Some((id, channel)) = self.channels.by_relid(relid) else {
            return count(&mut self.faults.unknown_channels);
        };
        match channel.presence {
            Presence::Rescinded => channel.presence = Presence::Gone,
            Presence::Unannounced | Presence::Offered | Presence::Released | Presence::Gone => {
                if !channel.is_closed() {
                    return count(&mut self.faults.out_of_state);
                }
                channel.presence = Presence::Released;
            }
        }
        // The device may still use its rings. The guest gets them back when the channel has closed.
        self.gpadls.remove_channel(id, channel.ring_gpadl());
        self.remove_if_gone(id);
        self.announce();
    }

    /// Sockets are not supported. Before 4.1 a guest expects no answer.
    fn on_tl_connect_request(&mut self, request: &wire::TlConnectRequest) {
        if self.version() >= Some(Version::V4_1) {
            self.send(HostMessage::TlConnectResult(wire::TlConnectResult {
                endpoint: request.endpoint,
                service: request.service,
                status: wire::STATUS_CONNECTION_REFUSED.into(),
            }));
        }
    }

    fn remove_if_gone(&mut self, id: ChannelId) {
        let gone =
            |channel: &mut Channel| channel.presence == Presence::Gone && channel.is_closed();
        if self.channels.get_mut(id).is_some_and(gone) {
            self.channels.remove(id);
            self.gpadls.remove_channel(id, None);
        }
    }

    /// Sends a message of the connection, if there is one.
    fn send(&mut self, message: HostMessage) {
        if let Connection::Connected { vp, .. } = self.connection {
            self.outbox.send(vp, message);
        }
    }
}
