//! Entropy: random bytes from the host's kernel.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::{Device, VirtQueue, Worker, WorkerKind};

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

    fn workers(self: Arc<Self>, queues: &[Arc<VirtQueue>]) -> Vec<Worker> {
        let worker = |queue: &Arc<VirtQueue>| {
            let queue = Arc::clone(queue);
            Worker { kind: WorkerKind::Entropy, run: Box::new(move || serve(&queue)) }
        };
        queues.iter().map(worker).collect()
    }
}

fn serve(queue: &VirtQueue) {
    let mut bytes = [0; MOST];
    while let Some(chain) = queue.next() {
        let wanted = usize::try_from(chain.writable_len()).map_or(MOST, |len| len.min(MOST));
        let given = bytes
            .get_mut(..wanted)
            .and_then(|room| getrandom(room, GetRandomFlags::empty()).ok())
            .and_then(|count| bytes.get(..count))
            .filter(|random| queue.copy_to(&chain, 0, random).is_ok())
            .map_or(0, <[u8]>::len);
        queue.complete(&chain, u32::try_from(given).unwrap_or_default());
    }
}
