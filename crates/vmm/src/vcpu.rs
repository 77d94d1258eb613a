//! A vCPU thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_hyperv::crash::{self, Crash};
use kvm_hyperv::exit::{HypervExit, InternalError, complete_hypercall};
use kvm_hyperv::{kick, msr};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmbus::protocol::VpIndex;
use vmbus_kvm::Platform as _;
use vmm_sys_util::signal::SIGRTMIN;

use crate::brake::Brake;
use crate::confine::{Confinement, Thread};
use crate::control::{Cause, Control, ControlSender};
use crate::devices::MachineDevices;
use crate::error::MachineError;
use crate::flight_recorder::{Answered, Desk, Exit, Recorder};
use crate::machine::Platform;
use crate::ports::{self, Ports};
use crate::power::PowerRequest;

/// How many crashes of a machine are told: a guest could say so all the time. A kernel for a dump that
/// crashes as well is the second.
const MOST_CRASHES: u8 = 8;

/// Base of CS, and RIP, after INIT (Intel SDM vol. 3, 10.1.4): where a PC has its firmware.
const RESET_VECTOR: (u64, u64) = (0xffff_0000, 0xfff0);

/// The signal that gets a vCPU's thread out of the guest.
pub(crate) fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// State shared by all vCPUs of a machine.
pub(crate) struct Shared {
    pub(crate) ports: Arc<Ports>,
    pub(crate) devices: Arc<MachineDevices>,
    pub(crate) bus: vmbus_kvm::Machine<Platform>,
    pub(crate) confinement: Confinement,
    pub(crate) control: ControlSender,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) brake: Arc<Brake>,
    /// How many times the guest has said that it crashed.
    pub(crate) crashes: AtomicU8,
    /// Set when the threads are to end.
    pub(crate) stop: AtomicBool,
}

/// A vCPU and its thread's state.
pub(crate) struct Vcpu {
    pub(crate) id: u8,
    pub(crate) fd: VcpuFd,
    pub(crate) shared: Arc<Shared>,
    /// The rounds of [`Desk`] that this vCPU has answered.
    pub(crate) answered: Answered,
}

/// Whether a vCPU goes on running.
enum Next {
    Run,
    Stop,
}

impl Vcpu {
    /// Runs until the machine stops. Reports a failure through the machine's control.
    pub(crate) fn run(mut self) {
        let _guard = self.shared.control.report_panic("vCPU");
        if let Err(error) = self.run_until_stopped() {
            self.shared.control.send(Control::Failed(error.into()));
        }
    }

    fn run_until_stopped(&mut self) -> Result<(), MachineError> {
        let failed = MachineError::system("cannot prepare a vCPU's thread");
        kick::prepare_thread(&self.fd, kick_signal()).map_err(failed)?;
        if self.shared.confinement.enter(Thread::Vcpu).is_err() {
            return Ok(());
        }
        while !self.shared.stop.load(Ordering::Acquire) {
            self.shared.desk.answer(self.id, &mut self.answered, &self.fd);
            if self.shared.brake.hold() {
                // The signal of the kick that ended this: signals of this kind queue up.
                acknowledge_kick()?;
                continue;
            }
            self.shared
                .bus
                .before_run(self.vp())
                .map_err(MachineError::system("cannot raise a synthetic interrupt"))?;
            match self.enter()? {
                Next::Run => {}
                Next::Stop => break,
            }
        }
        Ok(())
    }

    fn enter(&mut self) -> Result<Next, MachineError> {
        self.shared.recorder.entering(self.id);
        let result = self.fd.run();
        self.shared.recorder.exited(self.id, kind(&result));
        let exit = match result {
            Ok(exit) => exit,
            Err(error) => return self.interrupted(error),
        };
        match exit {
            VcpuExit::IoIn(port, data) => self.shared.ports.read(port, data),
            VcpuExit::IoOut(port, data) => {
                if let Some(request) = self.shared.ports.write(port, data) {
                    self.shared.control.send(match request {
                        PowerRequest::Reset => Control::Reset(Cause::Guest),
                        PowerRequest::Off => Control::Shutdown(Cause::Guest),
                    });
                    return Ok(Next::Stop);
                }
            }
            VcpuExit::MmioRead(at, data) => self.shared.devices.read(at, data),
            VcpuExit::MmioWrite(at, data) => self.shared.devices.write(at, data),
            VcpuExit::Intr | VcpuExit::Hlt => {}
            VcpuExit::Hyperv => self.hyperv_exit(),
            VcpuExit::X86Rdmsr(read) if read.index == crash::CONTROL => {
                *read.data = crash::SUPPORTED;
            }
            VcpuExit::X86Wrmsr(write) if write.index == crash::CONTROL => {
                let control = write.data;
                self.crash(control);
            }
            // A triple fault, to which a PC responds with a reset.
            VcpuExit::Shutdown => {
                tracing::warn!(vcpu = self.id, "the guest reset itself by a triple fault");
                self.shared.control.send(Control::Reset(Cause::Guest));
                return Ok(Next::Stop);
            }
            VcpuExit::SystemEvent(event, _) => return self.system_event(event),
            other => {
                let reason = format!("{other:?}");
                return self.stopped(reason);
            }
        }
        Ok(Next::Run)
    }

