//! What is asked of a QEMU's monitor, and what the answers mean. The answers are those of Debian's
//! QEMU 10.0.2, shortened.

use std::convert::Infallible;

use doctor::monitor::{self, Ask};
use doctor::{Level, examine};
use serde_json::{Value, json};

/// A QEMU with hv-balloon; the fields are what the tests change.
struct Qemu {
    s4_off: u64,
    synic: bool,
    reports: bool,
    reported: bool,
    huge: bool,
    devices: Vec<&'static str>,
    built_in: bool,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            s4_off: 1,
            synic: true,
            reports: true,
            reported: true,
            huge: false,
            devices: vec!["vmbus-bridge", "hv-balloon"],
            built_in: true,
        }
    }
}

impl Qemu {
    fn list(&self, path: &str) -> Value {
        match path {
            "/machine/peripheral-anon" => {
                let device = |(at, kind): (usize, &&str)| json!({ "name": format!("device[{at}]"), "type": format!("child<{kind}>") });
                self.devices.iter().enumerate().map(device).collect()
            }
            "/machine/unattached" => json!([
                { "name": "device[0]", "type": "child<host-x86_64-cpu>" },
                { "name": "device[2]", "type": "child<ICH9-LPC>" },
            ]),
            "/objects" => json!([
                { "name": "type", "type": "string" },
                { "name": "more", "type": "child<memory-backend-ram>" },
                { "name": "pc.ram", "type": "child<memory-backend-memfd>" },
            ]),
            _ => json!([{ "name": "type", "type": "string" }]),
        }
    }

    fn property(&self, path: &str, property: &str) -> Option<Value> {
        Some(match (path, property) {
            ("/machine", "type") => json!("pc-q35-10.0-machine"),
            ("/machine", "acpi") => json!("auto"),
            // No maximum, since there are no slots.
            ("/machine", "memory") => json!({ "size": 1 << 30 }),
            ("/machine", "memory-backend") => json!("/objects/pc.ram"),
            ("/machine/unattached/device[2]", "disable_s4") => json!(self.s4_off),
            ("/machine/unattached/device[0]", "kvm") => json!(false),
            ("/machine/unattached/device[0]", "hv-synic") => json!(self.synic),
            ("/machine/unattached/device[0]", "hv-vendor-id") => json!("Microsoft Hv"),
            ("/machine/unattached/device[0]", _) => json!(property != "hv-passthrough"),
            ("/objects/more", "size") => json!(2_u64 << 30),
            ("/objects/pc.ram", "hugetlb") => json!(self.huge),
            (_, "memdev") => json!("/objects/more"),
            (_, "status-report") => json!(self.reports),
            _ => return None,
        })
    }
}

impl Ask for Qemu {
    type Error = Infallible;

    fn ask(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Result<Value, String>, Infallible> {
        let path = arguments["path"].as_str().unwrap_or_default();
        let property = arguments["property"].as_str().unwrap_or_default();
        let answer = match command {
            "query-name" => Some(json!({ "name": "a" })),
            "query-kvm" => Some(json!({ "enabled": true, "present": true })),
            "qom-list-types" if self.built_in => Some(json!([{ "name": "hv-balloon" }])),
            "qom-list-types" => Some(json!([])),
            "query-cpus-fast" => Some(json!([{ "qom-path": "/machine/unattached/device[0]" }])),
            "query-hv-balloon-status-report" if self.reported => Some(json!({ "committed": 1 })),
            "qom-list" => Some(self.list(path)),
            "qom-get" => self.property(path, property),
            _ => None,
        };
        Ok(answer.ok_or_else(|| "no".to_owned()))
    }
}

fn found(mut qemu: Qemu, version: (i64, i64)) -> Vec<(&'static str, Level)> {
    let Ok(machine) = monitor::read(&mut qemu, version);
    let all = examine(&machine).findings;
    let all = all.into_iter().filter(|finding| finding.level > Level::Note);
    all.map(|finding| (finding.id, finding.level)).collect()
}

#[test]
fn a_machine_that_has_all_is_fine() {
    assert_eq!(found(Qemu::default(), (10, 0)), []);
}

#[test]
fn each_answer_counts() {
    let stops = |id| vec![(id, Level::Stops)];
    let qemu = Qemu::default;
    assert_eq!(found(Qemu { s4_off: 0, ..qemu() }, (10, 0)), stops("s4"));
    assert_eq!(found(Qemu { synic: false, ..qemu() }, (10, 0)), stops("hv-synic"));
    assert_eq!(found(Qemu { reported: false, ..qemu() }, (10, 0)), stops("driver"));
    assert_eq!(found(Qemu { huge: true, ..qemu() }, (10, 0)), stops("huge-pages"));
    assert_eq!(found(Qemu { built_in: false, ..qemu() }, (10, 0)), stops("build"));
    assert_eq!(found(qemu(), (8, 1)), stops("version"));
    let limits = vec![("status-report", Level::Limits)];
    assert_eq!(found(Qemu { reports: false, reported: false, ..qemu() }, (10, 0)), limits);
    let devices = vec!["vmbus-bridge", "hv-balloon", "vfio-pci"];
    assert_eq!(found(Qemu { devices, ..qemu() }, (10, 0)), stops("vfio"));
    let devices = vec!["virtio-balloon-pci"];
    let ids: Vec<_> =
        found(Qemu { devices, ..qemu() }, (10, 0)).into_iter().map(|it| it.0).collect();
    assert_eq!(ids, ["vmbus-bridge", "hv-balloon", "virtio-balloon", "maxmem"]);
}
