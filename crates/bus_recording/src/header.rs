//! The first line: the format, and the configuration of bus and device.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The name of the format.
pub const FORMAT: &str = "hv-balloon bus recording";

/// The version of the format. It changes when a reader of the old one would misread the new one.
pub const VERSION: u32 = 2;

/// The oldest version that can still be read: it has no device but the first.
pub const OLDEST_VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The unit of [`Line::t`](crate::Line::t): `us`.
    pub time_unit: String,
    /// The bus.
    pub bus: BusSetup,
    /// The first device.
    pub device: DeviceSetup,
    /// The other devices, in the order of their offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceSetup>,
}

impl Header {
    /// The header of a recording of this bus and device.
    #[must_use]
    pub fn new(bus: BusSetup, device: DeviceSetup) -> Self {
        let (format, time_unit) = (FORMAT.into(), "us".into());
        Self { format, version: VERSION, time_unit, bus, device, services: Vec::new() }
    }

    /// With these further devices.
    #[must_use]
    pub fn with_services(mut self, services: &[ServiceSetup]) -> Self {
        self.services = services.to_vec();
        self
    }
}

/// An integration service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceSetup {
    /// Shutdown.
    Shutdown,
    /// Heartbeat.
    Heartbeat,
    /// Time synchronisation.
    TimeSync {
        /// Whether the host knows the guest's reference time.
        has_reference: bool,
    },
}

/// The configuration of the bus ([`vmbus::ServerConfig`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusSetup {
    /// The number of VPs.
    pub vp_count: u32,
    /// The first page that cannot be lent to the host.
    pub page_limit: u64,
    /// The newest version of the protocol, major number in the upper half.
    pub max_version: u32,
}

/// The configuration of the device (`dynmem_vsp::Config`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSetup {
    /// The guest's RAM at boot.
    pub boot_ram: Vec<Pages>,
    /// Memory that can be added.
    pub hot_add: Option<HotAddSetup>,
    /// The wait before the first request to a guest, in microseconds; `None` for as long as the kind of
    /// guest needs.
    pub settle: Option<u64>,
    /// Whether the guest is asked for status reports.
    pub status_reports: bool,
    /// The pages that can only be discarded together.
    pub discard_unit: u64,
    /// Whether discards are forbidden.
    pub inhibited: bool,
}

/// Memory that can be added (`dynmem_vsp::HotAdd`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotAddSetup {
    /// Where it can be.
    pub window: Pages,
    /// How much of it there is, in pages.
    pub capacity: u64,
    /// The least alignment, in pages.
    pub least_alignment: u64,
}

/// Pages: the number of the first, and how many there are.
pub type Pages = (u64, u64);

/// A recording that describes memory that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidSetup {
    /// Pages that no guest has.
    #[error("a guest cannot have {} pages from page {}", .0.1, .0.0)]
    Pages(Pages),
    /// A page that no guest has.
    #[error("a guest cannot have page {0}")]
    Page(u64),
}
