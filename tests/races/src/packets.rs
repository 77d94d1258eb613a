//! Packets whose content both sides know, and random pauses.

use std::thread;
use std::time::{Duration, Instant};

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// The longest payload.
const LONGEST: usize = 1500;

/// Packets by number, which determines length and content.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
}

impl Packets {
    /// The same packets for both sides.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it costs something")]
    pub fn new() -> Self {
        let mut bytes = vec![0; 1 << 16];
        Pcg32::new(5, 8).fill_bytes(&mut bytes);
        Self { bytes }
    }

    /// The payload of a packet: three of four are short, so that many fit into a ring.
    #[must_use]
    pub fn payload(&self, id: u64) -> &[u8] {
        let mix = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes();
        let word = |at: usize| usize::from(u16::from_le_bytes([mix[at], mix[at + 1]]));
        let len = if word(0) % 4 == 0 { word(2) % LONGEST } else { word(2) % 100 };
        let start = word(4) % (self.bytes.len() - LONGEST);
        &self.bytes[start..start + len]
    }
}

/// Makes one side slower or faster than the other in turn.
#[derive(Debug)]
pub struct Pauses(Pcg32);

impl Pauses {
    /// Pauses that differ from those of another seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Pcg32::new(seed, 1))
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u32) -> bool {
        self.0.next_u32().is_multiple_of(times)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0.next_u32() % end
    }

    /// Usually does nothing; occasionally waits.
    pub fn pause(&mut self) {
        if self.one_in(1000) {
            thread::sleep(Duration::from_micros(self.below(50).into()));
        } else if self.one_in(50) {
            (0..self.below(300)).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// A limit on tests that take too long on a busy machine, in rounds and seconds.
#[derive(Debug)]
pub struct Bound {
    start: Instant,
    rounds: u64,
    seconds: u64,
}

impl Bound {
    /// A limit that counts from now.
    #[must_use]
    pub fn new(rounds: u64, seconds: u64) -> Self {
        Self { start: Instant::now(), rounds, seconds }
    }

    /// Whether to run the round with this number.
    #[must_use]
    pub fn allows(&self, round: u64) -> bool {
        // The clock is not read for each packet.
        round < self.rounds
            && (!round.is_multiple_of(256) || self.start.elapsed().as_secs() < self.seconds)
    }
}
