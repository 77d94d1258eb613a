#![no_std]
#![forbid(unsafe_code)]
//! hv_balloon
