//! Bus and device, told what a recording says.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_recording::{
    Event, FromBus, FromDevice, Header, Packet, ReadLine, Task, ToBus, ToDevice, page_set,
};
use dynmem_vsp::{Config, DynamicMemory, HotAdd, JobId, Work};
use page_range::PageCount;
use vmbus::protocol::{ConnectionId, VpIndex};
use vmbus::{
    Action, ChannelEvent, ChannelId, ChannelOutput, OpenChannel, Server, ServerConfig, VmbusDevice,
};

use crate::describe::describe;
use crate::ring::{Memory, Rings};
use crate::{Compared, Difference, ReplayError};

pub(crate) struct Replayer {
    server: Server,
    channel: ChannelId,
    vsp: DynamicMemory<Memory>,
    /// The channel that the bus wants to be opened.
    to_open: Option<OpenChannel>,
    rings: Option<Rings>,
    /// The recorded guest's ring was full at some time before its channel is opened again.
    fills_its_ring: bool,
    jobs: BTreeMap<u64, JobId>,
    /// The VP and the flag by which the guest is signalled, since the channel was opened or directed to
    /// another VP; `None` if the recording has no signal until the next such event.
    signal: Option<(u32, u16)>,
    compared: Compared,
}

impl Replayer {
    pub(crate) fn new(header: &Header) -> Result<Self, ReplayError> {
        let mut server = Server::new(ServerConfig::try_from(&header.bus)?);
        let config = Config::try_from(&header.device)?;
        let vsp =
            DynamicMemory::new(config).map_err(|error| ReplayError::Setup(error.to_string()))?;
        let vsp = vsp.with_trace();
        let channel = server.offer(vsp.offer()).expect("the only device");
        Ok(Self {
            server,
            channel,
            vsp,
            to_open: None,
            rings: None,
            fills_its_ring: false,
            jobs: BTreeMap::new(),
            signal: None,
            compared: Compared::default(),
        })
    }

    pub(crate) const fn compared(&self) -> Compared {
        self.compared
    }

    /// Replays the line at `index`.
    pub(crate) fn step(&mut self, lines: &[ReadLine], index: usize) -> Result<(), ReplayError> {
        let ReadLine { number, line } = &lines[index];
        let told = Line { number: *number, event: &line.event };
        let later = lines[index..].iter().skip(1).map(|line| &line.line.event);
        match &line.event {
            Event::ToBus(event) => self.tell_bus(told, event),
            Event::FromBus(event) => self.hear_bus(told, event),
            Event::ToDevice(event) => {
                self.make_room(later.clone());
                if matches!(event, ToDevice::Open { .. }) {
                    self.fills_its_ring = fills_its_ring(later.clone());
                }
                if matches!(event, ToDevice::Open { .. } | ToDevice::SetTargetVp { .. }) {
                    self.signal = next_signal(later);
                }
                self.tell_device(told, Duration::from_micros(line.t), event)
            }
            Event::FromGuest(packet) => {
                self.make_room(later);
                let rings =
                    self.rings.as_ref().ok_or_else(|| told.impossible("no open channel"))?;
                rings.write(packet).map_err(|why| told.impossible(&why))?;
                self.hear_device(told).map(drop)
            }
            // How many there are is a matter of the guest's timing.
            Event::FromDevice(FromDevice::Signal { .. }) => Ok(()),
            Event::FromDevice(event) => self.expect_of_device(told, event),
            Event::End => Ok(()),
        }
    }

    fn tell_bus(&mut self, told: Line<'_>, event: &ToBus) -> Result<(), ReplayError> {
        match event {
            ToBus::Message { connection, bytes, .. } => {
                let result = self.server.handle_message(ConnectionId::new(*connection), bytes);
                let status = result.map_or_else(|error| error.hypercall_status(), |()| 0);
                let (connection, bytes) = (*connection, bytes.clone());
                told.compare(&Event::ToBus(ToBus::Message { connection, status, bytes }))?;
            }
            ToBus::OpenFinished { ok } => self.server.open_finished(self.channel, *ok),
            ToBus::CloseFinished => self.server.close_finished(self.channel),
            ToBus::Reset => self.server.reset(),
        }
        Ok(())
    }

