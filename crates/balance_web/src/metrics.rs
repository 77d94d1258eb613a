//! The figures in OpenMetrics. Names follow those of Hyper-V's performance counters, as exporters for
//! Windows write them, with another prefix: docs/metrics.md has the table.

use std::fmt;

use balance_host::{HostStatus, Status, VmStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// The prefix of all names.
const PREFIX: &str = "hvb_dynamic_memory";

/// The type of the answer.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A figure in the unit in which it is told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Gauge(f64),
    Total(u64),
}

/// A metric: its name after the prefix, what it says, its unit, and the figure of a thing.
struct Metric<T: ?Sized> {
    name: &'static str,
    help: &'static str,
    unit: fn() -> Option<Unit>,
    of: fn(&T) -> Option<Value>,
}

const fn metric<T>(
    name: &'static str,
    unit: fn() -> Option<Unit>,
    help: &'static str,
    of: fn(&T) -> Option<Value>,
) -> Metric<T> {
    Metric { name, help, unit, of }
}

/// Metrics of the balancer and its host.
const BALANCER: [Metric<Status>; 18] = [
    metric("balancer_available_memory", bytes, "Memory that the host has available", |s| {
        host(s).map(|host| kib(host.available_kib))
    }),
    metric(
        "balancer_available_memory_for_balancing",
        bytes,
        "What there is for machines and is nobody's target",
        |s| host(s).map(|host| kib(host.for_vms_kib.saturating_sub(host.targets_kib))),
    ),
    metric("balancer_average_pressure", ratio, "Mean pressure of all machines", |s| {
        average_pressure(s).map(Value::Gauge)
    }),
    metric(
        "balancer_system_current_pressure",
        ratio,
        "What all machines want, of what there is for them",
        |s| system_pressure(s).map(Value::Gauge),
    ),
    metric("balancer_added", bytes, "Memory added to machines, also to those that are gone", |s| {
        Some(total_kib(s.moved.added_kib))
    }),
    metric(
        "balancer_removed",
        bytes,
        "Memory removed from machines, also from those that are gone",
        |s| Some(total_kib(s.moved.removed_kib)),
    ),
    metric("balancer_add_operations", none, "Times that a machine was told to grow", |s| {
        Some(Value::Total(s.moved.add_operations))
    }),
    metric("balancer_remove_operations", none, "Times that a machine was told to shrink", |s| {
        Some(Value::Total(s.moved.remove_operations))
    }),
    metric("balancer_total_memory", bytes, "Memory of the host", |s| {
        host(s).map(|host| kib(host.total_kib))
    }),
    metric("balancer_memory_for_machines", bytes, "What there is for machines", |s| {
        host(s).map(|host| kib(host.for_vms_kib))
    }),
    metric("balancer_targets", bytes, "Sum of all targets", |s| {
        host(s).map(|host| kib(host.targets_kib))
    }),
    metric("balancer_reserved", bytes, "Kept free for machines about to start", |s| {
        host(s).map(|host| kib(host.reserved_kib))
    }),
    metric(
        "balancer_overcommitted",
        bytes,
        "By how much the minima and what cannot be changed exceed what there is",
        |s| host(s).map(|host| kib(host.overcommitted_kib)),
    ),
    metric("balancer_psi_some", ratio, "Share of time in which some task waited for memory", |s| {
        host(s).map(|host| permille(host.psi_some_permille.into()))
    }),
    metric("balancer_psi_full", ratio, "Share of time in which all tasks waited for memory", |s| {
        host(s).map(|host| permille(host.psi_full_permille.into()))
    }),
    metric("balancer_decisions", none, "Decisions made", |s| Some(Value::Total(s.decisions))),
    metric("balancer_machines", none, "Machines that were found", |s| {
        Some(Value::Gauge(f64::from(u32::try_from(s.vms.len()).unwrap_or(u32::MAX))))
    }),
    metric("balancer_dry_run", none, "Whether nothing is changed", |s| Some(flag(s.dry_run))),
];

