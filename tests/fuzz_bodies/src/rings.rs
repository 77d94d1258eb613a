//! A channel's rings in memory that another vCPU of the guest writes at the same time.
//!
//! Just before any access of the host, something may be written: control words, descriptors, data.
//! The host must not panic, every call must end, and the host may write only the parts of the rings
//! that it owns.

use arbitrary::{Arbitrary, Unstructured};
use vmbus::ring::{ChannelRings, RingLayout, SavedRings};

use crate::guest_memory::{FILL, Memory, PAGE, PAGES, Write, layout};

const MAX_STEPS: usize = 200;
/// The most packets taken in one step; a guest that keeps writing always has one more.
const MAX_PACKETS: usize = 600;

#[derive(Arbitrary, Debug)]
enum Step {
    Write(Write),
    /// A well-formed packet at the write index, which then moves past it.
    Packet {
        len: u16,
        completion: bool,
    },
    Receive,
    ReceiveOne,
    Send(u16),
    Complete(u64),
    /// The guest reads everything in the host's outgoing ring.
    ReadAll,
    Reopen,
}

/// The input encodes the pages of the rings, the steps, and the writes between accesses.
pub(crate) fn run(data: &[u8]) {
    go_on(data, None, false);
}

/// Like [`run`], but begins with saved rings, if there are any; `restores` saves and restores the
/// rings after every step.
pub(crate) fn go_on(data: &[u8], saved: Option<&SavedRings>, restores: bool) {
    let (layout_bytes, rest) = data.split_at(data.len().min(PAGES + 2));
    let Some(layout) = layout(layout_bytes) else { return };
    // The next byte says which share of the rest encodes the steps.
    let Some((&share, rest)) = rest.split_first() else { return };
    let (steps, races) = rest.split_at(rest.len() * usize::from(share) / 255);
    let mem = Memory::new(races);
    mem.lend(Some(&layout));
    let mut rings = match saved {
        None => ChannelRings::open(&mem, &layout).ok(),
        Some(saved) => match ChannelRings::restore(&mem, &layout, saved) {
            Ok(rings) => Some(rings),
            Err(error) => return assert!(!error.to_string().is_empty()),
        },
    };
    let mut input = Unstructured::new(steps);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        mem.accesses.set(0);
        if !act(&mem, &layout, &mut rings, step) {
            // A broken ring stops the channel.
            rings = None;
        }
        if restores && let Some(live) = &rings {
            let saved = live.save();
            let again = ChannelRings::restore(&mem, &layout, &saved).unwrap();
            assert!(again.save() == saved, "saved differently when restored");
            rings = Some(again);
        }
    }
}

/// Makes the step; returns false if the rings are broken.
fn act<'m>(
    mem: &'m Memory,
    layout: &RingLayout,
    rings: &mut Option<ChannelRings<&'m Memory>>,
    step: Step,
) -> bool {
    let incoming = layout.incoming();
    match step {
        Step::Write(write) => mem.guest_writes(write),
        Step::Packet { len, completion } => {
            mem.packet(incoming, &vec![FILL; usize::from(len)], completion);
        }
        Step::ReadAll => mem.read_all(layout.outgoing()),
        Step::Reopen => *rings = ChannelRings::open(mem, layout).ok(),
        Step::Receive | Step::ReceiveOne => {
            let most = if matches!(step, Step::Receive) { MAX_PACKETS } else { 1 };
            let Some(rings) = rings else { return true };
            for _ in 0..most {
                mem.accesses.set(0);
                match rings.receive() {
                    Ok(Some(packet)) => assert!(packet.payload.len() < incoming.len() * PAGE),
                    Ok(None) => break,
                    Err(_) => return false,
                }
                mem.assert_few();
            }
            let _ = rings.end_receive();
        }
        Step::Send(len) => {
            let payload = vec![0xa5; usize::from(len)];
            let Some(rings) = rings else { return true };
            let ok = rings.send(&payload, 1).is_ok();
            mem.assert_few();
            return ok;
        }
        Step::Complete(id) => {
            let Some(rings) = rings else { return true };
            let ok = rings.complete(id).is_ok();
            mem.assert_few();
            return ok;
        }
    }
    true
}
