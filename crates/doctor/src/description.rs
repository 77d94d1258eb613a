//! A virtual machine, as far as Dynamic Memory depends on it.

use crate::command_line::Invocation;
use crate::config_file;
use crate::cpu::Cpu;
use crate::finding::Guest;
use crate::options::Properties;
use crate::size::{self, MIB};

/// Who wrote the options, and so where others are to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The user of QEMU.
    #[default]
    Qemu,
    /// Proxmox VE, for the VM with this number.
    Proxmox(u32),
    /// libvirt, for the domain with this name.
    Libvirt(String),
}

/// The machine type, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chipset {
    /// `q35`.
    Q35,
    /// `pc`, which is `i440fx`.
    I440fx,
    /// Another, by its name.
    Other(String),
    /// Not known.
    #[default]
    Unknown,
}

impl Chipset {
    /// The one of a machine type's name, such as `pc-q35-9.0+pve0` or `pc-i440fx-jammy`.
    pub(crate) fn of_type(name: &str) -> Self {
        let name = name.strip_suffix("-machine").unwrap_or(name);
        let is = |chipset: &str| name.split(['-', '+', '_']).any(|part| part == chipset);
        if is("q35") {
            Self::Q35
        } else if is("pc") || is("i440fx") || name == "ubuntu" {
            Self::I440fx
        } else {
            Self::Other(name.to_owned())
        }
    }

    /// The device with the switch for sleep state S4.
    pub(crate) fn power_device(&self) -> Option<&'static str> {
        match self {
            Self::Q35 => Some("ICH9-LPC"),
            Self::I440fx => Some("PIIX4_PM"),
            Self::Other(_) | Self::Unknown => None,
        }
    }
}

/// Sizes of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the guest boots with.
    pub boot: Option<u64>,
    /// `maxmem`; `None` if there is none.
    pub max: Option<u64>,
    /// `slots`.
    pub slots: u64,
}

/// A device `hv-balloon`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HvBalloon {
    /// The backend of the memory that it can add.
    pub memdev: Option<String>,
    /// Whether it has the guest report its need.
    pub status_report: bool,
}

/// A `memory-backend-…` object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub id: String,
    /// Its size in bytes, if it is known.
    pub size: Option<u64>,
    /// Whether it takes pages of the host's huge page pool.
    pub huge: bool,
    /// Whether all of it is allocated at the start.
    pub prealloc: bool,
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Who wrote it.
    pub origin: Origin,
    /// Its name.
    pub name: Option<String>,
    /// The guest's family, where something tells.
    pub guest: Option<Guest>,
    /// QEMU's version, major and minor, if it is known.
    pub version: Option<(i64, i64)>,
    /// Whether this QEMU was built with hv-balloon, if it is known.
    pub built_in: Option<bool>,
    /// The accelerator, such as `kvm`; empty if it is another that is not known.
    pub accelerator: String,
    /// Whether KVM emulates no interrupt controller (`kernel-irqchip=off`).
    pub irqchip_off: bool,
    /// Whether there are ACPI tables.
    pub acpi: bool,
    /// The machine type.
    pub chipset: Chipset,
    /// Sizes.
    pub memory: Memory,
    pub(crate) cpu: Cpu,
    /// Whether libvirt's own `-cpu` is overridden by one of `<qemu:commandline>`.
    pub(crate) cpu_overridden: bool,
    /// Whether the guest is offered sleep state S4; `None` if that is not known.
    pub s4: Option<bool>,
    /// The number of devices `vmbus-bridge`.
    pub bridges: usize,
    /// Whether hv-balloon comes before the bus on which it would be.
    pub bridge_late: bool,
    /// Devices `hv-balloon`.
    pub hv_balloons: Vec<HvBalloon>,
    /// The number of virtio balloons.
    pub virtio_balloons: usize,
    /// Backends of memory.
    pub backends: Vec<Backend>,
    /// The backends of boot memory.
    pub ram: Vec<String>,
    /// Whether all memory comes from the host's huge page pool (`-mem-path`).
    pub huge_ram: bool,
    /// Whether all memory is allocated at the start.
    pub prealloc: bool,
    /// Whether memory is locked.
    pub locked: bool,
    /// Devices for whose sake the host pins all memory.
    pub pinning: Vec<String>,
    /// Whether the host cannot read the guest's memory.
    pub confidential: bool,
    /// The Linux kernel's command line, if QEMU has it.
    pub kernel_command_line: Option<String>,
    /// Whether this is a machine that runs, of which the options are not known.
    pub is_running: bool,
    /// Whether, behind a monitor, the guest's driver has reported; `None` if that is not known.
    pub reported: Option<bool>,
    /// What could not be looked at, one sentence each.
    pub gaps: Vec<String>,
}

/// A group of options under way: its kind, its identifier, its properties.
struct Group {
    kind: String,
    id: Option<String>,
    properties: Properties,
}

impl Group {
    fn new(kind: &str, properties: Properties) -> Self {
        let id = properties.get("id").map(str::to_owned);
        Self { kind: kind.to_owned(), id, properties }
    }
}

