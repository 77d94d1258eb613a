//! The vCPUs: the state they start in, and their threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs,
    kvm_cpuid_entry2, kvm_msr_entry, kvm_segment,
};
use kvm_hyperv::kick;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use crate::End;
use crate::boot::ZERO_PAGE;
use crate::devices::Devices;
use crate::dynamic_memory::{self, Bus};

/// The segment selectors that the boot protocol prescribes.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

const PROTECTED_MODE: u64 = 1;

/// `IA32_MTRR_DEF_TYPE`: all memory is write-back, as firmware leaves it.
const MTRR_DEFAULT_TYPE: kvm_msr_entry =
    kvm_msr_entry { index: 0x2ff, reserved: 0, data: 1 << 11 | 6 };

/// Creates one of `count` vCPUs and sets its CPUID and MTRRs.
pub(crate) fn create(kvm: &Kvm, vm: &VmFd, id: u8, count: u8) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(id.into()).context("cannot create a vCPU")?;
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec();
    set_topology(&mut cpuid, id, count);
    dynamic_memory::prepare_vcpu(&vcpu, cpuid)?;
    vcpu.set_msrs(&Msrs::from_entries(&[MTRR_DEFAULT_TYPE])?)?;
    Ok(vcpu)
}

/// One socket with `count` cores, which have one thread each. Their APIC IDs are their numbers.
fn set_topology(cpuid: &mut Vec<kvm_cpuid_entry2>, id: u8, count: u8) {
    // These leaves would show the host's own topology.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    let (apic_id, cores) = (u32::from(id), u32::from(count));
    let id_bits = cores.next_power_of_two().trailing_zeros();
    let many = u32::from(cores > 1);
    for entry in cpuid {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | cores << 16 | apic_id << 24;
                // A hypervisor is present, and the APIC has a TSC deadline timer.
                entry.ecx |= 1 << 31 | 1 << 24;
                entry.edx = entry.edx & !(1 << 28) | many << 28;
            }
            0x4 => entry.eax = entry.eax & 0x3fff | (cores - 1) << 26,
            0x8000_0001 => entry.ecx = entry.ecx & !(1 << 1) | many << 1,
            0x8000_0008 => entry.ecx = id_bits << 12 | (cores - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
}

/// Makes the first vCPU start the kernel at `entry`, in 32-bit mode without paging.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut special = vcpu.get_sregs()?;
    special.cs = segment(CODE_SELECTOR, 0xb);
    let data = segment(DATA_SELECTOR, 0x3);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.cr0 |= PROTECTED_MODE;
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = entry;
    registers.rsi = ZERO_PAGE.into();
    registers.rflags = 2;
    vcpu.set_regs(&registers).context("cannot set the registers of the first vCPU")
}

/// A flat 32-bit segment.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Installs a handler for the kick signal, which would otherwise end the process. Call this before
/// the first vCPU starts.
pub(crate) fn install_kick() -> Result<()> {
    kick::install_handler(SIGRTMIN()).context("cannot handle signals")
}

/// The vCPU threads, indexed by vCPU number.
#[derive(Default)]
pub(crate) struct Vcpus {
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: AtomicBool,
}

impl Vcpus {
    /// Starts a thread for each vCPU.
    pub(crate) fn start(
        self: &Arc<Self>,
        fds: Vec<VcpuFd>,
        bus: &Bus,
        devices: &Arc<Devices>,
        ends: &Sender<End>,
    ) -> Result<()> {
        for (id, fd) in (0_u32..).zip(fds) {
            let (vcpus, ends) = (Arc::clone(self), ends.clone());
            let mut vcpu = Vcpu { id, fd, bus: bus.clone(), devices: Arc::clone(devices) };
            let run = move || {
                let end = vcpu.run(&vcpus.stop).unwrap_or_else(|error| Some(End::Failed(error)));
                if let Some(end) = end {
                    // The receiver is gone if the machine is already ending.
                    let _ = ends.send(end);
                }
            };
            let thread = Builder::new().name(format!("vcpu{id}")).spawn(run)?;
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(())
    }

    /// Forces a vCPU out of the guest so that its thread looks for work.
    pub(crate) fn kick(&self, vcpu: usize) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = threads.get(vcpu) {
            // A thread that has ended needs no kick.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// Stops all vCPUs for good.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.kill(SIGRTMIN());
            let _ = thread.join();
        }
    }
}

/// A vCPU on its thread.
struct Vcpu {
    id: u32,
    fd: VcpuFd,
    bus: Bus,
    devices: Arc<Devices>,
}

impl Vcpu {
    /// Runs the vCPU until `stop` is set, which returns `None`, or until the machine ends.
    fn run(&mut self, stop: &AtomicBool) -> Result<Option<End>> {
        kick::prepare_thread(&self.fd, SIGRTMIN()).context("cannot prepare a vCPU's thread")?;
        while !stop.load(Ordering::Acquire) {
            self.bus.before_run(self.id)?;
            if let Some(end) = self.enter()? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    fn enter(&mut self) -> Result<Option<End>> {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => self.devices.read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => return Ok(self.devices.write(port, data)),
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::MmioWrite(..) | VcpuExit::Intr | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Hyperv) => self.bus.on_exit(self.id, &mut self.fd),
            Ok(VcpuExit::Shutdown) => return Ok(Some(End::Reset)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Ok(Some(End::Reset)),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Ok(Some(End::PowerOff));
            }
            // A crash report. If the guest then resets or powers off, another exit follows.
            Ok(VcpuExit::SystemEvent(..)) => {}
            Ok(other) => bail!("vCPU {} stopped: {other:?}", self.id),
            Err(error) if error.errno() == libc::EINTR => kick::acknowledge(SIGRTMIN())?,
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(error).context("cannot run a vCPU"),
        }
        Ok(None)
    }
}
