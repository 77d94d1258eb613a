//! The transport and its queues, with a device that does little.

mod driver;

use std::sync::Arc;
use std::thread;

use driver::*;
use guest_ram::{GuestRam, RamConfig};
use page_range::{Gpfn, PageCount, PageRange};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio as register;
use virtio_devices::{Chain, Device, Entropy, VirtQueue, WorkerKind};

/// Writes what it reads, in capitals.
struct Shouter;

impl Device for Shouter {
    fn id(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[8, 4]
    }

    fn config(&self) -> &[u8] {
        b"shout"
    }

    fn service(&self, _: usize) -> (WorkerKind, usize) {
        (WorkerKind::Entropy, 2)
    }

    fn serve(&self, (_, queue): (usize, &VirtQueue), chain: &Chain, buffer: &mut [u8]) {
        let len = usize::try_from(chain.readable_len()).unwrap().min(buffer.len());
        let bytes = &mut buffer[..len];
        let done = queue.copy_from(chain, 0, bytes).and_then(|()| {
            bytes.make_ascii_uppercase();
            queue.copy_to(chain, 0, bytes)
        });
        queue.complete(chain, done.map_or(0, |()| u32::try_from(len).unwrap()));
    }
}

fn shouter() -> Driver {
    Driver::start(Arc::new(Shouter), VERSION_1)
}