/// Reads a file of `-readconfig`, or says why it cannot.
pub type ReadConfig<'a> = &'a mut dyn FnMut(&str) -> Result<String, String>;

impl Description {
    /// Understands a command line. `read` reads the files that it names with `-readconfig`.
    pub fn of_options(invocation: &Invocation, read: ReadConfig<'_>) -> Self {
        let mut found = Self { acpi: true, s4: Some(true), ..Self::default() };
        let groups = found.groups(invocation, read);
        let usual = match &invocation.program {
            // As QEMU chooses by its own name.
            Some(program) if program.ends_with("kvm") => "kvm",
            _ => "tcg",
        };
        let all = |kind: &'static str| groups.iter().filter(move |group| group.kind == kind);
        let merged = |kind: &'static str| {
            all(kind).fold(Properties::default(), |mut all, group| {
                all.extend(group.properties.clone());
                all
            })
        };
        let machine = merged("machine");
        let chosen = all("accel").find_map(|group| group.properties.get("accel"));
        let chosen = chosen.or_else(|| machine.get("accel")).unwrap_or(usual);
        found.accelerator = chosen.split(':').next().unwrap_or(usual).to_owned();
        let irqchip = |group: &Group| group.properties.get("kernel-irqchip").map(str::to_owned);
        let irqchip = all("accel").find_map(irqchip);
        let irqchip = irqchip.or_else(|| machine.get("kernel-irqchip").map(str::to_owned));
        found.irqchip_off = irqchip.as_deref() == Some("off");
        found.chipset = Chipset::of_type(machine.get("type").unwrap_or("pc"));
        found.acpi &= machine.is_on("acpi") != Some(false);
        found.confidential = machine.get("confidential-guest-support").is_some()
            || machine.get("memory-encryption").is_some();
        found.ram.extend(machine.get("memory-backend").map(str::to_owned));
        let nodes = all("numa").filter_map(|group| group.properties.get("memdev"));
        found.ram.extend(nodes.map(str::to_owned));
        found.take_memory(&merged("memory"));
        let overcommit = merged("overcommit");
        found.locked |= ["mem-lock", "mlock"].iter().any(|key| {
            overcommit.get(key).is_some_and(|word| crate::options::switch(word) != Some(false))
        });
        let name = merged("name");
        found.name = name.get("guest").map(str::to_owned).or(found.name);
        all("netdev").for_each(|group| found.take_network(&group.properties));
        all("object").for_each(|group| found.take_object(group));
        all("device").for_each(|group| found.take_device(&group.properties));
        let power = found.chipset.power_device();
        for group in all("global") {
            let global = &group.properties;
            if global.get("driver").is_some() && global.get("driver") == power {
                match global.is_on("value") {
                    Some(off) if global.get("property") == Some("disable_s4") => {
                        found.s4 = Some(!off);
                    }
                    _ => {}
                }
            }
        }
        found
    }

    /// The bytes that the guest can have at most: what it boots with, and what hv-balloon can add.
    #[must_use]
    pub fn most(&self) -> Option<u64> {
        let memdev = self.hv_balloons.iter().find_map(|balloon| balloon.memdev.as_ref());
        let backend = self.backends.iter().find(|backend| Some(&backend.id) == memdev);
        self.memory.boot?.checked_add(backend.and_then(|it| it.size).unwrap_or(0))
    }

    /// Takes in what a command line tells of a machine that runs and its monitor does not.
    pub fn take_invisible(&mut self, invocation: &Invocation) {
        let said = Self::of_options(invocation, &mut |_| Err(String::new()));
        self.locked |= said.locked;
        self.huge_ram |= said.huge_ram;
        self.prealloc |= said.prealloc;
        self.irqchip_off |= said.irqchip_off;
        self.kernel_command_line = said.kernel_command_line;
        self.guest = self.guest.or(said.guest);
        self.cpu.text = said.cpu.text;
        // QEMU shows it only if there are slots.
        self.memory.max = self.memory.max.or(said.memory.max);
        if let Origin::Proxmox(_) = said.origin {
            self.origin = said.origin;
        }
    }

    /// All options as groups, with those of files, and with what `-set` changes.
    fn groups(&mut self, invocation: &Invocation, read: ReadConfig<'_>) -> Vec<Group> {
        let mut groups = Vec::new();
        for word in &invocation.unexpanded {
            self.gaps.push(format!("{word}: only the shell knows what it stands for"));
        }
        for (name, value) in &invocation.options {
            let mut add = |kind: &str, implied: &str| {
                groups.push(Group::new(kind, Properties::parse(value, implied)));
            };
            match name.as_str() {
                "machine" | "M" => add("machine", "type"),
                "m" => add("memory", "size"),
                "accel" => add("accel", "accel"),
                "device" => add("device", "driver"),
                "object" => add("object", "qom-type"),
                "netdev" => add("netdev", "type"),
                "numa" => add("numa", "type"),
                "overcommit" | "realtime" => add("overcommit", "mem-lock"),
                "name" => add("name", "guest"),
                "global" => groups.push(Group::new("global", global(value))),
                "enable-kvm" => groups.push(Group::new("accel", Properties::parse("kvm", "accel"))),
                "balloon" if value.starts_with("virtio") => {
                    let device = Properties::parse("virtio-balloon-pci", "driver");
                    groups.push(Group::new("device", device));
                }
                "cpu" => self.cpu = Cpu::parse(value),
                "no-acpi" => self.acpi = false,
                "mem-path" => self.huge_ram = is_pool(value),
                "mem-prealloc" => self.prealloc = true,
                "append" => {
                    self.kernel_command_line = Some(value.clone());
                    self.guest = Some(Guest::Linux);
                }
                "id" => {
                    // Only Proxmox's QEMU has it.
                    self.origin = value.parse().map_or(Origin::Qemu, Origin::Proxmox);
                }
                "readconfig" => match read(value).map(|text| config_file::parse(&text)) {
                    Ok(Some(more)) => groups.extend(more.into_iter().map(|group| Group {
                        kind: kind_in_file(&group.name).to_owned(),
                        id: group.id,
                        properties: group.properties,
                    })),
                    Ok(None) => self.gaps.push(format!("{value}: no file of -readconfig's format")),
                    Err(why) => self.gaps.push(format!("-readconfig {value}: {why}")),
                },
                "set" => change(&mut groups, value),
                _ => {}
            }
        }
        groups
    }

    fn take_memory(&mut self, memory: &Properties) {
        let size = |key, unit| memory.get(key).and_then(|text| size::of_option(text, unit));
        // QEMU gives a guest 128 MiB if nobody says anything.
        self.memory.boot = match memory.get("size") {
            Some(_) => size("size", MIB),
            None => Some(128 * MIB),
        };
        self.memory.max = size("maxmem", 1).filter(|max| Some(*max) != self.memory.boot);
        self.memory.slots = memory.get("slots").and_then(|text| text.parse().ok()).unwrap_or(0);
        for (key, found) in [("size", self.memory.boot), ("maxmem", size("maxmem", 1))] {
            if let (Some(text), None) = (memory.get(key), found) {
                self.gaps.push(format!("-m {key}={text}: not a size"));
            }
        }
    }

    fn take_network(&mut self, network: &Properties) {
        if network.get("type") == Some("vhost-vdpa") {
            self.pinning.push("vhost-vdpa".to_owned());
        }
    }

    fn take_object(&mut self, group: &Group) {
        let object = &group.properties;
        let kind = object.get("qom-type").unwrap_or_default();
        if !kind.starts_with("memory-backend-") {
            self.confidential |= kind.starts_with("sev-") || kind.starts_with("tdx-");
            return;
        }
        self.backends.push(Backend {
            id: group.id.clone().unwrap_or_default(),
            size: object.get("size").and_then(|text| size::of_option(text, 1)),
            huge: object.is_on("hugetlb") == Some(true)
                || object.get("mem-path").is_some_and(is_pool),
            prealloc: object.is_on("prealloc") == Some(true),
        });
    }

    fn take_device(&mut self, device: &Properties) {
        let driver = device.get("driver").unwrap_or_default();
        self.take_driver(driver);
        if driver == "hv-balloon" {
            self.hv_balloons.push(HvBalloon {
                memdev: device.get("memdev").map(str::to_owned),
                status_report: device.is_on("status-report") == Some(true),
            });
        }
    }

    /// Takes in what a device's kind alone says, in the order in which QEMU makes devices.
    pub(crate) fn take_driver(&mut self, driver: &str) {
        match driver {
            "vmbus-bridge" => {
                self.bridges += 1;
                self.bridge_late |= self.bridges == 1 && !self.hv_balloons.is_empty();
            }
            _ if driver.starts_with("virtio-balloon") => self.virtio_balloons += 1,
            _ if driver.starts_with("vfio-") || driver.starts_with("vhost-vdpa") => {
                self.pinning.push(driver.to_owned());
            }
            _ => {}
        }
    }
}

/// The option of which a group in a file is.
fn kind_in_file(name: &str) -> &str {
    match name {
        "realtime" => "overcommit",
        name => name,
    }
}

/// `driver.property=value`, or the same as properties.
fn global(text: &str) -> Properties {
    let head = text.split('=').next().unwrap_or_default();
    let Some((driver, property)) = head.split_once('.').filter(|_| !head.contains(',')) else {
        return Properties::parse(text, "driver");
    };
    let mut found = Properties::default();
    found.set("driver", driver);
    found.set("property", property);
    found.set("value", text.get(head.len() + 1..).unwrap_or_default());
    found
}

/// `-set group.id.key=value`.
fn change(groups: &mut [Group], text: &str) {
    let Some((place, value)) = text.split_once('=') else { return };
    let mut parts = place.splitn(3, '.');
    let (Some(kind), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    let mut groups = groups.iter_mut();
    if let Some(group) = groups.find(|it| it.kind == kind && it.id.as_deref() == Some(id)) {
        group.properties.set(key, value);
    }
}

/// Whether a path is in a file system of huge pages, by the names that everybody uses.
pub(crate) fn is_pool(path: &str) -> bool {
    path.to_ascii_lowercase().contains("huge")
}