/// Metrics of each machine.
const MACHINE: [Metric<VmStatus>; 22] = [
    metric("vm_physical", bytes, "Memory that the machine has", |vm| vm.assigned_kib.map(kib)),
    metric("vm_guest_available", bytes, "Memory that the guest reports as available", |vm| {
        vm.available_kib.map(kib)
    }),
    metric(
        "vm_pressure_current",
        ratio,
        "What the machine wants, of what it has; above 1 it has too little",
        |vm| vm.pressure_permille.filter(|_| !vm.stale).map(permille),
    ),
    metric("vm_added", bytes, "Memory added to the machine", |vm| {
        Some(total_kib(vm.moved.added_kib))
    }),
    metric("vm_removed", bytes, "Memory removed from the machine", |vm| {
        Some(total_kib(vm.moved.removed_kib))
    }),
    metric("vm_add_operations", none, "Times that the machine was told to grow", |vm| {
        Some(Value::Total(vm.moved.add_operations))
    }),
    metric("vm_remove_operations", none, "Times that the machine was told to shrink", |vm| {
        Some(Value::Total(vm.moved.remove_operations))
    }),
    metric("vm_target", bytes, "Memory that the machine should have", |vm| vm.target_kib.map(kib)),
    metric("vm_demand", bytes, "Memory that the guest could not do without", |vm| {
        vm.demand_kib.map(kib)
    }),
    metric("vm_wanted", bytes, "The demand with its buffer", |vm| vm.wanted_kib.map(kib)),
    metric("vm_minimum", bytes, "It never gets less", |vm| {
        vm.settings.map(|settings| kib(settings.minimum_kib))
    }),
    metric("vm_maximum", bytes, "It never gets more", |vm| {
        vm.settings.map(|settings| kib(settings.maximum_kib))
    }),
    metric("vm_startup", bytes, "What it boots with", |vm| {
        vm.settings.map(|settings| kib(settings.startup_kib))
    }),
    metric("vm_buffer", ratio, "Memory to have ready, of the demand", |vm| {
        vm.settings.map(|settings| Value::Gauge(f64::from(settings.buffer_percent) / 100.0))
    }),
    metric("vm_weight", none, "How much the machine counts where memory is short", |vm| {
        vm.settings.map(|settings| Value::Gauge(settings.weight.into()))
    }),
    metric("vm_held", none, "Whether the operator holds the machine as it is", |vm| {
        Some(flag(vm.held))
    }),
    metric("vm_resident", bytes, "Memory that the machine's process takes from the host", |vm| {
        vm.resident_kib.map(kib)
    }),
    metric(
        "vm_psi_some",
        ratio,
        "Share of time in which some task of the machine's own cgroup waited for memory",
        |vm| vm.psi_some_permille.map(|psi| permille(psi.into())),
    ),
    metric("vm_size_age", seconds, "Age of the machine's size", |vm| vm.age_ms.map(ms)),
    metric("vm_report_age", seconds, "Age of the guest's report", |vm| vm.report_age_ms.map(ms)),
    metric(
        "vm_stale",
        none,
        "Whether the machine's figures are too old to act on, or its monitor does not answer",
        |vm| Some(flag(vm.stale)),
    ),
    metric(
        "vm_refused",
        none,
        "Whether the monitor refused the last target or does not reach it",
        |vm| Some(flag(vm.obstacle.is_some())),
    ),
];

/// Words of which one is true: a metric with a label for each.
const ZONES: [&str; 4] = ["comfort", "tight", "emergency", "unknown"];
const STATUSES: [&str; 3] = ["OK", "Low", "Warning"];

fn bytes() -> Option<Unit> {
    Some(Unit::Bytes)
}

fn seconds() -> Option<Unit> {
    Some(Unit::Seconds)
}

/// As exporters for Windows have it, in the singular.
fn ratio() -> Option<Unit> {
    Some(Unit::Other("ratio".to_owned()))
}

fn none() -> Option<Unit> {
    None
}

/// Sizes below 8 PiB are exact, and none is larger.
#[expect(clippy::cast_precision_loss, reason = "no figure here has more than 53 bits")]
fn number(value: u64) -> f64 {
    value as f64
}

