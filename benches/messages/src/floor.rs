//! The floor: a bare copy in and out, which no ring can beat.

/// A ring that is nothing but a copy in and a copy out, for messages of one size: no descriptor, no
/// index that another side reads, no check, no signal.
#[derive(Debug)]
pub struct Floor {
    ring: Vec<u8>,
    message: usize,
    write: usize,
    read: usize,
}

impl Floor {
    /// A ring of about `ring` bytes for messages of `message` bytes.
    ///
    /// # Panics
    /// If `message` is zero.
    #[must_use]
    pub fn new(ring: usize, message: usize) -> Self {
        Self { ring: vec![0; ring / message * message], message, write: 0, read: 0 }
    }

    /// How many messages fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.len() / self.message
    }

    /// Copies a message in.
    ///
    /// # Panics
    /// If `message` does not have the size.
    pub fn put(&mut self, message: &[u8]) {
        let end = self.write + self.message;
        self.ring[self.write..end].copy_from_slice(message);
        self.write = if end == self.ring.len() { 0 } else { end };
    }

    /// Copies the next message out.
    ///
    /// # Panics
    /// If `message` does not have the size.
    pub fn take(&mut self, message: &mut [u8]) {
        let end = self.read + self.message;
        message.copy_from_slice(&self.ring[self.read..end]);
        self.read = if end == self.ring.len() { 0 } else { end };
    }
}
