//! `HvPostMessage`, `HvSignalEvent` (TLFS 11.8) and extended hypercalls, decoded from a hypercall exit.

use std::ops::RangeInclusive;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

pub use crate::extended::ExtendedCall;

/// Call code of `HvPostMessage`.
const POST_MESSAGE: u64 = 0x5c;
/// Call code of `HvSignalEvent`.
const SIGNAL_EVENT: u64 = 0x5d;
/// Call codes of extended hypercalls: `HvExtCallQueryCapabilities`, and one for each bit of its
/// answer.
const EXTENDED: RangeInclusive<u64> = 0x8001..=0x8041;

/// Bit of the control word that says that the input is in registers.
pub(crate) const FAST: u64 = 1 << 16;

/// The most payload bytes in a message.
pub const MAX_PAYLOAD: usize = 240;

/// VMBus's message type; nothing else is sent to a VMBus connection.
const VMBUS_MESSAGE_TYPE: u32 = 1;

/// Connection ids have 24 bits; the rest of the word is reserved.
const CONNECTION_ID: u32 = 0x00ff_ffff;

/// Status of a hypercall, bits 0 to 15 of its result (TLFS appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// Success.
    pub const SUCCESS: Self = Self(0);
    /// No such call.
    pub const INVALID_CODE: Self = Self(2);
    /// Reserved bits are set, or the call does not support this form.
    pub const INVALID_INPUT: Self = Self(3);
    /// The input is not aligned.
    pub const INVALID_ALIGNMENT: Self = Self(4);
    /// A field is out of range.
    pub const INVALID_PARAMETER: Self = Self(5);
    /// No such port.
    pub const INVALID_PORT_ID: Self = Self(17);
    /// No such connection.
    pub const INVALID_CONNECTION_ID: Self = Self(18);
    /// The queue is full; the caller should try again.
    pub const INSUFFICIENT_BUFFERS: Self = Self(19);

    /// The result value of a hypercall with this status.
    #[must_use]
    pub fn result(self) -> u64 {
        self.0.into()
    }

    /// The result value of a rep hypercall with this status, of which the reps before `completed`,
    /// at most 4095, are done (TLFS 3.8).
    #[must_use]
    pub fn result_of_reps(self, completed: u16) -> u64 {
        self.result() | u64::from(completed & 0xfff) << 32
    }
}

/// A hypercall, with its input copied out of guest memory and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// `HvPostMessage`.
    PostMessage {
        /// The connection, 24 bits.
        connection_id: u32,
        /// At most [`MAX_PAYLOAD`] bytes.
        payload: Vec<u8>,
    },
    /// `HvSignalEvent`, flag 0.
    SignalEvent {
        /// The connection, 24 bits.
        connection_id: u32,
    },
    /// An extended hypercall, of which only the form was checked.
    Extended(ExtendedCall),
}

/// The call code in a hypercall's control word (TLFS 3.10).
#[must_use]
pub const fn call_code(control: u64) -> u16 {
    let [low, high, ..] = control.to_le_bytes();
    u16::from_le_bytes([low, high])
}

impl Hypercall {
    /// Decodes a hypercall exit.
    ///
    /// # Errors
    /// The status with which to answer the hypercall.
    pub fn decode<M: GuestMemory>(
        memory: &M,
        control: u64,
        parameters: [u64; 2],
    ) -> Result<Self, Status> {
        match u64::from(call_code(control)) {
            POST_MESSAGE => post_message(memory, control, parameters[0]),
            SIGNAL_EVENT => signal_event(parameters[0]),
            code if EXTENDED.contains(&code) => {
                ExtendedCall::decode(control, parameters).map(Hypercall::Extended)
            }
            _ => Err(Status::INVALID_CODE),
        }
    }
}

