//! The device, the bus and the rings embedded in a VMM, in a hundred lines.
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
use hv_balloon::{Config, Device, Event, Settle};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::{Guid, Relid, Version, VpIndex};
use vmbus::ring::{ChannelRings, Sent};
use vmbus::{Offer, Server, ServerConfig};

const DYNAMIC_MEMORY: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);
const INSTANCE: Guid = Guid::from_digits(1);

struct Vmm {
    server: Server,
    device: Device,
    rings: Option<ChannelRings<Arc<SharedMemory>>>,
    memory: Arc<SharedMemory>,
    bus: Client,
}

impl Vmm {
    /// Does what bus and device ask for, until they are content.
    fn run(&mut self) {
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
                self.tell(Event::ChannelOpened { guest_os_id: 0 });
            }
            vmbus::Action::Close { channel } => {
                self.rings = None;
                self.tell(Event::ChannelClosed);
                // Here at once, since `device_action` ends every discard at once.
                self.server.close_finished(channel);
            }
            vmbus::Action::SetTargetVp { .. } | vmbus::Action::DropQueuedMessages => {}
        }
    }

    fn device_action(&mut self, action: hv_balloon::Action) {
        match action {
            hv_balloon::Action::Send(message) => {
                let sent = self.rings.as_mut().map(|rings| rings.send(&message, 0));
                // Where it says `Full`, keep the message and try again.
                assert!(matches!(sent, Some(Ok(Sent::Written { .. }))));
                self.tell(Event::Sent);
            }
            // Here a VMM gives the memory back to its host.
            hv_balloon::Action::Discard { id, .. } => self.tell(Event::Discarded { id, ok: true }),
            hv_balloon::Action::Notify(notice) => println!("{notice:?}"),
            hv_balloon::Action::CloseFinished => {}
        }
    }

    /// The guest signalled: takes its packets.
    fn signalled(&mut self) {
        let mut packet = Vec::new();
        while let Some(rings) = &mut self.rings
            && let Some(_) = rings.receive(&mut packet).expect("the ring is sound")
        {
            self.tell(Event::Packet(&packet));
            self.run();
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        // A VMM gives the time since its start, and asks `next_deadline` when to come back.
        self.device.handle(Duration::ZERO, event);
    }
}

/// Lets the guest's driver and the VMM talk until neither has anything to say.
fn talk(vmm: &mut Vmm, driver: &mut dynmem::Client, rings: &mut GuestRings<Arc<SharedMemory>>) {
    loop {
        vmm.run();
        while let Some(packet) = rings.receive() {
            driver.receive(&packet.payload).expect("the device keeps the rules");
        }
        let Some(message) = driver.poll_send() else { break };
        rings.send(&message, 0).expect("the ring has room");
        vmm.signalled();
    }
}

/// Boots the model guest with 1 GiB, shrinks it to half and gives everything back.
pub(crate) fn main() {
    let pages = |start: u64, count: u64| {
        PageRange::new(Gpfn::new(start).expect("small"), PageCount::new(count)).expect("not empty")
    };
    let boot_ram: PageRangeSet = [pages(0, 1 << 18)].into_iter().collect();
    let mut server = Server::new(ServerConfig::default());
    server.offer(Offer { interface: DYNAMIC_MEMORY, instance: INSTANCE }).expect("the only one");
    let settle = Settle::Fixed(Duration::ZERO);
    let mut vmm = Vmm {
        server,
        device: Device::new(Config { boot_ram: boot_ram.clone(), settle, status_reports: false }),
        rings: None,
        memory: Arc::new(SharedMemory::new(16)),
        bus: Client::new(Version::V5_3, VpIndex::new(0)),
    };

    // The guest connects, finds the device and opens its channel.
    vmm.bus.connect();
    vmm.run();
    vmm.bus.request_offers();
    vmm.run();
    let offer = std::iter::from_fn(|| vmm.bus.poll_event())
        .find_map(|event| if let BusEvent::Offered(offer) = event { Some(offer) } else { None })
        .expect("the device is offered");
    let relid = Relid::new(offer.relid.get());
    let ring_pages: Vec<_> = (2..12).filter_map(Gpfn::new).collect();
    let gpadl = vmm.bus.create_gpadl(relid, &ring_pages);
    vmm.run();
    let mut rings = GuestRings::new(vmm.memory.clone(), &ring_pages, 5);
    vmm.bus.open(relid, gpadl, 5, VpIndex::new(0));
    vmm.run();
    let memory = Memory::new(boot_ram, PageCount::new(1 << 14));
    let mut driver = dynmem::Client::new(Personality::linux_6_1(), memory);
    driver.open();
    talk(&mut vmm, &mut driver, &mut rings);

    for target in [1 << 17, 1 << 18].map(PageCount::new) {
        vmm.tell(Event::SetTarget(target));
        talk(&mut vmm, &mut driver, &mut rings);
        assert_eq!(vmm.device.snapshot().actual, target);
    }
    assert!(driver.memory().ballooned().is_empty());

    // The guest leaves the bus; its kernel may be another one next time.
    vmm.bus.unload();
    vmm.run();
    assert!(vmm.rings.is_none());
}