#[test]
fn a_driver_finds_the_device_that_the_registers_describe() {
    let driver = shouter();
    assert_eq!(driver.read(register::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(register::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(register::VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
    driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 4);
    driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.read(register::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    for (offset, width, expected) in
        [(0, 1, b"s".to_vec()), (1, 2, b"ho".to_vec()), (3, 4, b"ut\0\0".to_vec())]
    {
        let mut data = vec![0xee; width];
        driver.device.read(0x100 + offset, &mut data);
        assert_eq!(data, expected);
    }
    let mut data = [0xee; 8];
    driver.device.read(0x100 + u64::MAX / 2, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn features_that_are_not_there_are_not_accepted() {
    for (features, accepted) in [(VERSION_1, true), (0, false), (VERSION_1 | 1 << 40, false)] {
        let mut driver = shouter();
        driver.set_up(features);
        assert_eq!(driver.status() == 15, accepted, "{features:#x}");
        driver.put(DATA, b"hello");
        driver.request(&[(DATA, 5, false), (DATA + 100, 5, true)]);
        driver.device.serve_now();
        assert_eq!(driver.completed().is_some(), accepted, "{features:#x}");
    }
}

#[test]
fn a_request_is_served_wherever_its_buffers_lie() {
    let mut driver = shouter();
    driver.put(DATA, b"hello");
    driver.put(DATA + 1000, b" world");
    for _ in 0..20 {
        driver.request(&[
            (DATA, 5, false),
            (DATA + 1000, 6, false),
            (DATA + 2000, 3, true),
            (DATA + 3000, 100, true),
        ]);
        driver.device.serve_now();
        assert_eq!(driver.completed(), Some((0, 11)));
        assert_eq!(driver.get(DATA + 2000, 3), b"HEL");
        assert_eq!(driver.get(DATA + 3000, 9), b"LO WORLD\0");
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.put(DATA + 2000, &[0; 2000]);
    }
    assert_eq!(driver.device.interrupt().read().unwrap(), 20);
}

#[test]
fn an_indirect_table_is_a_chain_like_any_other() {
    let mut driver = shouter();
    driver.put(DATA, b"hello");
    driver.describe(DATA + 0x1000, 0, (DATA, 5), NEXT, 1);
    driver.describe(DATA + 0x1000, 1, (DATA + 100, 5), WRITE, 0);
    driver.describe(TABLE, 0, (DATA + 0x1000, 32), INDIRECT, 0);
    driver.offer(0);
    driver.device.serve_now();
    assert_eq!(driver.completed(), Some((0, 5)));
    assert_eq!(driver.get(DATA + 100, 5), b"HELLO");
}

#[test]
fn the_driver_is_interrupted_where_it_wants_to_be() {
    let mut driver = Driver::start(Arc::new(Shouter), VERSION_1 | EVENT_IDX);
    // After the third request.
    driver.put(AVAIL + 4 + 2 * 8, &2_u16.to_le_bytes());
    for count in 1..=4 {
        driver.request(&[(DATA, 1, false), (DATA + 100, 1, true)]);
        driver.device.serve_now();
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), u32::from(count >= 3));
        // The device wants to be told of the next one.
        let event = u16::from_le_bytes(driver.get(USED + 4 + 8 * 8, 2).try_into().unwrap());
        assert_eq!(event, count);
    }
}

type Breaks = fn(&mut Driver);

/// Each breaks the rules of the ring in one way.
fn broken_rings() -> Vec<(&'static str, Breaks)> {
    vec![
        ("a loop", |driver| {
            driver.describe(TABLE, 0, (DATA, 1), NEXT, 1);
            driver.describe(TABLE, 1, (DATA, 1), NEXT, 0);
            driver.offer(0);
        }),
        ("an end beyond the table", |driver| {
            driver.describe(TABLE, 0, (DATA, 1), NEXT, 500);
            driver.offer(0);
        }),
        ("a head beyond the table", |driver| driver.offer(100)),
        ("a readable buffer after a writable one", |driver| {
            driver.request(&[(DATA, 1, true), (DATA, 1, false)]);
        }),
        ("more than 4 GiB", |driver| {
            driver.request(&[(DATA, u32::MAX, true), (DATA, u32::MAX, true)]);
        }),
        ("an indirect table in an indirect table", |driver| {
            driver.describe(DATA, 0, (DATA + 0x1000, 16), INDIRECT, 0);
            driver.describe(TABLE, 0, (DATA, 16), INDIRECT, 0);
            driver.offer(0);
        }),
        ("an indirect table of a length that none has", |driver| {
            driver.describe(TABLE, 0, (DATA, 17), INDIRECT, 0);
            driver.offer(0);
        }),
        ("an indirect table longer than the queue", |driver| {
            for index in 0..20 {
                driver.describe(
                    DATA,
                    index,
                    (DATA, 1),
                    if index < 19 { NEXT } else { 0 },
                    index + 1,
                );
            }
            driver.describe(TABLE, 0, (DATA, 20 * 16), INDIRECT, 0);
            driver.offer(0);
        }),
        ("an indirect table outside memory", |driver| {
            driver.describe(TABLE, 0, (u64::MAX - 8, 16), INDIRECT, 0);
            driver.offer(0);
        }),
        ("an index that runs ahead", |driver| driver.put(AVAIL + 2, &100_u16.to_le_bytes())),
        ("a ring outside memory", |driver| {
            driver.write(register::VIRTIO_MMIO_QUEUE_READY, 0);
            driver.write(register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0xffff_ffff);
            driver.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
        }),
    ]
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    for (what, breaks) in broken_rings() {
        let mut driver = shouter();
        breaks(&mut driver);
        driver.device.serve_now();
        assert_eq!(driver.completed(), None, "{what}");
        assert_eq!(driver.status(), 15 | NEEDS_RESET, "{what}");
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2, "{what}");
        driver.request(&[(DATA, 1, false), (DATA, 1, true)]);
        driver.device.serve_now();
        assert_eq!(driver.completed(), None, "{what}");

        driver.set_up(VERSION_1);
        assert_eq!(driver.status(), 15, "{what}");
        driver.request(&[(DATA, 1, false), (DATA, 1, true)]);
        driver.device.serve_now();
        assert_eq!(driver.completed(), Some((0, 1)), "{what}");
    }
}

#[test]
fn buffers_outside_memory_fail_their_request_only() {
    for buffers in [
        [(RAM - 2, 5, false), (DATA, 5, true)],
        [(DATA, 5, false), (u64::MAX - 2, 5, true)],
        [(u64::MAX, 5, false), (DATA, 5, true)],
        [(3 << 30, 5, false), (DATA, 5, true)],
    ] {
        let mut driver = shouter();
        driver.request(&buffers);
        driver.device.serve_now();
        assert_eq!(driver.completed(), Some((0, 0)), "{buffers:?}");
        driver.request(&[(DATA, 1, false), (DATA, 1, true)]);
        driver.device.serve_now();
        assert_eq!(driver.completed(), Some((0, 1)));
    }
}

#[test]
fn a_queue_in_use_is_not_changed() {
    let mut driver = shouter();
    for register in (0x80..=0xa4).step_by(4).chain([register::VIRTIO_MMIO_QUEUE_NUM]) {
        driver.write(register, 0x40);
    }
    driver.request(&[(DATA, 1, false), (DATA, 1, true)]);
    driver.device.serve_now();
    assert_eq!(driver.completed(), Some((0, 1)));
}

#[test]
fn a_request_from_before_a_reset_is_void() {
    let mut driver = shouter();
    let queue = Arc::clone(&driver.device.queues().1[0]);
    for reset in [register::VIRTIO_MMIO_STATUS, register::VIRTIO_MMIO_QUEUE_READY] {
        driver.set_up(VERSION_1);
        driver.put(DATA, b"before");
        driver.request(&[(DATA, 6, false), (DATA, 6, true)]);
        let chain = queue.take().unwrap();
        driver.write(reset, 0);
        assert!(queue.copy_to(&chain, 0, b"after!").is_err());
        assert!(queue.copy_from(&chain, 0, &mut [0; 6]).is_err());
        queue.complete(&chain, 6);
        assert_eq!(driver.get(DATA, 6), b"before");
        assert_eq!(driver.completed(), None);
    }
}

#[test]
fn threads_share_a_queue_and_end_when_the_machine_does() {
    let mut driver = shouter();
    let workers = driver.device.workers();
    assert_eq!(workers.len(), 4);
    let threads: Vec<_> = workers.into_iter().map(|worker| thread::spawn(worker.run)).collect();
    for number in 0..1000_u64 {
        driver.put(DATA, &number.to_le_bytes());
        driver.request(&[(DATA, 8, false), (DATA + 8, 8, true)]);
        driver.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        while driver.completed().is_none() {
            thread::yield_now();
        }
    }
    driver.device.stop();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn memory_that_was_removed_is_not_written() {
    let (size, hot_add) = (PageCount::from_bytes(RAM), PageCount::from_bytes(128 * MIB));
    let config = RamConfig { size, hot_add, max_pieces: 4, ..RamConfig::default() };
    let ram = Arc::new(GuestRam::new(&config).unwrap());
    let mut driver = Driver::start_in(Arc::clone(&ram), Arc::new(Shouter), VERSION_1);
    let added = PageRange::new(Gpfn::new(1 << 20).unwrap(), hot_add).unwrap();
    let buffers = [(DATA, 5, false), (1 << 32, 5, true)];
    driver.put(DATA, b"hello");
    let served = |driver: &mut Driver| {
        driver.request(&buffers);
        driver.device.serve_now();
        driver.completed()
    };
    assert_eq!(served(&mut driver), Some((0, 0)));
    ram.add(added, PageCount::ZERO, hot_add).unwrap();
    assert_eq!(served(&mut driver), Some((0, 5)));
    assert_eq!(driver.get(1 << 32, 5), b"HELLO");
    ram.remove(added).unwrap();
    assert_eq!(served(&mut driver), Some((0, 0)));
}

#[test]
fn entropy_is_not_the_same_twice() {
    let mut driver = Driver::start(Arc::new(Entropy), VERSION_1);
    driver.request(&[(DATA, 64, true)]);
    driver.device.serve_now();
    assert_eq!(driver.completed(), Some((0, 64)));
    let first = driver.get(DATA, 64);
    driver.request(&[(DATA, 1 << 20, true)]);
    driver.device.serve_now();
    assert_eq!(driver.completed(), Some((0, 4096)));
    assert_ne!(driver.get(DATA, 64), first);
}

proptest! {
    /// What a chain's buffers hold is copied like one piece.
    #[test]
    fn buffers_are_one_piece(
        lens in prop::collection::vec(0_u32..50, 1..5),
        offset in 0_usize..200,
        count in 0_usize..200,
    ) {
        let mut driver = shouter();
        let total = lens.iter().sum::<u32>() as usize;
        let bytes: Vec<u8> = (0..=255).cycle().take(total).collect();
        let (mut buffers, mut at) = (Vec::new(), 0);
        for (place, len) in (0..).zip(&lens) {
            let address = DATA + place * 1000;
            driver.put(address, &bytes[at..at + *len as usize]);
            buffers.push((address, *len, false));
            at += *len as usize;
        }
        driver.request(&buffers);
        let queue = Arc::clone(&driver.device.queues().1[0]);
        let chain = queue.take().unwrap();
        let mut copy = vec![0; count];
        let result = queue.copy_from(&chain, offset as u64, &mut copy);
        match bytes.get(offset..offset + count) {
            Some(expected) => {
                prop_assert!(result.is_ok());
                prop_assert_eq!(copy, expected);
            }
            None => prop_assert!(result.is_err()),
        }
    }
}
