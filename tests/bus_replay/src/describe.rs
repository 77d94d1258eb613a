//! Events in words.

use std::fmt::{Debug, Write as _};

use bus_recording::{Event, FromBus, FromDevice, Packet, ToBus};
use vmbus::protocol::ring::PacketKind;
use vmbus::protocol::{GuestMessage, HostMessage, Version};

/// An event, with its bytes decoded.
pub(crate) fn describe(event: &Event) -> String {
    match event {
        Event::ToBus(ToBus::Message { connection, status, bytes }) => {
            let message = GuestMessage::parse(bytes, Version::V5_3).map(|(message, _)| message);
            with_bytes(
                format!("post to connection {connection}, status {status}:"),
                &message,
                bytes,
            )
        }
        Event::FromBus(FromBus::Message { vp, bytes }) => {
            let message = HostMessage::parse(bytes, Version::V5_3).map(|(message, _)| message);
            with_bytes(format!("message to VP {vp}:"), &message, bytes)
        }
        Event::FromGuest(packet) => {
            let message = dynmem_protocol::GuestMessage::parse(&packet.bytes);
            of_packet("packet of the guest", packet, &message)
        }
        Event::FromDevice(FromDevice::Packet(packet)) => {
            let message = dynmem_protocol::HostMessage::parse(&packet.bytes);
            of_packet("packet of the device", packet, &message)
        }
        other => format!("{other:?}"),
    }
}

fn of_packet<M: Debug, E: Debug>(what: &str, packet: &Packet, message: &Result<M, E>) -> String {
    let Packet { kind, flags, transaction, bytes } = packet;
    let head = format!("{what}, kind {kind}, flags {flags}, transaction {transaction}:");
    if message.is_err()
        && let Ok(service) = integration_services::protocol::Message::parse(bytes)
    {
        return with_bytes(head, &Ok::<_, E>(service), bytes);
    }
    if PacketKind(*kind) == PacketKind::DATA_IN_BAND {
        with_bytes(head, message, bytes)
    } else {
        with_bytes(head, &Ok::<_, E>(()), bytes)
    }
}

fn with_bytes<M: Debug, E: Debug>(head: String, message: &Result<M, E>, bytes: &[u8]) -> String {
    let mut text = match message {
        Ok(message) => format!("{head} {message:?}, bytes "),
        Err(error) => format!("{head} undecodable ({error:?}), bytes "),
    };
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
