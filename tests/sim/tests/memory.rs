//! The host remembers only so much about a guest, however much the guest says. This is one test,
//! since it measures all that the process allocates.

use std::alloc::System;
use std::time::Duration;

use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, MAX_RANGES, RangeList, StatusReport,
    Version, VersionRequest,
};
use hv_balloon::{Action, Config, Device, Event, Job};
use page_range::{Gpfn, PageCount, PageRange};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use vmbus::protocol::{ConnectionId, GuestMessage, Guid, wire};
use vmbus::{Offer, Server, ServerConfig};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const RAM_PAGES: u64 = 1 << 18;

fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Runs `round` a few times, and then many more times: the first rounds may take at most `most`
/// bytes of memory, and the others none.
///
/// Threads of the test harness allocate now and then, which only ever adds to the figures, so the
/// least of three attempts counts. A host that remembers more takes more in each of them.
fn has_a_bound(what: &str, most: usize, mut round: impl FnMut(u64)) {
    let before = heap();
    (0..40).for_each(&mut round);
    let first = heap().saturating_sub(before);
    let more = (0..3).map(|_| {
        let early = heap();
        (40..400).for_each(&mut round);
        heap().saturating_sub(early)
    });
    let more = more.min().unwrap_or_default();
    println!("{what}: {first} bytes, then {more} more");
    assert_eq!(more, 0, "{what}: bytes more");
    assert!(first <= most, "{what}: {first} bytes");
}

#[test]
fn what_the_host_remembers_has_a_bound() {
    let mut device = device();
    has_a_bound("pages that are not RAM, here and there", 1 << 18, |n| {
        give(&mut device, (1 << 30) + n * 1000);
    });
    // At worst, about one bit for each page.
    has_a_bound("every second page of 1 GiB", 1 << 18, |n| {
        let messages = RAM_PAGES / 2 / MAX_RANGES as u64;
        for message in n % 40 * messages / 40..=(n % 40 + 1) * messages / 40 {
            give(&mut device, message * 2 * MAX_RANGES as u64);
        }
    });
    has_a_bound("reports", 1 << 12, |_| tell(&mut device, &StatusReport::default().emit(1)));
    let mut device = deaf_device();
    let request = VersionRequest { version: Version::from_wire(7), is_last_attempt: false }.emit(1);
    has_a_bound("requests of a guest that reads no answers", 1 << 12, |_| {
        device.handle(Duration::ZERO, Event::Packet(&request));
        while device.poll_action().is_some() {}
    });
    let mut small = server();
    has_a_bound("short page lists", 1 << 17, |n| lend_a_little(&mut small, n));
    let mut server = server();
    has_a_bound("messages of a guest that takes none", 1 << 18, |n| ask(&mut server, n));
    has_a_bound("page lists", 4 << 20, |n| lend(&mut server, n));
    has_a_bound("connections", 1 << 18, |_| connect(&mut server));
}

/// A device whose guest's handshake is over.
fn device() -> Device {
    let mut device = deaf_device();
    tell(&mut device, &VersionRequest { version: Version::V2_0, is_last_attempt: false }.emit(1));
    let report = CapabilitiesReport {
        capabilities: Capabilities::BALLOON,
        minimum_pages: PageCount::ZERO,
        highest_page: 0,
    };
    tell(&mut device, &report.emit(2));
    device
}

/// A device whose guest has just opened the channel.
fn deaf_device() -> Device {
    let boot_ram = [range(0, RAM_PAGES)].into_iter().collect();
    let mut device =
        Device::new(Config { boot_ram, ..Config::default() }).expect("a device that can be");
    device.handle(
        Duration::ZERO,
        Event::ChannelOpened { guest_os_id: 0x81 << 56, is_reopened: false },
    );
    device
}

/// Gives the device a packet, and does all that it asks for.
fn tell(device: &mut Device, packet: &[u8]) {
    device.handle(Duration::ZERO, Event::Packet(packet));
    while let Some(action) = device.poll_action() {
        match action {
            Action::Send => device.handle(Duration::ZERO, Event::Sent),
            Action::Work(Job { id, .. }) => {
                device.handle(Duration::ZERO, Event::JobDone { id, ok: true });
            }
            _ => {}
        }
    }
}

/// Gives every second page from `start` on, as many as a message holds.
fn give(device: &mut Device, start: u64) {
    let mut list = RangeList::new();
    for n in 0..MAX_RANGES as u64 {
        list.push(range(start + 2 * n, 1)).unwrap();
    }
    tell(device, &BalloonResponse::emit(3, true, &list));
}

fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn server() -> Server {
    let mut server = Server::new(ServerConfig::default());
    let (interface, instance) = (Guid::from_digits(1), Guid::from_digits(2));
    server.offer(Offer { interface, instance }).unwrap();
    connect(&mut server);
    server
}

fn post(server: &mut Server, message: &vmbus::protocol::Message) -> bool {
    server.handle_message(ConnectionId::MESSAGE, message.as_bytes()).is_ok()
}

/// A new kernel requests a version and the offers.
fn connect(server: &mut Server) {
    let contact = wire::InitiateContact {
        version: 0x4_0000.into(),
        target_vp: 0.into(),
        target_sint: 0,
        target_vtl: 0,
        reserved: 0.into(),
        feature_flags: 0.into(),
        parent_to_child_monitor: 0.into(),
        child_to_parent_monitor: 0.into(),
    };
    post(server, &GuestMessage::InitiateContact(contact).emit());
    post(server, &GuestMessage::RequestOffers.emit());
}

/// Makes requests that the host answers; nobody takes the answers.
fn ask(server: &mut Server, n: u64) {
    for gpadl in 0..20 {
        let gpadl = (u32::try_from(n).unwrap() * 20 + gpadl).into();
        let teardown = wire::GpadlTeardown { relid: 1.into(), gpadl };
        post(server, &GuestMessage::GpadlTeardown(teardown).emit());
        post(server, &GuestMessage::RequestOffers.emit());
    }
}

/// Lends a page twenty times, and takes the answers.
fn lend_a_little(server: &mut Server, n: u64) {
    for gpadl in 0..20 {
        let header = wire::GpadlHeader {
            relid: 1.into(),
            gpadl: ((1 << 20) + u32::try_from(n).unwrap() * 20 + gpadl).into(),
            range_buflen: 16.into(),
            range_count: 1.into(),
        };
        let mut message = GuestMessage::GpadlHeader(header).emit();
        message.append(&[4096_u64, 1].map(u64::to_le_bytes).concat()).unwrap();
        post(server, &message);
        while server.poll_action().is_some() {}
    }
}

/// Lends as many pages as a list can name, and takes the answers.
fn lend(server: &mut Server, n: u64) {
    let gpadl = u32::try_from(n).unwrap();
    let header = wire::GpadlHeader {
        relid: 1.into(),
        gpadl: gpadl.into(),
        range_buflen: (u16::MAX - 7).into(),
        range_count: 1.into(),
    };
    let mut message = GuestMessage::GpadlHeader(header).emit();
    message.append(&(8190_u64 << 12).to_le_bytes()).unwrap();
    post(server, &message);
    let body = wire::GpadlBody { message_number: 0.into(), gpadl: gpadl.into() };
    let mut message = GuestMessage::GpadlBody(body).emit();
    message.append(&[0; 28 * 8]).unwrap();
    for _ in 0..8190 / 28 + 1 {
        while server.poll_action().is_some() {}
        post(server, &message);
    }
}
