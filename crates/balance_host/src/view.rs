//! What a running daemon knows, for others in its process.

use std::sync::{Arc, Mutex};

use crate::board::{Clock, lock};
use crate::core::Core;
use crate::status::{ActionStatus, Status};

/// Looks at a running daemon. Each look holds up its next decision for as long as it takes to copy what
/// is shown, so callers keep what they saw for a while.
#[derive(Clone, Debug)]
pub struct View {
    core: Arc<Mutex<Core>>,
    clock: Clock,
}

impl View {
    pub(crate) fn new(core: Arc<Mutex<Core>>, clock: Clock) -> Self {
        Self { core, clock }
    }

    /// What is known of everything.
    #[must_use]
    pub fn status(&self) -> Status {
        lock(&self.core).status(self.clock.now_ms())
    }

    /// What VMs were told last, the newest first: at most 256 changes of all VMs together.
    #[must_use]
    pub fn actions(&self) -> Vec<ActionStatus> {
        lock(&self.core).actions(self.clock.now_ms())
    }
}
