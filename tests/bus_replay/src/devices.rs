//! The devices that can be replayed.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_recording::{DeviceSetup, Event, ServiceSetup, ToDevice, page_set};
use dynmem_vsp::{Config, DynamicMemory, HotAdd, JobId, Work};
use integration_services::{
    HeartbeatKind, Kind, Service, ShutdownKind, TimeSample, TimeSync, TimeSyncKind,
};
use page_range::PageCount;
use vmbus::{ChannelEvent, ChannelOutput, Offer, VmbusDevice};

use crate::ReplayError;
use crate::ring::Memory;

/// A device, whatever its kind.
pub(crate) trait Replayed {
    fn offer(&self) -> Offer;

    fn handle(&mut self, now: Duration, event: ChannelEvent<Memory>);

    /// Commands the device. Returns the command with the answer that it gives now; `None` if it has no
    /// such command.
    fn command(
        &mut self,
        now: Duration,
        command: &ToDevice,
    ) -> Result<Option<ToDevice>, ReplayError>;

    /// The device's next output; inside, what recordings say of it.
    fn poll(&mut self) -> Option<Option<Event>>;

    fn waits_for_room(&self) -> bool;

    /// The Dynamic Memory message that waits for room.
    fn unsent(&self) -> Option<Vec<u8>> {
        None
    }
}

/// The Dynamic Memory device of a recording.
pub(crate) fn of_memory(setup: &DeviceSetup) -> Result<Box<dyn Replayed>, ReplayError> {
    let vsp = DynamicMemory::new(Config::try_from(setup)?)
        .map_err(|error| ReplayError::Setup(error.to_string()))?;
    Ok(Box::new(MemoryDevice { vsp: vsp.with_trace(), jobs: BTreeMap::new() }))
}

/// A service of a recording.
pub(crate) fn of_service(setup: ServiceSetup) -> Box<dyn Replayed> {
    match setup {
        ServiceSetup::Shutdown => Box::new(Service::<Memory, ShutdownKind>::new().with_trace()),
        ServiceSetup::Heartbeat => Box::new(Service::<Memory, HeartbeatKind>::new().with_trace()),
        ServiceSetup::TimeSync { has_reference } => {
            let service = TimeSync::new().with_trace();
            Box::new(if has_reference { service.with_reference_time() } else { service })
        }
    }
}

struct MemoryDevice {
    vsp: DynamicMemory<Memory>,
    jobs: BTreeMap<u64, JobId>,
}

impl Replayed for MemoryDevice {
    fn offer(&self) -> Offer {
        self.vsp.offer()
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<Memory>) {
        self.vsp.handle(now, event);
    }

    fn command(
        &mut self,
        now: Duration,
        command: &ToDevice,
    ) -> Result<Option<ToDevice>, ReplayError> {
        let vsp = &mut self.vsp;
        let mut actual = command.clone();
        match (command, &mut actual) {
            (ToDevice::SetTarget { pages, .. }, ToDevice::SetTarget { taken, .. }) => {
                *taken = vsp.set_target(now, PageCount::new(*pages)).ok().map(PageCount::get);
            }
            (ToDevice::JobDone { id, ok }, _) => {
                let Some(job) = self.jobs.remove(id) else { return Ok(None) };
                vsp.job_done(now, job, *ok);
            }
            (ToDevice::SetInhibited { inhibited }, _) => vsp.set_inhibited(now, *inhibited),
            (ToDevice::AnnounceReset, _) => vsp.announce_reset(),
            (ToDevice::TakeKept, _) => drop(vsp.take_kept()),
            (
                ToDevice::StartMachine { boot_ram, hot_add, target, .. },
                ToDevice::StartMachine { ok, .. },
            ) => {
                let ram = page_set(boot_ram)?;
                let more = hot_add.as_ref().map(HotAdd::try_from).transpose()?;
                *ok = vsp.start_machine(now, ram, more, target.map(PageCount::new)).is_ok();
            }
            _ => return Ok(None),
        }
        Ok(Some(actual))
    }

    fn poll(&mut self) -> Option<Option<Event>> {
        let output = self.vsp.poll_output()?;
        if let ChannelOutput::Work(Work::Job(job)) = &output {
            self.jobs.insert(job.id.get(), job.id);
        }
        Some(Event::of_output(&output, Event::of_work))
    }

    fn waits_for_room(&self) -> bool {
        self.vsp.waits_for_room()
    }

    fn unsent(&self) -> Option<Vec<u8>> {
        self.vsp.unsent().map(<[u8]>::to_vec)
    }
}

/// A kind of service with its commands.
trait Commanded: Kind + Sized {
    fn command(_: &mut Service<Memory, Self>, _: Duration, _: &ToDevice) -> Option<ToDevice> {
        None
    }
}

impl Commanded for HeartbeatKind {}

impl Commanded for ShutdownKind {
    fn command(
        service: &mut Service<Memory, Self>,
        now: Duration,
        command: &ToDevice,
    ) -> Option<ToDevice> {
        matches!(command, ToDevice::RequestShutdown { .. })
            .then(|| ToDevice::RequestShutdown { ok: service.request_shutdown(now).is_ok() })
    }
}

impl Commanded for TimeSyncKind {
    fn command(
        service: &mut Service<Memory, Self>,
        now: Duration,
        command: &ToDevice,
    ) -> Option<ToDevice> {
        match *command {
            ToDevice::Resync => service.resync(now),
            ToDevice::TimeSample { host, reference } => {
                service.sample(now, TimeSample { host, reference });
            }
            _ => return None,
        }
        Some(command.clone())
    }
}

impl<K: Commanded> Replayed for Service<Memory, K> {
    fn offer(&self) -> Offer {
        Self::OFFER
    }

    fn handle(&mut self, now: Duration, event: ChannelEvent<Memory>) {
        VmbusDevice::handle(self, now, event);
    }

    fn command(
        &mut self,
        now: Duration,
        command: &ToDevice,
    ) -> Result<Option<ToDevice>, ReplayError> {
        Ok(K::command(self, now, command))
    }

    fn poll(&mut self) -> Option<Option<Event>> {
        let output = self.poll_output()?;
        Some(Event::of_output(&output, Event::of_service))
    }

    fn waits_for_room(&self) -> bool {
        VmbusDevice::waits_for_room(self)
    }
}
