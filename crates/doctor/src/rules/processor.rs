//! What the virtual processor must show, and the sleep states.

use super::with;
use crate::description::Description;
use crate::dialect::Changes;
use crate::finding::{Finding, Guests, Level};

/// An enlightenment: its name, whom it stops if it is missing, and why.
struct Needed {
    flag: &'static str,
    level: Level,
    guests: Guests,
    why: &'static str,
}

/// Why an enlightenment that Linux does without is needed.
const WINDOWS: &str = "QEMU warns that some versions of Windows do not boot or do not enable VMBus \
                       without it. Linux does without.";

/// In the order in which they depend on each other.
const NEEDED: [Needed; 7] = [
    Needed {
        flag: "hv-vpindex",
        level: Level::Stops,
        guests: Guests::All,
        why: "QEMU refuses vmbus-bridge without it, and hv-synic depends on it.",
    },
    Needed {
        flag: "hv-synic",
        level: Level::Stops,
        guests: Guests::All,
        why: "QEMU refuses vmbus-bridge without the SynIC: all of VMBus's messages and interrupts go \
              through it.",
    },
    Needed {
        flag: "hv-time",
        level: Level::Stops,
        guests: Guests::Windows,
        why: "hv-stimer depends on it.",
    },
    Needed { flag: "hv-stimer", level: Level::Stops, guests: Guests::Windows, why: WINDOWS },
    Needed { flag: "hv-vapic", level: Level::Stops, guests: Guests::Windows, why: WINDOWS },
    Needed { flag: "hv-runtime", level: Level::Stops, guests: Guests::Windows, why: WINDOWS },
    Needed {
        flag: "hv-relaxed",
        level: Level::Limits,
        guests: Guests::Windows,
        why: "Windows then keeps its watchdogs, which may crash it while a busy host lets it wait.",
    },
];

/// The names of all.
pub(crate) fn flags() -> impl Iterator<Item = &'static str> {
    NEEDED.iter().map(|needed| needed.flag)
}

pub(super) fn examine(machine: &Description, changes: &mut Changes<'_>) -> Vec<Finding> {
    let cpu = &machine.cpu;
    let mut findings = Vec::new();
    if !cpu.shows_hypervisor() {
        let what = "the guest does not see that it runs on a hypervisor (hypervisor=off)";
        let finding = Finding::new("hypervisor", Level::Stops, what);
        let why = "Neither Linux nor Windows then looks for Hyper-V.";
        let element = "<feature policy='disable' name='hypervisor'/>";
        findings.push(with(
            finding.because(why),
            changes.without_feature("hypervisor=off (or -hypervisor)", element),
        ));
    }
    if cpu.shows_kvm() && Guests::Linux.has(machine.guest) {
        let finding = Finding::new(
            "kvm-signature",
            Level::Stops,
            "the guest sees KVM's signature beside Hyper-V's",
        );
        let why = "Linux then takes KVM for its hypervisor, and never starts its Hyper-V drivers. \
                   Windows does not look at it.";
        findings.push(with(finding.because(why).only(Guests::Linux), changes.feature("kvm=off")));
    }
    if let Some(vendor) = cpu.other_vendor().filter(|_| Guests::Linux.has(machine.guest)) {
        let what = format!("the Hyper-V leaves name the vendor '{vendor}'");
        let finding = Finding::new("vendor-id", Level::Stops, what).only(Guests::Linux);
        let why = "Linux looks for 'Microsoft Hv' and nothing else.";
        let remedy = changes.without_feature(&format!("hv-vendor-id={vendor}"), "<vendor_id …/>");
        findings.push(with(finding.because(why), remedy));
    }
    for Needed { flag, level, guests, why } in NEEDED {
        if cpu.offers(flag) {
            continue;
        }
        // With hv-stimer and without what it depends on, QEMU does not start.
        let guests =
            if flag == "hv-time" && cpu.offers("hv-stimer") { Guests::All } else { guests };
        let finding = Finding::new(flag, level, format!("{flag} is missing"));
        let finding = finding.because(why).only(guests);
        if guests.has(machine.guest) {
            findings.push(with(finding, changes.feature(flag)));
        }
    }
    if machine.s4 == Some(true) && machine.acpi && Guests::Linux.has(machine.guest) {
        let finding =
            Finding::new("s4", Level::Stops, "the guest is offered sleep state S4, hibernation");
        let why = "Linux then ignores each request to give or take memory, since it prefers to be able \
                   to hibernate.";
        let finding = finding.because(why).only(Guests::Linux);
        findings.push(match changes.no_s4() {
            Some(remedy) => with(finding, remedy),
            None => finding,
        });
    }
    findings
}