fn post_message<M: GuestMemory>(memory: &M, control: u64, gpa: u64) -> Result<Hypercall, Status> {
    if control & FAST != 0 {
        return Err(Status::INVALID_INPUT);
    }
    if !gpa.is_multiple_of(8) {
        return Err(Status::INVALID_ALIGNMENT);
    }
    let mut input = [0; 16 + MAX_PAYLOAD];
    memory.read_slice(&mut input, GuestAddress(gpa)).map_err(|_| Status::INVALID_PARAMETER)?;
    // Other VPs may write there at any time, so only the copy is checked and used. The fence keeps
    // the compiler from reading the guest's page again instead.
    fence(Ordering::Acquire);
    let word = |offset: usize| {
        input
            .get(offset..offset + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    let payload = usize::try_from(word(12))
        .ok()
        .and_then(|length| input[16..].get(..length))
        .ok_or(Status::INVALID_PARAMETER)?;
    if word(8) != VMBUS_MESSAGE_TYPE {
        return Err(Status::INVALID_INPUT);
    }
    Ok(Hypercall::PostMessage { connection_id: word(0) & CONNECTION_ID, payload: payload.to_vec() })
}

/// The first parameter holds the call's eight bytes in both forms: for the slow form, KVM loads
/// them before it finds that it does not know the connection (Linux `kvm/hyperv.c`).
fn signal_event(input: u64) -> Result<Hypercall, Status> {
    let [id0, id1, id2, id3, flag0, flag1, reserved0, reserved1] = input.to_le_bytes();
    if (reserved0, reserved1) != (0, 0) {
        return Err(Status::INVALID_INPUT);
    }
    if (flag0, flag1) != (0, 0) {
        return Err(Status::INVALID_PORT_ID);
    }
    let connection_id = u32::from_le_bytes([id0, id1, id2, id3]) & CONNECTION_ID;
    Ok(Hypercall::SignalEvent { connection_id })
}

/// Loads a guest word that other processors write, for callers that poll it.
pub(crate) fn load<M: GuestMemory>(memory: &M, gpa: u64) -> Option<u32> {
    memory.load(GuestAddress(gpa), Ordering::Acquire).ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap()
    }

    fn post(length: u32, message_type: u32) -> Result<Hypercall, Status> {
        let memory = memory();
        for (offset, word) in [(0, 4), (8, message_type), (12, length), (16, 14)] {
            memory.write_obj::<u32>(word, GuestAddress(0x1000 + offset)).unwrap();
        }
        Hypercall::decode(&memory, 0x5c, [0x1000, 0])
    }

    #[test]
    fn a_message_is_copied_out_with_its_connection() {
        let expected =
            Hypercall::PostMessage { connection_id: 4, payload: vec![14, 0, 0, 0, 0, 0, 0, 0] };
        assert_eq!(post(8, 1), Ok(expected));
    }

    #[test]
    fn a_bad_message_gets_its_status() {
        assert_eq!(post(241, 1), Err(Status::INVALID_PARAMETER));
        assert_eq!(post(u32::MAX, 1), Err(Status::INVALID_PARAMETER));
        assert_eq!(post(8, 2), Err(Status::INVALID_INPUT));
        let memory = memory();
        let decode = |control, gpa| Hypercall::decode(&memory, control, [gpa, 0]);
        assert_eq!(decode(0x5c, 0x1004), Err(Status::INVALID_ALIGNMENT));
        assert_eq!(decode(0x5c, 0x1f08), Err(Status::INVALID_PARAMETER));
        assert_eq!(decode(0x5c, u64::MAX - 7), Err(Status::INVALID_PARAMETER));
        assert_eq!(decode(0x1_005c, 0x1000), Err(Status::INVALID_INPUT));
        assert_eq!(decode(0x46, 0), Err(Status::INVALID_CODE));
    }

    #[test]
    fn a_signal_carries_its_value_in_both_forms() {
        let memory = memory();
        let decode = |control, input| Hypercall::decode(&memory, control, [input, 0]);
        let signal = Ok(Hypercall::SignalEvent { connection_id: 17 });
        assert_eq!(decode(0x1_005d, 17), signal);
        assert_eq!(decode(0x5d, 17), signal);
        assert_eq!(decode(0x5d, 1 << 32 | 17), Err(Status::INVALID_PORT_ID));
        assert_eq!(decode(0x5d, 1 << 48 | 17), Err(Status::INVALID_INPUT));
    }
}
