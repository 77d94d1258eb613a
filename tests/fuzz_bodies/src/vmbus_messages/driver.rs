//! The driver of the bus, which checks what the server asks of it, and when.

use std::collections::BTreeMap;

use page_range::Gpfn;
use vmbus::protocol::{ConnectionId, Guid, HostMessage, Message, Version};
use vmbus::ring::RingLayout;
use vmbus::{Action, ChannelId, MAX_CHANNELS, MAX_QUEUED_MESSAGES, Offer, Server, ServerConfig};

use super::{GPADL_PAGES, GPADLS, PAGE_LIMIT};

pub(super) const OFFER: Offer =
    Offer { interface: Guid::from_digits(0xb0b), instance: Guid::from_digits(0) };
const VPS: u32 = 4;
/// The number of devices that come and go.
pub(super) const OFFERS: u8 = 3;

/// The machine of the golden files, where saved state of any content is restored.
pub(crate) const SAVED_CONFIG: ServerConfig = config(1024);

const fn config(pages: u64) -> ServerConfig {
    let Some(page_limit) = Gpfn::new(pages) else { panic!() };
    ServerConfig { vp_count: VPS, page_limit, max_version: Version::V5_3 }
}

/// The state of a channel, as the driver was told.
#[derive(Debug, PartialEq)]
enum State {
    Closed,
    Open(RingLayout),
    Closing(RingLayout),
}

/// A driver's behaviour.
pub(super) struct Kind {
    /// Whether it acts at once, so that nothing overtakes anything else.
    is_quick: bool,
    /// Whether a close takes until [`Driver::finish_closing`].
    is_slow_to_close: bool,
    /// Whether rings can be opened.
    opens: bool,
}

impl From<u8> for Kind {
    fn from(bits: u8) -> Self {
        Self { is_quick: bits & 1 != 0, is_slow_to_close: bits & 2 != 0, opens: bits & 4 == 0 }
    }
}

pub(super) struct Driver {
    pub(super) server: Server,
    config: ServerConfig,
    /// Whether the server began in a state that the driver does not know.
    is_any: bool,
    /// Whether the server has been restored since the driver last acted.
    is_restored: bool,
    channels: BTreeMap<ChannelId, State>,
    /// Whether it acts at once, so that nothing overtakes anything else.
    is_quick: bool,
    /// Whether a close takes until [`Driver::finish_closing`].
    is_slow_to_close: bool,
    /// Whether rings can be opened.
    opens: bool,
    /// The number of offers and rescinds since the driver last acted; each causes at most one
    /// message.
    own: usize,
    /// The messages that the guest would find in its slots.
    pub(super) messages: Vec<Message>,
}

impl Driver {
    pub(super) fn new(kind: Kind) -> Self {
        let config = config(PAGE_LIMIT);
        let mut driver = Self::with(kind, Server::new(config), config);
        driver.offer(0);
        driver
    }

    /// The driver of a server with [`SAVED_CONFIG`] that is in any state.
    pub(super) fn of_saved(kind: Kind, server: Server) -> Self {
        Self { is_any: true, ..Self::with(kind, server, SAVED_CONFIG) }
    }

    fn with(kind: Kind, server: Server, config: ServerConfig) -> Self {
        let Kind { is_quick, is_slow_to_close, opens } = kind;
        let (channels, messages) = Default::default();
        Self {
            server,
            config,
            is_any: false,
            is_restored: false,
            channels,
            is_quick,
            is_slow_to_close,
            opens,
            own: 0,
            messages,
        }
    }

    /// Saves and restores the server, which asks again for all pending work of the driver.
    pub(super) fn save_and_restore(&mut self) {
        let saved = self.server.save();
        self.server = Server::restore(self.config, &saved).unwrap();
        assert!(self.server.save() == saved, "saved differently when restored");
        self.is_restored = true;
        for n in 0..OFFERS {
            let offer = Offer { instance: Guid::from_digits(n.into()), ..OFFER };
            let Some(id) = self.server.channel_of(&offer) else { continue };
            let state = self.channels.entry(id).or_insert(State::Closed);
            let opened = self.server.opened(id).map(|open| State::Open(open.rings));
            if self.is_any
                && let Some(opened) = opened
            {
                *state = opened;
            } else if let Some(opened) = opened {
                assert_eq!(*state, opened, "the rings differ");
            }
        }
        // A channel that was closing must be closed again.
        for state in self.channels.values_mut() {
            if let State::Closing(rings) = state {
                *state = State::Open(rings.clone());
            }
        }
    }

    pub(super) fn be_quick(&mut self) {
        self.act();
        (self.is_quick, self.is_slow_to_close, self.opens) = (true, false, true);
        self.finish_closing();
        self.act();
    }

    pub(super) fn offer(&mut self, n: u8) {
        self.own += 1;
        let offer = Offer { instance: Guid::from_digits(n.into()), ..OFFER };
        if let Ok(channel) = self.server.offer(offer) {
            assert_eq!(self.channels.insert(channel, State::Closed), None, "channel used twice");
        }
    }

    /// Whether the saved state filled the bus with other devices.
    pub(super) fn is_full(&self) -> bool {
        self.is_any && self.server.channel_of(&OFFER).is_none()
    }

    pub(super) fn rescind(&mut self, n: u8) {
        self.own += 1;
        let known = self.channels.len();
        let channel = self.channels.keys().nth(usize::from(n) % known.max(1)).copied();
        if let Some(channel) = channel {
            self.server.rescind(channel);
        }
    }

