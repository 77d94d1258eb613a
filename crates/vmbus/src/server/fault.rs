//! Counters of guest faults.

use serde::{Deserialize, Serialize};

/// Number of guest faults by class since the server was created. Counters saturate. They are saved in
/// this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Faults {
    /// Messages with unknown numbers, and numbers that the negotiated version does not have.
    pub unknown_messages: u64,
    /// Messages that are truncated or too long.
    pub malformed_messages: u64,
    /// Messages posted to connection IDs without a port. Newer guests probe for the port this way.
    pub unknown_connections: u64,
    /// Messages outside a connection, and requests that are repeated or too early.
    pub out_of_state: u64,
    /// Messages about channels that are not offered.
    pub unknown_channels: u64,
    /// INITIATE_CONTACT for unsupported versions, VPs, SINTs or VTLs. Newer guests probe for the
    /// version this way.
    pub contacts_refused: u64,
    /// GPADLs with impossible lists, with pages outside memory, with an ID in use, or over a limit.
    pub gpadls_refused: u64,
    /// GPADL_BODY and GPADL_TEARDOWN for GPADLs that are not being built, or do not exist.
    pub unknown_gpadls: u64,
    /// OPEN with invalid GPADLs, geometries or VPs, or of open channels; and OPEN_RESERVED.
    pub opens_refused: u64,
    /// MODIFYCHANNEL for nonexistent VPs, or for channels that are not open.
    pub changes_refused: u64,
    /// Messages refused, to be posted again, because the guest does not take the answers.
    pub queue_full: u64,
}

/// Increments a counter.
pub(super) const fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stop_at_the_top() {
        let mut faults = Faults { queue_full: u64::MAX - 1, ..Faults::default() };
        for _ in 0..3 {
            count(&mut faults.queue_full);
        }
        assert_eq!(faults.queue_full, u64::MAX);
    }
}
