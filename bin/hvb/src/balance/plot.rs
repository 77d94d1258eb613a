//! `hvb balance plot`: a recording as a picture.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use balance_host::{HostStatus, Replay, Status, VmStatus};
use timeline::{Curve, Panel, Timeline};

use super::replay::{UNENDED, began};
use crate::report;

/// Draws the host and the machines, or those of the names.
pub(super) fn run(recording: &Path, output: &Path, names: &[String]) -> Result<()> {
    let mut replay = Replay::open(recording, None)?;
    let title = format!("hvb balance from {}", began(&replay));
    let mut curves = Curves::default();
    let end = loop {
        match replay.next() {
            Some(Ok(step)) => curves.add(step.at_ms, &replay.status(), names),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        }
    };
    for name in names {
        let is_there = curves.vms.contains_key(name);
        ensure!(is_there, "{}: there is no VM '{name}' in it", recording.display());
    }
    let time = "seconds since then".to_owned();
    let svg = Timeline { title, time, panels: curves.panels() }.svg()?;
    fs::write(output, svg).with_context(|| output.display().to_string())?;
    // The picture shows what could be read.
    end?;
    if !replay.is_complete() {
        report::line(UNENDED)?;
    }
    Ok(())
}

/// A figure of a VM or of the host: its name, and how to get it.
type Figure<T> = (&'static str, fn(&T) -> Option<f64>);

const HOST_MEMORY: [Figure<HostStatus>; 4] = [
    ("for VMs", |host| mib(Some(host.for_vms_kib))),
    ("targets of all VMs", |host| mib(Some(host.targets_kib))),
    ("available on the host", |host| mib(Some(host.available_kib))),
    ("reserved for new VMs", |host| mib(Some(host.reserved_kib))),
];

const HOST_STALLS: [Figure<HostStatus>; 2] = [
    ("PSI, some", |host| percent(Some(host.psi_some_permille))),
    ("PSI, full", |host| percent(Some(host.psi_full_permille))),
];

const VM_MEMORY: [Figure<VmStatus>; 3] = [
    ("assigned", |vm| mib(vm.assigned_kib)),
    ("demand", |vm| mib(vm.demand_kib)),
    ("RSS", |vm| mib(vm.resident_kib)),
];

const VM_PRESSURE: [Figure<VmStatus>; 2] = [
    ("pressure", |vm| percent(vm.pressure_permille.and_then(|permille| permille.try_into().ok()))),
    ("PSI, some", |vm| percent(vm.psi_some_permille)),
];

/// Above that, a scale shows nothing of what matters.
const MAX_PERCENT: f64 = 300.0;

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn mib(kib: Option<u64>) -> Option<f64> {
    Some(kib? as f64 / 1024.0)
}

fn percent(permille: Option<u32>) -> Option<f64> {
    Some((f64::from(permille?) / 10.0).min(MAX_PERCENT))
}

/// After a longer time than this without a decision, nobody knows what was in between: the balancer did not
/// run.
const GAP_SECONDS: f64 = 30.0;

#[derive(Default)]
struct Curves {
    last: Option<f64>,
    host: (Vec<Curve>, Vec<Curve>),
    vms: BTreeMap<String, (Vec<Curve>, Vec<Curve>)>,
}

impl Curves {
    fn add(&mut self, at_ms: u64, status: &Status, names: &[String]) {
        #[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
        let at = at_ms as f64 / 1000.0;
        if let Some(last) = self.last.replace(at).filter(|last| at - last > GAP_SECONDS) {
            // All lines end there; what follows begins others.
            self.push(last, None, &BTreeMap::new());
        }
        for vm in &status.vms {
            if names.is_empty() || names.contains(&vm.name) {
                self.vms.entry(vm.name.clone()).or_default();
            }
        }
        let host = Some(&status.host).filter(|host| host.zone != "unknown");
        // What a monitor that does not answer said before is not true now.
        let answer = status.vms.iter().filter(|vm| vm.problem.is_none());
        self.push(at, host, &answer.map(|vm| (vm.name.as_str(), vm)).collect());
    }

    /// Adds a point to all curves, or a gap.
    fn push(&mut self, at: f64, host: Option<&HostStatus>, vms: &BTreeMap<&str, &VmStatus>) {
        let (memory, stalls) = &mut self.host;
        push(memory, at, host, &HOST_MEMORY);
        push(stalls, at, host, &HOST_STALLS);
        for (name, (memory, pressure)) in &mut self.vms {
            let vm = vms.get(name.as_str()).copied();
            push(memory, at, vm, &VM_MEMORY);
            push(pressure, at, vm, &VM_PRESSURE);
        }
    }

    fn panels(self) -> Vec<Panel> {
        let (memory, stalls) = self.host;
        let mut panels = vec![
            panel("host", "MiB", 200, memory, &HOST_MEMORY),
            panel("host", "%", 120, stalls, &HOST_STALLS),
        ];
        // A monitor that never answered has nothing to show.
        let known = |curves: &[Curve]| curves.iter().any(|curve| !curve.is_empty());
        for (name, (memory, pressure)) in self.vms {
            if !known(&memory) {
                continue;
            }
            let name = report::printable(&name);
            panels.push(panel(&name, "MiB", 200, memory, &VM_MEMORY));
            panels.push(panel(&name, "%", 140, pressure, &VM_PRESSURE));
        }
        panels
    }
}

fn push<T>(curves: &mut Vec<Curve>, at: f64, of: Option<&T>, figures: &[Figure<T>]) {
    curves.resize(figures.len(), Curve::default());
    for (curve, (_, figure)) in curves.iter_mut().zip(figures) {
        curve.push(at, of.and_then(figure));
    }
}

fn panel<T>(
    title: &str,
    unit: &str,
    height: u32,
    curves: Vec<Curve>,
    figures: &[Figure<T>],
) -> Panel {
    let names = figures.iter().map(|(name, _)| (*name).to_owned());
    let (title, unit) = (title.to_owned(), unit.to_owned());
    Panel { title, unit, top: 1.0, height, curves: names.zip(curves).collect() }
}