    fn hear_bus(&mut self, told: Line<'_>, event: &FromBus) -> Result<(), ReplayError> {
        let action = self.server.poll_action();
        let actual = action.as_ref().map_or(FromBus::Idle, FromBus::from);
        told.compare(&Event::FromBus(actual))?;
        if matches!(event, FromBus::Message { .. }) {
            self.compared.messages += 1;
        }
        if let Some(Action::Open { rings, target_vp, relid, connection_id, is_reopened, .. }) =
            action
        {
            self.to_open =
                Some(OpenChannel { rings, target_vp, relid, connection_id, is_reopened });
        }
        Ok(())
    }

    fn tell_device(
        &mut self,
        told: Line<'_>,
        now: Duration,
        event: &ToDevice,
    ) -> Result<(), ReplayError> {
        let vsp = &mut self.vsp;
        match event {
            ToDevice::Open { guest_os_id } => {
                let channel = self.to_open.take();
                let channel = channel.ok_or_else(|| told.impossible("the bus opens no channel"))?;
                let (rings, channel) = Rings::new(&channel, self.fills_its_ring);
                let memory = rings.memory();
                self.rings = Some(rings);
                let guest_os_id = *guest_os_id;
                vsp.handle(now, ChannelEvent::Open { memory, channel, guest_os_id });
            }
            ToDevice::SetTargetVp { vp } => {
                vsp.handle(now, ChannelEvent::SetTargetVp(VpIndex::new(*vp)));
            }
            ToDevice::Signalled => vsp.handle(now, ChannelEvent::Signalled),
            ToDevice::Close => vsp.handle(now, ChannelEvent::Close),
            ToDevice::Timeout => vsp.handle(now, ChannelEvent::Timeout),
            ToDevice::Reset => vsp.handle(now, ChannelEvent::Reset),
            ToDevice::SetTarget { pages, .. } => {
                let taken = vsp.set_target(now, PageCount::new(*pages));
                let (pages, taken) = (*pages, taken.ok().map(PageCount::get));
                told.compare(&Event::ToDevice(ToDevice::SetTarget { pages, taken }))?;
            }
            ToDevice::JobDone { id, ok } => {
                let job = self.jobs.remove(id).ok_or_else(|| told.impossible("no such job"))?;
                vsp.job_done(now, job, *ok);
            }
            ToDevice::SetInhibited { inhibited } => vsp.set_inhibited(now, *inhibited),
            ToDevice::AnnounceReset => vsp.announce_reset(),
            ToDevice::TakeKept => drop(vsp.take_kept()),
            ToDevice::StartMachine { boot_ram, hot_add, target, .. } => {
                let ram = page_set(boot_ram)?;
                let more = hot_add.as_ref().map(HotAdd::try_from).transpose()?;
                let result = vsp.start_machine(now, ram, more, target.map(PageCount::new));
                told.compare(&Event::ToDevice(ToDevice::StartMachine {
                    boot_ram: boot_ram.clone(),
                    hot_add: hot_add.clone(),
                    target: *target,
                    ok: result.is_ok(),
                }))?;
            }
        }
        Ok(())
    }

