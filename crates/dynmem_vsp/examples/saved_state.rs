//! A VM that is saved and restored after every message, in the middle of whatever its guest does.
//!
//! [`SavedVm`] is what a VMM saves for bus and VSP. The VMM is that of the example `embed`.
//! `docs/saved-state.md` says what else belongs to a saved VM.
//!
//! `cargo run -p dynmem_vsp --example saved_state`

#[path = "embed.rs"]
#[expect(dead_code, reason = "the embedder's own example needs more")]
pub(crate) mod embed;

use std::sync::Arc;
use std::time::Duration;

use dynmem_vsp::{RestoreError, SavedState, SavedVsp};
use embed::{Guest, Vmm, Vsp};
use guest_model::dynmem::{self, Memory, Personality};
use guest_model::vmbus::SharedMemory;
use page_range::PageCount;
use saved_state::Format;
use serde::{Deserialize, Serialize};
use vmbus::{SavedServer, Server, ServerConfig, VmbusDevice};

/// What the VMM saves for bus and VSP, besides what it saves in any case: vCPUs, memory slots,
/// guest memory, the SynIC's registers, and messages that it has polled but not put into a slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedVm {
    server: SavedServer,
    vsp: SavedVsp,
}

/// A VMM with a format of its own stores the state in that instead.
impl SavedState for SavedVm {
    const FORMAT: Format = Format { magic: *b"EXAMPLE\0", name: "a VM", newest: 1 };
}

impl SavedVm {
    /// Saves bus and VSP. The vCPUs are paused, the loop that runs bus and VSP does nothing else,
    /// and all outputs have been taken. Work on memory may keep running: work whose end was not
    /// reported to the VSP is requested again.
    pub(crate) fn new(vmm: &Vmm) -> Self {
        Self { server: vmm.server.save(), vsp: vmm.vsp.save(vmm.now) }
    }

    /// Restores bus and VSP, in a VMM whose clock says `now`. Guest memory and its slots are there;
    /// the vCPUs do not run yet.
    pub(crate) fn restore(
        &self,
        memory: &Arc<SharedMemory>,
        now: Duration,
    ) -> Result<(Server, Vsp), Box<dyn std::error::Error>> {
        let server = Server::restore(ServerConfig::default(), &self.server)?;
        // A channel that was opening or closing is not open: the server says what to do with it.
        let channel = server.channel_of(&Vsp::new(embed::config())?.offer());
        let open = channel.and_then(|channel| server.opened(channel));
        // Here a VMM binds the signal of `open.connection_id`.
        let open = open.map(|channel| (memory.clone(), channel));
        Ok((server, Vsp::restore(embed::config(), &self.vsp, open, now)?))
    }
}

/// Replaces a VMM by another, which takes over its guest and its clock.
fn move_on(old: Vmm) -> Vmm {
    let bytes = SavedVm::new(&old).to_bytes();
    let saved = SavedVm::from_bytes(&bytes).expect("they were just written");
    let Vmm { memory, channel, bus, guest_os_id, now, .. } = old;
    let (server, vsp) = saved.restore(&memory, now).expect("it was just saved");
    let mut vmm = Vmm { server, channel, vsp, memory, bus, guest_os_id, now };
    // The guest may have written a packet whose signal went to the old VMM. A real VMM would also
    // signal the guest here, in case a signal to it was lost.
    vmm.signalled();
    vmm
}

/// Shrinks a guest of 1 GiB, returns all of that and adds 512 MiB, with another VMM after every
/// message. Returns the final size and the number of VMMs.
pub(crate) fn resize(personality: Personality) -> (PageCount, usize) {
    let mut vmm = embed::vmm(&personality);
    let memory = Memory::new(embed::boot_ram(), PageCount::new(1 << 14));
    let driver = dynmem::Client::new(personality, memory);
    let mut guest = Guest::boot(&mut vmm, driver).expect("it speaks a version that the host has");
    let mut vmms = 1;
    for target in [1 << 17, 1 << 18, 3 << 17].map(PageCount::new) {
        vmm.vsp.set_target(vmm.now, target).expect("within reach");
        while guest.say(&mut vmm) {
            vmm = move_on(vmm);
            vmms += 1;
        }
        let memory = guest.driver.memory();
        let has = memory.managed().saturating_add(memory.offline().len());
        assert_eq!(vmm.vsp.snapshot().actual, has);
    }
    (vmm.vsp.snapshot().actual, vmms)
}

/// Saved state does not fit another configuration: the restore is refused with the reason.
fn refuse() -> RestoreError {
    let saved = Vsp::new(embed::config()).expect("memory that a guest can have");
    let saved = saved.save(Duration::ZERO);
    let other = dynmem_vsp::Config { hot_add: None, ..embed::config() };
    Vsp::restore(other, &saved, None, Duration::ZERO).expect_err("the guest had memory to add")
}

pub(crate) fn main() {
    let (size, vmms) = resize(Personality::linux_6_1());
    println!("{size} pages, after {vmms} VMMs");
    println!("{}", refuse());
    assert_eq!(size, PageCount::new(3 << 17));
}
