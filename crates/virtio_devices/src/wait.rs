//! Waiting for several descriptors at once.

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Waits until something happens to one of at most two descriptors, or for no reason, and says to which
/// of them.
pub(crate) fn wait_for(descriptors: &[(&dyn AsRawFd, EventSet)]) -> [bool; 2] {
    let mut events = [EpollEvent::default(); 2];
    let waited = Epoll::new().and_then(|epoll| {
        for (number, (descriptor, event)) in (0..).zip(descriptors) {
            let event = EpollEvent::new(*event, number);
            epoll.ctl(ControlOperation::Add, descriptor.as_raw_fd(), event)?;
        }
        epoll.wait(-1, &mut events)
    });
    let happened = events.get(..waited.unwrap_or_default()).unwrap_or_default();
    [0, 1].map(|number| happened.iter().any(|event| event.data() == number))
}
