//! Where the guest's memory comes from, and what keeps the host from having it back.

use super::devices::added;
use super::with;
use crate::description::Description;
use crate::dialect::Changes;
use crate::finding::{Finding, Level};
use crate::layout::least_maxmem;
use crate::size::{self, MIB};

/// Memory that is added comes in multiples of this: the smallest that Linux asks for, and the size of
/// QEMU's memory slots for it.
const BLOCK: u64 = 128 * MIB;

pub(super) fn examine(machine: &Description, changes: &mut Changes<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(maxmem(machine, changes));
    findings.extend(blocks(machine));
    let memdev = machine.hv_balloons.iter().find_map(|balloon| balloon.memdev.as_ref());
    let of_guest = |id: &String| machine.ram.contains(id) || Some(id) == memdev;
    let of_guest = machine.backends.iter().filter(|backend| of_guest(&backend.id));
    let of_guest: Vec<_> = of_guest.collect();
    if machine.huge_ram || of_guest.iter().any(|backend| backend.huge) {
        let what = "the guest's memory comes from the host's huge page pool";
        let finding = Finding::new("huge-pages", Level::Stops, what);
        let why = "QEMU gives back whole small pages only: the host gets nothing, although QEMU counts \
                   the pages as given back. Transparent huge pages do not have this problem.";
        let option = "memory-backend-ram instead of huge pages (-mem-path, hugetlb=on)";
        findings.push(with(
            finding.because(why),
            changes.words(option, "no <hugepages> below <memoryBacking>"),
        ));
    }
    if machine.locked {
        let finding = Finding::new("locked", Level::Stops, "the machine's memory is locked");
        let why = "The kernel does not discard locked pages, so the host never has them back.";
        let remedy =
            changes.words("-overcommit mem-lock=off", "no <locked/> below <memoryBacking>");
        findings.push(with(finding.because(why), remedy));
    }
    if !machine.pinning.is_empty() {
        let mut drivers = machine.pinning.clone();
        drivers.sort();
        drivers.dedup();
        let what = format!("the machine has devices of the host ({})", drivers.join(", "));
        let finding = Finding::new("vfio", Level::Stops, what);
        let why = "The host pins all the guest's memory for them. hv-balloon does not look, and discards \
                   pages to which the device goes on writing: the memory does not come back, or the \
                   guest loses what the device wrote.";
        let remedy = changes.words("virtio devices instead of devices of the host", "no <hostdev>");
        findings.push(with(finding.because(why), remedy));
    }
    if machine.confidential {
        let finding = Finding::new("confidential", Level::Stops, "the guest's memory is encrypted");
        let why = "The host can neither read VMBus's rings in it, nor discard its pages.";
        let remedy = changes.words("no confidential-guest-support", "no <launchSecurity>");
        findings.push(with(finding.because(why), remedy));
    }
    if machine.prealloc || of_guest.iter().any(|backend| backend.prealloc) {
        let what = "all memory is allocated when the machine starts";
        let finding = Finding::new("prealloc", Level::Limits, what);
        let why =
            "Memory that the guest may grow into is taken from the host before the guest has it.";
        let option = "prealloc=off, and no -mem-prealloc";
        findings.push(with(
            finding.because(why),
            changes.words(option, "no <allocation mode='immediate'/>"),
        ));
    }
    findings
}

fn maxmem(machine: &Description, changes: &mut Changes<'_>) -> Option<Finding> {
    let has_memdev = machine.hv_balloons.iter().any(|balloon| balloon.memdev.is_some());
    // One that runs has found its place.
    if has_memdev && machine.is_running {
        return None;
    }
    let boot = machine.memory.boot?;
    let slots = machine.memory.slots;
    let added = added(machine);
    let least = least_maxmem(&machine.chipset, boot, slots, added)?;
    let has = machine.memory.max;
    if has.is_some_and(|max| max >= least) {
        return None;
    }
    // Without a memdev there is nothing to place yet, but nothing to grow by either.
    let level = if has_memdev { Level::Stops } else { Level::Limits };
    let what = match has {
        Some(max) => {
            format!("maxmem is {}, and at least {} is needed", size::words(max), size::words(least))
        }
        None => "there is no maxmem".to_owned(),
    };
    let why = format!(
        "QEMU puts hv-balloon's memory, here {}, at a multiple of 32 GiB, and finds no such place below \
         maxmem; it then does not start. It takes addresses only, no memory.",
        size::words(added)
    );
    let text = match slots {
        0 => format!("maxmem={}", size::option(least)),
        slots => format!("slots={slots},maxmem={}", size::option(least)),
    };
    let finding = Finding::new("maxmem", level, what).because(why);
    Some(with(finding, changes.option("m", text)))
}

fn blocks(machine: &Description) -> Option<Finding> {
    let memdev = machine.hv_balloons.iter().find_map(|balloon| balloon.memdev.as_ref())?;
    let backend = machine.backends.iter().find(|backend| backend.id == *memdev)?;
    let rest = backend.size? % BLOCK;
    if rest == 0 {
        return None;
    }
    let what = format!("the size of {memdev} is no multiple of 128 MiB");
    let finding = Finding::new("block", Level::Limits, what);
    let why = format!("Linux takes memory in such blocks: {} are never used.", size::words(rest));
    let rounded = backend.size?.checked_next_multiple_of(BLOCK)?;
    Some(finding.because(why).remedy("write", format!("size={}", size::option(rounded))))
}
