//! How a guest finds the device on the bus.

use vmbus::protocol::Guid;

/// The class of Dynamic Memory devices (Linux `include/linux/hyperv.h`, `HV_DM_GUID`).
pub const INTERFACE: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);

/// The instance that a VM's only Dynamic Memory device has: the same in every VM and over resets,
/// since Linux looks for it after hibernation.
pub const DEFAULT_INSTANCE: Guid = Guid::from_digits(0x1eccfd72_4b41_45ef_b73a_4a6e44c12924);
