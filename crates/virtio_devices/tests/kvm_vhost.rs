//! Cards that the host's kernel serves: with a real `/dev/vhost-net` and a tap interface, as root. The
//! name of this file has it run where tests with guests run.

#[expect(dead_code, reason = "shared with other tests")]
mod driver;
#[expect(dead_code, reason = "shared with another test")]
mod frames;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use driver::{DATA, Driver, MIB, RAM, VERSION_1};
use frames::{HEADERS, datagram};
use guest_ram::{GuestRam, HugePages, RamConfig};
use page_range::{Gpa, PageCount, PageRange};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};
use virtio_bindings::virtio_mmio as register;
use virtio_devices::{Mac, Net, Tap, Vhost, VhostError};

const PATIENCE: Duration = Duration::from_secs(60);
const HEADER: usize = 12;
const PORT: u16 = 7777;
const RECEIVE: u32 = 0;
const SEND: u32 = 1;
/// The size of a block of added memory, and the place of the first one.
const BLOCK: u64 = 2 * MIB;
const ADDED: u64 = RAM;
const BLOCKS: u64 = 160;

/// A card with a driver that uses one queue, its threads, the host's end of the link, and what is told
/// when the kernel does not serve the card.
struct Card {
    driver: Driver,
    threads: Vec<thread::JoinHandle<()>>,
    refused: Receiver<String>,
    socket: UdpSocket,
    host: Ipv4Addr,
    _interface: SyncDevice,
}

impl Card {
    /// A card in the network 192.0.2.`net`.
    fn start(queue: u32, net: u8, huge_pages: HugePages) -> Self {
        let (host, name) = (Ipv4Addr::new(192, 0, 2, net * 8 + 1), format!("hvbvhost{net}"));
        let builder = DeviceBuilder::new().name(name).layer(Layer::L2).packet_information(false);
        let interface = builder.ipv4(host, 29, None).build_sync().unwrap();
        let socket = UdpSocket::bind((host, PORT)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let tap = Tap::over(interface.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (refused, told) = channel();
        let refused = Mutex::new(refused);
        let refused =
            move |error: &VhostError| refused.lock().unwrap().send(error.to_string()).unwrap();
        let vhost = Vhost::open(&tap, Box::new(refused)).unwrap();
        let lost = |error: &std::io::Error| panic!("{error}");
        let card = Net::new(Box::new(tap), Mac::local([1, 2, 3, 4]), Box::new(lost));
        let ram = GuestRam::new(&RamConfig {
            size: PageCount::from_bytes(RAM),
            hot_add: PageCount::from_bytes(BLOCKS * BLOCK),
            max_pieces: 1024,
            huge_pages,
            ..RamConfig::default()
        });
        let card = Arc::new(card.with_vhost(vhost));
        // With one queue only, the kernel does not take over.
        let mut driver = Driver::start_in(Arc::new(ram.unwrap()), card, VERSION_1);
        (driver.queue, driver.idle) = (queue, Some(1 - queue));
        driver.set_up(VERSION_1);
        let workers = driver.device.workers().into_iter();
        let threads = workers.map(|worker| thread::spawn(worker.run)).collect();
        Self { driver, threads, refused: told, socket, host, _interface: interface }
    }

    /// Whether the kernel serves the card now: the bit for used buffers cannot be acknowledged.
    fn is_served_by_kernel(&self) -> bool {
        self.driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 3);
        self.driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS) == 1
    }

    fn notify(&self) {
        let queues = self.driver.device.queues().1;
        queues[self.driver.queue as usize].kick().write(1).unwrap();
    }

