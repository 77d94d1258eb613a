//! The heartbeat service: whether the guest's kernel still answers.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use vmbus::GuestMemory;
use vmbus::protocol::Guid;

use crate::kind::Kind;
use crate::protocol::{HeartbeatBody, MessageType, Version};
use crate::saved::SavedKind;
use crate::service::Service;
use crate::{Fault, Notice};

/// The heartbeat service.
pub type Heartbeat<M> = Service<M, HeartbeatKind>;

/// The time from an answer to the next heartbeat (Linux `heartbeat_onchannelcallback`: Hyper-V sends
/// one every two seconds).
const INTERVAL: Duration = Duration::from_secs(2);

/// How long an answer may take until the guest counts as lost. On a busy host a guest may not run for many
/// seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the guest answers, in Hyper-V's words (`Msvm_HeartbeatComponent`, `OperationalStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contact {
    /// The guest has no such service, or it has not answered yet.
    #[default]
    NoContact,
    /// The guest answers.
    Ok,
    /// The guest has answered and does not any more: its kernel hangs, or the host does not run it.
    LostCommunication,
}

impl Contact {
    /// `OK`, `No Contact` or `Lost Communication`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoContact => "No Contact",
            Self::Ok => "OK",
            Self::LostCommunication => "Lost Communication",
        }
    }
}

impl fmt::Display for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is particular to the heartbeat service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatKind {
    contact: Contact,
    /// The number of the last heartbeat.
    sequence: u64,
    /// When the next heartbeat is due; `None` without a guest.
    next: Option<Duration>,
    /// When the guest counts as lost if it has not answered.
    lost: Option<Duration>,
}

impl HeartbeatKind {
    fn changed(&mut self, contact: Contact) -> Option<Notice> {
        let before = core::mem::replace(&mut self.contact, contact);
        (before != contact).then_some(Notice::Contact(contact))
    }
}

impl Kind for HeartbeatKind {
    const INTERFACE: Guid = Guid::from_digits(0x57164f39_9115_4e78_ab55_382f3bd5422d);
    const INSTANCE: Guid = Guid::from_digits(0xfd149e91_82e0_4a7d_afa6_2a4166cbd7c0);
    const MESSAGE: MessageType = MessageType::HEARTBEAT;

    fn versions(&self) -> &'static [Version] {
        const VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];
        VERSIONS
    }

    fn ready(&mut self, now: Duration) {
        self.next = Some(now);
    }

    fn gone(&mut self) -> Option<Notice> {
        let notice = self.changed(Contact::NoContact);
        *self = Self::default();
        notice
    }

    fn next_body(&mut self, now: Duration, _: Version) -> Option<Vec<u8>> {
        self.next.take_if(|at| *at <= now)?;
        self.lost = Some(now.saturating_add(PATIENCE));
        Some(HeartbeatBody { sequence: self.sequence.into(), reserved: [0; 32] }.emit())
    }

    fn answered(&mut self, now: Duration, _: u32, body: &[u8]) -> Result<Option<Notice>, Fault> {
        // An answer that makes no sense is no sign of life.
        self.next = Some(now.saturating_add(INTERVAL));
        let actual = HeartbeatBody::parse(body)?.sequence.get();
        let expected = self.sequence.wrapping_add(1);
        if actual != expected {
            return Err(Fault::Sequence { expected, actual });
        }
        self.sequence = expected;
        self.lost = None;
        Ok(self.changed(Contact::Ok))
    }

    fn deadline(&self, is_free: bool) -> Option<Duration> {
        let next = self.next.filter(|_| is_free);
        [next, self.lost].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Duration, _: bool) -> Option<Notice> {
        self.lost.take_if(|at| *at <= now)?;
        // A guest that has never answered is not lost.
        match self.contact {
            Contact::NoContact => None,
            Contact::Ok | Contact::LostCommunication => self.changed(Contact::LostCommunication),
        }
    }

    fn save(&self, now: Duration) -> SavedKind {
        let left = |at: Duration| at.saturating_sub(now);
        SavedKind::Heartbeat {
            contact: self.contact,
            sequence: self.sequence,
            next: self.next.map(left),
            lost: self.lost.map(left),
        }
    }

    fn restore(&mut self, saved: &SavedKind, now: Duration) -> Result<(), &'static str> {
        let SavedKind::Heartbeat { contact, sequence, next, lost } = *saved else {
            return Err("another service");
        };
        let is_short = |time: Option<Duration>, most| time.is_none_or(|time| time <= most);
        if !is_short(next, INTERVAL) || !is_short(lost, PATIENCE) {
            return Err("a heartbeat with a longer wait than there is");
        }
        let at = |left: Duration| now.saturating_add(left);
        *self = Self { contact, sequence, next: next.map(at), lost: lost.map(at) };
        Ok(())
    }
}

impl<M: GuestMemory> Heartbeat<M> {
    /// Whether the guest answers.
    #[must_use]
    pub const fn contact(&self) -> Contact {
        self.kind.contact
    }
}
