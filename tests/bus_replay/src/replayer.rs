//! Bus and device, told what a recording says.

use std::time::Duration;

use bus_recording::{Event, FromBus, FromDevice, Header, Packet, ReadLine, Task, ToBus, ToDevice};
use vmbus::protocol::{ConnectionId, VpIndex};
use vmbus::{Action, ChannelEvent, ChannelId, OpenChannel, Server, ServerConfig};

use crate::describe::describe;
use crate::devices::{self, Replayed};
use crate::ring::Rings;
use crate::{Compared, Difference, ReplayError};

pub(crate) struct Replayer {
    server: Server,
    /// By the device's number.
    seats: Vec<Seat>,
    compared: Compared,
}

/// A device on the bus.
struct Seat {
    channel: ChannelId,
    device: Box<dyn Replayed>,
    /// The channel that the bus wants to be opened.
    to_open: Option<OpenChannel>,
    rings: Option<Rings>,
    /// The recorded guest's ring was full at some time before its channel is opened again.
    fills_its_ring: bool,
    /// The VP and the flag by which the guest is signalled, since the channel was opened or directed to
    /// another VP; `None` if the recording has no signal until the next such event.
    signal: Option<(u32, u16)>,
}

impl Replayer {
    pub(crate) fn new(header: &Header) -> Result<Self, ReplayError> {
        let mut server = Server::new(ServerConfig::try_from(&header.bus)?);
        let services = header.services.iter().map(|setup| Ok(devices::of_service(*setup)));
        let seats = std::iter::once_with(|| devices::of_memory(&header.device)).chain(services);
        let seats = seats.map(|device| {
            let device = device?;
            let channel = server
                .offer(device.offer())
                .map_err(|error| ReplayError::Setup(error.to_string()))?;
            Ok(Seat {
                channel,
                device,
                to_open: None,
                rings: None,
                fills_its_ring: false,
                signal: None,
            })
        });
        let seats = seats.collect::<Result<_, ReplayError>>()?;
        Ok(Self { server, seats, compared: Compared::default() })
    }

    pub(crate) const fn compared(&self) -> Compared {
        self.compared
    }

    /// Replays the line at `index`.
    pub(crate) fn step(&mut self, lines: &[ReadLine], index: usize) -> Result<(), ReplayError> {
        let ReadLine { number, line } = &lines[index];
        let told = Line { number: *number, event: &line.event };
        let seat = usize::try_from(line.device).ok().and_then(|at| self.seats.get_mut(at));
        let seat = seat.ok_or_else(|| told.impossible("no such device"))?;
        // What happens to this device afterwards.
        let later = lines[index..].iter().skip(1).map(|later| &later.line);
        let later = later.filter(|later| later.device == line.device).map(|later| &later.event);
        match &line.event {
            Event::ToBus(event) => tell_bus(&mut self.server, seat.channel, told, event),
            Event::FromBus(event) => self.hear_bus(told, event),
            Event::ToDevice(event) => {
                seat.make_room(later.clone());
                if matches!(event, ToDevice::Open { .. }) {
                    seat.fills_its_ring = fills_its_ring(later.clone());
                }
                if matches!(event, ToDevice::Open { .. } | ToDevice::SetTargetVp { .. }) {
                    seat.signal = next_signal(later);
                }
                seat.tell(told, Duration::from_micros(line.t), event)
            }
            Event::FromGuest(packet) => {
                seat.make_room(later);
                let rings =
                    seat.rings.as_ref().ok_or_else(|| told.impossible("no open channel"))?;
                rings.write(packet).map_err(|why| told.impossible(&why))?;
                seat.hear(told)
            }
            // How many there are is a matter of the guest's timing.
            Event::FromDevice(FromDevice::Signal { .. }) => Ok(()),
            Event::FromDevice(event) => seat.expect(told, event, &mut self.compared),
            Event::End => Ok(()),
        }
    }

