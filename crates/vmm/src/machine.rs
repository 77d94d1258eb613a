//! One machine, from power-on to the next reset.
//!
//! A reset builds a new machine with new memory: KVM does not reset Hyper-V state with a vCPU, and
//! a new VM has none.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use guest_ram::{GuestRam, RamAddressSpace, RamRegion};
use kvm_bindings::{KVM_CAP_HYPERV_SYNIC2, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_hyperv::crash;
use kvm_hyperv::sint::SintLines;
use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmbus::protocol::VpIndex;
use vmbus_kvm::{Host, KvmPlatform};
use vmm_sys_util::signal::Killable;

use crate::boot::cpu;
use crate::boot::linux::BootFiles;
use crate::brake::Brake;
use crate::confine::{Confinement, Thread};
use crate::console::Console;
use crate::control::ControlSender;
use crate::devices::{Devices, MachineDevices};
use crate::error::{MachineError, VmmError};
use crate::flight_recorder::{Answered, Desk, Recorder};
use crate::ports::{self, Ports};
use crate::vcpu::{Shared, Vcpu, kick_signal};

/// The memory that Intel's real-mode emulation needs: in the hole below 4 GiB, where nothing else
/// lies.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

pub(crate) type Vm = GuestVm<RamRegion>;

/// The machine as the bus sees it.
pub(crate) type Platform = KvmPlatform<RamAddressSpace, Arc<Vm>>;

/// The parts of a machine.
pub(crate) struct Parts<'a> {
    pub(crate) kvm: &'a Kvm,
    pub(crate) ram: &'a Arc<GuestRam>,
    pub(crate) console: &'a Console,
    pub(crate) host: &'a Host<Platform>,
    /// KVM can signal eventfds itself.
    pub(crate) signals_in_kernel: bool,
    /// The guest can report free pages.
    pub(crate) takes_reports: bool,
    pub(crate) confinement: Confinement,
    pub(crate) control: ControlSender,
    pub(crate) vcpus: u8,
    pub(crate) recorder: &'a Arc<Recorder>,
    pub(crate) brake: &'a Arc<Brake>,
    pub(crate) devices: &'a Devices,
}

