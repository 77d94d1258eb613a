//! A device of any kind on the bus, and the sink for its work.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_recording::{Event, ToDevice};
use vmbus::{ChannelEvent, ChannelOutput, GuestMemory, Offer, VmbusDevice};

use crate::recording::DeviceRecording;
use crate::shared::lock;

/// The destination of a device's work or notices. Any `FnMut(T)` is a sink.
///
/// It is called on the bus thread, which must not wait: hand slow work to another thread.
pub trait Sink<T>: Send + 'static {
    /// Takes one item.
    fn take(&mut self, item: T);

    /// How long until [`Sink::on_time`] has something to do, if anything.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// Called when the time from [`Sink::due`] has come. A call too early does no harm.
    fn on_time(&mut self) {}

    /// Whether everything taken so far is finished. A host pauses only then.
    fn is_idle(&self) -> bool {
        true
    }
}

impl<T, F: FnMut(T) + Send + 'static> Sink<T> for F {
    fn take(&mut self, item: T) {
        self(item);
    }
}

/// A device and its sink, as the bus sees them.
pub(crate) trait Attached<M>: Send {
    fn offer(&self) -> Offer;

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>);

    /// The next action for the bus. Passes on outputs that do not concern the bus.
    fn poll(&mut self) -> Option<ChannelOutput<Infallible>>;

    /// How long until [`Attached::on_time`] has something to do, if anything. Unless `time_passes`,
    /// the device has something to do now or not at all.
    fn due(&self, now: Duration, time_passes: bool) -> Option<Duration>;

    /// Does what is due, if anything.
    fn on_time(&mut self, now: Duration);

    fn waits_for_room(&self) -> bool;

    fn is_quiet(&self) -> bool;

    fn is_idle(&self) -> bool;
}

/// A device that other threads may call as well.
pub(crate) struct Device<D, S, W> {
    pub(crate) device: Arc<Mutex<D>>,
    pub(crate) sink: S,
    pub(crate) recording: Arc<DeviceRecording>,
    /// What the device's work tells a recording.
    pub(crate) of_work: fn(&W) -> Option<Event>,
}

impl<M, D, S> Attached<M> for Device<D, S, D::Work>
where
    M: GuestMemory,
    D: VmbusDevice<M> + Send,
    S: Sink<D::Work>,
{
    fn offer(&self) -> Offer {
        lock(&self.device).offer()
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>) {
        let mut device = lock(&self.device);
        self.recording.tell(now, || ToDevice::from(&event));
        device.handle(now, event);
    }

    fn poll(&mut self) -> Option<ChannelOutput<Infallible>> {
        loop {
            // The sink may need the device, so the device is not locked while the sink works.
            return Some(match self.next_output()? {
                ChannelOutput::Work(work) => {
                    self.sink.take(work);
                    continue;
                }
                ChannelOutput::SignalGuest(signal) => ChannelOutput::SignalGuest(signal),
                ChannelOutput::OpenFinished(result) => ChannelOutput::OpenFinished(result),
                ChannelOutput::CloseFinished => ChannelOutput::CloseFinished,
                ChannelOutput::Broken(error) => ChannelOutput::Broken(error),
            });
        }
    }

    fn due(&self, now: Duration, time_passes: bool) -> Option<Duration> {
        let timeout = lock(&self.device).poll_timeout().map(|at| at.saturating_sub(now));
        let timeout = timeout.filter(|wait| time_passes || wait.is_zero());
        [timeout, self.sink.due()].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Duration) {
        {
            let mut device = lock(&self.device);
            if device.poll_timeout().is_some_and(|at| at <= now) {
                self.recording.tell(now, || ToDevice::Timeout);
                device.handle(now, ChannelEvent::Timeout);
            }
        }
        if self.sink.due().is_some_and(|due| due.is_zero()) {
            self.sink.on_time();
        }
    }

    fn waits_for_room(&self) -> bool {
        lock(&self.device).waits_for_room()
    }

    fn is_quiet(&self) -> bool {
        lock(&self.device).is_quiet()
    }

    fn is_idle(&self) -> bool {
        self.sink.is_idle()
    }
}

impl<D, S, W> Device<D, S, W> {
    /// The device's next output. Recorded under the lock, before another thread tells the device
    /// something.
    fn next_output<M: GuestMemory>(&self) -> Option<ChannelOutput<W>>
    where
        D: VmbusDevice<M, Work = W>,
    {
        let mut device = lock(&self.device);
        let output = device.poll_output();
        match &output {
            Some(output) => {
                self.recording.output(|| Event::of_output(output, self.of_work));
            }
            None => self.recording.idle(|| device.waits_for_room()),
        }
        drop(device);
        output
    }
}
