//! The value of `-cpu`.

use std::collections::BTreeMap;

use crate::options::switch;

/// The virtual processor, as far as VMBus and its drivers look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// The value of `-cpu`; `None` if there is none, or it was not given as one.
    pub(crate) text: Option<String>,
    /// Properties by their names with `-` for `_`.
    properties: BTreeMap<String, String>,
}

impl Cpu {
    /// Reads a model with its features. As in QEMU, `+x` and `-x` win over `x=on` and `x=off`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut cpu = Self { text: Some(text.to_owned()), ..Self::default() };
        let mut last = Vec::new();
        for feature in text.split(',').skip(1) {
            match (feature.strip_prefix('+'), feature.strip_prefix('-'), feature.split_once('=')) {
                (Some(name), _, _) => last.push((name, "on")),
                (_, Some(name), _) => last.push((name, "off")),
                (_, _, Some((name, value))) => cpu.set(name, value),
                _ => cpu.set(feature, "on"),
            }
        }
        for (name, value) in last {
            cpu.set(name, value);
        }
        cpu
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.properties.insert(name.trim().replace('_', "-"), value.to_owned());
    }

    fn is_on(&self, name: &str, usual: bool) -> bool {
        self.properties.get(name).and_then(|word| switch(word)).unwrap_or(usual)
    }

    /// Whether a Hyper-V enlightenment is offered. `hv-passthrough` offers all that KVM has.
    pub(crate) fn offers(&self, enlightenment: &str) -> bool {
        self.is_on("hv-passthrough", false) || self.is_on(enlightenment, false)
    }

    /// Whether the guest sees KVM's own signature.
    pub(crate) fn shows_kvm(&self) -> bool {
        self.is_on("kvm", true)
    }

    /// Whether the guest sees that there is a hypervisor.
    pub(crate) fn shows_hypervisor(&self) -> bool {
        self.is_on("hypervisor", true)
    }

    /// The vendor that the Hyper-V leaves name, if it is not `Microsoft Hv`.
    pub(crate) fn other_vendor(&self) -> Option<&str> {
        let vendor = self.properties.get("hv-vendor-id").map(String::as_str);
        vendor.filter(|vendor| !vendor.is_empty() && *vendor != "Microsoft Hv")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_switched_in_all_of_qemu_s_ways() {
        let cpu =
            Cpu::parse("host,hv_synic,hv-vpindex=on,+hv-time,hv_vapic=off,-hv-runtime,kvm=off");
        let offered = ["hv-synic", "hv-vpindex", "hv-time", "hv-vapic", "hv-runtime", "hv-stimer"];
        assert_eq!(offered.map(|name| cpu.offers(name)), [true, true, true, false, false, false]);
        assert!(!cpu.shows_kvm() && cpu.shows_hypervisor());
    }

    #[test]
    fn signs_win_over_words() {
        let cpu = Cpu::parse("host,-hypervisor,hypervisor=on,hv_vendor_id=proxmox");
        assert!(!cpu.shows_hypervisor() && cpu.shows_kvm());
        assert_eq!(cpu.other_vendor(), Some("proxmox"));
        assert!(Cpu::parse("max,hv_passthrough").offers("hv-synic"));
        assert!(Cpu::default().shows_kvm());
    }
}