    fn completed(&mut self) -> u32 {
        let begin = Instant::now();
        loop {
            if let Some((_, len)) = self.driver.completed() {
                return len;
            }
            assert!(begin.elapsed() < PATIENCE, "the device completes nothing");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has the guest receive a datagram at this address. The host sends others too, of its own.
    fn receives(&mut self, at: u64, text: &str) {
        let broadcast = Ipv4Addr::from(u32::from(self.host) | 7);
        loop {
            self.driver.request(&[(at, 2000, true)]);
            self.notify();
            self.socket.send_to(text.as_bytes(), (broadcast, PORT)).unwrap();
            let len = self.completed();
            let frame = self.driver.get(at, len as usize);
            if frame.get(HEADER + HEADERS..).is_some_and(|it| it.starts_with(text.as_bytes())) {
                assert_eq!(frame[..10], [0; 10]);
                return;
            }
        }
    }

    /// Has the guest send a datagram from this address.
    fn sends(&mut self, at: u64, text: &str) {
        let guest = Ipv4Addr::from(u32::from(self.host) + 1);
        let cards = ([0xff; 6], [0x52, 0x48, 1, 2, 3, 4]);
        let frame = datagram(cards, (guest, PORT), (self.host, PORT), text.as_bytes());
        self.driver.put(at, &[vec![0; HEADER], frame].concat());
        let len = u32::try_from(HEADER + HEADERS + text.len()).unwrap();
        self.driver.request(&[(at, len, false)]);
        self.notify();
        self.completed();
        let mut room = [0; 100];
        let (received, _) = self.socket.recv_from(&mut room).unwrap();
        assert_eq!(&room[..received], text.as_bytes());
    }

    fn exchange(&mut self, at: u64, text: &str) {
        match self.driver.queue {
            RECEIVE => self.receives(at, text),
            _ => self.sends(at, text),
        }
    }

    fn add(&self, block: u64) {
        let offset = PageCount::from_bytes(block * BLOCK);
        self.driver.ram.add(pages(block), offset, PageCount::from_bytes(BLOCK)).unwrap();
    }

    fn refused(&self) -> String {
        self.refused.recv_timeout(PATIENCE).unwrap()
    }

    fn stop(self) {
        self.driver.device.stop();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(self.refused.try_recv().ok(), None);
    }
}

fn pages(block: u64) -> PageRange {
    let start = Gpa::new(ADDED + block * BLOCK).gpfn().unwrap();
    PageRange::new(start, PageCount::from_bytes(BLOCK)).unwrap()
}

#[test]
fn the_kernel_serves_both_queues_and_raises_the_interrupt_before_and_after_a_reset() {
    for (queue, net) in [(RECEIVE, 1), (SEND, 2)] {
        let mut card = Card::start(queue, net, HugePages::Off);
        for round in 0..3 {
            assert!(card.is_served_by_kernel());
            while card.driver.device.interrupt().read().is_ok() {}
            for number in 0..300 {
                card.exchange(DATA, &format!("datagram {number} of {round}"));
            }
            assert!(card.driver.device.interrupt().read().is_ok());
            card.driver.write(register::VIRTIO_MMIO_STATUS, 0);
            assert!(!card.is_served_by_kernel());
            card.driver.set_up(VERSION_1);
        }
        card.stop();
    }
}

#[test]
fn a_driver_that_sets_up_one_queue_is_served_by_threads() {
    let mut card = Card::start(SEND, 3, HugePages::Off);
    card.driver.idle = None;
    card.driver.set_up(VERSION_1);
    assert!(!card.is_served_by_kernel());
    card.exchange(DATA, "one queue");
    card.stop();
}

#[test]
fn threads_go_on_where_the_kernel_was_when_a_queue_is_reset_alone() {
    for (queue, net) in [(RECEIVE, 4), (SEND, 5)] {
        let mut card = Card::start(queue, net, HugePages::Off);
        card.exchange(DATA, "by the kernel");
        card.driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 1 - queue);
        card.driver.write(register::VIRTIO_MMIO_QUEUE_READY, 0);
        assert!(!card.is_served_by_kernel());
        for number in 0..300 {
            card.exchange(DATA, &format!("by threads {number}"));
        }
        card.stop();
    }
}

#[test]
fn added_memory_is_reached_and_removed_memory_is_not() {
    for (queue, net) in [(RECEIVE, 6), (SEND, 7)] {
        let mut card = Card::start(queue, net, HugePages::Off);
        for block in 0..3 {
            card.add(block);
            card.driver.device.memory_changed();
        }
        let inside = ADDED + BLOCK;
        card.exchange(inside, "in memory that was added");
        card.exchange(inside + BLOCK - 100, "on both sides of a border between blocks");
        assert!(card.is_served_by_kernel());
        card.driver.put(inside, &[0x77; 2000]);
        // Its addresses in the host stay mapped: only the kernel's table says that it is gone.
        card.driver.ram.remove(pages(1)).unwrap();
        card.driver.device.memory_changed();
        assert!(card.is_served_by_kernel());
        card.exchange(ADDED, "below");
        card.exchange(ADDED + 2 * BLOCK, "above");
        card.driver.request(&[(inside, 2000, queue == RECEIVE)]);
        card.notify();
        let broadcast = Ipv4Addr::from(u32::from(card.host) | 7);
        card.socket.send_to(b"lost", (broadcast, PORT)).unwrap();
        // The threads treat the request as always: it fails alone.
        assert!(card.refused().contains("cannot serve the card any more"));
        assert!(!card.is_served_by_kernel());
        assert_eq!(card.completed(), 0);
        card.add(1);
        assert_eq!(card.driver.get(inside, 2000), [0x77; 2000]);
        card.exchange(DATA, "by threads");
        card.driver.set_up(VERSION_1);
        assert!(card.is_served_by_kernel());
        card.exchange(inside, "by the kernel again");
        card.stop();
    }
}

#[test]
fn more_pieces_of_memory_than_the_kernel_takes_leave_the_card_to_threads() {
    for (queue, net) in [(RECEIVE, 8), (SEND, 9)] {
        let mut card = Card::start(queue, net, HugePages::Off);
        let mut blocks = (0..BLOCKS).step_by(2);
        let mut refused = None;
        for block in blocks.by_ref() {
            card.add(block);
            card.driver.device.memory_changed();
            refused = card.refused.try_recv().ok();
            if refused.is_some() {
                break;
            }
            card.exchange(ADDED + block * BLOCK, &format!("in block {block}"));
        }
        let refused = refused.unwrap();
        assert!(refused.contains("no table of 65 pieces") && refused.contains("max_mem_regions"));
        card.exchange(DATA, "by threads");
        card.driver.set_up(VERSION_1);
        assert!(card.refused().contains("no table of 65 pieces"));
        card.exchange(DATA, "by threads again");
        // Side by side, they are few pieces.
        (1..BLOCKS).step_by(2).for_each(|block| card.add(block));
        card.driver.set_up(VERSION_1);
        assert!(card.is_served_by_kernel());
        card.exchange(ADDED + 2 * BLOCK - 50, "by the kernel again");
        card.stop();
    }
}

#[test]
fn a_page_that_the_hosts_pool_has_breaks_the_request_and_ends_nothing() {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(POOL).unwrap();
    std::fs::write(POOL, (RAM / BLOCK).to_string()).unwrap();
    for (queue, net) in [(RECEIVE, 10), (SEND, 11)] {
        let mut card = Card::start(queue, net, HugePages::Pool2M);
        assert!(card.is_served_by_kernel());
        card.exchange(DATA, "in pool pages");
        for page in 0..RAM / BLOCK {
            card.driver.put(page * BLOCK + BLOCK / 2, &[1]);
        }
        let start = Gpa::new(6 * MIB).gpfn().unwrap();
        let page = PageRange::new(start, PageCount::from_bytes(BLOCK)).unwrap();
        card.driver.ram.discard(&[page]).unwrap();
        // The pool keeps none for a touch.
        std::fs::write(POOL, (RAM / BLOCK - 1).to_string()).unwrap();
        let free = std::fs::read_to_string("/proc/meminfo").unwrap();
        assert!(free.contains("HugePages_Free:        0"), "{free}");
        card.driver.request(&[(6 * MIB, 1000, queue == RECEIVE)]);
        card.notify();
        let broadcast = Ipv4Addr::from(u32::from(card.host) | 7);
        card.socket.send_to(b"lost", (broadcast, PORT)).unwrap();
        thread::sleep(Duration::from_secs(1));
        // Linux 6.1 reports an error for a frame to receive, and tries again and again to send one.
        while card.refused.try_recv().is_ok() {}
        assert!(card.driver.completed().is_none_or(|(_, len)| len == 0));
        card.driver.set_up(VERSION_1);
        assert!(card.is_served_by_kernel());
        card.exchange(DATA, "after a reset");
        std::fs::write(POOL, (RAM / BLOCK).to_string()).unwrap();
        card.stop();
    }
    std::fs::write(POOL, before).unwrap();
}
