//! A device on the bus, whatever its kind.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmbus::{ChannelEvent, ChannelOutput, GuestMemory, Offer, VmbusDevice};

use crate::shared::lock;

/// Where a device's work or news goes. Any `FnMut(T)` is a sink.
///
/// It is called on the thread of the bus, which must not wait: hand slow work to another thread.
pub trait Sink<T>: Send + 'static {
    /// Takes one.
    fn take(&mut self, item: T);

    /// How long until [`Sink::on_time`] has something to do, if it has.
    fn due(&self) -> Option<Duration> {
        None
    }

    /// The time that [`Sink::due`] gave has come. Too early does no harm.
    fn on_time(&mut self) {}

    /// Whether nothing that was taken is still under way. A host pauses only then.
    fn is_idle(&self) -> bool {
        true
    }
}

impl<T, F: FnMut(T) + Send + 'static> Sink<T> for F {
    fn take(&mut self, item: T) {
        self(item);
    }
}

/// A device and its sink, seen from the bus.
pub(crate) trait Attached<M>: Send {
    fn offer(&self) -> Offer;

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>);

    /// The next thing for the bus to do. Hands on what is not the bus's business.
    fn poll(&mut self) -> Option<ChannelOutput<Infallible>>;

    /// How long until [`Attached::on_time`] has something to do, if it has.
    fn due(&self, now: Duration) -> Option<Duration>;

    /// Does what is due, if anything is.
    fn on_time(&mut self, now: Duration);

    fn waits_for_room(&self) -> bool;

    fn is_quiet(&self) -> bool;

    fn is_idle(&self) -> bool;
}

/// A device that others may call as well.
pub(crate) struct Device<D, S> {
    pub(crate) device: Arc<Mutex<D>>,
    pub(crate) sink: S,
}

impl<M, D, S> Attached<M> for Device<D, S>
where
    M: GuestMemory,
    D: VmbusDevice<M> + Send,
    S: Sink<D::Work>,
{
    fn offer(&self) -> Offer {
        lock(&self.device).offer()
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<M>) {
        lock(&self.device).handle(now, event);
    }

    fn poll(&mut self) -> Option<ChannelOutput<Infallible>> {
        loop {
            // The sink may want the device: it is not locked while the sink works.
            let output = lock(&self.device).poll_output()?;
            return Some(match output {
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

    fn due(&self, now: Duration) -> Option<Duration> {
        let timeout = lock(&self.device).poll_timeout().map(|at| at.saturating_sub(now));
        [timeout, self.sink.due()].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Duration) {
        {
            let mut device = lock(&self.device);
            if device.poll_timeout().is_some_and(|at| at <= now) {
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
