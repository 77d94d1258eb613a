//! The next guest, which keeps the rules.

use std::sync::Arc;

use guest_model::vmbus::{Client, Event, GuestRings, SharedMemory};
use page_range::Gpfn;
use vmbus::protocol::{Relid, Version, VpIndex};
use vmbus::ring::{ChannelRings, RingLayout};

use super::PAGE_LIMIT;
use super::driver::{Driver, OFFER};

/// Whatever happened before, it connects, finds the device, opens it and talks to it.
pub(super) fn next_guest_works(mut driver: Driver) {
    driver.be_quick();
    driver.offer(0);
    if driver.is_full() {
        return;
    }
    driver.messages.clear();
    let mut client = Client::new(Version::V5_3, VpIndex::new(3));
    client.connect();
    let events = run(&mut driver, &mut client);
    assert_eq!(events, [Event::Connected(Version::V5_3)]);
    client.request_offers();
    let events = run(&mut driver, &mut client);
    let relid = events.iter().find_map(|event| match event {
        Event::Offered(offer) if offer.instance == OFFER.instance => {
            Some(Relid::new(offer.relid.get()))
        }
        _ => None,
    });
    let relid = relid.unwrap_or_else(|| panic!("{events:?}"));
    let pages: Vec<_> = (0..8).map(|page| Gpfn::new(page).unwrap()).collect();
    let gpadl = client.create_gpadl(relid, &pages);
    assert_eq!(run(&mut driver, &mut client), [Event::GpadlCreated(gpadl, true)]);
    client.open(relid, gpadl, 4, VpIndex::new(1));
    assert_eq!(run(&mut driver, &mut client), [Event::Opened(relid, true)]);
    exchange(&pages);
    client.unload();
    assert_eq!(run(&mut driver, &mut client), [Event::Unloaded]);
}

fn run(driver: &mut Driver, client: &mut Client) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let mut is_idle = true;
        while let Some(post) = client.poll_post() {
            is_idle = false;
            let posted = driver.server.handle_message(post.connection_id, post.message.as_bytes());
            client.posted(post, posted.map_or_else(|error| error.hypercall_status(), |()| 0));
            driver.act();
        }
        for message in std::mem::take(&mut driver.messages) {
            is_idle = false;
            client.receive(message.as_bytes());
        }
        events.extend(std::iter::from_fn(|| client.poll_event()));
        if is_idle {
            return events;
        }
    }
}

fn exchange(pages: &[Gpfn]) {
    let mem = Arc::new(SharedMemory::new(usize::try_from(PAGE_LIMIT).unwrap_or_default().min(8)));
    let mut guest = GuestRings::new(mem.clone(), pages, 4);
    let mut host = ChannelRings::open(mem, &RingLayout::new(pages, 4).unwrap()).unwrap();
    assert_eq!(guest.send(b"guest to host 16", 1), Ok(true));
    assert_eq!(host.receive().unwrap().unwrap().payload, b"guest to host 16");
    host.send(b"host to guest 16", 2).unwrap();
    assert_eq!(&guest.receive().unwrap().payload[..], b"host to guest 16");
}
