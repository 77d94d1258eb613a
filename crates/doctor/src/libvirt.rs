//! A libvirt domain, as the options that libvirt gives QEMU for it.
//!
//! Only what Dynamic Memory depends on is translated. What is below `<qemu:commandline>` follows, as
//! libvirt has it follow, and so may override it.

use roxmltree::{Document, Node, ParsingOptions};

use crate::command_line::{Invocation, options};
use crate::description::{Description, Origin, ReadConfig};
use crate::finding::Guest;
use crate::options::OptionList;
use crate::size;
use crate::{MAX_TEXT_BYTES, Unreadable};

/// The namespace of `<qemu:commandline>`.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// The most nodes of a document. A domain has some hundred elements.
const MAX_NODES: u32 = 200_000;

/// Libvirt's Hyper-V features that QEMU calls `hv-` and the same name, with `-` for `_`.
const FEATURES: [&str; 15] = [
    "avic",
    "emsr_bitmap",
    "evmcs",
    "frequencies",
    "ipi",
    "reenlightenment",
    "relaxed",
    "reset",
    "runtime",
    "stimer",
    "synic",
    "tlbflush",
    "vapic",
    "vpindex",
    "xmm_input",
];

/// Names in libosinfo's addresses that are Linux distributions'.
const LINUX: [&str; 16] = [
    "almalinux",
    "alpinelinux",
    "archlinux",
    "centos",
    "debian",
    "fedora",
    "gentoo",
    "linuxmint",
    "manjaro",
    "nixos",
    "opensuse",
    "oracle",
    "redhat",
    "rockylinux",
    "suse",
    "ubuntu",
];

/// Reads a domain's XML, which may be part of a larger document, such as a snapshot's. `read` reads the
/// files that it names with `-readconfig`.
///
/// # Errors
/// It is too long, no XML, or no domain of QEMU's.
pub fn read(text: &str, read: ReadConfig<'_>) -> Result<Description, Unreadable> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Unreadable::TooLong);
    }
    // Without a DTD there are no entities that could grow.
    let rules = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..Default::default() };
    let document = Document::parse_with_options(text, rules).map_err(|error| {
        let remedy = match error {
            roxmltree::Error::UnknownNamespace(..) => {
                format!(" (give <domain> the attribute xmlns:qemu='{QEMU}')")
            }
            _ => String::new(),
        };
        Unreadable::Xml(format!("{error}{remedy}"))
    })?;
    let domain = document.descendants().find(|node| node.has_tag_name("domain"));
    let domain = domain.ok_or(Unreadable::NoDomain)?;
    let kind = domain.attribute("type").unwrap_or("kvm");
    if kind != "kvm" && kind != "qemu" {
        return Err(Unreadable::Hypervisor(kind.to_owned()));
    }
    let own = own_options(domain);
    let mut invocation = Invocation { options: translate(domain, kind), ..Invocation::default() };
    let cpu_overridden = own.iter().any(|(name, _)| name == "cpu");
    invocation.options.extend(own);
    let name = text_of(domain, &["name"]).unwrap_or_default();
    let mut found = Description::of_options(&invocation, read);
    found.guest = found.guest.or_else(|| guest(domain));
    found.origin = Origin::Libvirt(name.clone());
    found.name = Some(name);
    found.cpu_overridden = cpu_overridden;
    Ok(found)
}

/// What is below `<qemu:commandline>`.
fn own_options(domain: Node<'_, '_>) -> OptionList {
    let lines = domain.children().filter(|node| node.has_tag_name((QEMU, "commandline")));
    let words = lines.flat_map(|line| line.children());
    let words = words.filter(|node| node.has_tag_name((QEMU, "arg")));
    let words: Vec<String> =
        words.filter_map(|node| node.attribute("value")).map(str::to_owned).collect();
    options(&words)
}

