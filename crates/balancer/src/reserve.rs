//! Room for a VM that is about to start.
//!
//! The room is taken from what others have beyond demand and buffer, then from their buffers, and
//! never from what they need. A reservation that cannot be met takes nothing from anyone. Withdraw
//! a reservation when the VM it was for is there: from then on that VM is counted itself.

use core::fmt;

use crate::sample::Pool;
use crate::size::Size;

/// A wish for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// How much room.
    pub size_kib: u64,
    /// Where.
    pub pool: Pool,
}

/// How a reservation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The memory is free, and kept free: start the VM.
    Ready,
    /// The others are giving it.
    Waiting {
        /// What they have still to give.
        missing_kib: u64,
    },
    /// Others need the memory, or there is not that much.
    Impossible {
        /// What could be had now.
        most_kib: u64,
    },
    /// Nothing is known of the host.
    Unknown,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("The memory is free."),
            Self::Waiting { missing_kib } => {
                write!(f, "{} are still to come from other VMs.", Size(*missing_kib))
            }
            Self::Impossible { most_kib } => write!(
                f,
                "At most {} can be had without taking what other VMs need.",
                Size(*most_kib)
            ),
            Self::Unknown => f.write_str("The host's figures are missing or too old."),
        }
    }
}

/// Books reservations of one pool: those that fit into `spare_kib`, what nobody needs, in their
/// order. Returns the sum.
pub(crate) fn book(
    pool: Pool,
    mut spare_kib: u64,
    reservations: &[Reservation],
    rooms: &mut [Room],
) -> u64 {
    let mut booked = 0u64;
    for (wish, room) in reservations.iter().zip(rooms).filter(|(wish, _)| wish.pool == pool) {
        match spare_kib.checked_sub(wish.size_kib) {
            Some(rest) => {
                spare_kib = rest;
                booked = booked.saturating_add(wish.size_kib);
                *room = Room::Ready;
            }
            None => *room = Room::Impossible { most_kib: spare_kib },
        }
    }
    booked
}

/// Says which of the booked reservations have their memory, of `free_kib` that no VM has.
pub(crate) fn settle(
    pool: Pool,
    mut free_kib: u64,
    reservations: &[Reservation],
    rooms: &mut [Room],
) {
    for (wish, room) in reservations.iter().zip(rooms).filter(|(wish, _)| wish.pool == pool) {
        if *room != Room::Ready {
            continue;
        }
        let missing_kib = wish.size_kib.saturating_sub(free_kib);
        free_kib = free_kib.saturating_sub(wish.size_kib);
        if missing_kib > 0 {
            *room = Room::Waiting { missing_kib };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_met_in_order_and_large_ones_are_refused() {
        let wish = |size_kib| Reservation { size_kib, pool: Pool::Ordinary };
        let wishes = [wish(60), wish(50), wish(40)];
        let mut rooms = [Room::Unknown; 3];
        assert_eq!(book(Pool::Ordinary, 100, &wishes, &mut rooms), 100);
        settle(Pool::Ordinary, 70, &wishes, &mut rooms);
        let impossible = Room::Impossible { most_kib: 40 };
        assert_eq!(rooms, [Room::Ready, impossible, Room::Waiting { missing_kib: 30 }]);
    }

    #[test]
    fn other_pools_are_left_alone() {
        let wishes = [Reservation { size_kib: 1, pool: Pool::HugePages }];
        let mut rooms = [Room::Unknown];
        assert_eq!(book(Pool::Ordinary, 100, &wishes, &mut rooms), 0);
        assert_eq!(rooms, [Room::Unknown]);
    }
}
