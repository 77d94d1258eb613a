//! Conversions from and to the types of bus and device.

use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::Version;
use vmbus::protocol::ring::PacketDescriptor;
#[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
use vmbus::protocol::ring::PacketKind;
use vmbus::{Action, ChannelEvent, ChannelOutput, ServerConfig, TracedPacket};

use crate::{BusSetup, Event, FromBus, FromDevice, InvalidSetup, Packet, Pages, ToDevice};

impl From<&ServerConfig> for BusSetup {
    fn from(config: &ServerConfig) -> Self {
        Self {
            vp_count: config.vp_count,
            page_limit: config.page_limit.get(),
            max_version: config.max_version.to_wire(),
        }
    }
}

impl TryFrom<&BusSetup> for ServerConfig {
    type Error = InvalidSetup;

    fn try_from(setup: &BusSetup) -> Result<Self, InvalidSetup> {
        Ok(Self {
            vp_count: setup.vp_count,
            page_limit: page(setup.page_limit)?,
            max_version: Version::from_wire(setup.max_version),
        })
    }
}

impl From<&Action> for FromBus {
    fn from(action: &Action) -> Self {
        let numbers = |pages: &[Gpfn]| pages.iter().map(|page| page.get()).collect();
        match action {
            Action::Send { vp, message } => {
                Self::Message { vp: vp.get(), bytes: message.as_bytes().to_vec() }
            }
            Action::DropQueuedMessages => Self::DropMessages,
            Action::Open { rings, target_vp, relid, connection_id, .. } => Self::Open {
                relid: relid.get(),
                connection: connection_id.get(),
                target_vp: target_vp.map(|vp| vp.get()),
                to_host: numbers(rings.incoming()),
                to_guest: numbers(rings.outgoing()),
            },
            Action::Close { .. } => Self::Close,
            Action::SetTargetVp { target_vp, .. } => Self::SetTargetVp { vp: target_vp.get() },
        }
    }
}

impl<M> From<&ChannelEvent<M>> for ToDevice {
    fn from(event: &ChannelEvent<M>) -> Self {
        match event {
            ChannelEvent::Open { guest_os_id, .. } => Self::Open { guest_os_id: *guest_os_id },
            ChannelEvent::SetTargetVp(vp) => Self::SetTargetVp { vp: vp.get() },
            ChannelEvent::Signalled => Self::Signalled,
            ChannelEvent::Close => Self::Close,
            ChannelEvent::Timeout => Self::Timeout,
            ChannelEvent::Reset => Self::Reset,
        }
    }
}

impl Event {
    /// What an output of a device of any kind tells a recording; `of_work` says it of the device's work.
    #[must_use]
    pub fn of_output<W>(
        output: &ChannelOutput<W>,
        of_work: impl FnOnce(&W) -> Option<Self>,
    ) -> Option<Self> {
        Some(Self::FromDevice(match output {
            ChannelOutput::SignalGuest(signal) => {
                FromDevice::Signal { vp: signal.vp.get(), flag: signal.flag }
            }
            ChannelOutput::OpenFinished(result) => FromDevice::OpenFinished { ok: result.is_ok() },
            ChannelOutput::CloseFinished => FromDevice::CloseFinished,
            ChannelOutput::Broken(error) => FromDevice::Broken { reason: error.to_string() },
            ChannelOutput::Work(work) => return of_work(work),
        }))
    }
}

impl From<&TracedPacket> for Packet {
    fn from(packet: &TracedPacket) -> Self {
        let flags =
            if packet.completion_requested { PacketDescriptor::COMPLETION_REQUESTED } else { 0 };
        Self {
            kind: packet.kind.0,
            flags,
            transaction: packet.transaction_id,
            bytes: packet.payload.clone(),
        }
    }
}

/// A packet that a device wrote.
#[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
fn written(kind: PacketKind, transaction: u64, bytes: &[u8]) -> Event {
    let packet = Packet { kind: kind.0, flags: 0, transaction, bytes: bytes.to_vec() };
    Event::FromDevice(FromDevice::Packet(packet))
}

/// Pages as a recording has them.
#[must_use]
pub fn pages(range: PageRange) -> Pages {
    (range.start().get(), range.count().get())
}

/// The reverse of [`pages`], for a set.
///
/// # Errors
/// [`InvalidSetup`] for pages that no guest can have.
pub fn page_set(all: &[Pages]) -> Result<PageRangeSet, InvalidSetup> {
    all.iter().copied().map(range).collect()
}

fn range(pages: Pages) -> Result<PageRange, InvalidSetup> {
    let invalid = InvalidSetup::Pages(pages);
    PageRange::new(page(pages.0)?, PageCount::new(pages.1)).map_err(|_| invalid)
}

fn page(number: u64) -> Result<Gpfn, InvalidSetup> {
    Gpfn::new(number).ok_or(InvalidSetup::Page(number))
}

#[cfg(feature = "dynamic-memory")]
mod device {
    use std::time::Duration;