fn translate(domain: Node<'_, '_>, kind: &str) -> OptionList {
    let mut found = OptionList::new();
    let mut add = |name: &str, value: String| found.push((name.to_owned(), value));
    let accelerator = if kind == "kvm" { "kvm" } else { "tcg" };
    add("accel", accelerator.to_owned());
    let features = at(domain, &["features"]);
    let has_feature = |name| features.is_some_and(|features| child(features, name).is_some());
    let mut machine = at(domain, &["os", "type"])
        .and_then(|node| node.attribute("machine"))
        .map_or_else(String::new, |machine| format!("type={},", plain(machine)));
    machine += if has_feature("acpi") { "acpi=on" } else { "acpi=off" };
    let secured = at(domain, &["launchSecurity"]).is_some();
    if secured {
        machine += ",confidential-guest-support=lsec0";
    }
    add("machine", machine);
    add("cpu", processor(domain));
    memory(domain, &mut add);
    if let Some(power) = at(domain, &["pm", "suspend-to-disk"]) {
        let off = if power.attribute("enabled") == Some("no") { "1" } else { "0" };
        for device in ["ICH9-LPC", "PIIX4_PM"] {
            add("global", format!("{device}.disable_s4={off}"));
        }
    }
    devices(domain, &mut add);
    found
}

/// The value of `-cpu`.
fn processor(domain: Node<'_, '_>) -> String {
    let mut words = vec!["host".to_owned()];
    let features = at(domain, &["features"]);
    let hyperv = at(domain, &["features", "hyperv"]);
    if hyperv.is_some_and(|node| node.attribute("mode") == Some("passthrough")) {
        words.push("hv-passthrough=on".to_owned());
    }
    let is_on = |node: &Node<'_, '_>| node.attribute("state") == Some("on");
    for feature in hyperv.into_iter().flat_map(|node| node.children()).filter(is_on) {
        let name = feature.tag_name().name();
        match name {
            "vendor_id" => {
                words.push(format!(
                    "hv-vendor-id={}",
                    feature.attribute("value").unwrap_or_default()
                ));
            }
            "spinlocks" => words.push("hv-spinlocks=0x1fff".to_owned()),
            _ if FEATURES.contains(&name) => {
                words.push(format!("hv-{}=on", name.replace('_', "-")))
            }
            _ => {}
        }
    }
    let hidden = features.and_then(|features| child(child(features, "kvm")?, "hidden"));
    if hidden.as_ref().is_some_and(is_on) {
        words.push("kvm=off".to_owned());
    }
    let timers = at(domain, &["clock"]).into_iter().flat_map(|clock| clock.children());
    let is_hyperv = |node: &Node<'_, '_>| node.attribute("name") == Some("hypervclock");
    if timers.filter(is_hyperv).any(|timer| timer.attribute("present") != Some("no")) {
        words.push("hv-time=on".to_owned());
    }
    let cpu = at(domain, &["cpu"]).into_iter().flat_map(|cpu| cpu.children());
    for feature in cpu.filter(|node| node.attribute("name") == Some("hypervisor")) {
        if matches!(feature.attribute("policy"), Some("disable" | "forbid")) {
            words.push("hypervisor=off".to_owned());
        }
    }
    words.join(",")
}

fn memory(domain: Node<'_, '_>, add: &mut impl FnMut(&str, String)) {
    let size = |node: Node<'_, '_>| size::of_element(node.text()?, node.attribute("unit"));
    let most = at(domain, &["maxMemory"]);
    // With maxMemory, <memory> may count memory that is added later; the cells have what the guest
    // boots with.
    let cells = at(domain, &["cpu", "numa"]).into_iter().flat_map(|numa| numa.children());
    let cell =
        |node: Node<'_, '_>| size::of_element(node.attribute("memory")?, node.attribute("unit"));
    let cells: Vec<u64> = cells.filter_map(cell).collect();
    let cells = cells.into_iter().try_fold(0_u64, u64::checked_add).filter(|sum| *sum > 0);
    let whole = at(domain, &["memory"]).and_then(size);
    let boot = if most.is_some() { cells.or(whole) } else { whole };
    if let Some(boot) = boot {
        let slots = most.and_then(|node| node.attribute("slots")).unwrap_or("0");
        let slots = slots.parse().unwrap_or(0_u64);
        let rest = most.and_then(size).map(|most| format!(",slots={slots},maxmem={most}b"));
        add("m", format!("size={boot}b{}", rest.unwrap_or_default()));
    }
    let Some(backing) = at(domain, &["memoryBacking"]) else { return };
    if child(backing, "hugepages").is_some() {
        add("mem-path", "/dev/hugepages".to_owned());
    }
    if child(backing, "locked").is_some() {
        add("overcommit", "mem-lock=on".to_owned());
    }
    let allocation = child(backing, "allocation").and_then(|node| node.attribute("mode"));
    if allocation == Some("immediate") {
        add("mem-prealloc", String::new());
    }
}

