//! How the same change is written for QEMU, for Proxmox VE and for libvirt.

use crate::description::{Description, Origin};
use crate::finding::Remedy;

/// Collects the changes that findings ask for, and writes each of them.
pub(crate) struct Changes<'a> {
    machine: &'a Description,
    /// Features to add to the processor.
    features: Vec<&'static str>,
    /// Options to add: a name without its dash, and a value.
    options: Vec<(&'static str, String)>,
    /// What else to do, in words of its own.
    others: Vec<Remedy>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(machine: &'a Description) -> Self {
        Self { machine, features: Vec::new(), options: Vec::new(), others: Vec::new() }
    }

    /// Adds a feature to the virtual processor.
    pub(crate) fn feature(&mut self, feature: &'static str) -> Remedy {
        if !self.features.contains(&feature) {
            self.features.push(feature);
        }
        match self.element_of(feature) {
            Some((parent, element)) => remedy(format!("add below {parent}"), element),
            None => remedy("add to the value of -cpu", feature),
        }
    }

    /// Takes a feature from the virtual processor that `option` or libvirt's `element` gave it.
    pub(crate) fn without_feature(&mut self, option: &str, element: &str) -> Remedy {
        let removal = match self.is_libvirt_s_cpu() {
            true => remedy("remove", element),
            false => remedy("remove from the value of -cpu", option),
        };
        self.others.push(removal.clone());
        removal
    }

    /// Adds an option.
    pub(crate) fn option(&mut self, name: &'static str, value: impl Into<String>) -> Remedy {
        let value = value.into();
        let how = match self.machine.origin {
            Origin::Qemu => "add to the command line",
            Origin::Proxmox(_) => "add to the VM's args",
            Origin::Libvirt(_) => "add to <qemu:commandline>",
        };
        let text = self.written(name, &value);
        if !self.options.contains(&(name, value.clone())) {
            self.options.push((name, value));
        }
        remedy(how, text)
    }

    /// Switches sleep state S4 off.
    pub(crate) fn no_s4(&mut self) -> Option<Remedy> {
        if let Origin::Libvirt(_) = self.machine.origin {
            let element = "<pm><suspend-to-disk enabled='no'/></pm>";
            return Some(self.other("put below <domain>", element));
        }
        let device = self.machine.chipset.power_device()?;
        Some(self.option("global", format!("{device}.disable_s4=1")))
    }

    /// Removes virtio balloons.
    pub(crate) fn no_virtio_balloon(&mut self) -> Remedy {
        match self.machine.origin {
            Origin::Qemu => self.other("remove", "-device virtio-balloon…"),
            Origin::Proxmox(id) => self.other("run", format!("qm set {id} --balloon 0")),
            Origin::Libvirt(_) => self
                .other("write instead of the present <memballoon>", "<memballoon model='none'/>"),
        }
    }

    /// Adds a property to hv-balloon.
    pub(crate) fn balloon(&mut self, property: &str) -> Remedy {
        self.other("add to -device hv-balloon", property)
    }

    /// Something that each of them has another word for.
    pub(crate) fn words(&mut self, option: &str, element: &str) -> Remedy {
        match self.machine.origin {
            Origin::Libvirt(_) => self.other("change to", element),
            Origin::Qemu | Origin::Proxmox(_) => self.other("change to", option),
        }
    }

    fn other(&mut self, how: impl Into<String>, text: impl Into<String>) -> Remedy {
        let other = remedy(how, text);
        if !self.others.contains(&other) {
            self.others.push(other.clone());
        }
        other
    }

    /// All changes at once.
    pub(crate) fn together(self) -> Vec<Remedy> {
        let mut all = Vec::new();
        let options: Vec<String> =
            self.options.iter().map(|(name, value)| self.written(name, value)).collect();
        match &self.machine.origin {
            Origin::Qemu => {
                all.extend(self.whole_cpu().map(|(how, text)| remedy(how, text)));
                if !options.is_empty() {
                    all.push(remedy("add to the command line", options.join(" ")));
                }
            }
            Origin::Proxmox(id) => {
                let cpu = self.whole_cpu().map(|(_, text)| text);
                let options: Vec<String> = cpu.into_iter().chain(options).collect();
                if !options.is_empty() {
                    let how = "run (with what the VM has as args already, which this replaces)";
                    let args = options.join(" ");
                    all.push(remedy(how, format!("qm set {id} --args \"{args}\"")));
                }
            }
            Origin::Libvirt(_) => {
                for feature in &self.features {
                    let (how, text) = match self.element_of(feature) {
                        Some((parent, element)) => (format!("add below {parent}"), element),
                        None => ("add to the value of -cpu".to_owned(), (*feature).to_owned()),
                    };
                    all.push(remedy(how, text));
                }
                if !options.is_empty() {
                    let how = "add at the end of <domain type='kvm' \
                               xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>";
                    let lines = options.join("\n  ").replace("/><", "/>\n  <");
                    let text = format!("<qemu:commandline>\n  {lines}\n</qemu:commandline>");
                    all.push(remedy(how, text));
                }
            }
        }
        all.extend(self.others);
        all
    }

    /// An option as it is written where it belongs.
    fn written(&self, name: &str, value: &str) -> String {
        match self.machine.origin {
            Origin::Qemu | Origin::Proxmox(_) => format!("-{name} {value}"),
            Origin::Libvirt(_) => {
                format!("<qemu:arg value='-{name}'/><qemu:arg value='{value}'/>")
            }
        }
    }

    /// The value of `-cpu` with all that is to be added.
    fn whole_cpu(&self) -> Option<(String, String)> {
        if self.features.is_empty() {
            return None;
        }
        let features = self.features.join(",");
        Some(match &self.machine.cpu.text {
            Some(text) => {
                ("write instead of the present -cpu".into(), format!("-cpu {text},{features}"))
            }
            None if self.machine.is_running => ("add to the value of -cpu".into(), features),
            None => ("add to the command line".into(), format!("-cpu host,{features}")),
        })
    }

    fn is_libvirt_s_cpu(&self) -> bool {
        matches!(self.machine.origin, Origin::Libvirt(_)) && !self.machine.cpu_overridden
    }

    /// A feature as libvirt's element, and the element above it.
    fn element_of(&self, feature: &str) -> Option<(&'static str, String)> {
        if !self.is_libvirt_s_cpu() {
            return None;
        }
        let below = match feature {
            "kvm=off" => ("<features>", "<kvm><hidden state='on'/></kvm>".to_owned()),
            "hv-time" => ("<clock>", "<timer name='hypervclock' present='yes'/>".to_owned()),
            other => {
                let name = other.strip_prefix("hv-").unwrap_or(other);
                ("<features><hyperv>", format!("<{name} state='on'/>"))
            }
        };
        Some(below)
    }
}

fn remedy(how: impl Into<String>, text: impl Into<String>) -> Remedy {
    Remedy { how: how.into(), text: text.into() }
}
