//! The driver of the bus, which knows what it may be asked and when.

use std::collections::BTreeMap;

use page_range::Gpfn;
use vmbus::protocol::{ConnectionId, Guid, HostMessage, Message, Version};
use vmbus::ring::RingLayout;
use vmbus::{Action, ChannelId, MAX_CHANNELS, MAX_QUEUED_MESSAGES, Offer, Server, ServerConfig};

use super::{GPADL_PAGES, GPADLS, PAGE_LIMIT};

pub(super) const OFFER: Offer =
    Offer { interface: Guid::from_digits(0xb0b), instance: Guid::from_digits(0) };
const VPS: u32 = 4;

/// What the driver was told of a channel.
#[derive(Debug, PartialEq)]
enum State {
    Closed,
    Open(RingLayout),
    Closing(RingLayout),
}

pub(super) struct Driver {
    pub(super) server: Server,
    channels: BTreeMap<ChannelId, State>,
    /// Whether it acts at once, so that nothing overtakes anything.
    is_quick: bool,
    /// Whether closing takes until [`Driver::finish_closing`].
    is_slow_to_close: bool,
    /// Whether rings can be opened.
    opens: bool,
    /// What the host did itself since it last acted: each is a message at most.
    own: usize,
    /// What the guest would find in its slots.
    pub(super) messages: Vec<Message>,
}

impl Driver {
    pub(super) fn new(is_quick: bool, is_slow_to_close: bool, fails_to_open: bool) -> Self {
        let server = Server::new(ServerConfig {
            vp_count: VPS,
            page_limit: Gpfn::new(PAGE_LIMIT).unwrap(),
            max_version: Version::V5_3,
        });
        let opens = !fails_to_open;
        let (channels, messages) = Default::default();
        let mut driver =
            Self { server, channels, is_quick, is_slow_to_close, opens, own: 0, messages };
        driver.offer(0);
        driver
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

    /// What nobody waits for is ignored.
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
                    // Where the open failed, it was on its way.
                    let is_open = matches!(self.channels[&channel], State::Open(_));
                    assert!(is_open || !self.opens, "a target for a channel that is not open");
                }
            }
        }
        // A request for offers is answered by one message for each channel.
        let most = MAX_QUEUED_MESSAGES + MAX_CHANNELS + 1 + self.own + 4 * self.channels.len();
        assert!(sends <= most, "{sends} messages were queued");
        // An open, a new target, a close, and an open that waited for it.
        assert!(others <= 4 * self.channels.len(), "{others} actions were queued");
        self.own = 0;
    }

    fn send(&mut self, message: Message) {
        let (parsed, rest) = HostMessage::parse(message.as_bytes(), Version::V5_3).unwrap();
        assert!(rest.is_empty());
        if self.is_quick {
            self.check_barrier(&parsed);
        }
        self.messages.push(message);
    }

    /// Who has its pages or its host back uses the memory: no ring of before may be in use.
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
                    gpadl >= GPADLS.into() || !used.any(is_own),
                    "GPADL {gpadl} was given back with its rings in use"
                );
            }
            _ => {}
        }
    }

    fn open(&mut self, channel: ChannelId, rings: RingLayout) {
        let state = self.channels.get_mut(&channel).expect("a channel that was offered");
        assert_eq!(*state, State::Closed, "opened twice");
        let mut pages = rings.incoming().iter().chain(rings.outgoing());
        assert!(pages.all(|page| page.get() < PAGE_LIMIT), "pages beyond memory");
        if self.opens {
            *state = State::Open(rings);
        }
        self.server.open_finished(channel, self.opens);
    }

    fn close(&mut self, channel: ChannelId) {
        let state = self.channels.get_mut(&channel).expect("a channel that was offered");
        *state = match std::mem::replace(state, State::Closed) {
            State::Open(rings) => State::Closing(rings),
            // The open failed, and the close was on its way.
            State::Closed if !self.opens => State::Closed,
            other => panic!("closed in {other:?}"),
        };
        if *state == State::Closed || !self.is_slow_to_close {
            *state = State::Closed;
            self.server.close_finished(channel);
        }
    }

    pub(super) fn finish_closing(&mut self) {
        // What is asked since then comes first: a channel that is opened again, for one.
        self.act();
        for (channel, state) in &mut self.channels {
            if let State::Closing(_) = state {
                *state = State::Closed;
                self.server.close_finished(*channel);
            }
        }
    }
}
