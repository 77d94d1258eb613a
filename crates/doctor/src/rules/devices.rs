//! The bus and the balloons.

use super::with;
use crate::description::Description;
use crate::dialect::Changes;
use crate::finding::{Finding, Level};
use crate::size;

pub(super) fn examine(machine: &Description, changes: &mut Changes<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match machine.bridges {
        0 => {
            let finding = Finding::new("vmbus-bridge", Level::Stops, "there is no VMBus");
            let why = "hv-balloon is a device on VMBus.";
            findings.push(with(finding.because(why), changes.option("device", "vmbus-bridge")));
        }
        1 => {}
        count => {
            let what = format!("there are {count} devices vmbus-bridge");
            let finding = Finding::new("vmbus-bridges", Level::Stops, what);
            findings.push(
                finding.because("QEMU refuses a second one.").remedy("remove", "all but one"),
            );
        }
    }
    if machine.bridge_late {
        let what = "hv-balloon comes before vmbus-bridge";
        let finding = Finding::new("order", Level::Stops, what);
        let why = "QEMU makes devices in their order, and finds no bus for the first.";
        let text = "-device vmbus-bridge before -device hv-balloon";
        findings.push(finding.because(why).remedy("put", text));
    }
    let balloons = machine.hv_balloons.as_slice();
    if balloons.is_empty() {
        findings.push(missing(machine, changes));
    }
    if machine.virtio_balloons > 0 {
        let finding = Finding::new("virtio-balloon", Level::Stops, "there is a virtio balloon");
        let why = "QEMU accepts one balloon only; with hv-balloon beside it, it does not start. (hvb \
                   balance also drives a virtio balloon as it is, within the boot memory, and for \
                   Windows needs its service.)";
        findings.push(with(finding.because(why), changes.no_virtio_balloon()));
    }
    if balloons.len() > 1 {
        let what = format!("there are {} devices hv-balloon", balloons.len());
        let finding = Finding::new("hv-balloons", Level::Stops, what);
        findings.push(finding.because("QEMU accepts one only.").remedy("remove", "all but one"));
    }
    let Some(balloon) = balloons.first() else { return findings };
    if !balloon.status_report {
        let finding =
            Finding::new("status-report", Level::Limits, "the guest does not report its need");
        let why = "Without reports nobody on the host knows what the guest could do without, so its \
                   memory does not follow its need by itself. QEMU leaves them off unless told.";
        findings.push(with(finding.because(why), changes.balloon("status-report=on")));
    }
    if machine.reported == Some(false) {
        let finding =
            Finding::new("driver", Level::Stops, "the guest's driver has sent no report yet");
        let why = "It sends one each second once it runs: the guest is still booting, or its driver \
                   does not run, for one of the reasons here or because it was not loaded.";
        let text = "dmesg | grep -e hv_vmbus -e hv_balloon; modprobe hv_balloon";
        findings.push(finding.because(why).remedy("in a Linux guest, as root", text));
    }
    match &balloon.memdev {
        None => {
            let finding = Finding::new("memdev", Level::Limits, "hv-balloon has no memdev");
            let why =
                "It can take memory and give it back, but not grow the guest past its boot memory.";
            let added = added(machine);
            let object = changes.option("object", backend(added));
            let device = changes.balloon("memdev=hvb-more");
            findings.push(with(with(finding.because(why), object), device));
        }
        Some(memdev) if !machine.backends.iter().any(|backend| backend.id == *memdev) => {
            let what = format!("there is no memory backend '{memdev}', which hv-balloon names");
            let finding = Finding::new("memdev-missing", Level::Stops, what);
            let text =
                format!("memory-backend-ram,id={memdev},size={}", size::option(added(machine)));
            let finding = finding.because("QEMU does not start.");
            findings.push(with(finding, changes.option("object", text)));
        }
        Some(_) => {}
    }
    findings
}

fn missing(machine: &Description, changes: &mut Changes<'_>) -> Finding {
    let finding = Finding::new("hv-balloon", Level::Stops, "there is no hv-balloon");
    let why = "It is the device that gives memory to the guest's driver, and takes it. The size is what \
               the guest may grow by: here, by as much again as it boots with.";
    let object = changes.option("object", backend(added(machine)));
    let device = changes.option("device", "hv-balloon,memdev=hvb-more,status-report=on");
    with(with(finding.because(why), object), device)
}

fn backend(bytes: u64) -> String {
    format!("memory-backend-ram,id=hvb-more,size={}", size::option(bytes))
}

/// What the guest may grow by: what its backend has, or as much as it boots with, in whole GiB.
pub(super) fn added(machine: &Description) -> u64 {
    let balloon = machine.hv_balloons.first();
    let memdev = balloon.and_then(|balloon| balloon.memdev.as_ref());
    let backend = machine.backends.iter().find(|backend| Some(&backend.id) == memdev);
    backend.and_then(|backend| backend.size).unwrap_or_else(|| {
        let boot = machine.memory.boot.unwrap_or(size::GIB);
        boot.checked_next_multiple_of(size::GIB).unwrap_or(size::GIB)
    })
}
