//! The ioctls of [`Vhost`](super::Vhost), for a program's system call filter. Which threads make them:
//!
//! | | the thread that opens it | those that access registers | the one that adds and removes memory | the device's |
//! |---|---|---|---|---|
//! | `VHOST_SET_OWNER`, `VHOST_GET_FEATURES` | yes | | | |
//! | [`to_lend`] | | yes | | |
//! | [`to_learn`] | | yes | yes | |
//! | [`to_release`] | | yes | yes | yes |
//!
//! The thread that calls [`MmioDevice::stop`](crate::MmioDevice::stop) makes the last ones as well.

use vhost::vhost_kern::vhost_binding as vhost;

/// A request's name and number.
pub type Request = (&'static str, u32);

/// Describes the queues.
#[must_use]
pub fn to_lend() -> [Request; 7] {
    [
        request("VHOST_SET_FEATURES", vhost::VHOST_SET_FEATURES()),
        request("VHOST_SET_VRING_NUM", vhost::VHOST_SET_VRING_NUM()),
        request("VHOST_SET_VRING_ADDR", vhost::VHOST_SET_VRING_ADDR()),
        request("VHOST_SET_VRING_BASE", vhost::VHOST_SET_VRING_BASE()),
        request("VHOST_SET_VRING_KICK", vhost::VHOST_SET_VRING_KICK()),
        request("VHOST_SET_VRING_CALL", vhost::VHOST_SET_VRING_CALL()),
        request("VHOST_SET_VRING_ERR", vhost::VHOST_SET_VRING_ERR()),
    ]
}

/// Describes guest memory.
#[must_use]
pub fn to_learn() -> [Request; 1] {
    [request("VHOST_SET_MEM_TABLE", vhost::VHOST_SET_MEM_TABLE())]
}

/// Gives and takes the queues.
#[must_use]
pub fn to_release() -> [Request; 2] {
    [
        request("VHOST_NET_SET_BACKEND", vhost::VHOST_NET_SET_BACKEND()),
        request("VHOST_GET_VRING_BASE", vhost::VHOST_GET_VRING_BASE()),
    ]
}

fn request(name: &'static str, number: std::os::raw::c_ulong) -> Request {
    // Every request has 32 bits.
    (name, u32::try_from(number).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // In strace's format.
        assert_eq!(to_learn(), [("VHOST_SET_MEM_TABLE", 0x4008_af03)]);
        assert_eq!(to_release().map(|(_, number)| number), [0x4008_af30, 0xc008_af12]);
        assert!(to_lend().iter().all(|(_, number)| number & 0xff00 == 0xaf00));
    }
}
