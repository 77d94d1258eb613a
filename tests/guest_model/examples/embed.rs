//! The device, the bus and the rings embedded in a VMM, in two hundred lines.
//!
//! `Vmm` is what an embedder writes: it carries messages between the guest, [`vmbus::Server`] and
//! [`hv_balloon::Device`], and does what they ask. The guest is `guest_model`; with a real one,
//! posts come from `HvPostMessage` exits and messages go into the SynIC's message page.
//!
//! `cargo run -p guest_model --example embed`

use std::sync::Arc;
use std::time::Duration;

use guest_model::dynmem::{self, Memory, Personality};
use guest_model::vmbus::{Client, Event as BusEvent, GuestRings, SharedMemory};
use hv_balloon::{Config, Device, Event, HotAdd, Settle};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::{GpadlId, Guid, Relid, Version, VpIndex};
use vmbus::ring::{ChannelRings, Sent};
use vmbus::{Offer, Server, ServerConfig};

const DYNAMIC_MEMORY: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);
const INSTANCE: Guid = Guid::from_digits(1);

pub(crate) struct Vmm {
    pub(crate) server: Server,
    pub(crate) device: Device,
    pub(crate) rings: Option<ChannelRings<Arc<SharedMemory>>>,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) bus: Client,
    pub(crate) guest_os_id: u64,
    /// Since the VM started.
    pub(crate) now: Duration,
}

impl Vmm {
    /// Does what bus and device ask for, until they are content.
    pub(crate) fn run(&mut self) {
        loop {
            if let Some(post) = self.bus.poll_post() {
                let result =
                    self.server.handle_message(post.connection_id, post.message.as_bytes());
                self.bus.posted(post, result.map_or_else(|error| error.hypercall_status(), |()| 0));
            } else if let Some(action) = self.server.poll_action() {
                self.bus_action(action);
            } else if let Some(action) = self.device.poll_action() {
                self.device_action(action);
            } else {
                return;
            }
        }
    }

    fn bus_action(&mut self, action: vmbus::Action) {
        match action {
            vmbus::Action::Send { message, .. } => self.bus.receive(message.as_bytes()),
            vmbus::Action::Open { channel, rings, .. } => {
                let opened = ChannelRings::open(self.memory.clone(), &rings);
                self.server.open_finished(channel, opened.is_ok());
                self.rings = opened.ok();
                self.tell(Event::ChannelOpened { guest_os_id: self.guest_os_id });
            }
            vmbus::Action::Close { channel } => {
                self.rings = None;
                self.tell(Event::ChannelClosed);
                // Here at once, since `device_action` ends every job at once.
                self.server.close_finished(channel);
            }
            vmbus::Action::SetTargetVp { .. } | vmbus::Action::DropQueuedMessages => {}
        }
    }

    fn device_action(&mut self, action: hv_balloon::Action) {
        match action {
            hv_balloon::Action::Send => {
                let message = self.device.message().unwrap_or_default();
                let sent = self.rings.as_mut().map(|rings| rings.send(message, 0));
                // Where it says `Full`, try again when the guest signals, or after a while.
                assert!(matches!(sent, Some(Ok(Sent::Written { .. }))));
                self.tell(Event::Sent);
            }
            // Here a VMM gives the memory back to its host,
            hv_balloon::Action::Discard { id, .. } => self.tell(Event::JobDone { id, ok: true }),
            // and here it maps new memory into the guest,
            hv_balloon::Action::Prepare { id, .. } => self.tell(Event::JobDone { id, ok: true }),
            // which did not take it: out again.
            hv_balloon::Action::RemoveMemory { id, .. } => {
                self.tell(Event::JobDone { id, ok: true });
            }
            hv_balloon::Action::Notify(notice) => println!("{notice:?}"),
            hv_balloon::Action::CloseFinished => {}
        }
    }

    /// The guest signalled: takes its packets.
    pub(crate) fn signalled(&mut self) {
        while let Some(rings) = &mut self.rings
            && let Some(packet) = rings.receive().expect("the ring is sound")
        {
            self.device.handle(self.now, Event::Packet(packet.payload));
            self.run();
        }
    }

    pub(crate) fn tell(&mut self, event: Event<'_>) {
        self.device.handle(self.now, event);
    }

    /// Lets time pass to what the device or the guest waits for; false where that is nothing.
    fn wait(&mut self, guest: Option<Duration>) -> bool {
        let deadlines = [self.device.next_deadline(), guest];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return false };
        self.now = self.now.max(deadline);
        self.tell(Event::Deadline);
        true
    }
}

/// A guest, all of it but its bus driver.
pub(crate) struct Guest {
    pub(crate) driver: dynmem::Client,
    rings: GuestRings<Arc<SharedMemory>>,
    relid: Relid,
    gpadl: GpadlId,
}

