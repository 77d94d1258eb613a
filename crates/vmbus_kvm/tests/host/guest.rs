//! The guest's kernel: hypercalls, SynIC pages, and the bus driver of `guest_model`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_model::vmbus::{Client, Event, GuestRings};
use kvm_hyperv::exit::HypervExit;
use kvm_hyperv::memory::GuestBusMemory;
use kvm_hyperv::synic::SynicRegisters;
use page_range::Gpfn;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};
use vmbus::protocol::{ConnectionId, GpadlId, Guid, Relid, Version, VpIndex, wire};
use vmbus_kvm::{Host, Machine};

use crate::platform::{FakePlatform, Memory, VPS};

/// Messages come here.
pub(crate) const MESSAGE_VP: VpIndex = VpIndex::new(0);

/// Signals of channels come here.
pub(crate) const SIGNAL_VP: VpIndex = VpIndex::new(1);

/// `HV_X64_MSR_GUEST_OS_ID` of a Linux.
pub(crate) const OS_ID: u64 = 0x8100_0006_0100_0000;

const INPUT: u64 = 0x1000;
/// Two pages for each VP: messages, and event flags.
const SYNIC_PAGES: u64 = 0x10_000;
/// Pages of a channel's rings, and where the second begins.
const RING_PAGES: u64 = 10;
const DOWNSTREAM: u32 = 5;
/// Of SINT 2 in its page.
const SLOT: u64 = 512;

pub(crate) type Rings = GuestRings<GuestBusMemory<Memory>>;

pub(crate) struct Guest {
    pub(crate) platform: Arc<FakePlatform>,
    pub(crate) machine: Machine<Arc<FakePlatform>>,
    pub(crate) bus: Client,
    offers: Vec<wire::Offer>,
    /// Called before each step of the vCPUs.
    pub(crate) hook: Option<Hook>,
}

pub(crate) type Hook = Box<dyn FnMut(&mut Guest)>;

/// A channel that the guest has opened.
pub(crate) struct OpenChannel {
    pub(crate) rings: Rings,
    pub(crate) relid: Relid,
    pub(crate) gpadl: GpadlId,
    pub(crate) connection: ConnectionId,
}

impl Guest {
    /// Boots on a machine: sets up the SynIC and connects to the bus.
    pub(crate) fn boot(host: &Host<Arc<FakePlatform>>, platform: Arc<FakePlatform>) -> Self {
        Self::boot_with(host, platform, None)
    }

    /// The same with a hook.
    pub(crate) fn boot_with(
        host: &Host<Arc<FakePlatform>>,
        platform: Arc<FakePlatform>,
        hook: Option<Hook>,
    ) -> Self {
        let machine = host.start_machine(Arc::clone(&platform)).unwrap();
        for vp in (0..VPS).map(VpIndex::new) {
            let [simp, siefp] = synic_pages(vp);
            let registers = SynicRegisters { scontrol: 1, siefp: siefp | 1, simp: simp | 1 };
            let result = machine.on_exit(vp, HypervExit::Synic(registers), || Some(OS_ID));
            assert_eq!(result, None);
        }
        let bus = Client::new(Version::V5_3, MESSAGE_VP);
        let mut guest = Self { platform, machine, bus, offers: Vec::new(), hook };
        guest.bus.connect();
        guest.wait(|event| matches!(event, Event::Connected(_)).then_some(()));
        guest
    }

    /// The relid and the connection of the device of a class. The host offers it once.
    fn find(&mut self, interface: Guid) -> (Relid, ConnectionId) {
        if self.offers.is_empty() {
            self.bus.request_offers();
            let mut offers = Vec::new();
            self.wait(|event| {
                if let Event::Offered(offer) = event {
                    offers.push(offer);
                }
                matches!(event, Event::OffersDelivered).then_some(())
            });
            self.offers = offers;
        }
        let offer = self.offers.iter().find(|offer| offer.interface == interface);
        let offer = offer.expect("the device is offered");
        (Relid::new(offer.relid.get()), ConnectionId::new(offer.connection_id.get()))
    }

    /// Opens a channel whose rings begin at this page; `None` where the host refuses.
    pub(crate) fn open(&mut self, interface: Guid, first_page: u64) -> Option<OpenChannel> {
        let (relid, connection) = self.find(interface);
        let pages: Vec<_> = (first_page..first_page + RING_PAGES).filter_map(Gpfn::new).collect();
        let gpadl = self.bus.create_gpadl(relid, &pages);
        self.wait(|event| matches!(event, Event::GpadlCreated(_, true)).then_some(()));
        let memory = GuestBusMemory::new(Arc::clone(&self.platform.memory));
        let rings = GuestRings::new(memory, &pages, DOWNSTREAM as usize);
        self.bus.open(relid, gpadl, DOWNSTREAM, SIGNAL_VP);
        let ok = self.wait(|event| match event {
            Event::Opened(_, ok) => Some(ok),
            _ => None,
        });
        ok.then_some(OpenChannel { rings, relid, gpadl, connection })
    }

