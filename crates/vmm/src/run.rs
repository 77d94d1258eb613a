//! The life of a VM, from start to end.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvm_hyperv::kick;
use kvm_hyperv::probe::{self, Capabilities, Irqchip};
use kvm_ioctls::Kvm;
use qmp::{Event, EventSender, ShutdownCause};
use signal_hook::consts::SIGXFSZ;
use vmbus::ServerConfig;
use vmbus_kvm::bus_recording::{DeviceSetup, Header};
use vmbus_kvm::{Host, HostBuilder, IntegrationServices};

use crate::HAS_BALLOON;
use crate::boot::linux::BootFiles;
use crate::brake::Brake;
use crate::bus_recorder::BusRecorder;
use crate::config::{Config, FreePageReporting, OnReset};
use crate::confine::{Confinement, Thread};
use crate::console::Console;
use crate::control::{Cause, Control, ControlSender, control_channel};
use crate::devices::Devices;
use crate::error::{BootError, MachineError, VmmError};
use crate::flight_recorder::{self, Recorder};
use crate::log_limit::LogLimit;
use crate::machine::{Machine, Parts, Platform};
use crate::memory::{BootMemory, Kept, MemoryPlan};
use crate::monitor::{Balloon, Monitored};
use crate::services::Services;
use crate::signals;
use crate::vcpu::kick_signal;
use crate::watch::{GuestLog, Watch};

/// The smallest machine that can boot at all: with less there is no room for kernel and firmware
/// data.
const SMALLEST_MEMORY: u64 = 16 << 20;

/// Boots a VM and runs it until the guest, the monitor or a signal ends it.
///
/// Calls `on_ready` once, when the monitor listens and before the guest runs; the calling thread is not
/// confined until then.
///
/// # Errors
/// [`VmmError`] for anything that keeps the VM from starting, and for a later failure of KVM.
pub fn run(config: &Config, on_ready: impl FnOnce()) -> Result<(), VmmError> {
    check(config)?;
    let mut files =
        BootFiles::open(&config.kernel, config.initrd.as_deref(), &config.command_line)?;
    let devices = Devices::open(config)?;
    let (kvm, capabilities) = probe::open(Irqchip::Full)?;
    kick::install_handler(kick_signal())
        .map_err(MachineError::system("cannot handle the vCPUs' signal"))?;
    survive_file_limits()?;
    let plan = MemoryPlan::new(config, &kvm, capabilities)?;
    let first = plan.first()?;
    let (control, events) = control_channel();
    let confinement = Confinement::new(config.seccomp, control.clone())?;
    let recorder = Arc::new(Recorder::new(config.vcpus));
    flight_recorder::dump_on_panic(&recorder);
    let mut console = Console::open(&config.serial, confinement.clone())?;
    let monitor_events = Arc::new(OnceLock::new());
    let log = Arc::new(Mutex::new(LogLimit::new("the guest's balloon driver")));
    let server = ServerConfig {
        vp_count: config.vcpus.into(),
        page_limit: plan.address_end,
        ..ServerConfig::default()
    };
    let recording = record_bus(config, &server, (&plan, &first), &confinement)?;
    let watch =
        Watch::new(confinement.clone(), Arc::clone(&log), Arc::clone(&recorder), recording.clone());
    let mut host = HostBuilder::new(server, watch)?;
    let to_log = Arc::clone(&log);
    let balloon = attach_balloon(&mut host, config, (&plan, &first), &monitor_events, to_log)?;
    let services = Services::attach(&mut host, &monitor_events, log)?;
    let host = host.start()?;
    let to_signals = (control.clone(), services.clone(), Arc::clone(&recorder));
    let signals = signals::watch(to_signals, confinement.clone())?;
    let boot_memory = first.ram.pages().len();
    let brake = Arc::<Brake>::default();
    let monitored = Monitored {
        balloon: balloon.clone(),
        services,
        boot_memory,
        control: control.clone(),
        recorder: Arc::clone(&recorder),
        brake: Arc::clone(&brake),
        bus: host.handle(),
        events: Arc::clone(&monitor_events),
    };
    let monitor = start_monitor(config, monitored, &confinement, &monitor_events)?;
    let to_control = control.clone();
    console.start_input(move || to_control.send(Control::Shutdown(Cause::Console)))?;

    on_ready();
    // Confine this thread last: the setup above needs more system calls.
    confinement.apply(Thread::Main).map_err(MachineError::Confine)?;
    let vm = Vm {
        config,
        kvm,
        capabilities,
        plan,
        console,
        confinement,
        control,
        events,
        balloon,
        host,
        recorder,
        brake,
        devices,
        ends_at: Cell::new(None),
    };
    let emit = |event: &Event| {
        if let Some(sender) = monitor_events.get() {
            sender.emit(event);
        }
    };
    let result = vm.boot_until_off(first, &mut files, &emit);
    signals.close();
    drop(monitor);
    drop(vm);
    if let Some(recording) = recording {
        recording.finish();
    }
    result
}

