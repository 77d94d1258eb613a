#![no_std]
#![forbid(unsafe_code)]
//! guest_model
