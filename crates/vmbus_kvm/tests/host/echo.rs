//! A second kind of device: it sends back what it gets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_model::vmbus::Event;
use vmbus::protocol::Guid;
use vmbus::{
    Channel, ChannelEvent, ChannelOutput, GuestMemory, Offer, Received, ServerConfig, VmbusDevice,
};
use vmbus_kvm::{Host, HostBuilder, StartError, Thread};

use crate::guest::{Guest, OpenChannel};
use crate::platform::{FakePlatform, Quirks, Seen, VPS};

pub(crate) const ECHO: Guid = Guid::from_digits(0xec40_ec40);

/// Where the rings of the echo's channel are.
pub(crate) const ECHO_PAGE: u64 = 0x80;

pub(crate) struct Echo<M> {
    offer: Offer,
    channel: Option<Channel<M>>,
    outputs: VecDeque<ChannelOutput<Vec<u8>>>,
    unsent: VecDeque<Vec<u8>>,
}

impl<M> Echo<M> {
    pub(crate) fn new(instance: u128) -> Self {
        Self {
            offer: Offer { interface: ECHO, instance: Guid::from_digits(instance) },
            channel: None,
            outputs: VecDeque::new(),
            unsent: VecDeque::new(),
        }
    }
}

impl<M: GuestMemory> Echo<M> {
    fn look(&mut self) -> Result<(), vmbus::ring::RingError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        loop {
            match channel.receive()? {
                Received::Data(packet) => {
                    self.outputs.push_back(ChannelOutput::Work(packet.payload.to_vec()));
                    self.unsent.push_back(packet.payload.to_vec());
                }
                Received::Other(_) => {}
                Received::Nothing => break,
            }
        }
        channel.end_receive();
        while let Some(payload) = self.unsent.front()
            && channel.send(payload)?
        {
            self.unsent.pop_front();
        }
        self.outputs.extend(channel.take_signal().map(ChannelOutput::SignalGuest));
        Ok(())
    }
}

impl<M: GuestMemory> VmbusDevice<M> for Echo<M> {
    type Work = Vec<u8>;

    fn offer(&self) -> Offer {
        self.offer
    }

    fn handle(&mut self, _: Duration, event: ChannelEvent<M>) {
        match event {
            ChannelEvent::Open { memory, channel, .. } => {
                let opened = Channel::open(memory, &channel);
                self.outputs.push_back(ChannelOutput::OpenFinished(
                    opened.map(|channel| self.channel = Some(channel)),
                ));
            }
            ChannelEvent::SetTargetVp(vp) => {
                self.channel.iter_mut().for_each(|c| c.set_target_vp(vp))
            }
            ChannelEvent::Close => {
                self.channel = None;
                self.unsent.clear();
                self.outputs.push_back(ChannelOutput::CloseFinished);
            }
            ChannelEvent::Signalled | ChannelEvent::Timeout | ChannelEvent::Reset => {}
        }
        if let Err(error) = self.look() {
            self.channel = None;
            self.outputs.push_back(ChannelOutput::Broken(error));
        }
    }

    fn poll_output(&mut self) -> Option<ChannelOutput<Vec<u8>>> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Duration> {
        None
    }

