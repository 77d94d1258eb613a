#![no_std]
#![forbid(unsafe_code)]
//! dynmem_protocol
