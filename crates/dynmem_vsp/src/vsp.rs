//! The VSP: the device, its channel, and the traffic between them.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use hv_balloon::{Action, ConfigError, Device, Event, Job, JobId, Notice, Snapshot, StateName};
use page_range::{PageCount, PageRange};
use vmbus::ring::RingError;
use vmbus::{Channel, ChannelEvent, ChannelOutput, GuestMemory, Offer, OpenChannel, Received};
use vmbus::{Reminder, VmbusDevice, protocol::Guid};

use crate::machine::Leaving;
use crate::trace::Trace;
use crate::{Config, DEFAULT_INSTANCE, INTERFACE, TargetError};

/// The most packets taken for one signal. If there are more,
/// [`poll_timeout`](VmbusDevice::poll_timeout) is due immediately, so that the driver can do its
/// other work in between.
pub const BATCH: u32 = 64;

/// Work on the guest's memory, and notices.
///
/// Report the end of each job with [`DynamicMemory::job_done`], even after the channel has closed
/// or the machine was reset. Nothing else needs a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Do this job on the guest's memory.
    Job(Job),
    /// Report to the operator, the monitor or the log.
    Notify(Notice),
    /// A step between device and channel; only [with a trace](DynamicMemory::with_trace).
    Trace(Trace),
}

type Output = ChannelOutput<Work>;

/// The state of the channel, as the bus sees it.
#[derive(Debug)]
pub(crate) enum Link<M> {
    /// The guest has not opened the channel.
    Closed,
    /// The guest has opened it. The channel may have been stopped since.
    Open(Channel<M>),
    /// The bus waits for the device to be quiet.
    Closing,
}

impl<M: GuestMemory> Link<M> {
    const fn channel(&mut self) -> Option<&mut Channel<M>> {
        match self {
            Self::Open(channel) => Some(channel),
            Self::Closed | Self::Closing => None,
        }
    }
}

/// The Dynamic Memory VSP of one VM. The crate's documentation says how to drive it.
#[derive(Debug)]
pub struct DynamicMemory<M> {
    pub(crate) device: Device,
    instance: Guid,
    pub(crate) link: Link<M>,
    /// The time of the last event.
    pub(crate) now: Duration,
    batch: u32,
    is_traced: bool,
    /// Packets that may still be taken before the driver has its turn.
    pub(crate) batch_left: u32,
    /// The last batch ended before the ring was found empty.
    pub(crate) looks_again: bool,
    /// The VSP was restored, and the requests that the device repeats have not been taken yet.
    pub(crate) is_restored: bool,
    pub(crate) leaving: Leaving,
    /// Until the handshake is over.
    pub(crate) reminder: Option<Reminder>,
    outputs: VecDeque<Output>,
}

