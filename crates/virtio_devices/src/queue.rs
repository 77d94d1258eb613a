//! A queue between the guest and the threads of a device.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_ram::{DeviceMemory, GuestRam};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::chain::{Broken, Chain};
use crate::wait::wait_for;

/// Why a request's memory cannot be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The guest has reset the device or queue, or the machine ends: the request is void.
    Request,
    /// The request's buffers are too short, or name memory that is not there.
    Memory,
}

/// What the guest is told by its device: the interrupt, and that the device has stopped.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: EventFd,
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    /// The host's kernel serves the queues, and raises the interrupt by itself.
    is_lent: AtomicBool,
    stopped: AtomicBool,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: EventFd::new(EFD_NONBLOCK)?,
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            is_lent: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    fn raise(&self, cause: u32) {
        self.interrupt_status.fetch_or(cause, Ordering::AcqRel);
        // The only possible failure is an overflow of the counter, and then an interrupt is pending.
        let _ = self.interrupt.write(1);
    }

    /// The kernel cannot set the bit for used buffers, and so it is set all the time in which an
    /// interrupt may be the kernel's. A driver looks into the rings then, as it would after an interrupt
    /// that it shares with another queue (Linux `virtio_mmio.c`, `vm_interrupt`).
    pub(crate) fn interrupt_status(&self) -> u32 {
        let lent = if self.is_lent.load(Ordering::Acquire) { VIRTIO_MMIO_INT_VRING } else { 0 };
        self.interrupt_status.load(Ordering::Acquire) | lent
    }

    /// Says whether the kernel serves the queues.
    pub(crate) fn set_lent(&self, is_lent: bool) {
        self.is_lent.store(is_lent, Ordering::Release);
    }

    /// Has the driver look into the rings: the kernel's last interrupt may be one whose cause it has
    /// not read yet.
    pub(crate) fn repeat_interrupt(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    pub(crate) fn acknowledge(&self, causes: u32) {
        self.interrupt_status.fetch_and(!causes, Ordering::AcqRel);
    }

    /// The part of the device's status that the device sets.
    pub(crate) fn status(&self) -> u32 {
        if self.needs_reset.load(Ordering::Acquire) { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
    }

    fn set_needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    pub(crate) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.interrupt_status.store(0, Ordering::Release);
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// A queue of requests. The guest fills it; [`Worker`](crate::Worker)s take requests, copy their
/// data, and complete them, in any order and on any number of threads.
pub struct VirtQueue {
    ram: Arc<GuestRam>,
    signals: Arc<Signals>,
    /// Written by the guest's notifications. Blocks its readers.
    kick: EventFd,
    /// Written by the kernel when it cannot serve the queue. Only threads of the device read it.
    error: EventFd,
    /// Written when the queue is not the kernel's any more.
    returned: EventFd,
    state: Mutex<State>,
}

/// What a thread of a device does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// It serves a request.
    Request(Chain),
    /// The kernel, to which the queue is lent, cannot serve it: the thread takes the queues back.
    KernelFailed,
}

/// A queue as the kernel needs it: its size, the guest's addresses of its three parts, and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) next_avail: u16,
}

struct State {
    queue: Queue,
    /// The guest has said `DRIVER_OK`.
    is_live: bool,
    /// The host's kernel serves the queue.
    is_lent: bool,
    /// Counts up whenever earlier requests become void.
    life: u64,
    features: u64,
}

impl VirtQueue {
    /// `size` is a power of two.
    pub(crate) fn new(size: u16, ram: Arc<GuestRam>, signals: Arc<Signals>) -> io::Result<Self> {
        let queue = Queue::new(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let state = State { queue, is_live: false, is_lent: false, life: 0, features: 0 };
        let (error, returned) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        let kick = EventFd::new(0)?;
        Ok(Self { ram, signals, kick, error, returned, state: Mutex::new(state) })
    }

    /// The eventfd to which the hypervisor turns the guest's notifications.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Waits for something to do; `None` when the machine ends.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Next> {
        while !self.signals.is_stopped() {
            if let Some(chain) = self.take() {
                return Some(Next::Request(chain));
            }
            match self.lent_life() {
                None => {
                    // One reader gets all notifications so far. If they are more than one request,
                    // the reader wakes another one.
                    let _ = self.kick.read();
                }
                life => {
                    wait_for(&[(&self.error, EventSet::IN), (&self.returned, EventSet::IN)]);
                    let is_over = self.returned.read().is_ok();
                    let has_failed = self.error.read().is_ok();
                    // A failure may be one of a life that is over. If not, it is repeated.
                    if has_failed && !is_over && self.lent_life() == life {
                        return Some(Next::KernelFailed);
                    }
                }
            }
        }
        self.notify();
        None
    }

