//! A QEMU behind its monitor: what to ask, and what the answers mean.

use serde_json::{Value, json};

use crate::description::{Backend, Chipset, Description, HvBalloon, is_pool};
use crate::rules::flags;

/// The most children of an object that are looked at. A large machine has some hundred devices.
const MAX_CHILDREN: usize = 1024;

/// A monitor.
pub trait Ask {
    /// Why there is no answer at all.
    type Error;

    /// Executes a command with an object of arguments. `Ok(Err(...))` is the monitor's own description
    /// of why it does not carry it out.
    ///
    /// # Errors
    /// The monitor is gone, or does not answer.
    fn ask(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Result<Value, String>, Self::Error>;
}

/// Asks a QEMU of this version, major and minor, for all that matters. Nothing in it is changed.
///
/// # Errors
/// The monitor gave no answer.
pub fn read<M: Ask>(monitor: &mut M, version: (i64, i64)) -> Result<Description, M::Error> {
    let mut found = Description {
        version: Some(version),
        acpi: true,
        is_running: true,
        ..Description::default()
    };
    let name = get(monitor, "query-name", json!({}))?;
    found.name = name["name"].as_str().map(str::to_owned);
    let kvm = get(monitor, "query-kvm", json!({}))?;
    found.accelerator = if kvm["enabled"] == true { "kvm" } else { "" }.to_owned();
    let kinds = get(monitor, "qom-list-types", json!({ "implements": "hv-balloon" }))?;
    found.built_in = kinds.as_array().map(|kinds| !kinds.is_empty());
    board(monitor, &mut found)?;
    processor(monitor, &mut found)?;
    devices(monitor, &mut found)?;
    backends(monitor, &mut found)?;
    if found.hv_balloons.iter().any(|balloon| balloon.status_report) {
        let report = monitor.ask("query-hv-balloon-status-report", json!({}))?;
        found.reported = Some(report.is_ok());
    }
    Ok(found)
}

fn board<M: Ask>(monitor: &mut M, found: &mut Description) -> Result<(), M::Error> {
    let kind = property(monitor, "/machine", "type")?;
    found.chipset = kind.as_str().map_or(Chipset::Unknown, Chipset::of_type);
    found.acpi = property(monitor, "/machine", "acpi")? != "off";
    let memory = property(monitor, "/machine", "memory")?;
    found.memory.boot = memory["size"].as_u64();
    found.memory.max = memory["max-size"].as_u64().filter(|max| Some(*max) != found.memory.boot);
    found.memory.slots = memory["slots"].as_u64().unwrap_or(0);
    let ram = property(monitor, "/machine", "memory-backend")?;
    found.ram.extend(last_part(&ram));
    let support = property(monitor, "/machine", "confidential-guest-support")?;
    found.confidential = support.as_str().is_some_and(|path| !path.is_empty());
    let Some(device) = found.chipset.power_device() else { return Ok(()) };
    for (name, kind) in children(monitor, "/machine/unattached")? {
        let path = format!("/machine/unattached/{name}");
        // On the older chipset it is part of the PCI-to-ISA bridge.
        let path = match kind.as_str() {
            _ if kind == device => path,
            "PIIX3" | "piix3" => format!("{path}/pm"),
            _ => continue,
        };
        if let Some(off) = property(monitor, &path, "disable_s4")?.as_u64() {
            found.s4 = Some(off == 0);
        }
    }
    Ok(())
}

fn processor<M: Ask>(monitor: &mut M, found: &mut Description) -> Result<(), M::Error> {
    let all = get(monitor, "query-cpus-fast", json!({}))?;
    let Some(path) = all[0]["qom-path"].as_str() else {
        found.gaps.push("the virtual processor, which this monitor does not show".to_owned());
        return Ok(());
    };
    let others = ["kvm", "hypervisor", "hv-passthrough", "hv-vendor-id"];
    for name in flags().chain(others) {
        match property(monitor, path, name)? {
            Value::Bool(on) => found.cpu.set(name, if on { "on" } else { "off" }),
            Value::String(text) => found.cpu.set(name, &text),
            _ => {}
        }
    }
    Ok(())
}

fn devices<M: Ask>(monitor: &mut M, found: &mut Description) -> Result<(), M::Error> {
    for directory in ["/machine/peripheral", "/machine/peripheral-anon"] {
        for (name, driver) in children(monitor, directory)? {
            found.take_driver(&driver);
            if driver == "hv-balloon" {
                let path = format!("{directory}/{name}");
                let memdev = property(monitor, &path, "memdev")?;
                let status_report = property(monitor, &path, "status-report")? == true;
                found.hv_balloons.push(HvBalloon { memdev: last_part(&memdev), status_report });
            }
        }
    }
    // The order in which a machine that runs made its devices was right.
    found.bridge_late = false;
    Ok(())
}

fn backends<M: Ask>(monitor: &mut M, found: &mut Description) -> Result<(), M::Error> {
    for (id, kind) in children(monitor, "/objects")? {
        if !kind.starts_with("memory-backend-") {
            continue;
        }
        let path = format!("/objects/{id}");
        let size = property(monitor, &path, "size")?.as_u64();
        let prealloc = property(monitor, &path, "prealloc")? == true;
        let huge = property(monitor, &path, "hugetlb")? == true
            || property(monitor, &path, "mem-path")?.as_str().is_some_and(is_pool);
        found.backends.push(Backend { id, size, huge, prealloc });
    }
    Ok(())
}

/// The names and types of an object's children.
fn children<M: Ask>(monitor: &mut M, path: &str) -> Result<Vec<(String, String)>, M::Error> {
    let all = get(monitor, "qom-list", json!({ "path": path }))?;
    let all = all.as_array().map_or(&[][..], Vec::as_slice);
    let child = |entry: &Value| {
        let kind = entry["type"].as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
        Some((entry["name"].as_str()?.to_owned(), kind.to_owned()))
    };
    Ok(all.iter().filter_map(child).take(MAX_CHILDREN).collect())
}

/// A property of an object; null if there is none.
fn property<M: Ask>(monitor: &mut M, path: &str, name: &str) -> Result<Value, M::Error> {
    get(monitor, "qom-get", json!({ "path": path, "property": name }))
}

/// An answer; null if the monitor has none.
fn get<M: Ask>(monitor: &mut M, command: &str, arguments: Value) -> Result<Value, M::Error> {
    Ok(monitor.ask(command, arguments)?.unwrap_or_default())
}

/// The name of the object to which a link points.
fn last_part(link: &Value) -> Option<String> {
    let name = link.as_str()?.rsplit('/').next()?;
    (!name.is_empty()).then(|| name.to_owned())
}
