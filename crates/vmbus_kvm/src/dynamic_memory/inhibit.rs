//! Reasons not to discard guest memory.

use std::fmt;

/// Why the host must not discard guest memory for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Inhibit {
    /// A device is passed through and has the guest's memory pinned (VFIO). If a page were
    /// discarded and touched again, guest and device would use different pages.
    Passthrough,
    /// The guest runs while its memory still arrives from another host (postcopy).
    Postcopy,
    /// The guest's memory is being saved while the guest runs.
    Snapshot,
    /// Another reason of the VMM's.
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

/// The number of inhibitors for each reason.
#[derive(Debug, Default)]
pub(super) struct Inhibits([u32; Inhibit::ALL.len()]);

impl Inhibits {
    pub(super) fn add(&mut self, why: Inhibit) {
        self.0[why as usize] += 1;
    }

    pub(super) fn remove(&mut self, why: Inhibit) {
        self.0[why as usize] -= 1;
    }

    pub(super) fn reasons(&self) -> Vec<Inhibit> {
        Inhibit::ALL.into_iter().filter(|why| self.0[*why as usize] > 0).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_as_long_as_one_of_them_is_there() {
        let mut inhibits = Inhibits::default();
        inhibits.add(Inhibit::Snapshot);
        inhibits.add(Inhibit::Passthrough);
        inhibits.add(Inhibit::Passthrough);
        inhibits.remove(Inhibit::Snapshot);
        assert_eq!(inhibits.reasons(), [Inhibit::Passthrough]);
        inhibits.remove(Inhibit::Passthrough);
        assert!(!inhibits.is_empty());
        inhibits.remove(Inhibit::Passthrough);
        assert!(inhibits.is_empty());
    }
}
