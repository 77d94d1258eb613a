//! A VM that is saved and restored after every message, in the middle of whatever its guest does.
//!
//! [`SavedVm`] is what an embedder writes: bus, device and rings, in the order in which they need
//! each other. The VMM is that of the example `embed`. `docs/saved-state.md` says what else belongs
//! to a saved VM.
//!
//! `cargo run -p guest_model --example saved_state`

#[path = "embed.rs"]
#[expect(dead_code, reason = "the embedder's own example needs more")]
pub(crate) mod embed;

use std::sync::Arc;
use std::time::Duration;

use embed::{Guest, OFFER, Vmm};
use guest_model::dynmem::{self, Memory, Personality};
use guest_model::vmbus::SharedMemory;
use hv_balloon::{Device, RestoreError};
use page_range::PageCount;
use vmbus::ring::ChannelRings;
use vmbus::{Server, ServerConfig};

/// What the VMM saves for the device, beside what it saves in any case: vCPUs, memory slots, guest
/// memory, the SynIC's registers, and messages that it polled and has not put into a slot.
#[derive(Clone, Debug)]
pub(crate) struct SavedVm {
    server: Vec<u8>,
    device: Vec<u8>,
    /// None while the channel is closed.
    rings: Option<Vec<u8>>,
}

impl SavedVm {
    /// Saves. The vCPUs stand still and the loop that runs bus and device does nothing else; all
    /// actions were polled. A VMM with a thread for discards may let them run on: those whose end
    /// the device was not told of are asked for again.
    pub(crate) fn new(vmm: &Vmm) -> Self {
        Self {
            server: vmm.server.save(),
            device: vmm.device.save(vmm.now),
            rings: vmm.rings.as_ref().map(ChannelRings::save),
        }
    }

    /// Restores bus and device, in a VMM whose clock says `now`. Guest memory and its slots are
    /// there; the vCPUs do not run yet.
    pub(crate) fn restore(
        &self,
        memory: &Arc<SharedMemory>,
        now: Duration,
    ) -> Result<(Server, Device, Option<Rings>), Box<dyn std::error::Error>> {
        let server = Server::restore(ServerConfig::default(), &self.server)?;
        let device = Device::restore(embed::config(), &self.device, now)?;
        // A channel that was opening or closing has no rings: the server says what to do with it.
        let open = server.channel_of(&OFFER).and_then(|channel| server.opened(channel));
        let rings = match open.zip(self.rings.as_ref()) {
            Some((open, saved)) => {
                // Here a VMM watches `open.connection_id` and notes whom to signal.
                Some(ChannelRings::restore(memory.clone(), &open.rings, saved)?)
            }
            None => None,
        };
        Ok((server, device, rings))
    }
}

type Rings = ChannelRings<Arc<SharedMemory>>;

/// Ends a VMM and has another one go on with its guest and its clock.
fn move_on(old: Vmm) -> Vmm {
    let saved = SavedVm::new(&old);
    let Vmm { memory, bus, guest_os_id, now, .. } = old;
    let (server, device, rings) = saved.restore(&memory, now).expect("it was just saved");
    let mut vmm = Vmm { server, device, rings, memory, bus, guest_os_id, now };
    vmm.run();
    // The guest may have written a packet whose signal went to the old VMM. Here one would signal
    // the guest, too, in case a signal to it got lost.
    vmm.signalled();
    vmm
}

/// Shrinks a guest of 1 GiB, gives it all back and 512 MiB more, with another VMM after every
/// message; its size in the end, and how many VMMs it took.
pub(crate) fn resize(personality: Personality) -> (PageCount, usize) {
    let mut vmm = embed::vmm(&personality);
    let memory = Memory::new(embed::boot_ram(), PageCount::new(1 << 14));
    let driver = dynmem::Client::new(personality, memory);
    let mut guest = Guest::boot(&mut vmm, driver).expect("it speaks a version that the host has");
    let mut vmms = 1;
    for target in [1 << 17, 1 << 18, 3 << 17].map(PageCount::new) {
        vmm.device.set_target(vmm.now, target).expect("a target that can be met");
        while guest.say(&mut vmm) {
            vmm = move_on(vmm);
            vmms += 1;
        }
        let memory = guest.driver.memory();
        let has = memory.managed().saturating_add(memory.offline().len());
        assert_eq!(vmm.device.snapshot().actual, has);
    }
    (vmm.device.snapshot().actual, vmms)
}

/// State that is not whole is refused with the reason, and nothing comes of it.
fn refuse() -> RestoreError {
    let mut saved =
        Device::new(embed::config()).expect("a machine that can be").save(Duration::ZERO);
    saved.truncate(saved.len() / 2);
    Device::restore(embed::config(), &saved, Duration::ZERO).expect_err("half of it is missing")
}

pub(crate) fn main() {
    let (size, vmms) = resize(Personality::linux_6_1());
    println!("{size} pages, after {vmms} VMMs");
    println!("{}", refuse());
    assert_eq!(size, PageCount::new(3 << 17));
}
