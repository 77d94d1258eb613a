//! The newest events of one thread.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use vmbus_kvm::Trace;

/// Events in a ring.
const CAPACITY: usize = 1024;

/// Why a vCPU came out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The serial port was read or written; one character takes several accesses.
    Serial,
    /// A port was read.
    PortIn(u16),
    /// A port was written.
    PortOut(u16),
    /// An address where there is no memory was read.
    MmioRead(u64),
    /// An address where there is no memory was written.
    MmioWrite(u64),
    /// The SynIC, or a hypercall.
    Hyperv,
    /// The guest is idle, and KVM leaves the waiting to the VMM.
    Halted,
    /// A signal: another thread needs this one.
    Interrupted,
    /// The guest resets itself, or ends.
    SystemEvent,
    /// An exit that this VMM does not know, or a failure to enter the guest.
    Failed,
}

/// An entry of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Exit(Exit),
    Bus(Trace),
}

/// An event, and how many times in a row it occurred.
#[derive(Clone, Copy, Debug)]
struct Entry {
    first: Duration,
    last: Duration,
    times: u32,
    event: Event,
}

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    /// When the vCPU entered the guest.
    entered: Option<Duration>,
}

impl Ring {
    pub(super) fn entering(&mut self, now: Duration) {
        self.entered = Some(now);
    }

    pub(super) fn exited(&mut self, now: Duration, exit: Exit) {
        self.entered = None;
        self.push(now, Event::Exit(exit));
    }

    pub(super) fn push(&mut self, now: Duration, event: Event) {
        if let Some(newest) = self.entries.back_mut().filter(|newest| newest.event == event) {
            newest.last = now;
            newest.times = newest.times.saturating_add(1);
            return;
        }
        if self.entries.len() == CAPACITY {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { first: now, last: now, times: 1, event });
    }

    pub(super) const fn in_guest_since(&self) -> Option<Duration> {
        self.entered
    }

    /// The newest `count` events, oldest first.
    pub(super) fn lines(&self, count: usize) -> Vec<String> {
        let surplus = self.entries.len().saturating_sub(count);
        self.entries.iter().skip(surplus).map(Entry::to_string).collect()
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, times, event } = self;
        write!(f, "{:.6} {event}", first.as_secs_f64())?;
        match times {
            1 => Ok(()),
            _ => write!(f, ", {times} times until {:.6}", last.as_secs_f64()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(exit) => exit.fmt(f),
            Self::Bus(trace) => trace.fmt(f),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial => f.write_str("serial port"),
            Self::PortIn(port) => write!(f, "port {port:#x} read"),
            Self::PortOut(port) => write!(f, "port {port:#x} written"),
            Self::MmioRead(at) => write!(f, "MMIO {at:#x} read"),
            Self::MmioWrite(at) => write!(f, "MMIO {at:#x} written"),
            Self::Hyperv => f.write_str("Hyper-V exit"),
            Self::Halted => f.write_str("halted"),
            Self::Interrupted => f.write_str("interrupted by a signal"),
            Self::SystemEvent => f.write_str("system event"),
            Self::Failed => f.write_str("failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn repetitions_are_counted() {
        let mut ring = Ring::default();
        for second in 1..=3 {
            ring.exited(second * SECOND, Exit::Serial);
        }
        ring.exited(4 * SECOND, Exit::Halted);
        assert_eq!(
            ring.lines(9),
            ["1.000000 serial port, 3 times until 3.000000", "4.000000 halted"]
        );
    }

    #[test]
    fn the_newest_events_stay() {
        let mut ring = Ring::default();
        for port in 0..5000 {
            ring.exited(SECOND, Exit::PortIn(port));
        }
        let lines = ring.lines(usize::MAX);
        assert_eq!((lines.len(), lines[0].as_str()), (CAPACITY, "1.000000 port 0xf88 read"));
        assert_eq!(ring.lines(1), ["1.000000 port 0x1387 read"]);
    }
}
