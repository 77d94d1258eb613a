//! Packets that both sides know, and pauses that nobody does.

use std::thread;
use std::time::{Duration, Instant};

use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// The longest payload.
const LONGEST: usize = 1500;

/// Packets by number: length and content follow from it.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
}

impl Packets {
    /// The same for both sides.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it costs something")]
    pub fn new() -> Self {
        let mut bytes = vec![0; 1 << 16];
        Pcg32::new(5, 8).fill_bytes(&mut bytes);
        Self { bytes }
    }

    /// The payload of a packet: three of four are short, so that many fit a ring.
    #[must_use]
    pub fn payload(&self, id: u64) -> &[u8] {
        let mix = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).to_le_bytes();
        let word = |at: usize| usize::from(u16::from_le_bytes([mix[at], mix[at + 1]]));
        let len = if word(0) % 4 == 0 { word(2) % LONGEST } else { word(2) % 100 };
        let start = word(4) % (self.bytes.len() - LONGEST);
        &self.bytes[start..start + len]
    }
}

/// Makes a side slower or faster than the other by turns.
#[derive(Debug)]
pub struct Pauses(Pcg32);

impl Pauses {
    /// Pauses that differ from those of another seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Pcg32::new(seed, 1))
    }

    /// Whether something happens that does once in `times`.
    pub fn one_in(&mut self, times: u32) -> bool {
        self.0.next_u32().is_multiple_of(times)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0.next_u32() % end
    }

    /// Mostly nothing; now and then some time passes.
    pub fn pause(&mut self) {
        if self.one_in(1000) {
            thread::sleep(Duration::from_micros(self.below(50).into()));
        } else if self.one_in(50) {
            (0..self.below(300)).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// Ends what takes too long on a busy machine: so many rounds, or so many seconds.
#[derive(Debug)]
pub struct Bound {
    start: Instant,
    rounds: u64,
    seconds: u64,
}

impl Bound {
    /// From now on.
    #[must_use]
    pub fn new(rounds: u64, seconds: u64) -> Self {
        Self { start: Instant::now(), rounds, seconds }
    }

    /// Whether there is to be a round of this number.
    #[must_use]
    pub fn allows(&self, round: u64) -> bool {
        // The clock is not asked for each packet.
        round < self.rounds
            && (!round.is_multiple_of(256) || self.start.elapsed().as_secs() < self.seconds)
    }
}
