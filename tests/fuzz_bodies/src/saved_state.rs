//! Saved state of any content: refused with a reason, or a state that can resume, keeps all
//! invariants, and can be saved and restored again at any time.

mod device;

use hv_balloon::SavedDevice;
use saved_state::{Format, SavedState};
use vmbus::ring::SavedRings;
use vmbus::{SavedServer, Server};

use crate::{rings, vmbus_messages};

/// Bit of the first byte: the state has its own header and checksum. Without it they are added, so
/// that the fuzzer gets past them.
const IS_FRAMED: u8 = 0x80;

/// Decodes from `data` the object to restore, the length of the steps after it in units of two, the
/// steps, and the state.
pub(crate) fn run(data: &[u8]) {
    let &[kind, length, ref rest @ ..] = data else { return };
    let (steps, state) = rest.split_at(rest.len().min(2 * usize::from(length)));
    let framed = |format: Format| match kind & IS_FRAMED {
        0 => format.frame(1, state),
        _ => state.to_vec(),
    };
    match kind % 8 {
        // From a fresh state, saved and restored between steps.
        0 => vmbus_messages::go_on(rest, None),
        1 => rings::go_on(rest, None, true),
        2 => server(&framed(SavedServer::FORMAT), steps),
        3 => match SavedRings::from_bytes(&framed(SavedRings::FORMAT)) {
            Ok(saved) => rings::go_on(steps, Some(&saved), kind & 8 != 0),
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        machine => device::run(machine, &framed(SavedDevice::FORMAT), steps),
    }
}

fn server(saved: &[u8], steps: &[u8]) {
    let saved = match SavedServer::from_bytes(saved) {
        Ok(saved) => saved,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    match Server::restore(vmbus_messages::SAVED_CONFIG, &saved) {
        Ok(server) => vmbus_messages::go_on(steps, Some(server)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
