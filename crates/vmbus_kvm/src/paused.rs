//! A paused host: saving it, and restoring a saved one.

use std::sync::{Arc, MutexGuard};

use kvm_hyperv::synic::SavedSynic;
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};
use vmbus::{SavedServer, Server, ServerConfig};

use crate::bus_loop::Request;
use crate::shared::lock;
use crate::{Host, HostBuilder, Machine, Platform, RestoreError, Stopped, Supervisor};

/// The saved bus and SynICs of a machine, in one of the versions that exist. Devices are saved
/// separately.
///
/// Store it by itself as bytes ([`SavedState`]), or as part of a larger state with its `serde`
/// implementations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedBus(Version);

impl SavedState for SavedBus {
    const FORMAT: Format =
        Format { magic: *b"HVVMBUS\0", name: "a VMBus with its SynICs", newest: 1 };
}

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(Form),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Form {
    server: SavedServer,
    /// `HV_X64_MSR_GUEST_OS_ID`, 0 where unknown.
    guest_os_id: u64,
    /// By VP index; empty if there was no machine.
    synics: Vec<SavedSynic>,
}

/// A host that stands still: it takes no signal, delivers no message and discards no page. Dropping
/// this resumes it.
pub struct Paused<'a, P: Platform> {
    host: &'a Host<P>,
    _only_one: MutexGuard<'a, ()>,
    machine: Option<Machine<P>>,
}

impl<P: Platform> Host<P> {
    /// Finishes the work under way, including work on guest memory, and stands still. The vCPUs
    /// must have stopped before. From then on nothing here touches guest memory.
    ///
    /// Another pause, a reset and a start wait for the end of this pause: do not call them on the
    /// thread that holds it.
    ///
    /// # Errors
    /// [`Stopped`] if the host has failed.
    pub fn pause(&self) -> Result<Paused<'_, P>, Stopped> {
        let only_one = lock(self.pause_lock());
        // Commands of the VMM would cause new work.
        self.shared().close_gate();
        match self.ask(Request::Pause) {
            Ok(machine) => Ok(Paused { host: self, _only_one: only_one, machine }),
            Err(stopped) => {
                self.shared().open_gate();
                Err(stopped)
            }
        }
    }

    /// Resumes a saved machine in its restored memory, on a host that [`HostBuilder::restore`]
    /// began. The vCPUs must not run before this returns.
    ///
    /// # Errors
    /// [`RestoreError`] if `saved` is not the state of such a machine.
    pub fn restore_machine(
        &self,
        platform: P,
        saved: &SavedBus,
    ) -> Result<Machine<P>, RestoreError> {
        let SavedBus(Version::V1(saved)) = saved;
        let count = self.vp_count();
        if !saved.synics.is_empty() && u32::try_from(saved.synics.len()) != Ok(count) {
            return Err(RestoreError::VpCount { saved: saved.synics.len(), now: count });
        }
        let machine = Machine::new(platform, count, Arc::clone(self.shared()));
        machine.restore(saved.guest_os_id, &saved.synics)?;
        let bound = self.ask(|done| Request::Restore(machine.clone(), done))?;
        bound.map_err(RestoreError::Signal)?;
        Ok(machine)
    }
}

impl<P: Platform> Paused<'_, P> {
    /// The current state of bus and SynICs. Guest memory must be saved during the same pause.
    #[must_use]
    pub fn save(&self) -> SavedBus {
        let server = self.host.shared().server().save();
        let (guest_os_id, synics) = self.machine.as_ref().map(Machine::save).unwrap_or_default();
        SavedBus(Version::V1(Form { server, guest_os_id, synics }))
    }

    /// Ends the host instead of resuming it: the machine continues elsewhere.
    pub fn stop(self) {
        self.host.shared().ask_to_stop();
    }
}

impl<P: Platform> Drop for Paused<'_, P> {
    fn drop(&mut self) {
        // Deferred commands first: one of them may forbid discards.
        self.host.shared().open_gate();
        self.host.request(Request::Resume);
    }
}

impl<P: Platform> std::fmt::Debug for Paused<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paused").finish_non_exhaustive()
    }
}

impl<P: Platform> HostBuilder<P> {
    /// Restores a saved bus, for a machine with `config`. Attach the same devices, restored: the
    /// channel of a missing device cannot be opened. Then call [`HostBuilder::start`] and
    /// [`Host::restore_machine`].
    ///
    /// # Errors
    /// [`RestoreError`] if it is not the state of a bus that this machine can have.
    pub fn restore(
        config: ServerConfig,
        supervisor: impl Supervisor,
        saved: &SavedBus,
    ) -> Result<Self, RestoreError> {
        let SavedBus(Version::V1(saved)) = saved;
        let server = Server::restore(config, &saved.server)?;
        Ok(Self::with_server(server, config.vp_count, supervisor)?)
    }
}