    use dynmem_vsp::{Config, HotAdd, Job, Prepare, Settle, Trace, Work};
    use page_range::{PageCount, PageRange};
    use vmbus::protocol::ring::PacketKind;

    use super::{page_set, pages, range, written};
    use crate::{DeviceSetup, Event, FromDevice, HotAddSetup, InvalidSetup, Task};

    impl From<&Config> for DeviceSetup {
        fn from(config: &Config) -> Self {
            Self {
                boot_ram: config.boot_ram.iter().map(pages).collect(),
                hot_add: config.hot_add.as_ref().map(HotAddSetup::from),
                settle: match config.settle {
                    Settle::Auto => None,
                    Settle::Fixed(time) => Some(micros(time)),
                },
                status_reports: config.status_reports,
                discard_unit: config.discard_unit.get(),
                inhibited: config.inhibited,
            }
        }
    }

    impl TryFrom<&DeviceSetup> for Config {
        type Error = InvalidSetup;

        fn try_from(setup: &DeviceSetup) -> Result<Self, InvalidSetup> {
            Ok(Self {
                boot_ram: page_set(&setup.boot_ram)?,
                hot_add: setup.hot_add.as_ref().map(HotAdd::try_from).transpose()?,
                settle: setup
                    .settle
                    .map_or(Settle::Auto, |time| Settle::Fixed(Duration::from_micros(time))),
                status_reports: setup.status_reports,
                discard_unit: PageCount::new(setup.discard_unit),
                inhibited: setup.inhibited,
            })
        }
    }

    impl From<&HotAdd> for HotAddSetup {
        fn from(hot_add: &HotAdd) -> Self {
            Self {
                window: pages(hot_add.window),
                capacity: hot_add.capacity.get(),
                least_alignment: hot_add.least_alignment.get(),
            }
        }
    }

    impl TryFrom<&HotAddSetup> for HotAdd {
        type Error = InvalidSetup;

        fn try_from(setup: &HotAddSetup) -> Result<Self, InvalidSetup> {
            Ok(Self {
                window: range(setup.window)?,
                capacity: PageCount::new(setup.capacity),
                least_alignment: PageCount::new(setup.least_alignment),
            })
        }
    }

    impl From<&Job> for FromDevice {
        fn from(job: &Job) -> Self {
            let all = |ranges: &[PageRange]| ranges.iter().copied().map(pages).collect();
            let task = match &job.task {
                dynmem_vsp::Task::Discard(ranges) => Task::Discard(all(ranges)),
                dynmem_vsp::Task::Prepare(Prepare::Return(ranges)) => Task::Return(all(ranges)),
                dynmem_vsp::Task::Prepare(Prepare::Add { range, offset, alignment }) => Task::Add {
                    pages: pages(*range),
                    offset: offset.get(),
                    alignment: alignment.get(),
                },
                dynmem_vsp::Task::Remove(range) => Task::Remove(pages(*range)),
            };
            Self::Job { id: job.id.get(), task }
        }
    }

    impl Event {
        /// What the device's work tells a recording: jobs, and the packets of a device
        /// [with a trace](dynmem_vsp::DynamicMemory::with_trace). Notices are for the operator, and the
        /// guest sees nothing of them.
        #[must_use]
        pub fn of_work(work: &Work) -> Option<Self> {
            match work {
                Work::Job(job) => Some(Self::FromDevice(job.into())),
                Work::Trace(Trace::Received(packet) | Trace::Dropped(packet)) => {
                    Some(Self::FromGuest(packet.into()))
                }
                Work::Trace(Trace::Sent(message)) => {
                    Some(written(PacketKind::DATA_IN_BAND, 0, message))
                }
                Work::Trace(Trace::Completed(id)) => {
                    Some(written(PacketKind::COMPLETION, *id, &[]))
                }
                Work::Notify(_)
                | Work::Trace(
                    Trace::Opened | Trace::Closed | Trace::Emitted(_) | Trace::State(_),
                ) => None,
            }
        }
    }

    fn micros(time: Duration) -> u64 {
        u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(feature = "integration-services")]
mod services {
    use integration_services::{Trace, Work};
    use vmbus::protocol::ring::PacketKind;

    use super::written;
    use crate::Event;

    impl Event {
        /// What a service's work tells a recording: the packets of a service
        /// [with a trace](integration_services::Service::with_trace).
        #[must_use]
        pub fn of_service(work: &Work) -> Option<Self> {
            match work {
                Work::Trace(Trace::Received(packet)) => Some(Self::FromGuest(packet.into())),
                Work::Trace(Trace::Sent(message)) => {
                    Some(written(PacketKind::DATA_IN_BAND, 0, message))
                }
                Work::Trace(Trace::Completed(id)) => {
                    Some(written(PacketKind::COMPLETION, *id, &[]))
                }
                Work::Notify(_) | Work::Sample => None,
            }
        }
    }
}
