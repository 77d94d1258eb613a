//! `KVM_EXIT_HYPERV` and `KVM_EXIT_INTERNAL_ERROR`, decoded.
//!
//! `kvm-ioctls` reports these exits (the former as `VcpuExit::Hyperv`) without their data, so a VMM reads the data
//! from its `VcpuFd` right afterwards. A VMM with a hypervisor layer of its own on top of
//! `kvm-ioctls` (such as Cloud Hypervisor's `hypervisor` crate) calls [`HypervExit::read`] in that
//! layer, where it has the `VcpuFd`, and passes the result up.

// UNSAFETY: the exit record is a union in memory shared with the kernel.
#![expect(unsafe_code, reason = "the exit record is a C union")]

use std::fmt;

use kvm_bindings::{
    KVM_EXIT_HYPERV, KVM_EXIT_HYPERV_HCALL, KVM_EXIT_HYPERV_SYNIC, KVM_EXIT_INTERNAL_ERROR,
};
use kvm_ioctls::VcpuFd;

use crate::synic::SynicRegisters;

/// The reason of a Hyper-V exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervExit {
    /// The guest wrote SCONTROL, SIMP or SIEFP; these are the new values.
    Synic(SynicRegisters),
    /// A hypercall that KVM leaves to the VMM; answer it with [`complete_hypercall`].
    Hypercall {
        /// The control word (TLFS 3.7, hypercall input value).
        control: u64,
        /// RDX and R8 of a 64-bit caller.
        parameters: [u64; 2],
    },
    /// Synthetic debugging, or a newer reason: run on.
    Other(u32),
}

impl HypervExit {
    /// Reads the exit record right after `KVM_RUN` returned `VcpuExit::Hyperv`. `None` if the last
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
                // SAFETY: the type says that this member is filled; it consists of plain integers.
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

/// Why KVM cannot go on with a vCPU (Linux `Documentation/virt/kvm/api.rst`, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// The kind: `KVM_INTERNAL_ERROR_EMULATION` (1) is an instruction that KVM cannot emulate.
    pub kind: u32,
    count: usize,
    data: [u64; 16],
}

impl InternalError {
    /// Reads the exit record right after `KVM_RUN` returned `VcpuExit::InternalError`. `None` if the
    /// last exit was another one.
    pub fn read(vcpu: &mut VcpuFd) -> Option<Self> {
        let run = vcpu.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return None;
        }
        // SAFETY: the exit reason says which member of the union the kernel filled, and any bit
        // pattern is a valid value of its plain integers.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let count = usize::try_from(error.ndata).unwrap_or(usize::MAX);
        Some(Self { kind: error.suberror, count, data: error.data })
    }

    /// What KVM adds to the kind. Of an instruction: flags, then its length in one byte, and its bytes.
    #[must_use]
    pub fn data(&self) -> &[u64] {
        self.data.get(..self.count).unwrap_or(&self.data)
    }
}

impl fmt::Display for InternalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "internal error of KVM, kind {}, data {:x?}", self.kind, self.data())
    }
}

/// Stores the result value of the hypercall in which the vCPU waits; KVM passes it to the guest in
/// the next `KVM_RUN`.
pub fn complete_hypercall(vcpu: &mut VcpuFd, result: u64) {
    let run = vcpu.get_kvm_run();
    run.__bindgen_anon_1.hyperv.u.hcall.result = result;
}
