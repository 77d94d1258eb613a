//! What all services have in common: the channel, the negotiation, and one message at a time.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use vmbus::ring::RingError;
use vmbus::{Channel, ChannelEvent, ChannelOutput, GuestMemory, Offer, OpenChannel, Received};
use vmbus::{Reminder, VmbusDevice};

use crate::kind::Kind;
use crate::protocol::{FRAMEWORK_VERSIONS, Message, MessageType, Negotiation, Version, flags};
use crate::{Fault, Notice, Trace, Work};

/// The most packets taken for one signal. An honest guest sends one for each message, so this bounds only
/// others. If there are more, [`poll_timeout`](VmbusDevice::poll_timeout) is due immediately.
pub const BATCH: u32 = 16;

type Output = ChannelOutput<Work>;

/// There is no guest to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The guest has not opened the channel: it has no driver for this service, or has not started it.
    #[error("the guest has no driver for this service, or has not started it")]
    NotConnected,
    /// The guest has opened the channel, and has not answered the offer of versions yet.
    #[error("the guest's driver for this service is starting")]
    Negotiating,
    /// The guest's driver has none of the versions that this host has.
    #[error("the guest's driver and this host have no version of the service in common")]
    NoCommonVersion,
    /// The guest corrupted the channel's ring.
    #[error("the guest corrupted the service's channel")]
    Broken,
}

/// The state of the channel, as the bus sees it.
#[derive(Debug)]
pub(crate) enum Link<M> {
    Closed,
    /// It may have been stopped since.
    Open(Channel<M>),
}

/// The state of the negotiation, while the channel is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest has not answered yet.
    Negotiating,
    Ready {
        framework: Version,
        version: Version,
    },
    /// The guest has none of the versions.
    Refused,
}

/// A service: its channel, and what is particular to its kind.
#[derive(Debug)]
pub struct Service<M, K> {
    pub(crate) kind: K,
    pub(crate) link: Link<M>,
    pub(crate) phase: Phase,
    /// The time of the last event.
    pub(crate) now: Duration,
    /// The number of the last message.
    pub(crate) transaction: u8,
    /// The type of the last message, while the guest has not answered it.
    pub(crate) asked: Option<MessageType>,
    /// That message, while it is not in the ring.
    pub(crate) unsent: Option<Vec<u8>>,
    /// Until the guest has answered.
    pub(crate) reminder: Option<Reminder>,
    /// Packets that may still be taken before the driver has its turn.
    batch_left: u32,
    /// The last batch ended before the ring was found empty.
    looks_again: bool,
    is_traced: bool,
    outputs: VecDeque<Output>,
}

impl<M: GuestMemory, K: Kind + Default> Default for Service<M, K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: GuestMemory, K: Kind + Default> Service<M, K> {
    /// A service for a guest that has not started.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kind: K::default(),
            link: Link::Closed,
            phase: Phase::Negotiating,
            now: Duration::ZERO,
            transaction: 0,
            asked: None,
            unsent: None,
            reminder: None,
            batch_left: 0,
            looks_again: false,
            is_traced: false,
            outputs: VecDeque::new(),
        }
    }
}

impl<M: GuestMemory, K: Kind> Service<M, K> {
    /// The offer of such a device.
    pub const OFFER: Offer = Offer { interface: K::INTERFACE, instance: K::INSTANCE };

    /// Reports the packets in the rings as [`Work::Trace`], in order, for recorders and tests.
    #[must_use]
    pub const fn with_trace(mut self) -> Self {
        self.is_traced = true;
        self
    }

    /// The versions of the framework and of the service that were negotiated.
    ///
    /// # Errors
    /// [`NotReady`]: the guest cannot be talked to.
    pub fn negotiated(&self) -> Result<(Version, Version), NotReady> {
        match (&self.link, self.phase) {
            (Link::Closed, _) => Err(NotReady::NotConnected),
            (Link::Open(channel), _) if !channel.is_running() => Err(NotReady::Broken),
            (Link::Open(_), Phase::Negotiating) => Err(NotReady::Negotiating),
            (Link::Open(_), Phase::Refused) => Err(NotReady::NoCommonVersion),
            (Link::Open(_), Phase::Ready { framework, version }) => Ok((framework, version)),
        }
    }

