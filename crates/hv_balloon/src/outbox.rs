//! Messages on their way to the ring.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dynmem_protocol::{HostMessage, MAX_HOST_MESSAGE};

use crate::saved::{self, ensure};

/// The most messages that wait. The device has one request at a time; the rest are answers to a
/// guest that keeps asking without reading.
const CAPACITY: usize = 8;

/// The waiting messages, and the one with the driver.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    /// The message with the driver, if `with_driver`.
    current: Vec<u8>,
    with_driver: bool,
    /// Buffers of sent messages, for reuse.
    spare: Vec<Vec<u8>>,
}

/// The outbox has no room for another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Outbox {
    /// Queues the message that `emit` writes into an empty buffer.
    pub(crate) fn push(&mut self, emit: impl FnOnce(&mut Vec<u8>)) -> Result<(), Full> {
        if self.waiting.len() >= CAPACITY {
            return Err(Full);
        }
        let mut message = self.spare.pop().unwrap_or_default();
        message.clear();
        emit(&mut message);
        self.waiting.push_back(message);
        Ok(())
    }

    /// Hands the next message to the driver; returns false if there is none, or if the driver has
    /// not sent the one before.
    pub(crate) fn poll(&mut self) -> bool {
        if self.with_driver {
            return false;
        }
        let Some(message) = self.waiting.pop_front() else { return false };
        self.spare.push(core::mem::replace(&mut self.current, message));
        self.with_driver = true;
        true
    }

    /// The message with the driver.
    pub(crate) fn current(&self) -> Option<&[u8]> {
        self.with_driver.then_some(&*self.current)
    }

    /// The driver has sent its message.
    pub(crate) const fn sent(&mut self) {
        self.with_driver = false;
    }

    /// The messages that are not yet in the ring, the driver's first.
    pub(crate) fn save(&self) -> Vec<Vec<u8>> {
        let waiting = self.waiting.iter().map(Vec::as_slice);
        self.current().into_iter().chain(waiting).map(<[u8]>::to_vec).collect()
    }

    /// Restores an outbox in which all of these messages wait.
    pub(crate) fn restore(saved: &[Vec<u8>]) -> saved::Result<Self> {
        // Messages are multiples of 8 bytes, so that the ring adds no padding.
        let is_message = |bytes: &Vec<u8>| {
            bytes.len() <= MAX_HOST_MESSAGE
                && bytes.len().is_multiple_of(8)
                && HostMessage::parse(bytes).is_ok()
        };
        ensure(saved.iter().all(is_message), "a message that the protocol does not have")?;
        ensure(saved.len() <= CAPACITY.saturating_add(1), "too many messages")?;
        Ok(Self { waiting: saved.iter().cloned().collect(), ..Self::default() })
    }

    /// Whether all messages are in the ring.
    pub(crate) fn is_idle(&self) -> bool {
        !self.with_driver && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(messages: &[u8]) -> Outbox {
        let mut outbox = Outbox::default();
        for byte in messages {
            outbox.push(|message| message.push(*byte)).unwrap();
        }
        outbox
    }

    #[test]
    fn the_driver_has_one_message_at_a_time() {
        let mut outbox = outbox(&[1, 2]);
        assert_eq!(outbox.current(), None);
        assert!(outbox.poll());
        assert!(!outbox.poll());
        assert_eq!(outbox.current(), Some(&[1][..]));
        outbox.sent();
        assert_eq!(outbox.current(), None);
        assert!(outbox.poll());
        assert_eq!(outbox.current(), Some(&[2][..]));
        assert!(!outbox.is_idle());
        outbox.sent();
        assert!(outbox.is_idle());
    }

    #[test]
    fn a_full_outbox_refuses() {
        let mut outbox = Outbox::default();
        let pushed = core::iter::repeat_with(|| outbox.push(|_| ())).take_while(Result::is_ok);
        assert_eq!(pushed.count(), CAPACITY);
        assert!(outbox.poll());
        assert_eq!(outbox.push(|_| ()), Ok(()));
    }

    #[test]
    fn buffers_are_used_again_and_never_more_than_fit() {
        let mut outbox = outbox(&[1]);
        for byte in 0..100 {
            outbox.push(|message| message.push(byte)).unwrap();
            assert!(outbox.poll());
            outbox.sent();
        }
        assert!(outbox.spare.len() <= 2, "{}", outbox.spare.len());
    }
}
