//! A complete driver for bus and VSP, and a model of a guest to drive them with.
//!
//! `Vmm` is what a VMM does: it carries messages between the guest, [`vmbus::Server`] and
//! [`dynmem_vsp::DynamicMemory`], and does the work that the VSP asks for. With a real guest,
//! posts come from `HvPostMessage` exits and messages go into the SynIC's message page; the crate
//! `vmbus_kvm` does that for VMMs on KVM.
//!
//! `cargo run -p dynmem_vsp --example embed`

use std::sync::Arc;
use std::time::Duration;

use dynmem_vsp::{Config, DynamicMemory, HotAdd, Settle, Work};
use guest_model::dynmem::{self, Memory, Personality};
use guest_model::vmbus::{Client, Event as BusEvent, GuestRings, SharedMemory};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::{GpadlId, Relid, Version, VpIndex};
use vmbus::{
    ChannelEvent, ChannelId, ChannelOutput, OpenChannel, Server, ServerConfig, VmbusDevice,
};

/// How often a full ring is tried again: Linux does not say that it has made room.
const RETRY: Duration = Duration::from_millis(10);

pub(crate) type Vsp = DynamicMemory<Arc<SharedMemory>>;

pub(crate) struct Vmm {
    pub(crate) server: Server,
    pub(crate) channel: ChannelId,
    pub(crate) vsp: Vsp,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) bus: Client,
    pub(crate) guest_os_id: u64,
    /// The time since the VM started.
    pub(crate) now: Duration,
}

impl Vmm {
    /// Carries out what bus and VSP request, until nothing is left.
    pub(crate) fn run(&mut self) {
        loop {
            if let Some(post) = self.bus.poll_post() {
                let result =
                    self.server.handle_message(post.connection_id, post.message.as_bytes());
                self.bus.posted(post, result.map_or_else(|error| error.hypercall_status(), |()| 0));
            } else if let Some(action) = self.server.poll_action() {
                self.bus_action(action);
            } else if let Some(output) = self.vsp.poll_output() {
                self.output(output);
            } else {
                return;
            }
        }
    }

    fn bus_action(&mut self, action: vmbus::Action) {
        match action {
            vmbus::Action::Send { message, .. } => self.bus.receive(message.as_bytes()),
            vmbus::Action::Open { rings, target_vp, relid, connection_id, is_reopened, .. } => {
                let channel = OpenChannel { rings, target_vp, relid, connection_id, is_reopened };
                let (memory, guest_os_id) = (self.memory.clone(), self.guest_os_id);
                self.tell(ChannelEvent::Open { memory, channel, guest_os_id });
            }
            vmbus::Action::Close { .. } => self.tell(ChannelEvent::Close),
            vmbus::Action::SetTargetVp { target_vp, .. } => {
                self.tell(ChannelEvent::SetTargetVp(target_vp));
            }
            vmbus::Action::DropQueuedMessages => {}
        }
    }

    fn output(&mut self, output: ChannelOutput<Work>) {
        match output {
            // With a real guest, set its event flag and raise an interrupt here.
            ChannelOutput::SignalGuest(_) => {}
            ChannelOutput::OpenFinished(result) => {
                self.server.open_finished(self.channel, result.is_ok());
            }
            ChannelOutput::CloseFinished => self.server.close_finished(self.channel),
            ChannelOutput::Broken(error) => println!("the guest broke its channel: {error}"),
            ChannelOutput::Work(Work::Notify(notice)) => println!("{notice:?}"),
            // Only with a trace.
            ChannelOutput::Work(Work::Trace(_)) => {}
            // A VMM discards memory here, maps new memory into the guest, or removes it again: on a
            // thread of its own, since that takes time, but in this order.
            ChannelOutput::Work(Work::Job(job)) => self.vsp.job_done(self.now, job.id, true),
        }
    }

    pub(crate) fn tell(&mut self, event: ChannelEvent<Arc<SharedMemory>>) {
        self.vsp.handle(self.now, event);
    }

    /// The guest signalled.
    pub(crate) fn signalled(&mut self) {
        self.tell(ChannelEvent::Signalled);
        self.run();
    }

    /// Advances the time to the next deadline of the VSP or the guest; returns false if there is
    /// none.
    fn wait(&mut self, guest: Option<Duration>) -> bool {
        let retry = self.vsp.waits_for_room().then(|| self.now.saturating_add(RETRY));
        let deadlines = [self.vsp.poll_timeout(), guest, retry];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return false };
        self.now = self.now.max(deadline);
        self.tell(ChannelEvent::Timeout);
        if retry.is_some() {
            self.tell(ChannelEvent::Signalled);
        }
        true
    }
}

/// A guest, except for its bus driver.
pub(crate) struct Guest {
    pub(crate) driver: dynmem::Client,
    rings: GuestRings<Arc<SharedMemory>>,
    relid: Relid,
    gpadl: GpadlId,
}

impl Guest {
    /// Connects, finds the device and opens its channel; `None` if host and guest have no version
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

    /// Exchanges what the two have to say now, or else waits; returns false if there is nothing to
    /// wait for.
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
    let vsp = Vsp::new(config()).expect("memory that a guest can have");
    let channel = server.offer(vsp.offer()).expect("the only device");
    Vmm {
        server,
        channel,
        vsp,
        memory: Arc::new(SharedMemory::new(16)),
        bus: Client::with_versions(personality.vmbus_versions.clone(), VpIndex::new(0)),
        guest_os_id: personality.guest_os_id,
        now: Duration::ZERO,
    }
}

pub(crate) fn boot_ram() -> PageRangeSet {
    [pages(0, 1 << 18)].into_iter().collect()
}

/// Boots a model guest with 1 GiB, shrinks it to half, returns all of that and adds 512 MiB.
/// Returns the version of the bus and the final size; `None` if guest and host have no version in
/// common.
pub(crate) fn resize(personality: Personality) -> Option<(Version, PageCount)> {
    let mut vmm = vmm(&personality);
    let memory = Memory::new(boot_ram(), PageCount::new(1 << 14));
    let mut guest = Guest::boot(&mut vmm, dynmem::Client::new(personality, memory))?;
    let version = vmm.bus.version()?;
    for target in [1 << 17, 1 << 18, 3 << 17].map(PageCount::new) {
        vmm.vsp.set_target(vmm.now, target).expect("within reach");
        guest.talk(&mut vmm);
        let memory = guest.driver.memory();
        let has = memory.managed().saturating_add(memory.offline().len());
        assert_eq!(vmm.vsp.snapshot().actual, has);
    }
    let size = vmm.vsp.snapshot().actual;
    guest.close(&mut vmm);
    assert!(vmm.vsp.is_quiet());
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