    pub(super) fn post(&mut self, port: u32, bytes: &[u8]) {
        let posted = self.server.handle_message(ConnectionId::new(port), bytes);
        if let Err(error) = posted {
            assert_ne!(error.hypercall_status(), 0);
        }
    }

    /// Reports unexpected results, which the server must ignore.
    pub(super) fn spurious(&mut self, n: u8) {
        self.act();
        let known = self.channels.len();
        let Some((id, state)) = self.channels.iter().nth(usize::from(n) % known.max(1)) else {
            return;
        };
        let (id, is_closing) = (*id, matches!(state, State::Closing(_)));
        self.server.open_finished(id, n & 1 != 0);
        if !is_closing {
            self.server.close_finished(id);
        }
        assert_eq!(self.server.poll_action(), None, "an action without a cause");
    }

    pub(super) fn after_step(&mut self) {
        if self.is_quick {
            self.act();
        }
    }

    pub(super) fn act(&mut self) {
        let is_unknown = self.is_any && self.is_restored;
        let mut sends = 0;
        let mut others = 0;
        while let Some(action) = self.server.poll_action() {
            match action {
                Action::Send { vp, message } => {
                    assert!(vp.get() < VPS);
                    sends += 1;
                    self.send(message);
                }
                Action::DropQueuedMessages => self.messages.clear(),
                Action::Open { channel, rings, target_vp, .. } => {
                    others += 1;
                    assert!(target_vp.is_none_or(|vp| vp.get() < VPS));
                    self.open(channel, rings);
                }
                Action::Close { channel } => {
                    others += 1;
                    self.close(channel);
                }
                Action::SetTargetVp { channel, target_vp } => {
                    others += 1;
                    assert!(target_vp.get() < VPS);
                    // If the open failed, the target VP was already on its way.
                    let is_open = matches!(self.channels.get(&channel), Some(State::Open(_)));
                    assert!(
                        is_open || !self.opens || self.is_any,
                        "a target for a channel that is not open"
                    );
                }
            }
        }
        // A request for offers is answered by one message for each channel.
        let most = MAX_QUEUED_MESSAGES + MAX_CHANNELS + 1 + self.own + 4 * self.channels.len();
        assert!(is_unknown || sends <= most, "{sends} messages were queued");
        // An open, a new target, a close, and an open that waited for it.
        assert!(others <= 4 * self.channels.len(), "{others} actions were queued");
        self.own = 0;
        self.is_restored = false;
    }

    fn send(&mut self, message: Message) {
        let (parsed, rest) = HostMessage::parse(message.as_bytes(), Version::V5_3).unwrap();
        assert!(rest.is_empty());
        if self.is_quick {
            self.check_barrier(&parsed);
        }
        self.messages.push(message);
    }

    /// A guest that gets back its pages or its connection uses the memory, so the host must no
    /// longer use any earlier ring.
    fn check_barrier(&self, message: &HostMessage) {
        let mut used = self.channels.values().filter_map(|state| match state {
            State::Closed => None,
            State::Open(rings) | State::Closing(rings) => Some(rings),
        });
        match message {
            HostMessage::VersionResponse(_) | HostMessage::UnloadResponse => {
                assert_eq!(used.next(), None, "{message:?} with rings in use");
            }
            HostMessage::GpadlTorndown(torndown) => {
                let gpadl = torndown.gpadl.get();
                let first = u64::from(gpadl) * GPADL_PAGES;
                let own = first..first + GPADL_PAGES;
                let is_own = |rings: &RingLayout| own.contains(&rings.incoming()[0].get());
                assert!(
                    self.is_any || gpadl >= GPADLS.into() || !used.any(is_own),
                    "GPADL {gpadl} was given back with its rings in use"
                );
            }
            _ => {}
        }
    }

    fn open(&mut self, channel: ChannelId, rings: RingLayout) {
        let page_limit = self.config.page_limit;
        let state = self.state(channel);
        assert_eq!(*state, State::Closed, "opened twice");
        let mut pages = rings.incoming().iter().chain(rings.outgoing());
        assert!(pages.all(|page| *page < page_limit), "pages beyond memory");
        if self.opens {
            *self.state(channel) = State::Open(rings);
        }
        self.server.open_finished(channel, self.opens);
    }

    fn close(&mut self, channel: ChannelId) {
        // The open failed or was lost when the server was saved, or the driver cannot know.
        let may_be_closed = !self.opens || self.is_restored || self.is_any;
        let is_slow = self.is_slow_to_close;
        let state = self.state(channel);
        *state = match std::mem::replace(state, State::Closed) {
            State::Open(rings) => State::Closing(rings),
            State::Closed if may_be_closed => State::Closed,
            other => panic!("closed in {other:?}"),
        };
        if *state == State::Closed || !is_slow {
            *state = State::Closed;
            self.server.close_finished(channel);
        }
    }

    /// The known state of a channel. Channels from saved state are closed at first.
    fn state(&mut self, channel: ChannelId) -> &mut State {
        let is_any = self.is_any;
        self.channels.entry(channel).or_insert_with(|| {
            assert!(is_any, "a channel that was not offered");
            State::Closed
        })
    }

    pub(super) fn finish_closing(&mut self) {
        // First take the requests that came later, such as a channel that is opened again.
        self.act();
        for (channel, state) in &mut self.channels {
            if let State::Closing(_) = state {
                *state = State::Closed;
                self.server.close_finished(*channel);
            }
        }
    }
}
