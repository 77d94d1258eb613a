//! Entropy: random bytes from the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::{Chain, Device, VirtQueue, WorkerKind};

/// The most random bytes for one request. The guest may ask again.
const MOST: usize = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Entropy;

impl Device for Entropy {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[8]
    }

    fn service(&self, _: usize) -> (WorkerKind, usize) {
        (WorkerKind::Entropy, 1)
    }

    fn serve(&self, (_, queue): (usize, &VirtQueue), chain: &Chain, buffer: &mut [u8]) {
        let wanted = usize::try_from(chain.writable_len()).map_or(MOST, |len| len.min(MOST));
        let given = buffer
            .get_mut(..wanted)
            .and_then(|room| getrandom(room, GetRandomFlags::empty()).ok())
            .and_then(|count| buffer.get(..count))
            .filter(|random| queue.copy_to(chain, 0, random).is_ok())
            .map_or(0, <[u8]>::len);
        queue.complete(chain, u32::try_from(given).unwrap_or_default());
    }
}
