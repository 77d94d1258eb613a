//! Extended hypercalls: their form, their input and their output.
//!
//! KVM leaves the calls 0x8001 to 0x8041 to the VMM (Linux 6.3 and later, `kvm/hyperv.c`), whether or
//! not the guest was [offered](crate::cpuid::offer_extended_hypercalls) them.

use std::ops::Range;

use page_range::{Gpa, PAGE_SIZE};
use vm_memory::GuestMemoryBackend;
use vmbus::GuestMemory;

use crate::hypercall::{FAST, Status, call_code};
use crate::memory::GuestBusMemory;

/// Bits of the control word that are reserved, or belong to forms that no extended hypercall has: a
/// header of variable size, and a call on behalf of a nested hypervisor (TLFS 3.7).
const RESERVED: u64 = 0xffff << 16 & !FAST | 0xf << 44 | 0xf << 60;

/// The bits of a rep count and a rep start.
const REPS: u64 = 0xfff;

/// An extended hypercall. Nothing of its input has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCall {
    /// The call code.
    pub code: u16,
    rep_count: u16,
    rep_start: u16,
    input: Gpa,
    output: Gpa,
}

impl ExtendedCall {
    pub(crate) fn decode(control: u64, parameters: [u64; 2]) -> Result<Self, Status> {
        if control & (FAST | RESERVED) != 0 {
            return Err(Status::INVALID_INPUT);
        }
        let reps = |shift: u32| u16::try_from(control >> shift & REPS).unwrap_or_default();
        let [input, output] = parameters.map(Gpa::new);
        let (rep_count, rep_start) = (reps(32), reps(48));
        Ok(Self { code: call_code(control), rep_count, rep_start, input, output })
    }

    /// Checks that the guest does not ask for reps of a call that has none.
    ///
    /// # Errors
    /// [`Status::INVALID_INPUT`].
    pub fn simple(&self) -> Result<(), Status> {
        match (self.rep_count, self.rep_start) {
            (0, 0) => Ok(()),
            _ => Err(Status::INVALID_INPUT),
        }
    }

    /// The reps that the guest asks for: at least one, and at most 4095 with those before.
    ///
    /// # Errors
    /// [`Status::INVALID_INPUT`] if there are none.
    pub fn reps(&self) -> Result<Range<u16>, Status> {
        let reps = self.rep_start..self.rep_count;
        if reps.is_empty() { Err(Status::INVALID_INPUT) } else { Ok(reps) }
    }

    /// Copies the input of `len` bytes out of guest memory, once.
    ///
    /// # Errors
    /// [`Status::INVALID_ALIGNMENT`] if it is not aligned to 8 bytes, not in one page, or not in the
    /// guest's memory (TLFS, common hypercall status codes).
    pub fn read_input<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        len: usize,
    ) -> Result<Vec<u8>, Status> {
        let mut input = vec![0; check_place(self.input, len)?];
        let memory = GuestBusMemory::new(memory);
        memory.read(self.input, &mut input).map_err(|_| Status::INVALID_ALIGNMENT)?;
        Ok(input)
    }

    /// Writes the output to guest memory.
    ///
    /// # Errors
    /// As [`ExtendedCall::read_input`].
    pub fn write_output<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        output: &[u8],
    ) -> Result<(), Status> {
        check_place(self.output, output.len())?;
        let memory = GuestBusMemory::new(memory);
        memory.write(self.output, output).map_err(|_| Status::INVALID_ALIGNMENT)
    }
}

/// Whether a parameter list of `len` bytes may be at `gpa`; returns `len`.
fn check_place(gpa: Gpa, len: usize) -> Result<usize, Status> {
    let room = PAGE_SIZE - gpa.page_offset();
    let fits = u64::try_from(len).is_ok_and(|len| len <= room);
    if gpa.get().is_multiple_of(8) && fits { Ok(len) } else { Err(Status::INVALID_ALIGNMENT) }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::hypercall::Hypercall;

    fn decode(control: u64, parameters: [u64; 2]) -> Result<ExtendedCall, Status> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        match Hypercall::decode(&memory, control, parameters)? {
            Hypercall::Extended(call) => Ok(call),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_control_word_says_which_reps_are_wanted() {
        let call = decode(3 << 48 | 32 << 32 | 0x8003, [0x1000, 0]).unwrap();
        assert_eq!((call.code, call.reps(), call.simple()), (0x8003, Ok(3..32), Err(Status(3))));
        let call = decode(0x8001, [0, 0x1000]).unwrap();
        assert_eq!((call.reps(), call.simple()), (Err(Status(3)), Ok(())));
        // The start is not below the count.
        let call = decode(32 << 48 | 32 << 32 | 0x8003, [0x1000, 0]).unwrap();
        assert_eq!(call.reps(), Err(Status::INVALID_INPUT));
    }

    #[test]
    fn other_forms_and_other_codes_are_refused() {
        for bit in (16..32).chain(44..48).chain(60..64) {
            assert_eq!(decode(1 << bit | 0x8003, [0; 2]), Err(Status::INVALID_INPUT), "{bit}");
        }
        assert_eq!(decode(0x8000, [0; 2]), Err(Status::INVALID_CODE));
        assert_eq!(decode(0x8042, [0; 2]), Err(Status::INVALID_CODE));
    }

    #[test]
    fn parameters_lie_in_one_page_of_memory() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        memory.write_slice(&[7; 24], GuestAddress(0x1fe8)).unwrap();
        let read = |gpa, len| decode(0x8003, [gpa, gpa]).unwrap().read_input(&memory, len);
        assert_eq!(read(0x1fe8, 24), Ok(vec![7; 24]));
        assert_eq!(read(0x1000, 4096).map(|input| input.len()), Ok(4096));
        for (gpa, len) in [(0x1fec, 8), (0x0ff8, 16), (0x2000, 8), (u64::MAX - 7, 8), (0, 4097)] {
            assert_eq!(read(gpa, len), Err(Status::INVALID_ALIGNMENT), "{gpa:#x} {len}");
        }
        let write = |gpa| decode(0x8001, [0, gpa]).unwrap().write_output(&memory, &[9; 8]);
        assert_eq!(write(0x10), Ok(()));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x10)).unwrap(), 0x0909_0909_0909_0909);
        for gpa in [0x14, 0x2000, u64::MAX - 7] {
            assert_eq!(write(gpa), Err(Status::INVALID_ALIGNMENT), "{gpa:#x}");
        }
    }

    #[test]
    fn a_result_has_the_reps_that_are_done() {
        assert_eq!(Status::SUCCESS.result_of_reps(32), 32 << 32);
        assert_eq!(Status::INVALID_PARAMETER.result_of_reps(0xffff), 0xfff << 32 | 5);
    }
}
