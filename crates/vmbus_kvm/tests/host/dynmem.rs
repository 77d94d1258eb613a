//! A guest with a Dynamic Memory driver, and a host with the device and recorded memory work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use guest_model::dynmem::{Client, Memory, Personality};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus_kvm::{
    BackendError, Config, DynamicMemoryHandle, Host, HostBuilder, HotAdd, MemoryBackend, Notice,
    Settle, StartError,
};

use crate::echo::config;
use crate::guest::{Guest, OpenChannel};
use crate::platform::{FakePlatform, Quirks, Seen};

/// Where the rings of the device's channel are.
const PAGE: u64 = 0x40;

pub(crate) const BOOT: PageCount = PageCount::new(1 << 18);
pub(crate) const HALF: PageCount = PageCount::new(1 << 17);

pub(crate) fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

pub(crate) fn boot_ram() -> PageRangeSet {
    [pages(0, BOOT.get())].into_iter().collect()
}

pub(crate) fn hot_add() -> HotAdd {
    HotAdd { window: pages(1 << 20, 1 << 24), capacity: BOOT, least_alignment: PageCount::new(512) }
}

/// 1 GiB that can become 2.
pub(crate) fn memory_config() -> Config {
    Config {
        boot_ram: boot_ram(),
        settle: Settle::Auto,
        hot_add: Some(hot_add()),
        discard_unit: PageCount::new(1),
        ..Config::default()
    }
}

/// What the backend was asked for, and how it behaves.
#[derive(Default)]
pub(crate) struct Backend {
    pub(crate) discarded: Mutex<PageRangeSet>,
    pub(crate) added: Mutex<PageRangeSet>,
    /// What it was last told is out.
    pub(crate) settled: Mutex<Option<PageRangeSet>>,
    /// Discards wait while it is set.
    held: Mutex<bool>,
    released: Condvar,
    /// A discard waits.
    pub(crate) is_discarding: AtomicBool,
    pub(crate) fails: AtomicBool,
    pub(crate) panics: AtomicBool,
}

impl Backend {
    pub(crate) fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }

    pub(crate) fn discarded(&self) -> PageCount {
        self.discarded.lock().unwrap().len()
    }
}

/// The backend of one machine.
pub(crate) struct Backed(pub(crate) Arc<Backend>);

impl MemoryBackend for Backed {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        self.0.is_discarding.store(true, Ordering::Release);
        let held = self.0.held.lock().unwrap();
        drop(self.0.released.wait_while(held, |held| *held).unwrap());
        self.0.is_discarding.store(false, Ordering::Release);
        assert!(!self.0.panics.load(Ordering::Acquire), "a defect, wanted by the test");
        if self.0.fails.load(Ordering::Acquire) {
            return Err("no such luck".into());
        }
        let mut discarded = self.0.discarded.lock().unwrap();
        for range in ranges {
            discarded.insert(*range);
        }
        Ok(())
    }

    fn settle(&mut self, out: &PageRangeSet) {
        *self.0.settled.lock().unwrap() = Some(out.clone());
    }

    fn add(
        &mut self,
        range: PageRange,
        _: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        assert_eq!(range.count().align_down(alignment), range.count());
        self.0.added.lock().unwrap().insert(range);
        Ok(())
    }

    fn remove(&mut self, range: PageRange) -> Result<(), BackendError> {
        self.0.added.lock().unwrap().remove(range);
        Ok(())
    }
}

pub(crate) type Handle = DynamicMemoryHandle<Arc<FakePlatform>>;

/// A host with the device.
pub(crate) struct MemoryHost {
    // Before the host, as a VMM has it: clones outlive each other in any order.
    pub(crate) memory: Handle,
    pub(crate) host: Host<Arc<FakePlatform>>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) notices: Arc<Mutex<Vec<Notice>>>,
    pub(crate) seen: Arc<Seen>,
}

impl MemoryHost {
    pub(crate) fn start() -> Result<Self, StartError> {
        Self::start_with(memory_config())
    }

    pub(crate) fn start_with(memory: Config) -> Result<Self, StartError> {
        Self::start_seen(memory, Seen::default())
    }

    pub(crate) fn start_seen(memory: Config, seen: Seen) -> Result<Self, StartError> {
        let seen = Arc::new(seen);
        let backend = Arc::new(Backend::default());
        let notices = Arc::new(Mutex::new(Vec::new()));
        let mut builder = HostBuilder::new(config(), Arc::clone(&seen))?;
        let sink = Arc::clone(&notices);
        let on_notice = move |notice| sink.lock().unwrap().push(notice);
        let memory = builder.dynamic_memory(memory, Backed(Arc::clone(&backend)), on_notice)?;
        let host = builder.start()?;
        Ok(Self { memory, host, backend, notices, seen })
    }

    /// A host in the middle of a discard, which lasts until [`Backend::hold`] lets it end.
    pub(crate) fn discarding() -> (Self, Driver) {
        let host = Self::start().unwrap();
        let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
        host.backend.hold(true);
        host.memory.set_target(HALF).unwrap();
        driver.until("a discard", |_| host.backend.is_discarding.load(Ordering::Acquire));
        (host, driver)
    }

    pub(crate) fn actual(&self) -> PageCount {
        self.memory.snapshot().device.actual
    }

    pub(crate) fn is_at_target(&self) -> bool {
        let device = self.memory.snapshot().device;
        Some(device.actual) == device.target && !device.is_pursued
    }
}

/// A guest whose driver talks to the device.
pub(crate) struct Driver {
    pub(crate) guest: Guest,
    pub(crate) driver: Client,
    pub(crate) channel: OpenChannel,
    unsent: Option<Vec<u8>>,
    start: Instant,
}

impl Driver {
    /// Boots a guest with its driver.
    pub(crate) fn boot(host: &MemoryHost, platform: Arc<FakePlatform>) -> Self {
        let guest = Guest::boot(&host.host, platform);
        let memory = Memory::new(boot_ram(), PageCount::new(1 << 14));
        Self::load(guest, Client::new(Personality::linux_6_1(), memory))
    }

    /// Loads the driver in a guest that runs.
    pub(crate) fn load(mut guest: Guest, mut driver: Client) -> Self {
        let channel = guest.open(dynmem_vsp::INTERFACE, PAGE).unwrap();
        driver.open();
        Self { guest, driver, channel, unsent: None, start: Instant::now() }
    }

    /// Lets guest and host talk until something is so.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            self.talk();
            assert!(start.elapsed().as_secs() < 20, "waited in vain for {what}");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Lets the guest do what it has to do now.
    pub(crate) fn talk(&mut self) {
        self.guest.run();
        self.driver.advance(self.start.elapsed());
        let channel = &mut self.channel;
        // Nothing but a signal has the guest look.
        if self.guest.take_event(channel.relid) {
            while let Some(packet) = channel.rings.receive() {
                self.driver.receive(&packet.payload).expect("the host keeps the rules");
                if packet.signal {
                    self.guest.signal(channel.connection);
                }
            }
        }
        while let Some(message) = self.unsent.take().or_else(|| self.driver.poll_send()) {
            match channel.rings.send(&message, 0) {
                Ok(true) => {
                    self.guest.signal(channel.connection);
                }
                Ok(false) => {}
                Err(_) => {
                    self.unsent = Some(message);
                    break;
                }
            }
        }
    }

    /// Unloads the driver.
    pub(crate) fn unload(mut self) -> (Guest, Client) {
        self.driver.close();
        self.guest.close(self.channel);
        (self.guest, self.driver)
    }
}
