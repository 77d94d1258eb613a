//! Messages on their way to the ring.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The most messages that wait. The device itself has one at a time; answers to a guest that asks
/// and does not read make up the rest.
const CAPACITY: usize = 8;

/// Messages waiting, and whether the driver has one.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    with_driver: bool,
}

/// No room for another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Outbox {
    pub(crate) fn push(&mut self, message: Vec<u8>) -> Result<(), Full> {
        if self.waiting.len() >= CAPACITY {
            return Err(Full);
        }
        self.waiting.push_back(message);
        Ok(())
    }

    /// The next message for the driver, once it is done with the one before.
    pub(crate) fn poll(&mut self) -> Option<Vec<u8>> {
        if self.with_driver {
            return None;
        }
        let message = self.waiting.pop_front()?;
        self.with_driver = true;
        Some(message)
    }

    /// The driver is done with its message.
    pub(crate) const fn sent(&mut self) {
        self.with_driver = false;
    }

    /// Whether all messages are in the ring.
    pub(crate) fn is_idle(&self) -> bool {
        !self.with_driver && self.waiting.is_empty()
    }

    /// Forgets everything: the ring is gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn the_driver_has_one_message_at_a_time() {
        let mut outbox = Outbox::default();
        outbox.push(vec![1]).unwrap();
        outbox.push(vec![2]).unwrap();
        assert_eq!(outbox.poll(), Some(vec![1]));
        assert_eq!(outbox.poll(), None);
        outbox.sent();
        assert_eq!(outbox.poll(), Some(vec![2]));
        assert!(!outbox.is_idle());
        outbox.sent();
        assert!(outbox.is_idle());
    }

    #[test]
    fn a_full_outbox_refuses() {
        let mut outbox = Outbox::default();
        let pushed = core::iter::repeat_with(|| outbox.push(vec![])).take_while(Result::is_ok);
        assert_eq!(pushed.count(), CAPACITY);
        outbox.clear();
        assert_eq!(outbox.push(vec![]), Ok(()));
    }
}