    fn expect_of_device(&mut self, told: Line<'_>, event: &FromDevice) -> Result<(), ReplayError> {
        if let FromDevice::Broken { reason } = event {
            return Err(told.impossible(&format!("the guest broke its ring ({reason})")));
        }
        let output = self.hear_device(told)?;
        match event {
            FromDevice::Packet(packet) => {
                self.compared.packets += 1;
                let written = self.rings.as_ref().and_then(Rings::read);
                let mut expected = packet.clone();
                expected.bytes.resize(packet.bytes.len().next_multiple_of(8), 0);
                if written.as_ref() != Some(&expected) {
                    let in_ring = |packet: Packet| {
                        let packet = Event::FromDevice(FromDevice::Packet(packet));
                        format!("in the ring: {}", describe(&packet))
                    };
                    let actual = written.map_or_else(|| "nothing in the ring".into(), in_ring);
                    return Err(told.differs(in_ring(expected), actual).into());
                }
            }
            FromDevice::Job { task, .. } => {
                self.compared.jobs += 1;
                self.compared.added += usize::from(matches!(task, Task::Add { .. }));
                if let Some(ChannelOutput::Work(Work::Job(job))) = output {
                    self.jobs.insert(job.id.get(), job.id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the device's next output of which recordings speak, and compares it.
    fn hear_device(&mut self, told: Line<'_>) -> Result<Option<ChannelOutput<Work>>, ReplayError> {
        while let Some(output) = self.vsp.poll_output() {
            match Event::of_output(&output, Event::of_work) {
                None => {}
                Some(Event::FromDevice(FromDevice::Signal { vp, flag })) => {
                    if let Some(expected) = self.signal
                        && expected != (vp, flag)
                    {
                        let signal = |(vp, flag)| format!("signal to VP {vp}, flag {flag}");
                        return Err(told.differs(signal(expected), signal((vp, flag))).into());
                    }
                }
                Some(actual) => {
                    told.compare(&actual)?;
                    return Ok(Some(output));
                }
            }
        }
        let waits_for_room = self.vsp.waits_for_room();
        let actual = Event::FromDevice(FromDevice::Idle { waits_for_room });
        if *told.event == actual {
            return Ok(None);
        }
        let waiting = self.vsp.unsent().map_or_else(String::new, |message| {
            let message = dynmem_protocol::HostMessage::parse(message);
            format!("; without room: {message:?}")
        });
        Err(told.differs(describe(told.event), describe(&actual) + &waiting).into())
    }

    /// Gives the ring the room that it had while the device handled an event, which `later` follow. What
    /// the device wrote comes before the next packet that it took, and before it was idle.
    fn make_room<'a>(&self, later: impl Iterator<Item = &'a Event>) {
        let Some(rings) = &self.rings else { return };
        let ends = |event: &&Event| {
            matches!(event, Event::FromGuest(_) | Event::FromDevice(FromDevice::Idle { .. }))
        };
        rings.make_room(later.take_while(|event| !ends(event)).filter_map(|event| match event {
            Event::FromDevice(FromDevice::Packet(packet)) => Some(packet.bytes.len()),
            _ => None,
        }));
    }
}

/// Whether something waits for room in the ring until the channel is opened again.
fn fills_its_ring<'a>(mut events: impl Iterator<Item = &'a Event>) -> bool {
    let full = FromDevice::Idle { waits_for_room: true };
    let ends = |event: &Event| match event {
        Event::ToDevice(ToDevice::Open { .. }) => Some(false),
        Event::FromDevice(event) if *event == full => Some(true),
        _ => None,
    };
    events.find_map(ends).unwrap_or(false)
}

/// The first signal before the channel is opened or directed to another VP.
fn next_signal<'a>(events: impl Iterator<Item = &'a Event>) -> Option<(u32, u16)> {
    for event in events {
        match event {
            Event::ToDevice(ToDevice::Open { .. } | ToDevice::SetTargetVp { .. }) => return None,
            Event::FromDevice(FromDevice::Signal { vp, flag }) => return Some((*vp, *flag)),
            _ => {}
        }
    }
    None
}

/// A line of the recording, to be compared with what is said now.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    event: &'a Event,
}

impl Line<'_> {
    fn compare(self, actual: &Event) -> Result<(), Difference> {
        if self.event == actual {
            return Ok(());
        }
        Err(self.differs(describe(self.event), describe(actual)))
    }

    const fn differs(self, expected: String, actual: String) -> Difference {
        Difference { line: self.number, expected, actual }
    }

    fn impossible(self, why: &str) -> ReplayError {
        ReplayError::Impossible { line: self.number, why: why.into() }
    }
}
