//! The host of one VM: built once, it serves one machine after another.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bus_recording::Event;
use vmbus::{ChannelId, Offer, OfferError, Server, ServerConfig, VmbusDevice};

use crate::attached::{Attached, Device};
use crate::bus_loop::{BusLoop, Request, Slot};
use crate::recording::DeviceRecording;
use crate::shared::Shared;
use crate::sources::{Source, Sources};
use crate::{
    BusHandle, BusMemory, Machine, Platform, Sink, StartError, Stopped, Supervisor, Thread,
};

/// A bus and its devices, not running yet.
pub struct HostBuilder<P: Platform> {
    shared: Arc<Shared>,
    vp_count: u32,
    slots: Vec<Slot<P>>,
}

impl<P: Platform> HostBuilder<P> {
    /// A bus without devices, for machines with `config`.
    ///
    /// # Errors
    /// [`StartError::System`] without a free file descriptor.
    pub fn new(config: ServerConfig, supervisor: impl Supervisor) -> Result<Self, StartError> {
        Self::with_server(Server::new(config), config.vp_count, supervisor)
    }

    pub(crate) fn with_server(
        server: Server,
        vp_count: u32,
        supervisor: impl Supervisor,
    ) -> Result<Self, StartError> {
        let shared = Arc::new(Shared::new(server, supervisor)?);
        Ok(Self { shared, vp_count, slots: Vec::new() })
    }

    /// The clock of the bus and a way to wake its thread, for code that calls a device.
    #[must_use]
    pub fn handle(&self) -> BusHandle {
        BusHandle(Arc::clone(&self.shared))
    }

    /// Puts a device of any kind on the bus. Its work goes to `sink`.
    ///
    /// Other code that calls the device must call [`BusHandle::wake`] afterwards.
    ///
    /// # Errors
    /// [`StartError::Offer`] if there is already such a device, or if there are too many.
    pub fn attach<D>(
        &mut self,
        device: Arc<Mutex<D>>,
        sink: impl Sink<D::Work>,
    ) -> Result<(), StartError>
    where
        D: VmbusDevice<BusMemory<P>> + Send + 'static,
    {
        let recording = self.next_recording();
        self.attach_recorded(device, sink, recording, |_| None)
    }

    /// The recording of the device that is attached next.
    pub(crate) fn next_recording(&self) -> Arc<DeviceRecording> {
        let number = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        Arc::new(DeviceRecording::new(Arc::clone(&self.shared), number))
    }

    /// As [`HostBuilder::attach`], for a device whose work tells a recording something.
    pub(crate) fn attach_recorded<D>(
        &mut self,
        device: Arc<Mutex<D>>,
        sink: impl Sink<D::Work>,
        recording: Arc<DeviceRecording>,
        of_work: fn(&D::Work) -> Option<Event>,
    ) -> Result<(), StartError>
    where
        D: VmbusDevice<BusMemory<P>> + Send + 'static,
    {
        let device = Device { device, sink, recording, of_work };
        let offer = device.offer();
        let channel = self.channel(offer)?;
        self.slots.push(Slot { channel, offer, device: Box::new(device), link: None });
        Ok(())
    }

    /// The channel of a device: a new one, or the one that a restored bus already has.
    fn channel(&self, offer: Offer) -> Result<ChannelId, OfferError> {
        let mut server = self.shared.server();
        let known = server.channel_of(&offer);
        let is_free = |id: &ChannelId| self.slots.iter().all(|slot| slot.channel != *id);
        known.filter(is_free).map_or_else(|| server.offer(offer), Ok)
    }

    #[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Starts the bus thread.
    ///
    /// # Errors
    /// [`StartError::System`] if the system has no room for a thread or an event source.
    pub fn start(self) -> Result<Host<P>, StartError> {
        let Self { shared, vp_count, slots } = self;
        shared.recording().set_channels(slots.iter().map(|slot| slot.channel).collect());
        let sources = Sources::new()
            .map_err(StartError::system("cannot create an epoll instance for the bus"))?;
        sources
            .add(shared.wake_fd(), Source::Wake)
            .map_err(StartError::system("cannot wait for the eventfd that wakes the bus"))?;
        let (requests, inbox) = channel();
        let bus_loop = BusLoop::new(slots, inbox, sources, Arc::clone(&shared));
        let thread = Thread::Bus
            .builder()
            .spawn(move || bus_loop.run())
            .map_err(StartError::system("cannot start the thread of the bus"))?;
        Ok(Host { shared, vp_count, requests, pausing: Mutex::default(), thread: Some(thread) })
    }
}

impl<P: Platform> std::fmt::Debug for HostBuilder<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostBuilder").finish_non_exhaustive()
    }
}

/// A running bus. Dropping it ends its threads once all work on guest memory is done.
pub struct Host<P: Platform> {
    shared: Arc<Shared>,
    vp_count: u32,
    requests: Sender<Request<P>>,
    /// Held by the thread that pauses the host.
    pausing: Mutex<()>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Platform> Host<P> {
    /// Takes a machine whose vCPUs are about to run for the first time; the previous one has been
    /// [reset](Host::reset).
    ///
    /// # Errors
    /// [`Stopped`] if the host has failed.
    pub fn start_machine(&self, platform: P) -> Result<Machine<P>, Stopped> {
        let machine = Machine::new(platform, self.vp_count, Arc::clone(&self.shared));
        self.ask(|done| Request::Start(machine.clone(), done))?;
        Ok(machine)
    }

    /// Takes the machine off the bus for a reset. Its vCPUs must have stopped for good.
    ///
    /// Returns when all channels are closed and nothing is in flight. The memory may be unmapped or
    /// reused as soon as the machine's clones are gone.
    ///
    /// # Errors
    /// [`Stopped`] if the host has failed. Nothing is in flight in that case either.
    pub fn reset(&self) -> Result<(), Stopped> {
        self.ask(Request::Reset)
    }

    /// The clock of the bus and a way to wake its thread.
    #[must_use]
    pub fn handle(&self) -> BusHandle {
        BusHandle(Arc::clone(&self.shared))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) const fn pause_lock(&self) -> &Mutex<()> {
        &self.pausing
    }

    pub(crate) const fn vp_count(&self) -> u32 {
        self.vp_count
    }

    /// Sends the loop a request and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        request: impl FnOnce(Sender<T>) -> Request<P>,
    ) -> Result<T, Stopped> {
        let (done, wait) = channel();
        self.request(request(done));
        // An error means that the loop has ended, and with it all work.
        wait.recv().map_err(|_| Stopped)
    }

    pub(crate) fn request(&self, request: Request<P>) {
        let _ = self.requests.send(request);
        self.shared.wake();
    }
}

impl<P: Platform> Drop for Host<P> {
    fn drop(&mut self) {
        self.shared.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<P: Platform> std::fmt::Debug for Host<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}