fn kib(kib: u64) -> Value {
    Value::Gauge(number(kib) * 1024.0)
}

fn total_kib(kib: u64) -> Value {
    Value::Total(kib.saturating_mul(1024))
}

fn permille(permille: u64) -> Value {
    Value::Gauge(number(permille) / 1000.0)
}

fn ms(ms: u64) -> Value {
    Value::Gauge(number(ms) / 1000.0)
}

fn flag(is_set: bool) -> Value {
    Value::Gauge(f64::from(u8::from(is_set)))
}

/// The host's figures, if they are known.
fn host(status: &Status) -> Option<&HostStatus> {
    Some(&status.host).filter(|host| host.zone != "unknown")
}

fn average_pressure(status: &Status) -> Option<f64> {
    let fresh = status.vms.iter().filter(|vm| !vm.stale);
    let all: Vec<f64> = fresh.filter_map(|vm| Some(number(vm.pressure_permille?))).collect();
    let count = f64::from(u32::try_from(all.len()).ok().filter(|count| *count > 0)?);
    Some(all.iter().sum::<f64>() / count / 1000.0)
}

fn system_pressure(status: &Status) -> Option<f64> {
    let for_vms_kib = host(status)?.for_vms_kib;
    let wanted = status.vms.iter().filter_map(|vm| vm.wanted_kib.or(vm.assigned_kib));
    let wanted_kib = wanted.fold(0, u64::saturating_add);
    (for_vms_kib > 0).then(|| number(wanted_kib) / number(for_vms_kib))
}

/// The figures of one moment.
#[derive(Debug)]
struct Figures(Status);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self(status) = self;
        for metric in &BALANCER {
            let Some(value) = (metric.of)(status) else { continue };
            let unit = (metric.unit)();
            value.write(metric.begin(&mut encoder, unit.as_ref(), value)?)?;
        }
        let zone = status.host.zone.as_str();
        let mut family = encoder.encode_descriptor(
            "balancer_zone",
            "Which zone the host is in",
            None,
            MetricType::Gauge,
        )?;
        for word in ZONES {
            flag(word == zone).write(family.encode_family(&[("zone", word)])?)?;
        }
        for metric in &MACHINE {
            let values = status.vms.iter().filter_map(|vm| Some((vm, (metric.of)(vm)?)));
            let mut values = values.peekable();
            let Some(&(_, first)) = values.peek() else { continue };
            let unit = (metric.unit)();
            let mut family = metric.begin(&mut encoder, unit.as_ref(), first)?;
            for (vm, value) in values {
                value.write(family.encode_family(&[("vm", vm.name.as_str())])?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "vm_status",
            "How well the machine is off, in Hyper-V's words",
            None,
            MetricType::Gauge,
        )?;
        for vm in status.vms.iter().filter(|vm| !vm.stale) {
            let Some(own) = vm.status.as_deref() else { continue };
            for word in STATUSES {
                let labels = [("vm", vm.name.as_str()), ("status", word)];
                flag(word == own).write(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl<T: ?Sized> Metric<T> {
    fn begin<'a>(
        &'a self,
        encoder: &'a mut DescriptorEncoder<'_>,
        unit: Option<&'a Unit>,
        value: Value,
    ) -> Result<MetricEncoder<'a>, fmt::Error> {
        let kind = match value {
            Value::Gauge(_) => MetricType::Gauge,
            Value::Total(_) => MetricType::Counter,
        };
        encoder.encode_descriptor(self.name, self.help, unit, kind)
    }
}

impl Value {
    fn write(self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Gauge(value) => encoder.encode_gauge(&value),
            Self::Total(value) => encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        }
    }
}

/// All metrics as text.
pub(crate) fn metrics(status: &Status) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Figures(status.clone())));
    let mut text = String::new();
    // Writing to memory does not fail, and no figure is refused.
    if text::encode(&mut text, &registry).is_err() {
        tracing::error!("the metrics cannot be written");
    }
    text
}

#[cfg(test)]
mod tests;
