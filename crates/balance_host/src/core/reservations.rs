//! Room for VMs about to start: who asked, for how long, and how it stands.

use balancer::{Pool, Reservation, Room};

use crate::status::ReservationStatus;

/// The most reservations at a time.
pub(super) const MOST: usize = 64;

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    size_kib: u64,
    ends_at_ms: u64,
    room: Room,
}

/// All reservations, in the order in which they were asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Reservations {
    entries: Vec<Entry>,
    last_id: u64,
}

impl Reservations {
    /// Adds one; its number, or `None` if there are too many.
    pub(super) fn add(&mut self, size_kib: u64, ends_at_ms: u64) -> Option<u64> {
        if self.entries.len() >= MOST {
            return None;
        }
        self.last_id = self.last_id.wrapping_add(1);
        let entry = Entry { id: self.last_id, size_kib, ends_at_ms, room: Room::Unknown };
        self.entries.push(entry);
        Some(self.last_id)
    }

    pub(super) fn withdraw(&mut self, id: u64) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.id != id);
        self.entries.len() < before
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        self.entries.retain(|entry| entry.ends_at_ms > now_ms);
    }

    /// A VM is there that was not: the reservation nearest to its size was for it, and from now on it is
    /// counted itself.
    pub(super) fn arrived(&mut self, actual_kib: u64) {
        let nearest = self.entries.iter().min_by_key(|entry| entry.size_kib.abs_diff(actual_kib));
        if let Some(id) = nearest.map(|entry| entry.id) {
            self.withdraw(id);
        }
    }

    pub(super) fn wishes(&self) -> Vec<Reservation> {
        let wish = |entry: &Entry| Reservation { size_kib: entry.size_kib, pool: Pool::Ordinary };
        self.entries.iter().map(wish).collect()
    }

    /// Takes in what the decision said.
    pub(super) fn settle(&mut self, rooms: &[Room]) {
        for (entry, room) in self.entries.iter_mut().zip(rooms) {
            entry.room = *room;
        }
    }

    pub(super) fn status(&self, now_ms: u64) -> impl Iterator<Item = ReservationStatus> {
        self.entries.iter().map(move |entry| ReservationStatus {
            id: entry.id,
            size_kib: entry.size_kib,
            ready: entry.room == Room::Ready,
            impossible: matches!(entry.room, Room::Impossible { .. }),
            state: entry.room.to_string(),
            ends_in_ms: entry.ends_at_ms.saturating_sub(now_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(reservations: &Reservations) -> Vec<u64> {
        reservations.status(0).map(|reservation| reservation.id).collect()
    }

    #[test]
    fn a_reservation_ends_with_its_time_or_with_the_vm_it_was_for() {
        let mut reservations = Reservations::default();
        for (size_kib, ends_at_ms) in [(100, 10), (400, 20), (200, 30)] {
            reservations.add(size_kib, ends_at_ms);
        }
        reservations.expire(10);
        assert_eq!(ids(&reservations), [2, 3]);
        reservations.arrived(250);
        assert_eq!(ids(&reservations), [2]);
        assert!(reservations.withdraw(2) && !reservations.withdraw(2));
        reservations.arrived(1);
        assert_eq!(ids(&reservations), [0; 0]);
    }

    #[test]
    fn there_is_a_most() {
        let mut reservations = Reservations::default();
        for id in 1..=MOST as u64 {
            assert_eq!(reservations.add(1, 1), Some(id));
        }
        assert_eq!(reservations.add(1, 1), None);
    }
}
