//! Reasons to leave guest memory alone.

use std::fmt;

/// Why the host must not discard guest memory for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Inhibit {
    /// A device is passed through and has the guest's memory pinned (VFIO): a page that is discarded
    /// and touched again would be another one than the device's.
    Passthrough,
    /// The guest runs while its memory still arrives from another host (postcopy).
    Postcopy,
    /// The guest's memory is being saved while the guest runs.
    Snapshot,
    /// Whatever else the VMM does.
    Other,
}

impl Inhibit {
    const ALL: [Self; 4] = [Self::Passthrough, Self::Postcopy, Self::Snapshot, Self::Other];
}

impl fmt::Display for Inhibit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "a device is passed through",
            Self::Postcopy => "the guest's memory is still arriving",
            Self::Snapshot => "the guest's memory is being saved",
            Self::Other => "the VMM forbids it",
        })
    }
}

/// How many inhibitors there are of each reason.
#[derive(Debug, Default)]
pub(super) struct Inhibits([u32; Inhibit::ALL.len()]);

impl Inhibits {
    /// Adds one; true for the first of all.
    pub(super) fn add(&mut self, why: Inhibit) -> bool {
        let was_empty = self.is_empty();
        self.0[why as usize] += 1;
        was_empty
    }

    /// Removes one; true for the last of all.
    pub(super) fn remove(&mut self, why: Inhibit) -> bool {
        self.0[why as usize] -= 1;
        self.is_empty()
    }

    pub(super) fn reasons(&self) -> Vec<Inhibit> {
        Inhibit::ALL.into_iter().filter(|why| self.0[*why as usize] > 0).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_count() {
        let mut inhibits = Inhibits::default();
        assert!(inhibits.add(Inhibit::Snapshot));
        assert!(!inhibits.add(Inhibit::Passthrough));
        assert!(!inhibits.add(Inhibit::Passthrough));
        assert!(!inhibits.remove(Inhibit::Snapshot));
        assert_eq!(inhibits.reasons(), [Inhibit::Passthrough]);
        assert!(!inhibits.remove(Inhibit::Passthrough));
        assert!(inhibits.remove(Inhibit::Passthrough));
        assert_eq!(inhibits.reasons(), []);
    }
}
