//! The view the bus has of guest memory.

use std::sync::atomic::Ordering;

use page_range::Gpa;
use vm_memory::{Bytes, GuestAddress};
use vmbus::{AccessError, GuestMemory};

use crate::GuestRam;

impl GuestMemory for GuestRam {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        self.memory().read_slice(buf, GuestAddress(gpa.get())).map_err(|_| AccessError { gpa, len })
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.memory()
            .write_slice(buf, GuestAddress(gpa.get()))
            .map_err(|_| AccessError { gpa, len: buf.len() })
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        self.memory()
            .load::<u32>(GuestAddress(gpa.get()), order)
            .map(u32::from_le)
            .map_err(|_| AccessError { gpa, len: size_of::<u32>() })
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.memory()
            .store(value.to_le(), GuestAddress(gpa.get()), order)
            .map_err(|_| AccessError { gpa, len: size_of::<u32>() })
    }
}
