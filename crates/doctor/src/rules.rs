//! What VMBus, hv-balloon and the guests' drivers need, and what a machine has.
//!
//! The facts are from QEMU's `docs/system/i386/hyperv.rst`, `hw/hyperv/vmbus.c`, `hw/hyperv/hv-balloon.c`
//! and `target/i386/kvm/kvm.c`, and from Linux's `arch/x86/kernel/cpu/mshyperv.c`, `drivers/hv/vmbus_drv.c`
//! and `drivers/hv/hv_balloon.c`.

mod devices;
mod memory;
mod processor;

pub(crate) use processor::flags;

use crate::description::{Chipset, Description, Origin};
use crate::dialect::Changes;
use crate::finding::{Finding, Guest, Guests, Level, Remedy, Section};

/// Examines a QEMU.
#[must_use]
pub fn examine(machine: &Description) -> Section {
    let mut changes = Changes::new(machine);
    let mut findings = Vec::new();
    findings.extend(board(machine, &mut changes));
    findings.extend(processor::examine(machine, &mut changes));
    findings.extend(devices::examine(machine, &mut changes));
    findings.extend(memory::examine(machine, &mut changes));
    findings.extend(guest(machine));
    let gaps = machine.gaps.iter().map(|gap| {
        Finding::new("gap", Level::Note, format!("not looked at: {gap}"))
            .because("What is missing here may be there.")
    });
    findings.extend(gaps);
    let of_one =
        |finding: &Finding| finding.guests != Guests::All && finding.level >= Level::Limits;
    if machine.guest.is_none() && findings.iter().any(of_one) {
        let what = "whether the guest is Linux or Windows is not to be seen from here";
        let finding = Finding::new("guest", Level::Note, what);
        findings.push(
            finding.remedy("to leave out what concerns the other, give", "--guest linux|windows"),
        );
    }
    let together = if findings.iter().map(|it| it.remedies.len()).sum::<usize>() > 1 {
        changes.together()
    } else {
        Vec::new()
    };
    Section { title: title(machine), findings, together }
}

fn title(machine: &Description) -> String {
    let name = machine.name.as_deref().unwrap_or("without a name");
    match machine.origin {
        Origin::Qemu => format!("VM {name} (QEMU)"),
        Origin::Proxmox(id) => format!("VM {id} {name} (Proxmox VE)"),
        Origin::Libvirt(_) => format!("VM {name} (libvirt)"),
    }
}

/// Accelerator, machine type, ACPI.
fn board(machine: &Description, changes: &mut Changes<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((major, minor)) = machine.version.filter(|version| *version < (8, 2)) {
        let what = format!("QEMU {major}.{minor} has no hv-balloon");
        let finding = Finding::new("version", Level::Stops, what);
        findings.push(
            finding
                .because("The device came with QEMU 8.2.")
                .remedy("install", "QEMU 8.2 or newer"),
        );
    } else if machine.built_in == Some(false) {
        let finding = Finding::new("build", Level::Stops, "this QEMU was built without hv-balloon");
        let why = "Some distributions leave out devices that they do not support.";
        let remedy = "a QEMU built with CONFIG_HV_BALLOON and CONFIG_VMBUS, such as Debian's";
        findings.push(finding.because(why).remedy("install", remedy));
    }
    if machine.accelerator != "kvm" {
        let what = match machine.accelerator.as_str() {
            "" => "the machine runs without KVM".to_owned(),
            other => format!("the machine runs without KVM (accelerator {other})"),
        };
        let why = "Only with KVM does QEMU have the SynIC, Hyper-V's interrupt controller, on which \
                   VMBus depends.";
        let remedy = match machine.origin {
            Origin::Qemu => changes.option("accel", "kvm"),
            Origin::Proxmox(id) => changes.words(&format!("qm set {id} --kvm 1"), ""),
            Origin::Libvirt(_) => changes.words("", "<domain type='kvm'>"),
        };
        findings.push(with(Finding::new("kvm", Level::Stops, what).because(why), remedy));
    }
    if machine.irqchip_off {
        let finding = Finding::new("irqchip", Level::Stops, "KVM emulates no interrupt controller");
        let why = "The SynIC needs KVM's local APIC.";
        let remedy =
            changes.words("-machine kernel-irqchip=on (or split)", "<ioapic driver='kvm'/>");
        findings.push(with(finding.because(why), remedy));
    }
    if let Chipset::Other(name) = &machine.chipset {
        let finding = Finding::new("machine", Level::Stops, format!("the machine type is {name}"));
        let why = "QEMU has VMBus on its PC machines only.";
        let remedy = changes.words("-machine q35", "<type arch='x86_64' machine='q35'>hvm</type>");
        findings.push(with(finding.because(why), remedy));
    }
    if !machine.acpi {
        let finding = Finding::new("acpi", Level::Stops, "the machine has no ACPI");
        let why = "A guest finds VMBus by its ACPI device, and added memory by ACPI.";
        let remedy =
            changes.words("no -no-acpi, and -machine acpi=on", "<features><acpi/></features>");
        findings.push(with(finding.because(why), remedy));
    }
    findings
}

/// What the guest itself must do.
fn guest(machine: &Description) -> Option<Finding> {
    if machine.guest == Some(Guest::Windows)
        || machine.hv_balloons.iter().all(|it| it.memdev.is_none())
    {
        return None;
    }
    let words = machine.kernel_command_line.as_deref().unwrap_or_default().split_whitespace();
    let online = words.filter_map(|word| word.strip_prefix("memhp_default_state=")).next_back();
    if online.is_some_and(|state| state.starts_with("online")) {
        return None;
    }
    let (level, what) = match machine.kernel_command_line {
        Some(_) => (
            Level::Limits,
            "the kernel's command line does not say that added memory is to be brought online",
        ),
        None => (
            Level::Note,
            "whether the guest brings added memory online is not to be seen from here",
        ),
    };
    let why = "Linux leaves added memory offline unless its configuration, its command line or a udev \
               rule says otherwise; then it cannot grow. Debian 13's kernel brings it online, Debian \
               12's does not.";
    let finding = Finding::new("online", level, what).because(why).only(Guests::Linux);
    let finding = finding.remedy("add to the kernel's command line", "memhp_default_state=online");
    let now = "echo online > /sys/devices/system/memory/auto_online_blocks";
    Some(finding.remedy("or run in the guest, as root", now))
}

fn with(mut finding: Finding, remedy: Remedy) -> Finding {
    finding.remedies.push(remedy);
    finding
}
