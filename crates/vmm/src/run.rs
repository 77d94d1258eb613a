//! The life of a VM, from its parts to its end.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Builder;

use guest_ram::{Backend, GuestRam, RamConfig};
use hv_balloon::{Device, Settle};
use kvm_hyperv::kick;
use kvm_hyperv::probe::{self, Capabilities};
use kvm_ioctls::Kvm;
use page_range::PageCount;
use qmp::{Event, EventSender, ShutdownCause};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use vmbus::protocol::Guid;
use vmbus::{Offer, Server, ServerConfig};

use crate::boot::linux::BootFiles;
use crate::bus::GuestCalls;
use crate::config::{Config, SettleTime};
use crate::console::Console;
use crate::control::{Cause, Control, ControlSender, control_channel};
use crate::device_loop::{self, DeviceThread, Setup};
use crate::error::{BootError, MachineError, VmmError};
use crate::machine::{Machine, Parts};
use crate::monitor::Monitored;
use crate::notices::Notices;

/// Class of the Dynamic Memory device (Linux `include/linux/hyperv.h`, `HV_DM_GUID`).
const DYNAMIC_MEMORY: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);

/// This device; the same in every VM and over resets, since Linux looks for it after hibernation.
const INSTANCE: Guid = Guid::from_digits(0x1eccfd72_4b41_45ef_b73a_4a6e44c12924);

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
    let (kvm, capabilities) = probe::open()?;
    kick::install_handler().map_err(MachineError::system("cannot handle the vCPUs' signal"))?;
    let ram = Arc::new(GuestRam::new(&RamConfig {
        size: PageCount::from_bytes(config.memory_bytes),
        backend: Backend::Anonymous,
        huge_pages: config.huge_pages,
        hot_add: PageCount::ZERO,
        max_pieces: 0,
    })?);
    let (control, events) = control_channel();
    let signals = watch_signals(control.clone())?;
    let mut console = Console::open(&config.serial)?;
    let monitor_events = Arc::new(OnceLock::new());
    let (device, calls) =
        start_device(config, capabilities, &ram, &monitor_events, control.clone())?;
    let monitor = start_monitor(config, &device, control.clone(), &monitor_events)?;
    let to_control = control.clone();
    console.start_input(move || to_control.send(Control::Shutdown(Cause::Console)))?;

    let mut vm = Vm { config, kvm, ram, console, calls, control, events, device };
    let emit = |event: &Event| {
        if let Some(sender) = monitor_events.get() {
            sender.emit(event);
        }
    };
    let result = vm.boot_until_off(&mut files, &emit);
    signals.close();
    drop(monitor);
    drop(vm);
    result
}

struct Vm<'a> {
    config: &'a Config,
    kvm: Kvm,
    ram: Arc<GuestRam>,
    console: Console,
    calls: GuestCalls,
    control: ControlSender,
    events: Receiver<Control>,
    device: DeviceThread,
}

impl Vm<'_> {
    /// Boots, and boots again after each reset.
    fn boot_until_off(
        &mut self,
        files: &mut BootFiles,
        emit: &impl Fn(&Event),
    ) -> Result<(), VmmError> {
        loop {
            match self.boot_once(files)? {
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
            self.ram.discard_all().map_err(VmmError::Discard)?;
        }
    }

    /// Runs a machine until something is to happen to it.
    fn boot_once(&self, files: &mut BootFiles) -> Result<Control, VmmError> {
        let parts = Parts {
            kvm: &self.kvm,
            ram: &self.ram,
            console: &self.console,
            calls: self.calls.clone(),
            control: self.control.clone(),
            vcpus: self.config.vcpus,
        };
        let mut machine = Machine::new(parts, files)?;
        self.device.handle().attach(machine.handle());
        let started = machine.start();
        // The senders outlive this: one is in `self`.
        let control =
            started.map(|()| self.events.recv().unwrap_or(Control::Shutdown(Cause::Signal)));
        machine.stop();
        self.device.handle().detach();
        // A second vCPU may have asked for the same before it was stopped.
        let worst = self.events.try_iter().fold(control?, Control::graver);
        Ok(worst)
    }
}

fn start_device(
    config: &Config,
    capabilities: Capabilities,
    ram: &Arc<GuestRam>,
    monitor: &Arc<OnceLock<EventSender>>,
    control: ControlSender,
) -> Result<(DeviceThread, GuestCalls), VmmError> {
    let mut server = Server::new(ServerConfig {
        vp_count: config.vcpus.into(),
        page_limit: ram.end().gpfn().unwrap_or_default(),
        ..ServerConfig::default()
    });
    // Cannot fail: it is the first and only one.
    let _ = server.offer(Offer { interface: DYNAMIC_MEMORY, instance: INSTANCE });
    let wake = device_loop::wake_eventfd()?;
    let calls =
        GuestCalls::new(Arc::new(Mutex::new(server)), Arc::clone(&wake), !capabilities.eventfd);
    let device = Device::new(hv_balloon::Config {
        boot_ram: ram.pages().clone(),
        settle: match config.settle {
            SettleTime::Auto => Settle::Auto,
            SettleTime::Fixed(wait) => Settle::Fixed(wait),
        },
        status_reports: config.status_reports,
    });
    let thread = device_loop::start(Setup {
        ram: Arc::clone(ram),
        device,
        calls: calls.clone(),
        wake,
        eventfd_in_kernel: capabilities.eventfd,
        notices: Notices::new(Arc::clone(monitor)),
        control,
    })?;
    Ok((thread, calls))
}

fn start_monitor(
    config: &Config,
    device: &DeviceThread,
    control: ControlSender,
    events: &OnceLock<EventSender>,
) -> Result<Option<qmp::Server>, VmmError> {
    let Some(path) = &config.qmp else {
        return Ok(None);
    };
    let machine = Monitored {
        device: device.handle().clone(),
        control,
        status_reports: config.status_reports,
    };
    let server = qmp::Server::start(path, Arc::new(machine))?;
    // Set once: there is one monitor.
    let _ = events.set(server.events());
    Ok(Some(server))
}

/// Ends the machine on a signal that asks the process to end.
fn watch_signals(control: ControlSender) -> Result<Handle, MachineError> {
    let failed = MachineError::system("cannot handle signals");
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let handle = signals.handle();
    Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                control.send(Control::Shutdown(Cause::Signal));
            }
        })
        .map_err(failed)?;
    Ok(handle)
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
    Ok(())
}