    /// KVM cannot go on, for this reason or one that it says elsewhere.
    fn stopped(&mut self, exit: String) -> Result<Next, MachineError> {
        let why = InternalError::read(&mut self.fd).map_or(exit, |error| error.to_string());
        let place = match (self.fd.get_regs(), self.fd.get_sregs()) {
            // Another vCPU sent it INIT: a crash kernel that did not start on this one, and was not told
            // to leave the others alone. A PC's firmware would be there, and start the machine anew.
            (Ok(regs), Ok(sregs)) if (sregs.cs.base, regs.rip) == RESET_VECTOR => {
                tracing::warn!(vcpu = self.id, "the guest sent its boot processor to the firmware");
                self.shared.control.send(Control::Reset(Cause::Guest));
                return Ok(Next::Stop);
            }
            (Ok(regs), Ok(sregs)) => format!(
                "rip {:#x} rsp {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cs {:#x}",
                regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cs.base
            ),
            (Err(error), _) | (_, Err(error)) => format!("registers unknown: {error}"),
        };
        Err(MachineError::VcpuStopped { vcpu: self.id, reason: format!("{why}; {place}") })
    }

    /// The guest wrote the Hyper-V reset or crash MSR, which KVM handles whatever CPUID says.
    fn system_event(&self, event: u32) -> Result<Next, MachineError> {
        match event {
            KVM_SYSTEM_EVENT_SHUTDOWN => {
                self.shared.control.send(Control::Shutdown(Cause::Guest));
            }
            KVM_SYSTEM_EVENT_RESET => self.shared.control.send(Control::Reset(Cause::Guest)),
            // The guest only announces that it crashes; what it does next, a reset for example,
            // arrives separately.
            KVM_SYSTEM_EVENT_CRASH => {
                self.tell_of_crash(Crash::without_text(&self.fd).map(Some));
                return Ok(Next::Run);
            }
            other => {
                let reason = format!("system event {other}");
                return Err(MachineError::VcpuStopped { vcpu: self.id, reason });
            }
        }
        Ok(Next::Stop)
    }

    /// The guest wrote `control` to its crash register.
    fn crash(&self, control: u64) {
        let memory = self.shared.bus.platform().memory();
        self.tell_of_crash(Crash::read(&self.fd, &*memory, control));
    }

    fn tell_of_crash(&self, crash: io::Result<Option<Crash>>) {
        match crash {
            Ok(Some(_)) if !self.may_tell_of_crash() => {}
            Ok(Some(crash)) => self.shared.control.send(Control::Crashed(Box::new(crash))),
            Ok(None) => {}
            Err(error) => tracing::error!("cannot read what a crashing guest says: {error}"),
        }
    }

    fn may_tell_of_crash(&self) -> bool {
        let one_more = |told: u8| (told < MOST_CRASHES).then_some(told.saturating_add(1));
        self.shared.crashes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn interrupted(&self, error: kvm_ioctls::Error) -> Result<Next, MachineError> {
        match error.errno() {
            libc::EINTR => {
                acknowledge_kick()?;
                Ok(Next::Run)
            }
            libc::EAGAIN => Ok(Next::Run),
            libc::EFAULT => Err(MachineError::kvm(
                "cannot run a vCPU, for the host could not provide a page of its memory: is the \
                 pool of huge pages empty?",
            )(error)),
            _ => Err(MachineError::kvm("cannot run a vCPU")(error)),
        }
    }

    fn hyperv_exit(&mut self) {
        let Some(exit) = HypervExit::read(&mut self.fd) else { return };
        let os_id = || msr::guest_os_id(&self.fd).ok();
        if let Some(result) = self.shared.bus.on_exit(self.vp(), exit, os_id) {
            complete_hypercall(&mut self.fd, result);
        }
    }

    fn vp(&self) -> VpIndex {
        VpIndex::new(self.id.into())
    }
}

fn acknowledge_kick() -> Result<(), MachineError> {
    kick::acknowledge(kick_signal())
        .map_err(MachineError::system("cannot take a vCPU thread's signal"))
}

/// The exit, for the flight recorder.
fn kind(result: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Exit {
    match result {
        Ok(VcpuExit::IoIn(port, _) | VcpuExit::IoOut(port, _)) if ports::is_serial(*port) => {
            Exit::Serial
        }
        Ok(VcpuExit::IoIn(port, _)) => Exit::PortIn(*port),
        Ok(VcpuExit::IoOut(port, _)) => Exit::PortOut(*port),
        Ok(VcpuExit::MmioRead(at, _)) => Exit::MmioRead(*at),
        Ok(VcpuExit::MmioWrite(at, _)) => Exit::MmioWrite(*at),
        Ok(VcpuExit::Hyperv) => Exit::Hyperv,
        Ok(VcpuExit::Hlt) => Exit::Halted,
        Ok(
            VcpuExit::Shutdown
            | VcpuExit::SystemEvent(..)
            | VcpuExit::X86Rdmsr(_)
            | VcpuExit::X86Wrmsr(_),
        ) => Exit::SystemEvent,
        Ok(VcpuExit::Intr) => Exit::Interrupted,
        Ok(_) => Exit::Failed,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
        Err(_) => Exit::Failed,
    }
}