impl<M: GuestMemory> DynamicMemory<M> {
    /// Creates a VSP for a guest that has not started.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self::with_device(Device::new(config)?))
    }

    pub(crate) fn with_device(device: Device) -> Self {
        Self {
            device,
            instance: DEFAULT_INSTANCE,
            link: Link::Closed,
            now: Duration::ZERO,
            batch: BATCH,
            is_traced: false,
            batch_left: 0,
            looks_again: false,
            is_restored: false,
            leaving: Leaving::default(),
            reminder: None,
            outputs: VecDeque::new(),
        }
    }

    /// Offers the device under another instance ID than [`DEFAULT_INSTANCE`].
    #[must_use]
    pub const fn with_instance(mut self, instance: Guid) -> Self {
        self.instance = instance;
        self
    }

    /// Takes at most `packets` for one signal, and at least one; [`BATCH`] by default.
    #[must_use]
    pub const fn with_batch(mut self, packets: u32) -> Self {
        self.batch = if packets == 0 { 1 } else { packets };
        self
    }

    /// Reports the traffic between device and channel as [`Work::Trace`], in order, for recorders
    /// and tests. Each packet is then copied once more.
    #[must_use]
    pub const fn with_trace(mut self) -> Self {
        self.is_traced = true;
        self
    }

    /// Sets the guest's target size in pages. Setting the same target again starts a new attempt.
    /// If the guest is not ready, the VSP pursues the target once it is.
    ///
    /// Returns the accepted target in pages: a multiple of
    /// [`Config::discard_unit`](hv_balloon::Config::discard_unit).
    ///
    /// # Errors
    /// [`TargetError`] with the limit; the previous target stays in force.
    pub fn set_target(
        &mut self,
        now: Duration,
        target: PageCount,
    ) -> Result<PageCount, TargetError> {
        self.advance(now);
        let taken = self.device.set_target(self.now, target);
        if taken.is_ok() {
            self.leaving.target_set(target);
        }
        self.work();
        taken
    }

    /// Reports the end of a [`Job`]. `ok` says whether it succeeded for all of its pages.
    pub fn job_done(&mut self, now: Duration, id: JobId, ok: bool) {
        self.advance(now);
        self.tell(Event::JobDone { id, ok });
        self.work();
    }

    /// Forbids or allows discards. While `inhibited`, no discard begins and the guest is asked for
    /// no memory; use this while the host has pinned guest memory or is copying it. Discards
    /// already running continue; they have ended once [`Snapshot::discarding`] is zero. When
    /// discards are allowed again, the VSP resumes by itself.
    pub fn set_inhibited(&mut self, now: Duration, inhibited: bool) {
        self.advance(now);
        self.device.set_inhibited(self.now, inhibited);
        self.work();
    }

    /// Takes a snapshot of the device.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.device.snapshot()
    }

    /// The pages that the host has back, in ascending order. Their contents are irrelevant, so
    /// whoever saves the guest's memory can leave them out.
    pub fn ballooned(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.device.ballooned()
    }

    /// The message that waits for room in the ring, if one does.
    #[must_use]
    pub fn unsent(&self) -> Option<&[u8]> {
        self.device.message()
    }

    /// Whether the rings are in use: from open until close, reset or a broken ring.
    #[must_use]
    pub const fn uses_rings(&self) -> bool {
        match &self.link {
            Link::Open(channel) => channel.is_running(),
            Link::Closed | Link::Closing => false,
        }
    }

    pub(crate) fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    fn open(&mut self, memory: M, open: &OpenChannel, guest_os_id: u64) {
        match Channel::open(memory, open) {
            Ok(channel) => {
                self.link = Link::Open(channel);
                self.leaving.forget_size();
                self.reminder = Some(Reminder::new(self.now));
                self.outputs.push_back(Output::OpenFinished(Ok(())));
                let is_reopened = open.is_reopened;
                self.tell(Event::ChannelOpened { guest_os_id, is_reopened });
                // The guest may have written before it heard that the channel is open.
                self.batch_left = self.batch;
            }
            Err(error) => self.outputs.push_back(Output::OpenFinished(Err(error))),
        }
    }

    fn close(&mut self) {
        self.link = Link::Closing;
        self.channel_closed();
    }

    fn reset(&mut self) {
        if let Some(channel) = self.link.channel() {
            channel.stop();
        }
        let device = self.device.snapshot();
        self.leaving.reset(device.actual, device.target.filter(|_| device.is_pursued));
        self.tell(Event::SystemReset);
    }

    /// Stops the channel because the guest broke its ring. It stays unusable until the guest opens
    /// it anew.
    fn break_channel(&mut self, error: RingError) {
        self.outputs.push_back(Output::Broken(error));
        if let Some(channel) = self.link.channel() {
            channel.stop();
        }
        // Requests that the device made before come before the close. No ring is left to fail.
        let _ = self.try_work();
        self.channel_closed();
    }

    fn channel_closed(&mut self) {
        self.batch_left = 0;
        self.looks_again = false;
        self.reminder = None;
        self.leaving.closed(self.device.snapshot().actual);
        self.tell(Event::ChannelClosed);
    }

    pub(crate) const fn is_in_handshake(&self) -> bool {
        matches!(self.device.state(), StateName::AwaitVersion | StateName::AwaitCaps)
    }

    /// Signals a guest again that has not read what the device answered in the handshake.
    fn remind(&mut self) {
        let Some(reminder) = self.reminder.filter(|due| due.at() <= self.now) else { return };
        let unread = self.link.channel().map_or(Ok(false), Channel::remind);
        self.reminder = match unread {
            Ok(false) if !self.is_in_handshake() => None,
            Ok(_) => reminder.next(self.now),
            Err(error) => return self.break_channel(error),
        };
    }

    /// Passes on the device's requests, and writes waiting messages to the ring.
    pub(crate) fn work(&mut self) {
        if let Err(error) = self.try_work() {
            self.break_channel(error);
            // Without a channel there is no ring to fail.
            let _ = self.try_work();
        }
    }

    fn try_work(&mut self) -> Result<(), RingError> {
        loop {
            self.write_ring()?;
            let Some(action) = self.device.poll_action() else { break };
            self.act(action);
        }
        if let Some(signal) = self.link.channel().and_then(Channel::take_signal) {
            self.outputs.push_back(Output::SignalGuest(signal));
        }
        Ok(())
    }

    /// Most packets cause no action, so this is kept out of their way.
    #[inline(never)]
    fn act(&mut self, action: Action) {
        match action {
            // The next turn of the loop writes the message.
            Action::Send => self.trace_message(Trace::Emitted),
            Action::CloseFinished => self.device_is_quiet(),
            Action::Work(job) => self.push(Work::Job(job)),
            Action::Notify(notice) => self.push(Work::Notify(notice)),
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        let before = self.device.state();
        if self.is_traced {
            match event {
                Event::ChannelOpened { .. } => self.push(Work::Trace(Trace::Opened)),
                Event::ChannelClosed => self.push(Work::Trace(Trace::Closed)),
                Event::Sent => self.trace_message(Trace::Sent),
                // Packets are traced where they are received.
                Event::Packet(_) | Event::JobDone { .. } | Event::SystemReset | Event::Deadline => {
                }
            }
        }
        self.device.handle(self.now, event);
        self.trace_state(before);
    }

    fn trace_state(&mut self, before: StateName) {
        let state = self.device.state();
        if self.is_traced && state != before {
            self.push(Work::Trace(Trace::State(state)));
        }
    }

    fn trace_message(&mut self, trace: impl FnOnce(Vec<u8>) -> Trace) {
        if self.is_traced
            && let Some(message) = self.device.message()
        {
            let message = message.to_vec();
            self.push(Work::Trace(trace(message)));
        }
    }

    fn push(&mut self, work: Work) {
        self.outputs.push_back(Output::Work(work));
    }

    /// Writes completions, then the device's message, as far as there is room.
    fn write_ring(&mut self) -> Result<(), RingError> {
        let Link::Open(channel) = &mut self.link else { return Ok(()) };
        while let Some(transaction_id) = channel.complete()? {
            if self.is_traced {
                let completed = Work::Trace(Trace::Completed(transaction_id));
                self.outputs.push_back(Output::Work(completed));
            }
        }
        if let Some(message) = self.device.message()
            && channel.send(message)?
        {
            self.tell(Event::Sent);
        }
        Ok(())
    }

    /// Finishes a close. The device also becomes quiet after a reset or a broken ring, when the bus
    /// has not asked for a close.
    fn device_is_quiet(&mut self) {
        if matches!(self.link, Link::Closing) {
            self.link = Link::Closed;
            self.outputs.push_back(Output::CloseFinished);
        }
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
        match channel.receive()? {
            Received::Data(packet) => {
                if self.is_traced {
                    let before = self.device.state();
                    let received = Work::Trace(Trace::Received(packet.into()));
                    self.outputs.push_back(Output::Work(received));
                    self.device.handle(self.now, Event::Packet(packet.payload));
                    self.trace_state(before);
                } else {
                    self.device.handle(self.now, Event::Packet(packet.payload));
                }
            }
            Received::Other(packet) => {
                if self.is_traced {
                    let dropped = Work::Trace(Trace::Dropped(packet.into()));
                    self.outputs.push_back(Output::Work(dropped));
                }
            }
            Received::Nothing => {
                self.batch_left = 0;
                channel.end_receive();
                return Ok(());
            }
        }
        self.batch_left = self.batch_left.saturating_sub(1);
        if self.batch_left == 0 {
            if let Link::Open(channel) = &mut self.link {
                channel.end_receive();
            }
            self.looks_again = true;
        }
        Ok(())
    }
}