    /// Whether a message waits for the guest's answer.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.asked.is_some()
    }

    pub(crate) fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Whether a message of the service could be sent now.
    fn is_free(&self) -> bool {
        self.negotiated().is_ok() && !self.is_waiting()
    }

    const fn channel(&mut self) -> Option<&mut Channel<M>> {
        match &mut self.link {
            Link::Open(channel) => Some(channel),
            Link::Closed => None,
        }
    }

    fn open(&mut self, memory: M, open: &OpenChannel) {
        match Channel::open(memory, open) {
            Ok(channel) => {
                self.link = Link::Open(channel);
                self.outputs.push_back(Output::OpenFinished(Ok(())));
                self.phase = Phase::Negotiating;
                let versions = Negotiation {
                    framework: FRAMEWORK_VERSIONS.to_vec(),
                    service: self.kind.versions().to_vec(),
                };
                self.ask(MessageType::NEGOTIATE, &versions.emit());
                // The guest may have written before it heard that the channel is open.
                self.batch_left = BATCH;
            }
            Err(error) => self.outputs.push_back(Output::OpenFinished(Err(error))),
        }
    }

    /// Stops using the channel, and forgets the guest.
    fn leave(&mut self) {
        if let Some(channel) = self.channel() {
            channel.stop();
        }
        self.asked = None;
        self.unsent = None;
        self.reminder = None;
        self.batch_left = 0;
        self.looks_again = false;
        let notice = self.kind.gone();
        self.notify(notice);
    }

    /// Stops the channel because the guest broke its ring. It stays unusable until the guest opens it
    /// anew.
    fn break_channel(&mut self, error: RingError) {
        self.outputs.push_back(Output::Broken(error));
        self.leave();
    }

    fn ask(&mut self, message_type: MessageType, body: &[u8]) {
        let (framework, version) = self.negotiated().unwrap_or_default();
        self.transaction = self.transaction.wrapping_add(1);
        let message = Message {
            framework,
            message_type,
            version,
            status: 0,
            transaction: self.transaction,
            flags: flags::TRANSACTION | flags::REQUEST,
            body,
        };
        self.unsent = Some(message.emit());
        self.asked = Some(message_type);
        self.reminder = Some(Reminder::new(self.now));
    }

    /// Sends what is to be sent, as far as there is room.
    pub(crate) fn work(&mut self) {
        if let Err(error) = self.try_work() {
            self.break_channel(error);
        }
    }

    fn try_work(&mut self) -> Result<(), RingError> {
        if self.is_free()
            && let Ok((_, version)) = self.negotiated()
            && let Some(body) = self.kind.next_body(self.now, version)
        {
            self.ask(K::MESSAGE, &body);
        }
        let Link::Open(channel) = &mut self.link else { return Ok(()) };
        while let Some(transaction) = channel.complete()? {
            if self.is_traced {
                let trace = Trace::Completed(transaction);
                self.outputs.push_back(Output::Work(Work::Trace(trace)));
            }
        }
        if let Some(message) = &self.unsent
            && channel.send(message)?
            && let Some(message) = self.unsent.take()
            && self.is_traced
        {
            self.outputs.push_back(Output::Work(Work::Trace(Trace::Sent(message))));
        }
        if let Some(signal) = channel.take_signal() {
            self.outputs.push_back(Output::SignalGuest(signal));
        }
        Ok(())
    }

    /// Takes one packet of the batch; returns false if there is none to take.
    fn receive(&mut self) -> bool {
        if self.batch_left == 0 {
            return false;
        }
        if let Err(error) = self.try_receive() {
            self.break_channel(error);
        }
        self.work();
        true
    }

    fn try_receive(&mut self) -> Result<(), RingError> {
        let Link::Open(channel) = &mut self.link else {
            self.batch_left = 0;
            return Ok(());
        };
        let (packet, is_data) = match channel.receive()? {
            Received::Data(packet) => (packet, true),
            Received::Other(packet) => (packet, false),
            Received::Nothing => {
                self.batch_left = 0;
                channel.end_receive();
                return Ok(());
            }
        };
        if self.is_traced {
            let trace = Trace::Received(packet.into());
            self.outputs.push_back(Output::Work(Work::Trace(trace)));
        }
        if is_data {
            let answer = answer(packet.payload, self.transaction, self.asked);
            let notice = match answer {
                Ok(message) => {
                    self.asked = None;
                    self.reminder = None;
                    if message.message_type == MessageType::NEGOTIATE {
                        negotiate(&message, &mut self.kind, &mut self.phase, self.now)
                    } else {
                        self.kind.answered(self.now, message.status, message.body)
                    }
                }
                Err(fault) => Err(fault),
            };
            let notice = notice.unwrap_or_else(|fault| Some(Notice::Fault(fault)));
            self.notify(notice);
        }
        self.batch_left = self.batch_left.saturating_sub(1);
        if self.batch_left == 0 {
            if let Some(channel) = self.channel() {
                channel.end_receive();
            }
            self.looks_again = true;
        }
        Ok(())
    }

    /// Signals a guest again that has left a message unread.
    fn remind(&mut self) {
        let Some(reminder) = self.reminder.filter(|due| due.at() <= self.now) else { return };
        match self.channel().map_or(Ok(false), |channel| channel.remind()) {
            // Read, and not answered: the guest takes its time.
            Ok(false) => self.reminder = None,
            Ok(true) => self.reminder = reminder.next(self.now),
            Err(error) => self.break_channel(error),
        }
    }

    fn notify(&mut self, notice: Option<Notice>) {
        self.outputs.extend(notice.map(|notice| Output::Work(Work::Notify(notice))));
    }
}