impl Guest {
    /// Connects, finds the device and opens its channel; `None` where host and guest have no version
    /// in common.
    pub(crate) fn boot(vmm: &mut Vmm, driver: dynmem::Client) -> Option<Self> {
        vmm.bus.connect();
        vmm.run();
        vmm.bus.version()?;
        vmm.bus.request_offers();
        vmm.run();
        let offer = std::iter::from_fn(|| vmm.bus.poll_event())
            .find_map(|event| if let BusEvent::Offered(offer) = event { Some(offer) } else { None })
            .expect("the device is offered");
        let relid = Relid::new(offer.relid.get());
        let ring_pages: Vec<_> = (2..12).filter_map(Gpfn::new).collect();
        let gpadl = vmm.bus.create_gpadl(relid, &ring_pages);
        vmm.run();
        let rings = GuestRings::new(vmm.memory.clone(), &ring_pages, 5);
        vmm.bus.open(relid, gpadl, 5, VpIndex::new(0));
        vmm.run();
        let mut guest = Self { driver, rings, relid, gpadl };
        guest.driver.open();
        guest.talk(vmm);
        Some(guest)
    }

    /// Lets the guest's driver and the VMM talk until neither has anything to say or to wait for.
    pub(crate) fn talk(&mut self, vmm: &mut Vmm) {
        while self.say(vmm) {}
    }

    /// Lets both say what they have to say now, or wait; false where there is nothing of either.
    pub(crate) fn say(&mut self, vmm: &mut Vmm) -> bool {
        vmm.run();
        self.driver.advance(vmm.now);
        while let Some(packet) = self.rings.receive() {
            self.driver.receive(&packet.payload).expect("the device keeps the rules");
        }
        let Some(message) = self.driver.poll_send() else {
            return vmm.wait(self.driver.next_deadline());
        };
        self.rings.send(&message, 0).expect("the ring has room");
        vmm.signalled();
        true
    }

    /// Closes the channel and takes the pages of the rings back.
    fn close(&mut self, vmm: &mut Vmm) {
        self.driver.close();
        vmm.bus.close(self.relid);
        vmm.bus.teardown_gpadl(self.relid, self.gpadl);
        vmm.run();
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).expect("small"), PageCount::new(count)).expect("not empty")
}

/// The device on the bus.
pub(crate) const OFFER: Offer = Offer { interface: DYNAMIC_MEMORY, instance: INSTANCE };

/// A guest with 1 GiB that can get 3 GiB more, above 4 GiB.
pub(crate) fn config() -> Config {
    Config {
        boot_ram: boot_ram(),
        settle: Settle::Auto,
        status_reports: false,
        hot_add: Some(HotAdd {
            window: pages(1 << 20, 1 << 24),
            capacity: PageCount::new(3 << 18),
            least_alignment: PageCount::new(512),
        }),
        discard_unit: PageCount::new(1),
        inhibited: false,
    }
}

/// A VMM with its guest.
pub(crate) fn vmm(personality: &Personality) -> Vmm {
    let mut server = Server::new(ServerConfig::default());
    server.offer(OFFER).expect("the only one");
    Vmm {
        server,
        device: Device::new(config()).expect("a machine that can be"),
        rings: None,
        memory: Arc::new(SharedMemory::new(16)),
        bus: Client::with_versions(personality.vmbus_versions.clone(), VpIndex::new(0)),
        guest_os_id: personality.guest_os_id,
        now: Duration::ZERO,
    }
}

pub(crate) fn boot_ram() -> PageRangeSet {
    [pages(0, 1 << 18)].into_iter().collect()
}

/// Boots a model guest with 1 GiB, shrinks it to half, gives it all back and 512 MiB more. The
/// version of the bus and the size in the end; `None` where guest and host do not get together.
pub(crate) fn resize(personality: Personality) -> Option<(Version, PageCount)> {
    let mut vmm = vmm(&personality);
    let memory = Memory::new(boot_ram(), PageCount::new(1 << 14));
    let mut guest = Guest::boot(&mut vmm, dynmem::Client::new(personality, memory))?;
    let version = vmm.bus.version()?;
    for target in [1 << 17, 1 << 18, 3 << 17].map(PageCount::new) {
        vmm.device.set_target(vmm.now, target).expect("a target that can be met");
        guest.talk(&mut vmm);
        let memory = guest.driver.memory();
        let has = memory.managed().saturating_add(memory.offline().len());
        assert_eq!(vmm.device.snapshot().actual, has);
    }
    let size = vmm.device.snapshot().actual;
    guest.close(&mut vmm);
    assert!(vmm.rings.is_none());
    // The guest leaves the bus; its kernel may be another one next time.
    vmm.bus.unload();
    vmm.run();
    Some((version, size))
}

/// Resizes a Linux guest.
pub(crate) fn main() {
    let (version, size) = resize(Personality::linux_6_1()).expect("all speak the newest version");
    println!("{size} pages, over VMBus {version}");
    assert_eq!(size, PageCount::new(3 << 17));
}