    fn waits_for_room(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn is_quiet(&self) -> bool {
        self.channel.is_none() && self.outputs.is_empty()
    }
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig { vp_count: VPS, ..ServerConfig::default() }
}

type Taken = Arc<Mutex<Vec<Vec<u8>>>>;

/// A host with one echo, and what that gave its sink.
pub(crate) fn echo_host(seen: Arc<Seen>) -> Result<(Host<Arc<FakePlatform>>, Taken), StartError> {
    let mut builder = HostBuilder::new(config(), seen)?;
    let taken = Taken::default();
    let sink = Arc::clone(&taken);
    let echo = Arc::new(Mutex::new(Echo::new(1)));
    builder.attach(echo, move |payload| sink.lock().unwrap().push(payload))?;
    Ok((builder.start()?, taken))
}

/// Sends a payload and waits for it to come back.
pub(crate) fn echoes(guest: &mut Guest, channel: &mut OpenChannel, payload: &[u8]) {
    if channel.rings.send(payload, 0).unwrap() {
        assert_eq!(guest.signal(channel.connection), 0);
    }
    guest.until("the signal", |guest| guest.take_event(channel.relid));
    assert_eq!(channel.rings.receive().unwrap().payload, payload);
}

fn every_machine(test: impl Fn(Quirks)) {
    for signals_exit in [false, true] {
        for no_acknowledgement in [false, true] {
            for loses_kicks in [false, true] {
                test(Quirks { signals_exit, no_acknowledgement, loses_kicks });
            }
        }
    }
}

#[test]
fn a_device_is_reached_on_machines_of_all_kinds_and_after_a_reset() {
    every_machine(|quirks| {
        let seen = Arc::new(Seen::default());
        let (host, taken) = echo_host(Arc::clone(&seen)).unwrap();
        for round in 0..3 {
            let platform = FakePlatform::new(quirks);
            let mut guest = Guest::boot(&host, Arc::clone(&platform));
            let mut channel = guest.open(ECHO, ECHO_PAGE).unwrap();
            echoes(&mut guest, &mut channel, b"12345678");
            if round > 0 {
                let connection = channel.connection;
                guest.close(channel);
                // A signal that comes too late reaches nobody.
                assert_eq!(guest.signal(connection), 18);
                let mut again = guest.open(ECHO, ECHO_PAGE).unwrap();
                echoes(&mut guest, &mut again, b"abcdefgh");
            }
            host.reset().unwrap();
            assert!(platform.bound.lock().unwrap().is_empty());
            drop(guest);
            assert_eq!(Arc::strong_count(&platform), 1, "the host keeps the machine");
        }
        assert_eq!(taken.lock().unwrap().len(), 5);
        drop(host);
        assert_eq!(*seen.threads.lock().unwrap(), [Thread::Bus]);
        assert!(seen.failures().is_empty());
    });
}

#[test]
fn devices_of_one_kind_have_their_own_channels() {
    let mut builder = HostBuilder::new(config(), Seen::default()).unwrap();
    for instance in [1, 2] {
        builder.attach(Arc::new(Mutex::new(Echo::new(instance))), |_| {}).unwrap();
    }
    let error = builder.attach(Arc::new(Mutex::new(Echo::new(2))), |_| {}).unwrap_err();
    assert!(matches!(error, StartError::Offer(_)), "{error}");
    let host: Host<Arc<FakePlatform>> = builder.start().unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    guest.bus.request_offers();
    let mut offers = 0;
    guest.wait(|event| {
        offers += u32::from(matches!(event, Event::Offered(_)));
        matches!(event, Event::OffersDelivered).then_some(())
    });
    assert_eq!(offers, 2);
}

#[test]
fn a_bus_without_devices_offers_none() {
    let host: Host<Arc<FakePlatform>> =
        HostBuilder::new(config(), Seen::default()).unwrap().start().unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    guest.bus.request_offers();
    guest.wait(|event| {
        assert!(!matches!(event, Event::Offered(_)));
        matches!(event, Event::OffersDelivered).then_some(())
    });
    host.reset().unwrap();
}

#[test]
fn hypercalls_that_are_none_of_the_bus_are_refused() {
    let (host, _) = echo_host(Arc::default()).unwrap();
    let guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    assert_eq!(guest.hypercall(0x46, 0), 2);
    assert_eq!(guest.post(99, &[0; 8]), 18);
    assert_eq!(guest.hypercall(0x1_005d, 0x77), 18);
}

#[test]
fn what_does_not_fit_into_the_ring_comes_when_there_is_room() {
    let (host, _) = echo_host(Arc::default()).unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    let mut channel = guest.open(ECHO, ECHO_PAGE).unwrap();
    // More than the guest's ring holds; Linux's balloon driver does not say that it made room either.
    let packets = 12;
    let payload = [7; 2048];
    let mut sent = 0;
    let mut received = 0;
    guest.until("all echoes", |guest| {
        if sent < packets
            && channel.rings.send(&payload, 0).is_ok_and(|signal| {
                if signal {
                    guest.signal(channel.connection);
                }
                true
            })
        {
            sent += 1;
        } else if sent == packets {
            received += u32::from(channel.rings.receive().is_some());
        }
        received == packets
    });
}

#[test]
fn a_ring_that_the_guest_breaks_is_reported_and_left_alone() {
    let seen = Arc::new(Seen::default());
    let (host, _) = echo_host(Arc::clone(&seen)).unwrap();
    let platform = FakePlatform::new(Quirks::default());
    let mut guest = Guest::boot(&host, Arc::clone(&platform));
    let channel = guest.open(ECHO, ECHO_PAGE).unwrap();
    // The write index of the guest's ring.
    let index = vm_memory::GuestAddress(ECHO_PAGE << 12);
    vm_memory::Bytes::write_obj(&*platform.memory, u32::MAX, index).unwrap();
    guest.signal(channel.connection);
    guest.until("the report", |_| seen.reports().iter().any(|text| text.contains("corrupted")));
    guest.close(channel);
    let mut again = guest.open(ECHO, ECHO_PAGE).unwrap();
    echoes(&mut guest, &mut again, b"12345678");
}
