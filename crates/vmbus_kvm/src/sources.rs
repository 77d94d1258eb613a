//! The event sources of the bus thread.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmbus::protocol::VpIndex;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// The most events taken from the kernel at a time.
const EVENTS: usize = 32;

/// The origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Another thread.
    Wake,
    /// The guest's signals to the device with this number.
    Signal(u32),
    /// Acknowledged interrupts of a VP.
    Acknowledged(VpIndex),
}

impl Source {
    const SIGNAL: u64 = 1 << 32;
    const ACKNOWLEDGED: u64 = 2 << 32;

    fn to_data(self) -> u64 {
        match self {
            Self::Wake => 0,
            Self::Signal(device) => Self::SIGNAL | u64::from(device),
            Self::Acknowledged(vp) => Self::ACKNOWLEDGED | u64::from(vp.get()),
        }
    }

    fn from_data(data: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let number = data as u32;
        match data & !u64::from(u32::MAX) {
            Self::SIGNAL => Self::Signal(number),
            Self::ACKNOWLEDGED => Self::Acknowledged(VpIndex::new(number)),
            _ => Self::Wake,
        }
    }
}

/// An epoll instance and the events it found.
pub(crate) struct Sources {
    epoll: Epoll,
    events: [EpollEvent; EVENTS],
}

impl Sources {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, events: [EpollEvent::default(); EVENTS] })
    }

    /// Starts to wait for `eventfd`. The kernel may refuse, since a user's event sources are
    /// limited.
    pub(crate) fn add(&self, eventfd: &EventFd, source: Source) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, source.to_data());
        self.epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
    }

    /// Stops waiting for `eventfd`.
    pub(crate) fn remove(&self, eventfd: &EventFd) {
        // Fails only if it was never added.
        let _ =
            self.epoll.ctl(ControlOperation::Delete, eventfd.as_raw_fd(), EpollEvent::default());
    }

    /// Waits for events, for at most `timeout`.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Source> + use<>> {
        // Rounded up, since waking a millisecond early would waste a turn.
        let timeout = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let count = match self.epoll.wait(timeout, &mut self.events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        Ok(self.events.into_iter().take(count).map(|event| Source::from_data(event.data())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_keep_their_numbers() {
        let vp = VpIndex::new(u32::MAX);
        for source in [Source::Wake, Source::Signal(7), Source::Acknowledged(vp)] {
            assert_eq!(Source::from_data(source.to_data()), source);
        }
    }
}