fn devices(domain: Node<'_, '_>, add: &mut impl FnMut(&str, String)) {
    let devices = at(domain, &["devices"]);
    let all = || devices.into_iter().flat_map(|devices| devices.children());
    let balloon = all().find(|node| node.has_tag_name("memballoon"));
    let model = balloon.and_then(|node| node.attribute("model"));
    // Libvirt adds a virtio balloon unless it is told not to.
    if model != Some("none") {
        add("device", "virtio-balloon-pci".to_owned());
    }
    for device in all() {
        match (device.tag_name().name(), device.attribute("type")) {
            ("hostdev", Some("pci" | "mdev")) | ("interface", Some("hostdev")) => {
                add("device", "vfio-pci".to_owned());
            }
            ("interface", Some("vdpa")) => add("netdev", "vhost-vdpa,id=vdpa".to_owned()),
            _ => {}
        }
    }
}

/// The guest's family, by libosinfo's address of its operating system.
fn guest(domain: Node<'_, '_>) -> Option<Guest> {
    let metadata = at(domain, &["metadata"])?;
    let system = metadata.descendants().find(|node| node.tag_name().name() == "os")?;
    let address = system.attribute("id")?.to_ascii_lowercase();
    if address.contains("microsoft.com/win") {
        return Some(Guest::Windows);
    }
    LINUX.iter().any(|name| address.contains(name)).then_some(Guest::Linux)
}

/// A value in which a comma stays one.
fn plain(value: &str) -> String {
    value.replace(',', ",,")
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// The element at a path of names below another.
fn at<'a, 'input>(node: Node<'a, 'input>, path: &[&str]) -> Option<Node<'a, 'input>> {
    path.iter().try_fold(node, |node, name| child(node, name))
}

fn text_of(node: Node<'_, '_>, path: &[&str]) -> Option<String> {
    at(node, path)?.text().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Result<Description, Unreadable> {
        read(text, &mut |_| Err("no such file".to_owned()))
    }

    #[test]
    fn hostile_documents_are_refused() {
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><domain>&b;</domain>";
        assert!(matches!(domain(bomb), Err(Unreadable::Xml(_))));
        assert!(matches!(domain(&"<a>".repeat(300_000)), Err(Unreadable::Xml(_))));
        let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
        assert_eq!(domain(&deep), Err(Unreadable::NoDomain));
        let wide = format!("<domain>{}</domain>", "<a/>".repeat(300_000));
        assert!(matches!(domain(&wide), Err(Unreadable::Xml(_))));
        assert_eq!(domain(&" ".repeat(MAX_TEXT_BYTES + 1)), Err(Unreadable::TooLong));
    }

    #[test]
    fn a_prefix_without_its_namespace_has_a_remedy() {
        let text = "<domain type='kvm'><qemu:commandline/></domain>";
        let Err(Unreadable::Xml(why)) = domain(text) else { panic!() };
        assert!(why.contains("xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"), "{why}");
    }

    #[test]
    fn other_documents_and_hypervisors_are_named() {
        assert_eq!(domain("<network/>"), Err(Unreadable::NoDomain));
        assert_eq!(domain("<domain type='xen'/>"), Err(Unreadable::Hypervisor("xen".to_owned())));
        assert!(matches!(domain("qemu-system-x86_64 -m 1G"), Err(Unreadable::Xml(_))));
        assert!(domain("<domainsnapshot><domain type='kvm'/></domainsnapshot>").is_ok());
    }

    #[test]
    fn what_libvirt_s_users_add_comes_last() {
        let text = format!(
            "<domain type='kvm' xmlns:qemu='{QEMU}'><name>a</name><features><hyperv><synic state='on'/>\
             </hyperv></features><qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='host,hv-vpindex'/>\
             </qemu:commandline></domain>"
        );
        let found = domain(&text).unwrap();
        assert!(
            found.cpu_overridden && !found.cpu.offers("hv-synic") && found.cpu.offers("hv-vpindex")
        );
    }
}