    /// The life of the queue that is lent to the kernel; `None` if none is.
    fn lent_life(&self) -> Option<u64> {
        let state = self.lock();
        state.is_lent.then_some(state.life)
    }

    /// Whether the guest has no more use for a request, or the machine ends. [`VirtQueue::kick`] is
    /// readable from then on.
    #[must_use]
    pub fn is_void(&self, chain: &Chain) -> bool {
        self.lock().life != chain.life || self.signals.is_stopped()
    }

    /// The next request, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Chain> {
        let mut state = self.lock();
        if !state.is_live || state.is_lent || !state.queue.ready() {
            return None;
        }
        match state.take(&self.ram.device_memory()) {
            Ok((chain, is_more)) => {
                if is_more {
                    self.notify();
                }
                chain
            }
            Err(Broken) => {
                self.break_down(&mut state);
                None
            }
        }
    }

    /// Fills `bytes` from a request's readable buffers, from byte `offset` on.
    ///
    /// # Errors
    /// [`Lost`]. Some of `bytes` may have been written.
    pub fn copy_from(&self, chain: &Chain, offset: u64, bytes: &mut [u8]) -> Result<(), Lost> {
        self.access(chain, |memory| chain.copy_from(memory, offset, bytes))
    }

    /// Writes `bytes` to a request's writable buffers, from byte `offset` on.
    ///
    /// # Errors
    /// [`Lost`]. Some of `bytes` may have been written.
    pub fn copy_to(&self, chain: &Chain, offset: u64, bytes: &[u8]) -> Result<(), Lost> {
        self.access(chain, |memory| chain.copy_to(memory, offset, bytes))
    }

    /// Under the lock, since the guest may use the memory for something else as soon as it has reset
    /// the queue.
    fn access(
        &self,
        chain: &Chain,
        copy: impl FnOnce(&DeviceMemory<'_>) -> Option<()>,
    ) -> Result<(), Lost> {
        let state = self.lock();
        if state.life != chain.life || self.signals.is_stopped() {
            return Err(Lost::Request);
        }
        copy(&self.ram.device_memory()).ok_or(Lost::Memory)
    }

    /// Gives a request back to the guest, with the number of bytes written to its buffers.
    pub fn complete(&self, chain: &Chain, written: u32) {
        let mut state = self.lock();
        if state.life != chain.life {
            return;
        }
        match state.complete(&self.ram.device_memory(), chain.head, written) {
            Ok(true) => self.signals.raise(VIRTIO_MMIO_INT_VRING),
            Ok(false) => {}
            Err(_) => self.break_down(&mut state),
        }
    }

    /// The features that the guest has accepted.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.lock().features
    }

    /// The eventfd to which the kernel writes when it cannot serve the queue.
    pub(crate) fn error(&self) -> &EventFd {
        &self.error
    }

    /// Wakes all threads that wait, since the machine ends.
    pub(crate) fn stop(&self) {
        self.wake(true);
    }

    /// Wakes a thread that waits for requests.
    pub(crate) fn notify(&self) {
        // The only possible failure is an interrupted wait for an overflow.
        let _ = self.kick.write(1);
    }

    /// Lets requests through.
    pub(crate) fn go_live(&self, features: u64) {
        let mut state = self.lock();
        state.go_live(features);
        let was_lent = std::mem::take(&mut state.is_lent);
        drop(state);
        // The guest may have notified too early.
        self.wake(was_lent);
    }

    /// The queue as the kernel needs it, which serves it from now on: no thread here takes requests.
    /// `None` if the guest has not set it up.
    pub(crate) fn lend(&self, features: u64) -> Option<Rings> {
        let mut state = self.lock();
        if !state.queue.ready() {
            return None;
        }
        state.go_live(features);
        state.is_lent = true;
        let queue = &state.queue;
        Some(Rings {
            size: queue.size(),
            descriptors: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            next_avail: queue.next_avail(),
        })
    }

    /// Takes a queue back from the kernel, which does not access it any more, with its place in the ring
    /// of available buffers; `None` if that is not known. The threads here go on from there.
    pub(crate) fn take_back(&self, next_avail: Option<u16>) {
        let mut state = self.lock();
        if !std::mem::take(&mut state.is_lent) {
            return;
        }
        if state.resume(&self.ram.device_memory(), next_avail).is_err() {
            self.break_down(&mut state);
        }
        drop(state);
        self.wake(true);
    }

    /// Wakes the threads, wherever they wait.
    fn wake(&self, was_lent: bool) {
        if was_lent {
            let _ = self.returned.write(1);
        }
        self.notify();
    }

    /// Makes all requests void and forgets the queue's place. When this returns, no thread accesses
    /// their memory.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.reset();
        state.is_live = false;
        let was_lent = std::mem::take(&mut state.is_lent);
        drop(state);
        // A thread may wait for something else on behalf of a request that is void now.
        self.wake(was_lent);
    }

    /// The largest size that the guest may choose.
    pub(crate) fn max_size(&self) -> u16 {
        self.lock().queue.max_size()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.lock().queue.ready()
    }

    pub(crate) fn set_ready(&self, is_ready: bool) {
        let mut state = self.lock();
        if is_ready {
            state.queue.set_ready(true);
        } else {
            state.reset();
            drop(state);
            self.notify();
        }
    }

    /// Changes a queue that is not in use. Values that make no sense are ignored.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Queue) -> Result<(), Error>) {
        let mut state = self.lock();
        if !state.queue.ready() {
            let _ = change(&mut state.queue);
        }
    }

    fn break_down(&self, state: &mut State) {
        state.is_live = false;
        state.life = state.life.wrapping_add(1);
        self.signals.set_needs_reset();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn go_live(&mut self, features: u64) {
        (self.is_live, self.features) = (true, features);
        self.queue.set_event_idx(features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0);
    }

    fn reset(&mut self) {
        self.queue.reset();
        self.queue.set_event_idx(self.features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0);
        self.life = self.life.wrapping_add(1);
    }

    /// Goes on where the kernel has stopped.
    fn resume(&mut self, memory: &DeviceMemory<'_>, next_avail: Option<u16>) -> Result<(), Broken> {
        self.queue.set_next_avail(next_avail.ok_or(Broken)?);
        let used = self.queue.used_idx(memory, Ordering::Acquire).map_err(broken)?;
        self.queue.set_next_used(used.0);
        Ok(())
    }

    /// The next request, and whether there are more.
    fn take(&mut self, memory: &DeviceMemory<'_>) -> Result<(Option<Chain>, bool), Broken> {
        let (queue, life) = (&mut self.queue, self.life);
        let avail = |queue: &Queue| queue.avail_idx(memory, Ordering::Acquire).map_err(broken);
        if avail(queue)?.0 == queue.next_avail() {
            let is_more = queue.enable_notification(memory).map_err(broken)?;
            return Ok((None, is_more));
        }
        let limit = queue.max_size();
        let descriptors = queue.iter(memory).map_err(broken)?.next().ok_or(Broken)?;
        let chain = Chain::read(descriptors, limit, life)?;
        let is_more = avail(queue)?.0 != queue.next_avail();
        Ok((Some(chain), is_more))
    }

    /// Whether the guest wants an interrupt.
    fn complete(&mut self, memory: &DeviceMemory<'_>, head: u16, len: u32) -> Result<bool, Error> {
        self.queue.add_used(memory, head, len)?;
        self.queue.needs_notification(memory)
    }
}

fn broken(_: Error) -> Broken {
    Broken
}
