#![no_std]
#![forbid(unsafe_code)]
//! The Hyper-V Dynamic Memory VSP: the device and its VMBus channel as one sans-IO object.
