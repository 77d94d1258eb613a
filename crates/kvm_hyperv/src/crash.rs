//! What a guest says of its crash: the crash MSRs (TLFS, "Guest Crash Enlightenment Interface").
//!
//! A kernel that crashes writes up to five parameters, and then the control MSR, which tells the host. It
//! may also have written text to a page, whose address and length are then the fourth and the fifth
//! parameter: for Linux, the end of its log (`hyperv_report_panic_msg`). It does that only if the control
//! MSR says that the host reads such text, and KVM's does not, so [`intercept`] has that MSR exit to the
//! VMM. KVM keeps the parameters.

use std::io;

use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::msr;

/// `HV_X64_MSR_CRASH_CTL`.
pub const CONTROL: u32 = 0x4000_0105;

/// `HV_X64_MSR_CRASH_P0` to `P4`.
const PARAMETERS: [u32; 5] = [0x4000_0100, 0x4000_0101, 0x4000_0102, 0x4000_0103, 0x4000_0104];

/// Bit of the control MSR: the guest has crashed, or may say so.
const NOTIFY: u64 = 1 << 63;
/// Bit of the control MSR: there is text, or may be.
const MESSAGE: u64 = 1 << 62;

/// What the guest reads in the control MSR: both are possible.
pub const SUPPORTED: u64 = NOTIFY | MESSAGE;

/// The longest text, in bytes: a page.
pub const MOST_TEXT: usize = 4096;

/// Has the control MSR of a VM's vCPUs exit to the VMM, as `VcpuExit::X86Rdmsr`, to be answered with
/// [`SUPPORTED`], and as `VcpuExit::X86Wrmsr`. Call this before a vCPU runs.
///
/// Returns false on a KVM older than Linux 5.10. A write then exits as a system event,
/// `KVM_SYSTEM_EVENT_CRASH`, and there is no text.
///
/// # Errors
/// The kernel's error.
pub fn intercept(vm: &VmFd) -> io::Result<bool> {
    let has = |capability: u32| vm.check_extension_raw(capability.into()) > 0;
    if !has(KVM_CAP_X86_USER_SPACE_MSR) || !has(KVM_CAP_X86_MSR_FILTER) {
        return Ok(false);
    }
    let mut exits = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    exits.args = [KVM_MSR_EXIT_REASON_FILTER.into(), 0, 0, 0];
    vm.enable_cap(&exits)?;
    let control = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: CONTROL,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[control])?;
    Ok(true)
}

/// What a guest has said of its crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The parameters. Their meaning is the guest's; in Linux, without text: the error, its own identity,
    /// and the registers IP, AX and SP (`hyperv_report_panic`).
    pub parameters: [u64; 5],
    /// The text, as the guest wrote it: any bytes.
    pub text: Option<Vec<u8>>,
}

impl Crash {
    /// Reads what the guest says. Call this on the vCPU's thread, after the guest wrote `control` to the
    /// control MSR. `None` if the guest has not crashed.
    ///
    /// Text that is not in the guest's memory, or longer than [`MOST_TEXT`], is none.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn read(
        vcpu: &VcpuFd,
        memory: &impl GuestMemoryBackend,
        control: u64,
    ) -> io::Result<Option<Self>> {
        if control & NOTIFY == 0 {
            return Ok(None);
        }
        let parameters = msr::read(vcpu, PARAMETERS)?;
        let text = if control & MESSAGE == 0 { None } else { text(memory, parameters) };
        Ok(Some(Self { parameters, text }))
    }

    /// Reads what the guest says, after `KVM_SYSTEM_EVENT_CRASH`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn without_text(vcpu: &VcpuFd) -> io::Result<Self> {
        Ok(Self { parameters: msr::read(vcpu, PARAMETERS)?, text: None })
    }
}

/// The text at the address that the parameters give. Copied once.
fn text(memory: &impl GuestMemoryBackend, parameters: [u64; 5]) -> Option<Vec<u8>> {
    let [.., address, length] = parameters;
    let length = usize::try_from(length).ok().filter(|length| (1..=MOST_TEXT).contains(length))?;
    let mut text = vec![0; length];
    memory.read_slice(&mut text, GuestAddress(address)).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn text_is_read_only_where_it_is_memory_and_short_enough() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        memory.write_slice(b"panic", GuestAddress(0x1ffb)).unwrap();
        let at = |address, length| text(&memory, [7, 7, 7, address, length]);
        assert_eq!(at(0x1ffb, 5).as_deref(), Some(&b"panic"[..]));
        assert_eq!(at(0x1000, 4096).map(|text| text.len()), Some(4096));
        for (address, length) in [
            (0x1ffb, 6),
            (0x1000, 4097),
            (0, 0),
            (u64::MAX, 2),
            (u64::MAX - 1, 4096),
            (0, u64::MAX),
        ] {
            assert_eq!(at(address, length), None, "{address:#x} {length}");
        }
    }
}
