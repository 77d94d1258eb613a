//! The guest's side of the integration services, as Linux has it (`drivers/hv/hv_util.c`): each message is
//! changed a little and sent back.

use alloc::vec::Vec;

use integration_services::protocol::{
    HeartbeatBody, Message, MessageType, Negotiation, STATUS_FAILED, STATUS_OK, ShutdownBody,
    TimeBody, TimeReferenceBody, Version, flags, shutdown_flags,
};
use vmbus::GuestMemory;
use vmbus::protocol::ring::PacketKind;

use crate::vmbus::GuestRings;

/// What the guest heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Versions were offered, and this one of the service was chosen.
    Chosen(Version),
    /// Versions were offered, and it has none of them.
    NoVersion,
    /// It is to shut down.
    Shutdown,
    /// A heartbeat.
    Heartbeat,
    /// The host's time, in units of 100 ns since 1601 UTC.
    Time {
        /// The host's time.
        host: u64,
        /// The reference time, from version 4.0 on.
        reference: Option<u64>,
        /// `time_flags`.
        flags: u8,
    },
}

/// The driver of one service in a guest.
#[derive(Clone, Debug)]
pub struct ServiceDriver {
    /// The versions that it has, newest first.
    versions: Vec<Version>,
    /// The version that was chosen.
    chosen: Option<Version>,
    /// It refuses to shut down.
    refuses: bool,
    /// What it heard, oldest first.
    pub heard: Vec<Heard>,
}

/// The framework's versions that Linux has, newest first.
const FRAMEWORK: [Version; 2] = [Version::new(3, 0), Version::new(1, 0)];

impl ServiceDriver {
    /// A driver that has these versions of its service, newest first.
    #[must_use]
    pub fn new(versions: &[Version]) -> Self {
        Self { versions: versions.into(), chosen: None, refuses: false, heard: Vec::new() }
    }

    /// The driver of a Linux from 4.14 on, for any of the services.
    #[must_use]
    pub fn linux() -> Self {
        let newest_first = [(4, 0), (3, 2), (3, 1), (3, 0), (1, 0)];
        Self::new(&newest_first.map(|(major, minor)| Version::new(major, minor)))
    }

    /// It refuses to shut down.
    #[must_use]
    pub fn that_refuses(self) -> Self {
        Self { refuses: true, ..self }
    }

    /// The answer to a message of the host, which follows the protocol.
    ///
    /// # Panics
    /// The host breaks it.
    pub fn answer(&mut self, packet: &[u8]) -> Vec<u8> {
        let message = Message::parse(packet).expect("a message");
        assert_eq!(message.flags, flags::TRANSACTION | flags::REQUEST, "{message:?}");
        let mut body = message.body.to_vec();
        let mut status = STATUS_OK;
        match message.message_type {
            MessageType::NEGOTIATE => self.choose(&mut body),
            MessageType::HEARTBEAT => {
                let mut heartbeat = HeartbeatBody::parse(&body).expect("a heartbeat");
                heartbeat.sequence += 1;
                body = heartbeat.emit();
                self.heard.push(Heard::Heartbeat);
            }
            MessageType::SHUTDOWN => {
                let request = ShutdownBody::parse(&body).expect("a request to shut down");
                assert_eq!(request.flags.get() & !shutdown_flags::FORCE, 0, "not to shut down");
                if self.refuses {
                    status = STATUS_FAILED;
                }
                self.heard.push(Heard::Shutdown);
            }
            MessageType::TIME_SYNC => self.take_time(&body),
            other => panic!("no service has messages of type {other:?}"),
        }
        let flags = flags::TRANSACTION | flags::RESPONSE;
        Message { status, flags, body: &body, ..message }.emit()
    }

    fn choose(&mut self, body: &mut Vec<u8>) {
        let offered = Negotiation::parse(body).expect("an offer of versions");
        let newest = |own: &[Version], offered: &[Version]| {
            own.iter().copied().find(|version| offered.contains(version))
        };
        let framework = newest(&FRAMEWORK, &offered.framework);
        self.chosen = newest(&self.versions, &offered.service).filter(|_| framework.is_some());
        self.heard.push(self.chosen.map_or(Heard::NoVersion, Heard::Chosen));
        let (framework, service) = (framework.into_iter(), self.chosen.into_iter());
        let some =
            |versions: Vec<Version>| if self.chosen.is_some() { versions } else { Vec::new() };
        let answer =
            Negotiation { framework: some(framework.collect()), service: some(service.collect()) };
        *body = answer.emit();
    }

    fn take_time(&mut self, body: &[u8]) {
        let chosen = self.chosen.expect("a version before a message");
        self.heard.push(if chosen >= Version::new(4, 0) {
            let time = TimeReferenceBody::parse(body).expect("a sample");
            let reference = Some(time.reference.get());
            Heard::Time { host: time.host.get(), reference, flags: time.flags }
        } else {
            let time = TimeBody::parse(body).expect("a sample");
            Heard::Time { host: time.host.get(), reference: None, flags: time.flags }
        });
    }
}

/// A guest's end of a service's channel.
#[derive(Debug)]
pub struct ServiceGuest<M> {
    /// The rings of the channel.
    pub rings: GuestRings<M>,
    /// The driver.
    pub driver: ServiceDriver,
}

impl<M: GuestMemory> ServiceGuest<M> {
    /// Takes all messages of the host and answers them. Returns whether the host must be signalled.
    ///
    /// # Panics
    /// The host breaks the protocol, or does not read the answers.
    pub fn step(&mut self) -> bool {
        let mut signal = false;
        while let Some(packet) = self.rings.receive() {
            assert_eq!(packet.kind, PacketKind::DATA_IN_BAND);
            let answer = self.driver.answer(&packet.payload);
            signal |= packet.signal;
            signal |= self.rings.send(&answer, packet.transaction_id).expect("a host that reads");
        }
        signal
    }
}
