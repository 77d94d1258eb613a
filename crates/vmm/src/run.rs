//! The life of a VM, from its parts to its end.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Builder;

use kvm_hyperv::kick;
use kvm_hyperv::probe::{self, Capabilities, Irqchip};
use kvm_ioctls::Kvm;
use qmp::{Event, EventSender, ShutdownCause};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use vmbus::{Server, ServerConfig};

use crate::balloon;
use crate::boot::linux::BootFiles;
use crate::bus::GuestCalls;
use crate::config::{Config, OnReset};
use crate::confine::{Confinement, Thread};
use crate::console::Console;
use crate::control::{Cause, Control, ControlSender, control_channel};
use crate::device_loop::{self, DeviceThread};
use crate::error::{BootError, MachineError, VmmError};
use crate::machine::{Machine, Parts};
use crate::memory::{BootMemory, Kept, MemoryPlan};
use crate::monitor::Monitored;
use crate::vcpu::kick_signal;

/// The smallest machine that can boot at all: below, kernel and firmware data have no room.
const SMALLEST_MEMORY: u64 = 16 << 20;

/// Boots a VM and runs it until the guest, the monitor or a signal ends it.
///
/// # Errors
/// [`VmmError`] for whatever keeps the VM from starting, and for a failure of KVM later on.
pub fn run(config: &Config) -> Result<(), VmmError> {
    check(config)?;
    let mut files =
        BootFiles::open(&config.kernel, config.initrd.as_deref(), &config.command_line)?;
    let (kvm, capabilities) = probe::open(Irqchip::Full)?;
    kick::install_handler(kick_signal())
        .map_err(MachineError::system("cannot handle the vCPUs' signal"))?;
    survive_file_limits()?;
    let plan = MemoryPlan::new(config, &kvm)?;
    let first = plan.first()?;
    let (control, events) = control_channel();
    let confinement = Confinement::new(config.seccomp, control.clone())?;
    let signals = watch_signals(control.clone(), confinement.clone())?;
    let mut console = Console::open(&config.serial, confinement.clone())?;
    let monitor_events = Arc::new(OnceLock::new());
    let (device, calls) =
        start_device(config, capabilities, &plan, &first, &monitor_events, &confinement)?;
    let monitor = start_monitor(config, &device, &confinement, &monitor_events)?;
    let to_control = control.clone();
    console.start_input(move || to_control.send(Control::Shutdown(Cause::Console)))?;

    // Last: what is started above needs not be what this thread may do from now on.
    confinement.apply(Thread::Main).map_err(MachineError::Confine)?;
    let vm = Vm { config, kvm, plan, console, calls, confinement, control, events, device };
    let emit = |event: &Event| {
        if let Some(sender) = monitor_events.get() {
            sender.emit(event);
        }
    };
    let result = vm.boot_until_off(first, &mut files, &emit);
    signals.close();
    drop(monitor);
    drop(vm);
    result
}

struct Vm<'a> {
    config: &'a Config,
    kvm: Kvm,
    plan: MemoryPlan,
    console: Console,
    calls: GuestCalls,
    confinement: Confinement,
    control: ControlSender,
    events: Receiver<Control>,
    device: DeviceThread,
}

impl Vm<'_> {
    /// Boots, and boots again after each reset.
    fn boot_until_off(
        &self,
        first: BootMemory,
        files: &mut BootFiles,
        emit: &impl Fn(&Event),
    ) -> Result<(), VmmError> {
        let mut memory = first;
        loop {
            let (control, kept) = self.boot_once(memory, files)?;
            match control {
                Control::Reset(cause) => {
                    tracing::info!(?cause, "the machine resets");
                    emit(&Event::Reset {
                        guest: cause == Cause::Guest,
                        reason: reset_reason(cause),
                    });
                }
                Control::Shutdown(cause) => {
                    tracing::info!(?cause, "the machine ends");
                    let guest = cause == Cause::Guest;
                    emit(&Event::Shutdown { guest, reason: shutdown_reason(cause) });
                    return Ok(());
                }
                Control::Failed(error) => return Err(error),
            }
            memory = self.plan.after_reset(kept)?;
        }
    }

    /// Runs a machine until something is to happen to it. Its memory is the host's again then.
    fn boot_once(
        &self,
        memory: BootMemory,
        files: &mut BootFiles,
    ) -> Result<(Control, Kept), VmmError> {
        let BootMemory { ram, map } = memory;
        let parts = Parts {
            kvm: &self.kvm,
            ram: &ram,
            console: &self.console,
            calls: self.calls.clone(),
            confinement: self.confinement.clone(),
            control: self.control.clone(),
            vcpus: self.config.vcpus,
        };
        let mut machine = Machine::new(parts, files)?;
        self.device.attach(machine.handle(), map);
        let started = machine.start();
        // The senders outlive this: one is in `self`.
        let control =
            started.map(|()| self.events.recv().unwrap_or(Control::Shutdown(Cause::Signal)));
        machine.stop();
        let kept = self.device.detach();
        // A second vCPU may have asked for the same before it was stopped.
        let worst = self.events.try_iter().fold(control?, Control::graver);
        Ok((worst, kept))
    }
}

