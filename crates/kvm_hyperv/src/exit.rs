//! `KVM_EXIT_HYPERV`, decoded.
//!
//! `kvm-ioctls` reports this exit as `VcpuExit::Hyperv` without its data, so a VMM reads them from
//! its `VcpuFd` right after that. A VMM with a hypervisor layer of its own on top of `kvm-ioctls`
//! (Cloud Hypervisor's `hypervisor` crate, say) calls [`HypervExit::read`] in there, where it has
//! the `VcpuFd`, and hands the result up.

// UNSAFETY: the exit record is a union in memory shared with the kernel.
#![expect(unsafe_code, reason = "the exit record is a C union")]

use kvm_bindings::{KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC};
use kvm_ioctls::VcpuFd;

use crate::synic::SynicRegisters;

/// Why the vCPU came out of `KVM_RUN` with a Hyper-V exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervExit {
    /// The guest wrote SCONTROL, SIMP or SIEFP: the values as they are now.
    Synic(SynicRegisters),
    /// A hypercall that KVM leaves to the VMM; answer it with [`complete_hypercall`].
    Hypercall {
        /// The control word (TLFS 3.7, hypercall input value).
        control: u64,
        /// RDX and R8 of a 64-bit caller.
        parameters: [u64; 2],
    },
    /// Synthetic debugging, or something newer: run on.
    Other(u32),
}

impl HypervExit {
    /// Reads the exit record right after `KVM_RUN` gave `VcpuExit::Hyperv`. `None` where the last
    /// exit was another one.
    pub fn read(vcpu: &mut VcpuFd) -> Option<Self> {
        let run = vcpu.get_kvm_run();
        if run.exit_reason != KVM_EXIT_HYPERV {
            return None;
        }
        // SAFETY: the exit reason says which member of the union the kernel filled, and any bit
        // pattern is a valid value of its plain integers.
        let exit = unsafe { run.__bindgen_anon_1.hyperv };
        Some(match exit.type_ {
            KVM_EXIT_HYPERV_SYNIC => {
                // SAFETY: the type says that this member is filled; it is plain integers.
                let synic = unsafe { exit.u.synic };
                Self::Synic(SynicRegisters {
                    scontrol: synic.control,
                    siefp: synic.evt_page,
                    simp: synic.msg_page,
                })
            }
            KVM_EXIT_HYPERV_HCALL => {
                // SAFETY: as above.
                let call = unsafe { exit.u.hcall };
                Self::Hypercall { control: call.input, parameters: call.params }
            }
            other => Self::Other(other),
        })
    }
}

/// Stores the result value of the hypercall that the vCPU waits in; KVM hands it to the guest on
/// the next `KVM_RUN`.
pub fn complete_hypercall(vcpu: &mut VcpuFd, result: u64) {
    let run = vcpu.get_kvm_run();
    run.__bindgen_anon_1.hyperv.u.hcall.result = result;
}