impl<M: GuestMemory> VmbusDevice<M> for DynamicMemory<M> {
    type Work = Work;

    fn offer(&self) -> Offer {
        Offer { interface: INTERFACE, instance: self.instance }
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>) {
        self.advance(now);
        match event {
            ChannelEvent::Open { memory, channel, guest_os_id } => {
                self.open(memory, &channel, guest_os_id);
            }
            ChannelEvent::SetTargetVp(vp) => {
                if let Some(channel) = self.link.channel() {
                    channel.set_target_vp(vp);
                }
            }
            ChannelEvent::Signalled => {
                self.looks_again = false;
                self.batch_left = self.batch;
            }
            ChannelEvent::Close => self.close(),
            ChannelEvent::Timeout => {
                if core::mem::take(&mut self.looks_again) {
                    self.batch_left = self.batch;
                }
                self.remind();
                if self.device.next_deadline().is_some_and(|at| at <= self.now) {
                    self.tell(Event::Deadline);
                }
            }
            ChannelEvent::Reset => self.reset(),
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
            if core::mem::take(&mut self.is_restored) {
                self.work();
            } else if !self.receive() {
                return None;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let again = self.looks_again.then_some(self.now);
        let reminder = self.reminder.map(Reminder::at);
        [again, reminder, self.device.next_deadline()].into_iter().flatten().min()
    }

    fn waits_for_room(&self) -> bool {
        match &self.link {
            Link::Open(channel) => {
                channel.is_running()
                    && (channel.has_completions() || self.device.message().is_some())
            }
            Link::Closed | Link::Closing => false,
        }
    }

    fn is_quiet(&self) -> bool {
        matches!(self.link, Link::Closed)
            && self.outputs.is_empty()
            && self.device.state() == StateName::Closed
    }
}