fn start_device(
    config: &Config,
    capabilities: Capabilities,
    plan: &MemoryPlan,
    memory: &BootMemory,
    monitor: &Arc<OnceLock<EventSender>>,
    confinement: &Confinement,
) -> Result<(DeviceThread, GuestCalls), VmmError> {
    let server = Server::new(ServerConfig {
        vp_count: config.vcpus.into(),
        page_limit: plan.address_end(),
        ..ServerConfig::default()
    });
    let wake = device_loop::wake_eventfd()?;
    let calls =
        GuestCalls::new(Arc::new(Mutex::new(server)), Arc::clone(&wake), !capabilities.eventfd);
    let balloon =
        balloon::Setup::new(config, &memory.map, capabilities.eventfd, Arc::clone(monitor))?;
    let (calls_of_loop, confinement) = (calls.clone(), confinement.clone());
    let setup = device_loop::Setup { calls: calls_of_loop, wake, confinement, balloon };
    Ok((device_loop::start(setup)?, calls))
}

fn start_monitor(
    config: &Config,
    device: &DeviceThread,
    confinement: &Confinement,
    events: &OnceLock<EventSender>,
) -> Result<Option<qmp::Server>, VmmError> {
    let Some(path) = &config.qmp else {
        return Ok(None);
    };
    let machine =
        Monitored { balloon: device.operator().clone(), control: confinement.control().clone() };
    let confinement = confinement.clone();
    let confine = move |thread: qmp::ServerThread| confinement.enter(thread.into());
    let server = qmp::Server::start_with(path, Arc::new(machine), confine)?;
    // Set once: there is one monitor.
    let _ = events.set(server.events());
    Ok(Some(server))
}

/// Ends the machine on a signal that asks the process to end.
fn watch_signals(control: ControlSender, confinement: Confinement) -> Result<Handle, MachineError> {
    let failed = MachineError::system("cannot handle signals");
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let handle = signals.handle();
    Builder::new()
        .name("signals".into())
        .spawn(move || {
            if confinement.enter(Thread::Signals).is_err() {
                return;
            }
            for _ in signals.forever() {
                control.send(Control::Shutdown(Cause::Signal));
            }
        })
        .map_err(failed)?;
    Ok(handle)
}

/// Has a write beyond the limit of file sizes fail, for whoever writes: by itself it would end the
/// process, and the guest with it.
fn survive_file_limits() -> Result<(), MachineError> {
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .map(drop)
        .map_err(MachineError::system("cannot handle signals"))
}

fn reset_reason(cause: Cause) -> ShutdownCause {
    match cause {
        Cause::Guest => ShutdownCause::guest_reset,
        _ => ShutdownCause::host_qmp_system_reset,
    }
}

fn shutdown_reason(cause: Cause) -> ShutdownCause {
    match cause {
        Cause::Guest => ShutdownCause::guest_shutdown,
        Cause::Monitor => ShutdownCause::host_qmp_quit,
        Cause::Signal => ShutdownCause::host_signal,
        Cause::Console => ShutdownCause::host_ui,
    }
}

/// Checks what files and KVM cannot tell.
fn check(config: &Config) -> Result<(), VmmError> {
    if config.memory_bytes < SMALLEST_MEMORY {
        return Err(
            BootError::TooSmall { bytes: config.memory_bytes, least: SMALLEST_MEMORY }.into()
        );
    }
    if !balloon::HAS_BALLOON {
        let option = match config {
            _ if config.max_memory_bytes > config.memory_bytes => Some("--max-memory"),
            _ if config.status_reports => Some("--status-report"),
            _ if config.on_reset == OnReset::KeepSize => Some("--on-reset keep-size"),
            _ => None,
        };
        return option.map_or(Ok(()), |option| Err(VmmError::NoBalloon { option }));
    }
    Ok(())
}