    /// Closes a channel and takes the pages of its rings back.
    pub(crate) fn close(&mut self, channel: OpenChannel) {
        self.bus.close(channel.relid);
        self.bus.teardown_gpadl(channel.relid, channel.gpadl);
        self.wait(|event| matches!(event, Event::GpadlTorndown(_)).then_some(()));
    }

    /// Lets the vCPUs run until the bus driver has an event that is wanted.
    pub(crate) fn wait<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let mut found = None;
        self.until("an event of the bus", |guest| {
            while let Some(event) = guest.bus.poll_event() {
                if let Some(result) = wanted(event) {
                    found = Some(result);
                    return true;
                }
            }
            false
        });
        found.unwrap()
    }

    /// Lets the vCPUs run until something is so.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            self.run();
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets each vCPU run once.
    pub(crate) fn run(&mut self) {
        if let Some(mut hook) = self.hook.take() {
            hook(self);
            self.hook = Some(hook);
        }
        for vp in (0..VPS).map(VpIndex::new) {
            if self.platform.take_kick(vp) {
                self.machine.before_run(vp).unwrap();
            }
        }
        self.take_message();
        while let Some(post) = self.bus.poll_post() {
            let status = self.post(post.connection_id.get(), post.message.as_bytes());
            let again = status == 19;
            self.bus.posted(post, status);
            if again {
                break;
            }
        }
    }

    fn take_message(&mut self) {
        let slot = GuestAddress(synic_pages(MESSAGE_VP)[0] + SLOT);
        let memory = &self.platform.memory;
        if memory.load::<u32>(slot, Ordering::Acquire).unwrap() == 0 {
            return;
        }
        let mut bytes = [0; 256];
        memory.read_slice(&mut bytes, slot).unwrap();
        memory.store(0_u32, slot, Ordering::SeqCst).unwrap();
        self.bus.receive(&bytes[16..16 + usize::from(bytes[4])]);
        if bytes[5] & 1 != 0 {
            self.platform.acknowledge(MESSAGE_VP);
        }
    }

    /// `HvPostMessage`.
    pub(crate) fn post(&self, connection: u32, payload: &[u8]) -> u16 {
        let memory = &self.platform.memory;
        let words = [connection, 0, 1, u32::try_from(payload.len()).unwrap()];
        for (index, word) in (0..).zip(words) {
            memory.write_obj(word, GuestAddress(INPUT + 4 * index)).unwrap();
        }
        memory.write_slice(payload, GuestAddress(INPUT + 16)).unwrap();
        self.hypercall(0x5c, INPUT)
    }

    /// `HvSignalEvent`, or what the kernel does instead.
    pub(crate) fn signal(&self, connection: ConnectionId) -> u16 {
        if !self.platform.quirks.signals_exit
            && let Some(eventfd) = self.platform.bound.lock().unwrap().get(&connection)
        {
            eventfd.write(1).unwrap();
            return 0;
        }
        self.hypercall(0x1_005d, connection.get().into())
    }

    pub(crate) fn hypercall(&self, control: u64, input: u64) -> u16 {
        u16::try_from(hypercall(&self.machine, control, [input, 0])).unwrap()
    }

    /// Whether the channel was signalled since the last call.
    pub(crate) fn take_event(&self, relid: Relid) -> bool {
        let word = synic_pages(SIGNAL_VP)[1] + SLOT + u64::from(relid.get() / 64) * 8;
        let slice = self.platform.memory.get_slice(GuestAddress(word), 8).unwrap();
        let bit = 1 << (relid.get() % 64);
        let word = slice.get_atomic_ref::<AtomicU64>(0).unwrap();
        word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }
}

/// Makes a hypercall on a vCPU; returns its whole result.
pub(crate) fn hypercall(
    machine: &Machine<Arc<FakePlatform>>,
    control: u64,
    parameters: [u64; 2],
) -> u64 {
    let exit = HypervExit::Hypercall { control, parameters };
    machine.on_exit(MESSAGE_VP, exit, || None).expect("a hypercall has a result")
}

/// The message page and the page of event flags of a VP.
fn synic_pages(vp: VpIndex) -> [u64; 2] {
    let first = SYNIC_PAGES + u64::from(vp.get()) * 0x2000;
    [first, first + 0x1000]
}
