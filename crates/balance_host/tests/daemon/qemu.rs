//! QEMU's two balloons, by their monitors' words.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use balance_host::Setup;
use qmp::{CommandSet, Machine, Map, MonitorError, Server, Value};
use serde_json::json;

use crate::world::{GIB, Guest, Host, Vm, eventually};

/// What a QEMU has for a balloon.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Balloon {
    HyperV { reports: bool },
    Virtio,
    None,
}

struct Qemu {
    guest: Arc<Guest>,
    balloon: Balloon,
    polling: AtomicU64,
    updates: AtomicU64,
    commands: Mutex<Vec<String>>,
}

impl Qemu {
    fn start(host: &Host, name: &str, balloon: Balloon, boot: u64, used: u64) -> (Arc<Self>, Vm) {
        let guest = Guest::new(&host.ledger, boot, used);
        let qemu = Arc::new(Self {
            guest: guest.clone(),
            balloon,
            polling: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            commands: Mutex::default(),
        });
        let server = Server::start_for(&host.path(&format!("{name}.sock")), qemu.clone()).unwrap();
        // Of the two, only virtio-balloon tells when its size changes.
        (qemu, Vm::with(server, guest, balloon == Balloon::Virtio))
    }

    fn polling(&self) -> u64 {
        self.polling.load(Ordering::Relaxed)
    }

    /// The statistics as QEMU 10 gives them.
    fn stats(&self) -> Value {
        if self.polling() == 0 {
            return json!({ "last-update": 0, "stats": { "stat-total-memory": u64::MAX } });
        }
        let report = self.guest.report();
        // An update each time somebody looks.
        let update = self.updates.fetch_add(1, Ordering::Relaxed) + 1_800_000_000;
        json!({
            "last-update": update,
            "stats": {
                "stat-total-memory": self.guest.actual() - (64 << 20),
                "stat-available-memory": report.available,
                "stat-free-memory": 0,
                "stat-swap-in": 0,
                "stat-htlb-pgalloc": u64::MAX,
            },
        })
    }
}

impl CommandSet for Qemu {
    fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, MonitorError> {
        self.commands.lock().unwrap().push(name.to_owned());
        let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or_default();
        let no_device = || Err(MonitorError::no_balloon_device());
        match name {
            "query-balloon" | "balloon" if self.balloon == Balloon::None => no_device(),
            "query-balloon" => Ok(json!({ "actual": self.guest.actual() })),
            "balloon" => {
                let bytes = arguments["value"].as_u64().unwrap();
                self.guest.obey(bytes).map(|()| json!({}))
            }
            "query-memory-size-summary" => {
                Ok(json!({ "base-memory": 4 * GIB, "plugged-memory": 0 }))
            }
            "query-hv-balloon-status-report" => match self.balloon {
                Balloon::HyperV { reports: true } => {
                    let report = self.guest.status_report()?;
                    Ok(json!({ "committed": report.committed, "available": report.available }))
                }
                Balloon::HyperV { .. } => Err(MonitorError::status_report_not_enabled()),
                _ => Err(MonitorError::status_report_no_device()),
            },
            "query-memory-devices" => Ok(json!([{
                "type": "hv-balloon", "data": { "max-size": 8 * GIB, "memdev": "/objects/m" },
            }])),
            "qom-list" if text("path") == "/machine/peripheral" => {
                Ok(json!([{ "name": "type", "type": "string" }]))
            }
            "qom-list" => {
                let kind = match self.balloon {
                    Balloon::Virtio => "child<virtio-balloon-pci>",
                    _ => "child<hv-balloon>",
                };
                Ok(json!([{ "name": "device[0]", "type": kind }]))
            }
            "qom-get" | "qom-set" if text("path") != "/machine/peripheral-anon/device[0]" => {
                Err(MonitorError::generic("no such object"))
            }
            "qom-get" if text("property") == "guest-stats" => Ok(self.stats()),
            "qom-get" => Ok(json!(self.polling())),
            "qom-set" => {
                self.polling.store(arguments["value"].as_u64().unwrap(), Ordering::Relaxed);
                Ok(json!({}))
            }
            _ => Err(MonitorError::unknown_command(name)),
        }
    }
}

#[test]
fn memory_moves_between_qemus_of_both_kinds() {
    let host = Host::new();
    let (_, hyperv) =
        Qemu::start(&host, "hyperv", Balloon::HyperV { reports: true }, 4 * GIB, 4 * GIB);
    let (qemu, virtio) = Qemu::start(&host, "virtio", Balloon::Virtio, 4 * GIB, GIB);
    let balance = host.balance(host.configuration(8 * GIB));
    eventually("the one with hv-balloon grows beyond its boot memory", || {
        hyperv.guest.actual() > 5 * GIB && virtio.guest.actual() < 3 * GIB
    });
    assert_eq!(qemu.polling(), 1);
    let kind = |name| balance.vm(name).unwrap().kind;
    assert_eq!(kind("hyperv"), "QEMU with hv-balloon");
    assert_eq!(kind("virtio"), "QEMU with virtio-balloon");
    hyperv.guest.uses(GIB);
    virtio.guest.uses(4 * GIB);
    // But for less than a 64th, for which no target is moved.
    eventually("the one with virtio-balloon has all that it can have", || {
        virtio.guest.actual() > 4 * GIB - 4 * GIB / 64
    });
    assert!(host.ledger.peak() <= 8 * GIB, "{}", host.ledger.peak());
    balance.end();
    assert_eq!(qemu.polling(), 0, "as it was");
}

#[test]
fn what_cannot_be_balanced_is_named_with_a_remedy() {
    let host = Host::new();
    let (_, _none) = Qemu::start(&host, "none", Balloon::None, 4 * GIB, GIB);
    let (_, _mute) = Qemu::start(&host, "mute", Balloon::HyperV { reports: false }, 4 * GIB, GIB);
    let balance = host.balance(host.configuration(16 * GIB));
    eventually("the one without a balloon is named", || {
        balance.problem("none").contains("give QEMU -device virtio-balloon-pci")
    });
    eventually("the one that does not report is named", || {
        balance.vm("mute").is_some_and(|vm| vm.kind.contains("status-report=off"))
    });
}

#[test]
fn a_dry_run_does_not_even_ask_for_statistics() {
    let host = Host::new();
    let (qemu, _vm) = Qemu::start(&host, "virtio", Balloon::Virtio, 4 * GIB, GIB);
    let dry = |setup| Setup { dry_run: true, ..setup };
    let balance = host.balance_with(host.configuration(8 * GIB), dry);
    eventually("it is known", || balance.vm("virtio").is_some_and(|vm| vm.target_kib.is_some()));
    assert_eq!(balance.vm("virtio").unwrap().kind, "QEMU with virtio-balloon, no statistics");
    balance.end();
    let commands = qemu.commands.lock().unwrap();
    assert!(!commands.iter().any(|name| name == "qom-set" || name == "balloon"), "{commands:?}");
}
