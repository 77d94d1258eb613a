//! A network card (virtio 1.2, 5.1): frames between the guest and a link of the host.
//!
//! It offers no offloads, and so each frame has a header of zeros, and at most [`MTU`] bytes of
//! payload.

mod passt;
mod tap;
mod vhost;

pub use passt::Passt;
pub use tap::Tap;
pub use vhost::{Vhost, VhostError, VhostRefused, requests as vhost_requests};

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use vmm_sys_util::epoll::EventSet;

use crate::wait::wait_for;
use crate::{Chain, Device, Lost, VirtQueue, WorkerKind};

/// The largest payload of a frame, in bytes.
pub const MTU: usize = 1500;

/// Bytes of the header before each frame: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where it says in how many buffers a frame is; there is always one.
const BUFFERS: usize = 10;
/// Bytes of an Ethernet header, and so of the shortest frame.
const ETHERNET: usize = 14;
/// The number of the queue for frames to the guest. The other one is for those from it.
const RECEIVE: usize = 0;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address made from four bytes.
    #[must_use]
    pub fn local([a, b, c, d]: [u8; 4]) -> Self {
        Self([0x52, 0x48, a, b, c, d])
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                let is_byte = part.len() == 2 && part.chars().all(|it| it.is_ascii_hexdigit());
                is_byte.then(|| u8::from_str_radix(part, 16).ok()).flatten()
            })
            .collect();
        match bytes.as_deref().map(<[u8; 6]>::try_from) {
            Some(Ok(bytes)) if bytes[0] & 1 == 0 && bytes != [0; 6] => Ok(Self(bytes)),
            _ => Err(format!(
                "mac={text} is no address of a card: give one such as 52:48:00:00:00:01"
            )),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the frames go to. Its descriptor is polled; nothing here waits.
pub trait Link: AsFd + Send + Sync {
    /// Takes a frame into `frame`, and returns its length, which may be more than there is room for;
    /// `None` if there is none now.
    ///
    /// # Errors
    /// There will be no more.
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>>;

    /// Takes over a frame, after [`Link::flush`] has said that there is room.
    fn put(&self, frame: &[u8]);

    /// Sends what was taken over; `false` if some of it must wait.
    ///
    /// # Errors
    /// Nothing can be sent any more.
    fn flush(&self) -> io::Result<bool>;
}

/// Told once that the link is gone. The machine runs on without it.
pub type LinkLost = Box<dyn Fn(&io::Error) + Send + Sync>;

/// A network card.
pub struct Net {
    link: Box<dyn Link>,
    mac: Mac,
    lost: LinkLost,
    is_lost: AtomicBool,
    vhost: Option<Vhost>,
}

impl Net {
    /// A card with this address.
    #[must_use]
    pub fn new(link: Box<dyn Link>, mac: Mac, lost: LinkLost) -> Self {
        Self { link, mac, lost, is_lost: AtomicBool::new(false), vhost: None }
    }

    /// Has the host's kernel serve the card where it can. The link must be that of `vhost`.
    #[must_use]
    pub fn with_vhost(self, vhost: Vhost) -> Self {
        Self { vhost: Some(vhost), ..self }
    }

    /// The next frame of the link, behind room for the header. `None` if the request for it is void.
    fn receive(&self, queue: &VirtQueue, chain: &Chain, buffer: &mut [u8]) -> Option<usize> {
        while !queue.is_void(chain) {
            let received = self.link.receive(buffer.get_mut(HEADER..).unwrap_or_default());
            match self.unless_lost(received) {
                Some(Some(len)) => return Some(HEADER + len),
                Some(None) => self.wait(queue, Some(EventSet::IN)),
                None => self.wait(queue, None),
            }
        }
        None
    }

    /// Gives a frame to the link; not if that is lost, or the request is void.
    fn send(&self, queue: &VirtQueue, chain: &Chain, frame: &[u8]) {
        let mut unsent = Some(frame);
        while let Some(is_empty) = self.unless_lost(self.link.flush()) {
            match unsent {
                _ if queue.is_void(chain) => return,
                Some(frame) if is_empty => {
                    self.link.put(frame);
                    unsent = None;
                }
                None if is_empty => return,
                _ => self.wait(queue, Some(EventSet::OUT)),
            }
        }
    }

    fn unless_lost<T>(&self, result: io::Result<T>) -> Option<T> {
        result
            .inspect_err(|error| {
                if !self.is_lost.swap(true, Ordering::AcqRel) {
                    (self.lost)(error);
                }
            })
            .ok()
    }

    /// Waits for the link, or until something happens to the queue: at least, that the request is void.
    fn wait(&self, queue: &VirtQueue, event: Option<EventSet>) {
        let link = self.link.as_fd();
        let watched: [(&dyn AsRawFd, EventSet); 2] =
            [(queue.kick(), EventSet::IN), (&link, event.unwrap_or(EventSet::empty()))];
        let count = 1 + usize::from(event.is_some());
        let [queue_happened, _] = wait_for(watched.get(..count).unwrap_or_default());
        if queue_happened {
            // The next wait would end at once. Requests are looked for before each wait for them.
            let _ = queue.kick().read();
        }
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn config(&self) -> &[u8] {
        &self.mac.0
    }

    fn service(&self, queue: usize) -> (WorkerKind, usize) {
        (if queue == RECEIVE { WorkerKind::NetReceive } else { WorkerKind::NetSend }, 1)
    }

    fn vhost(&self) -> Option<&Vhost> {
        self.vhost.as_ref()
    }

    fn serve(&self, (number, queue): (usize, &VirtQueue), chain: &Chain, buffer: &mut [u8]) {
        if number != RECEIVE {
            let len = usize::try_from(chain.readable_len()).ok();
            let frame = len.and_then(|len| buffer.get_mut(HEADER..len));
            match frame.map(|frame| (queue.copy_from(chain, HEADER as u64, frame), frame)) {
                Some((Err(Lost::Request), _)) => return,
                Some((Ok(()), frame)) if frame.len() >= ETHERNET => self.send(queue, chain, frame),
                // A frame that is none, or longer than any.
                _ => {}
            }
            return queue.complete(chain, 0);
        }
        while let Some(len) = self.receive(queue, chain, buffer) {
            // What does not fit is dropped, as by any card.
            let Some(frame) = buffer.get_mut(..len) else { continue };
            if frame.len() as u64 > chain.writable_len() {
                continue;
            }
            for (place, byte) in frame.iter_mut().take(HEADER).enumerate() {
                *byte = u8::from(place == BUFFERS);
            }
            match queue.copy_to(chain, 0, frame) {
                Ok(()) => queue.complete(chain, u32::try_from(len).unwrap_or_default()),
                Err(Lost::Memory) => queue.complete(chain, 0),
                Err(Lost::Request) => {}
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_one_card() {
        assert_eq!("52:48:00:aB:cd:01".parse(), Ok(Mac([0x52, 0x48, 0, 0xab, 0xcd, 1])));
        for text in [
            "zz",
            "",
            "52:48:00:00:00",
            "52:48:00:00:00:01:02",
            "+2:48:00:00:00:01",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "5248.0000.0001",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!(Mac::local([1, 2, 3, 4]).to_string(), "52:48:01:02:03:04");
    }
}