/// The answer in a packet to the message `asked` with this number.
fn answer(
    packet: &[u8],
    transaction: u8,
    asked: Option<MessageType>,
) -> Result<Message<'_>, Fault> {
    let message = Message::parse(packet)?;
    let Message { message_type, flags, .. } = message;
    if flags & flags::RESPONSE == 0 {
        return Err(Fault::NoAnswer { message_type, flags });
    }
    if asked != Some(message_type) || message.transaction != transaction {
        return Err(Fault::Unasked { message_type, transaction: message.transaction });
    }
    Ok(message)
}

/// Takes the guest's choice of versions. A choice that makes no sense leaves the service unusable, as
/// does the lack of a common version.
fn negotiate<K: Kind>(
    message: &Message<'_>,
    kind: &mut K,
    phase: &mut Phase,
    now: Duration,
) -> Result<Option<Notice>, Fault> {
    *phase = Phase::Refused;
    let Some((framework, version)) = Negotiation::parse_answer(message.body)? else {
        return Ok(Some(Notice::NoCommonVersion));
    };
    if !FRAMEWORK_VERSIONS.contains(&framework) || !kind.versions().contains(&version) {
        return Err(Fault::Version { framework, version });
    }
    *phase = Phase::Ready { framework, version };
    kind.ready(now);
    Ok(Some(Notice::Ready { framework, version }))
}

impl<M: GuestMemory, K: Kind> VmbusDevice<M> for Service<M, K> {
    type Work = Work;

    fn offer(&self) -> Offer {
        Self::OFFER
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>) {
        self.advance(now);
        match event {
            ChannelEvent::Open { memory, channel, .. } => self.open(memory, &channel),
            ChannelEvent::SetTargetVp(vp) => {
                if let Some(channel) = self.channel() {
                    channel.set_target_vp(vp);
                }
            }
            ChannelEvent::Signalled => {
                self.looks_again = false;
                self.batch_left = BATCH;
            }
            ChannelEvent::Close => {
                self.leave();
                self.link = Link::Closed;
                self.outputs.push_back(Output::CloseFinished);
            }
            ChannelEvent::Timeout => {
                if core::mem::take(&mut self.looks_again) {
                    self.batch_left = BATCH;
                }
                self.remind();
                let notice = self.kind.on_time(self.now, self.is_free());
                self.notify(notice);
                if self.kind.takes_sample() {
                    self.outputs.push_back(Output::Work(Work::Sample));
                }
            }
            ChannelEvent::Reset => self.leave(),
        }
        self.work();
    }

    /// Takes packets one by one, so that the outputs that each causes are returned before the next
    /// packet is read.
    fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if !self.receive() {
                return None;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let again = self.looks_again.then_some(self.now);
        let reminder = self.reminder.map(Reminder::at);
        [again, reminder, self.kind.deadline(self.is_free())].into_iter().flatten().min()
    }

    fn waits_for_room(&self) -> bool {
        match &self.link {
            Link::Open(channel) => {
                channel.is_running() && (channel.has_completions() || self.unsent.is_some())
            }
            Link::Closed => false,
        }
    }

    fn is_quiet(&self) -> bool {
        matches!(self.link, Link::Closed) && self.outputs.is_empty()
    }
}
