//! The time synchronisation service: the host's wall clock, for the guest.

use alloc::vec::Vec;
use core::time::Duration;

use vmbus::GuestMemory;
use vmbus::protocol::Guid;

use crate::kind::Kind;
use crate::protocol::{MessageType, TimeBody, TimeReferenceBody, Version, time_flags};
use crate::saved::SavedKind;
use crate::service::Service;
use crate::{Fault, Notice};

/// The time synchronisation service.
pub type TimeSync<M> = Service<M, TimeSyncKind>;

/// The time between two samples (Hyper-V's; Linux `hv_util.c` counts a clock that got none for 600 s as
/// stale).
const INTERVAL: Duration = Duration::from_secs(5);

/// From this version on, a sample has the guest's reference time.
const WITH_REFERENCE: Version = Version::new(4, 0);

/// From 1601 to 1970, in units of 100 ns.
const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

/// The host's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSample {
    /// The wall clock, in units of 100 ns since 1601 UTC.
    pub host: u64,
    /// The guest's reference counter at the same moment (`HV_X64_MSR_TIME_REF_COUNT`), in units of 100
    /// ns; `None` where the host does not know it.
    pub reference: Option<u64>,
}

impl TimeSample {
    /// The sample for a time since the UNIX epoch.
    #[must_use]
    pub fn since_unix_epoch(time: Duration, reference: Option<u64>) -> Self {
        let units = u64::try_from(time.as_nanos() / 100).unwrap_or(u64::MAX);
        Self { host: units.saturating_add(UNIX_EPOCH), reference }
    }
}

/// What is particular to the time synchronisation service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimeSyncKind {
    /// The host knows the guest's reference time.
    has_reference: bool,
    /// The next sample sets the guest's clock.
    sets_clock: bool,
    /// When the next sample is due; `None` without a guest.
    next: Option<Duration>,
    /// The driver is to be asked for a sample.
    is_to_ask: bool,
    sample: Option<TimeSample>,
}

impl TimeSyncKind {
    /// Sets the guest's clock as soon as possible.
    const fn sync(&mut self, now: Duration) {
        self.sets_clock = true;
        self.next = Some(now);
    }
}

impl Kind for TimeSyncKind {
    const INTERFACE: Guid = Guid::from_digits(0x9527e630_d0ae_497b_adce_e80ab0175caf);
    const INSTANCE: Guid = Guid::from_digits(0x2dd1ce17_079e_403c_b352_a1921ee207ee);
    const MESSAGE: MessageType = MessageType::TIME_SYNC;

    fn versions(&self) -> &'static [Version] {
        const ALL: &[Version] = &[Version::new(1, 0), Version::new(3, 0), WITH_REFERENCE];
        const OLDER: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];
        if self.has_reference { ALL } else { OLDER }
    }

    fn ready(&mut self, now: Duration) {
        self.sync(now);
    }

    fn gone(&mut self) -> Option<Notice> {
        *self = Self { has_reference: self.has_reference, ..Self::default() };
        None
    }

    fn next_body(&mut self, _: Duration, version: Version) -> Option<Vec<u8>> {
        let TimeSample { host, reference } = self.sample.take()?;
        let flags = if self.sets_clock { time_flags::SYNC } else { time_flags::SAMPLE };
        let body = if version < WITH_REFERENCE {
            let (guest, round_trip) = (0.into(), 0.into());
            TimeBody { host: host.into(), guest, round_trip, flags }.emit()
        } else {
            let reference = reference?.into();
            let (leap, stratum, reserved) = (0, 0, [0; 3]);
            TimeReferenceBody { host: host.into(), reference, flags, leap, stratum, reserved }
                .emit()
        };
        self.sets_clock = false;
        Some(body)
    }

    fn answered(&mut self, _: Duration, _: u32, _: &[u8]) -> Result<Option<Notice>, Fault> {
        Ok(None)
    }

    fn deadline(&self, is_free: bool) -> Option<Duration> {
        self.next.filter(|_| is_free)
    }

    fn on_time(&mut self, now: Duration, is_free: bool) -> Option<Notice> {
        if is_free && self.next.is_some_and(|at| at <= now) {
            self.is_to_ask = true;
            // A driver that cannot tell the time is asked again then.
            self.next = Some(now.saturating_add(INTERVAL));
        }
        None
    }

    fn takes_sample(&mut self) -> bool {
        core::mem::take(&mut self.is_to_ask)
    }

    fn save(&self, _: Duration) -> SavedKind {
        // A sample that was not sent is out of date when it is restored.
        SavedKind::TimeSync { is_ready: self.next.is_some() }
    }

    fn restore(&mut self, saved: &SavedKind, now: Duration) -> Result<(), &'static str> {
        let SavedKind::TimeSync { is_ready } = saved else { return Err("another service") };
        if *is_ready {
            // The guest's clock stood still, if it has one that can.
            self.sync(now);
        }
        Ok(())
    }
}

impl<M: GuestMemory> TimeSync<M> {
    /// The driver knows the guest's reference time, so each [`TimeSample::reference`] is `Some`, and the
    /// guest may choose version 4.0, by which it makes up for the time that a sample is under way.
    #[must_use]
    pub const fn with_reference_time(mut self) -> Self {
        self.kind.has_reference = true;
        self
    }

    /// Answers [`Work::Sample`](crate::Work::Sample). A sample that the guest cannot use is dropped: without
    /// a guest, or without a reference time that was promised.
    pub fn sample(&mut self, now: Duration, sample: TimeSample) {
        self.advance(now);
        self.kind.sample = self.negotiated().is_ok().then_some(sample);
        self.work();
    }

    /// The guest's clock may be wrong, since its vCPUs stood still or the host's clock was set: has it
    /// set as soon as possible. The driver is asked for a sample at the next
    /// [`ChannelEvent::Timeout`](vmbus::ChannelEvent::Timeout), which is due at once.
    pub fn resync(&mut self, now: Duration) {
        self.advance(now);
        if self.negotiated().is_ok() {
            self.kind.sync(self.now);
        }
    }
}