struct Vm<'a> {
    config: &'a Config,
    kvm: Kvm,
    capabilities: Capabilities,
    plan: MemoryPlan,
    console: Console,
    confinement: Confinement,
    control: ControlSender,
    events: Receiver<Control>,
    balloon: Option<Arc<dyn Balloon>>,
    host: Host<Platform>,
    recorder: Arc<Recorder>,
    brake: Arc<Brake>,
    devices: Devices,
    /// When a guest that a signal has asked to shut down is ended.
    ends_at: Cell<Option<Instant>>,
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
            let (control, kept) = self.boot_once(memory, files, emit)?;
            match control {
                Control::Reset(cause) => {
                    tracing::info!(?cause, "the machine is reset");
                    self.brake.machine_reset();
                    emit(&Event::Reset {
                        guest: cause == Cause::Guest,
                        reason: reset_reason(cause),
                    });
                }
                Control::Shutdown(cause) => {
                    tracing::info!(?cause, "the machine ends");
                    let guest = matches!(cause, Cause::Guest | Cause::Restart);
                    emit(&Event::Shutdown { guest, reason: shutdown_reason(cause) });
                    return Ok(());
                }
                Control::Failed(error) => return Err(error),
                // They end no machine.
                Control::EndInTime | Control::Crashed(_) => {}
            }
            memory = self.plan.after_reset(kept)?;
        }
    }

    /// Runs a machine until it resets, ends or fails. Its memory is the host's again when this
    /// returns.
    fn boot_once(
        &self,
        memory: BootMemory,
        files: &mut BootFiles,
        emit: &impl Fn(&Event),
    ) -> Result<(Control, Kept), VmmError> {
        let parts = Parts {
            kvm: &self.kvm,
            ram: &memory.ram,
            console: &self.console,
            host: &self.host,
            signals_in_kernel: self.capabilities.eventfd,
            takes_reports: self.plan.takes_reports,
            confinement: self.confinement.clone(),
            control: self.control.clone(),
            vcpus: self.config.vcpus,
            recorder: &self.recorder,
            brake: &self.brake,
            devices: &self.devices,
        };
        let mut machine = Machine::new(parts, files)?;
        // Dropped at the end of this function: by then nothing works on the memory any more.
        let _memory = machine.memory_guard();
        if let Some(balloon) = &self.balloon {
            balloon.start_machine(&memory, machine.vm(), machine.devices())?;
        }
        let started = machine.start();
        let control = started.map(|()| self.wait_for_end(emit));
        machine.stop();
        // If the bus has failed there is nothing left to wait for, and `events` holds the reason.
        let _ = self.host.reset();
        let kept = self.balloon.as_ref().map_or_else(Kept::default, |it| it.stop_machine());
        // A second vCPU may have requested something before it was stopped.
        let late = self.events.try_iter().filter_map(|late| self.heed(late, emit));
        let worst = late.fold(control?, Control::graver);
        Ok((worst, kept))
    }

    /// Waits until something ends the machine.
    fn wait_for_end(&self, emit: &impl Fn(&Event)) -> Control {
        loop {
            let control = match self.ends_at.get() {
                // The senders outlive this function: one of them is in `self`.
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match control {
                Ok(control) => {
                    if let Some(end) = self.heed(control, emit) {
                        return end;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("{}", overdue(self.config.grace, self.brake.status()));
                    return Control::Shutdown(Cause::Signal);
                }
                Err(RecvTimeoutError::Disconnected) => return Control::Shutdown(Cause::Signal),
            }
        }
    }

    /// Does what does not end the machine; returns what does.
    fn heed(&self, control: Control, emit: &impl Fn(&Event)) -> Option<Control> {
        match control {
            Control::Crashed(crash) => {
                crate::crash::tell(&crash);
                emit(&crate::crash::event(&crash));
                None
            }
            Control::EndInTime => {
                self.ends_at.set(Instant::now().checked_add(self.config.grace));
                None
            }
            Control::Reset(Cause::Guest) if self.ends_at.get().is_some() => {
                Some(Control::Shutdown(Cause::Restart))
            }
            end => Some(end),
        }
    }
}

/// What the log says of a guest that did not shut down in time.
fn overdue(grace: Duration, status: qmp::RunState) -> String {
    let held = match status {
        qmp::RunState::running => "",
        _ => " (it is held by stop)",
    };
    format!(
        "the guest has not shut down within the {} s of --grace{held}, and is ended",
        grace.as_secs()
    )
}

/// Starts the recording of the conversation with the guest, if that is wanted.
fn record_bus(
    config: &Config,
    server: &ServerConfig,
    memory: (&MemoryPlan, &BootMemory),
    confinement: &Confinement,
) -> Result<Option<Arc<BusRecorder>>, VmmError> {
    let Some(path) = &config.record_bus else { return Ok(None) };
    // `check` has refused to record a machine without the device.
    let Some(device) = device_setup(config, memory) else { return Ok(None) };
    let header =
        Header::new(server.into(), device).with_services(&IntegrationServices::<Platform>::SETUP);
    Ok(Some(Arc::new(BusRecorder::start(path, &header, confinement.clone())?)))
}

/// The balloon device as a recording describes it, in a build that has it.
#[cfg(feature = "hv-balloon")]
fn device_setup(config: &Config, (plan, first): (&MemoryPlan, &BootMemory)) -> Option<DeviceSetup> {
    Some((&crate::balloon::settings(config, plan, first)).into())
}

#[cfg(not(feature = "hv-balloon"))]
fn device_setup(_: &Config, _: (&MemoryPlan, &BootMemory)) -> Option<DeviceSetup> {
    None
}

/// Puts the balloon device on the bus, in a build that has it.
#[cfg(feature = "hv-balloon")]
fn attach_balloon(
    host: &mut HostBuilder<Platform>,
    config: &Config,
    (plan, first): (&MemoryPlan, &BootMemory),
    monitor: &Arc<OnceLock<EventSender>>,
    log: GuestLog,
) -> Result<Option<Arc<dyn Balloon>>, VmmError> {
    crate::balloon::attach(host, config, plan, first, monitor, log).map(Some)
}

#[cfg(not(feature = "hv-balloon"))]
fn attach_balloon(
    _: &mut HostBuilder<Platform>,
    _: &Config,
    _: (&MemoryPlan, &BootMemory),
    _: &Arc<OnceLock<EventSender>>,
    _: GuestLog,
) -> Result<Option<Arc<dyn Balloon>>, VmmError> {
    Ok(None)
}

fn start_monitor(
    config: &Config,
    machine: Monitored,
    confinement: &Confinement,
    events: &OnceLock<EventSender>,
) -> Result<Option<qmp::Server>, VmmError> {
    let Some(path) = &config.qmp else {
        return Ok(None);
    };
    let confinement = confinement.clone();
    let confine = move |thread: qmp::ServerThread| confinement.enter(thread.into());
    let server = qmp::Server::start_with(path, Arc::new(machine), confine)?;
    // Set only once: there is one monitor.
    let _ = events.set(server.events());
    Ok(Some(server))
}

/// Makes a write beyond the file size limit fail. By default it would kill the process, and the
/// guest with it.
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
        Cause::Restart => ShutdownCause::guest_reset,
        Cause::Monitor => ShutdownCause::host_qmp_quit,
        Cause::Signal => ShutdownCause::host_signal,
        Cause::Console => ShutdownCause::host_ui,
    }
}

/// Checks what neither the files nor KVM can tell.
fn check(config: &Config) -> Result<(), VmmError> {
    if config.memory_bytes < SMALLEST_MEMORY {
        return Err(
            BootError::TooSmall { bytes: config.memory_bytes, least: SMALLEST_MEMORY }.into()
        );
    }
    if !HAS_BALLOON {
        let option = match config {
            _ if config.max_memory_bytes > config.memory_bytes => Some("--max-memory"),
            _ if config.status_reports => Some("--status-report"),
            _ if config.record_bus.is_some() => Some("--record-bus"),
            _ if config.on_reset == OnReset::KeepSize => Some("--on-reset keep-size"),
            _ if config.free_page_reporting == FreePageReporting::On => {
                Some("--free-page-reporting on")
            }
            _ => None,
        };
        return option.map_or(Ok(()), |option| Err(VmmError::NoBalloon { option }));
    }
    Ok(())
}