/// The vCPU threads, by number.
#[derive(Default)]
struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    /// Kicks a vCPU.
    fn kick(&self, vcpu: usize) {
        if let Some(thread) = self.lock().get(vcpu) {
            kick(thread);
        }
    }

    fn kick_all(&self) {
        self.lock().iter().for_each(kick);
    }

    fn take(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gets a vCPU's thread out of the guest or the brake, so that it looks for work.
fn kick(thread: &JoinHandle<()>) {
    // A thread that has just ended needs no kick.
    let _ = thread.kill(kick_signal());
    thread.thread().unpark();
}

/// Takes a machine's memory away from KVM on the thread that drops this: a thread whose filter
/// forbids that may be the last to drop the VM itself.
pub(crate) struct MemoryGuard(Arc<Vm>);

impl Drop for MemoryGuard {
    fn drop(&mut self) {
        // Memory that KVM does not let go of stays mapped: see `GuestVm`.
        let _ = self.0.remove_all();
    }
}

/// A machine with its vCPU threads.
pub(crate) struct Machine {
    vm: Arc<Vm>,
    threads: Arc<Threads>,
    shared: Arc<Shared>,
    waiting: Vec<Vcpu>,
}

impl Machine {
    /// Builds a machine and loads the guest. Nothing runs yet.
    pub(crate) fn new(parts: Parts<'_>, files: &mut BootFiles) -> Result<Self, VmmError> {
        let vm = Arc::new(create_vm(&parts)?);
        let fds = create_vcpus(&parts, vm.fd())?;
        let lines = SintLines::new(vm.fd(), parts.vcpus.into())
            .map_err(MachineError::system("cannot route the synthetic interrupts"))?;
        let serial = parts.console.port()?;
        vm.fd()
            .register_irqfd(serial.interrupt(), ports::SERIAL_GSI)
            .map_err(MachineError::kvm("cannot connect the serial port's interrupt"))?;
        let devices = Arc::new(parts.devices.plug(vm.fd(), parts.ram)?);
        let entry = files.load(parts.ram, parts.vcpus, parts.devices.count())?;
        if let Some(first) = fds.first() {
            cpu::set_entry(first, entry)?;
        }
        let threads = Arc::new(Threads::default());
        let asked = Arc::clone(&threads);
        let desk = Desk::new(move |vcpu| asked.kick(vcpu));
        let kicked = Arc::clone(&threads);
        let kick = move |vp: VpIndex| kicked.kick(usize::try_from(vp.get()).unwrap_or(usize::MAX));
        let memory = parts.ram.address_space();
        let in_kernel = parts.signals_in_kernel;
        let platform = KvmPlatform::new(Arc::clone(&vm), memory, lines, in_kernel, kick);
        let shared = Arc::new(Shared {
            ports: Arc::new(Ports::new(serial)),
            devices,
            bus: parts.host.start_machine(platform)?,
            confinement: parts.confinement,
            control: parts.control,
            recorder: Arc::clone(parts.recorder),
            desk: Arc::new(desk),
            brake: Arc::clone(parts.brake),
            crashes: AtomicU8::new(0),
            stop: AtomicBool::new(false),
        });
        parts.console.connect(&shared.ports);
        let vcpu =
            |(id, fd)| Vcpu { id, fd, shared: Arc::clone(&shared), answered: Answered::default() };
        let waiting = (0..).zip(fds).map(vcpu).collect();
        Ok(Self { vm, threads, shared, waiting })
    }

    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    pub(crate) fn devices(&self) -> &Arc<MachineDevices> {
        &self.shared.devices
    }

    /// A guard that takes the guest's memory away from KVM when it is dropped.
    pub(crate) fn memory_guard(&self) -> MemoryGuard {
        MemoryGuard(Arc::clone(&self.vm))
    }

    /// Starts the devices, and then the vCPUs.
    pub(crate) fn start(&mut self) -> Result<(), MachineError> {
        self.shared.devices.start(&self.shared.confinement)?;
        let vcpus = self.waiting.len();
        let mut threads = Vec::with_capacity(vcpus);
        let mut result = Ok(());
        for vcpu in self.waiting.drain(..) {
            match Thread::Vcpu.builder().name(format!("vcpu{}", vcpu.id)).spawn(move || vcpu.run())
            {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    let what = "cannot start a vCPU's thread";
                    result = Err(MachineError::System { what, source });
                    break;
                }
            }
        }
        // After a failed start as well: `stop` must find the threads that run.
        *self.threads.lock() = threads;
        let kicked = Arc::clone(&self.threads);
        self.shared.brake.machine_started(vcpus, move || kicked.kick_all());
        self.shared.recorder.machine_started(Arc::clone(&self.shared.desk));
        result
    }

    /// Stops all vCPUs, and then the devices, and waits for their threads.
    pub(crate) fn stop(self) {
        self.shared.stop.store(true, Ordering::Release);
        let threads = self.threads.take();
        threads.iter().for_each(kick);
        for thread in threads {
            let _ = thread.join();
        }
        self.shared.devices.stop();
        self.shared.recorder.machine_stopped();
        self.shared.brake.machine_stopped();
    }
}

fn create_vm(parts: &Parts<'_>) -> Result<Vm, MachineError> {
    let vm = parts.kvm.create_vm().map_err(MachineError::kvm("cannot create a VM"))?;
    let failed = MachineError::kvm("cannot set up the VM's interrupt controllers and timer");
    vm.set_tss_address(TSS_ADDRESS).map_err(failed)?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(failed)?;
    vm.create_irq_chip().map_err(failed)?;
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(timer).map_err(failed)?;
    // Without it, there is only less to tell of a guest that crashes.
    crash::intercept(&vm)
        .map_err(MachineError::system("cannot have the guest's crash register leave the guest"))?;
    GuestVm::new(vm, parts.ram.boot_regions())
        .map_err(MachineError::kvm("cannot give the VM its memory"))
}

fn create_vcpus(parts: &Parts<'_>, vm: &VmFd) -> Result<Vec<VcpuFd>, MachineError> {
    (0..parts.vcpus)
        .map(|id| {
            let vcpu =
                vm.create_vcpu(id.into()).map_err(MachineError::kvm("cannot create a vCPU"))?;
            let cpuid = cpu::cpuid(parts, &vcpu, id)?;
            vcpu.set_cpuid2(&cpuid).map_err(MachineError::kvm("cannot set a vCPU's CPUID"))?;
            let synic = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
            vcpu.enable_cap(&synic)
                .map_err(MachineError::kvm("cannot enable a vCPU's synthetic interrupts"))?;
            cpu::set_msrs(&vcpu)?;
            Ok(vcpu)
        })
        .collect()
}