    fn hear_bus(&mut self, told: Line<'_>, event: &FromBus) -> Result<(), ReplayError> {
        let action = self.server.poll_action();
        let actual = action.as_ref().map_or(FromBus::Idle, FromBus::from);
        told.compare(&Event::FromBus(actual))?;
        if matches!(event, FromBus::Message { .. }) {
            self.compared.messages += 1;
        }
        if let Some(Action::Open { channel, rings, target_vp, relid, connection_id, is_reopened }) =
            action
            && let Some(seat) = self.seats.iter_mut().find(|seat| seat.channel == channel)
        {
            seat.to_open =
                Some(OpenChannel { rings, target_vp, relid, connection_id, is_reopened });
        }
        Ok(())
    }
}

fn tell_bus(
    server: &mut Server,
    channel: ChannelId,
    told: Line<'_>,
    event: &ToBus,
) -> Result<(), ReplayError> {
    match event {
        ToBus::Message { connection, bytes, .. } => {
            let result = server.handle_message(ConnectionId::new(*connection), bytes);
            let status = result.map_or_else(|error| error.hypercall_status(), |()| 0);
            let (connection, bytes) = (*connection, bytes.clone());
            told.compare(&Event::ToBus(ToBus::Message { connection, status, bytes }))?;
        }
        ToBus::OpenFinished { ok } => server.open_finished(channel, *ok),
        ToBus::CloseFinished => server.close_finished(channel),
        ToBus::Reset => server.reset(),
    }
    Ok(())
}

impl Seat {
    fn tell(&mut self, told: Line<'_>, now: Duration, event: &ToDevice) -> Result<(), ReplayError> {
        let event = match event {
            ToDevice::Open { guest_os_id } => {
                let channel = self.to_open.take();
                let channel = channel.ok_or_else(|| told.impossible("the bus opens no channel"))?;
                let (rings, channel) = Rings::new(&channel, self.fills_its_ring);
                let memory = rings.memory();
                self.rings = Some(rings);
                ChannelEvent::Open { memory, channel, guest_os_id: *guest_os_id }
            }
            ToDevice::SetTargetVp { vp } => ChannelEvent::SetTargetVp(VpIndex::new(*vp)),
            ToDevice::Signalled => ChannelEvent::Signalled,
            ToDevice::Close => ChannelEvent::Close,
            ToDevice::Timeout => ChannelEvent::Timeout,
            ToDevice::Reset => ChannelEvent::Reset,
            command => {
                let actual = self.device.command(now, command)?;
                let actual =
                    actual.ok_or_else(|| told.impossible("not a command for this device"))?;
                return Ok(told.compare(&Event::ToDevice(actual))?);
            }
        };
        self.device.handle(now, event);
        Ok(())
    }

    fn expect(
        &mut self,
        told: Line<'_>,
        event: &FromDevice,
        compared: &mut Compared,
    ) -> Result<(), ReplayError> {
        if let FromDevice::Broken { reason } = event {
            return Err(told.impossible(&format!("the guest broke its ring ({reason})")));
        }
        self.hear(told)?;
        match event {
            FromDevice::Packet(packet) => {
                compared.packets += 1;
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
                compared.jobs += 1;
                compared.added += usize::from(matches!(task, Task::Add { .. }));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the device's next output of which recordings speak, and compares it.
    fn hear(&mut self, told: Line<'_>) -> Result<(), ReplayError> {
        while let Some(output) = self.device.poll() {
            match output {
                None => {}
                Some(Event::FromDevice(FromDevice::Signal { vp, flag })) => {
                    if let Some(expected) = self.signal
                        && expected != (vp, flag)
                    {
                        let signal = |(vp, flag)| format!("signal to VP {vp}, flag {flag}");
                        return Err(told.differs(signal(expected), signal((vp, flag))).into());
                    }
                }
                Some(actual) => return Ok(told.compare(&actual)?),
            }
        }
        let waits_for_room = self.device.waits_for_room();
        let actual = Event::FromDevice(FromDevice::Idle { waits_for_room });
        if *told.event == actual {
            return Ok(());
        }
        let waiting = self.device.unsent().map_or_else(String::new, |message| {
            let message = dynmem_protocol::HostMessage::parse(&message);
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
