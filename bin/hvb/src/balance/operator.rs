//! Commands to a balancer that runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use balance_host::{ClientError, HostStatus, Operator, ReservationStatus, VmStatus, Wish, command};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::report;
use crate::size::{ByteSize, human};

/// The time limit for an answer of the balancer, which waits for nobody.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a reservation is asked after.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Connects to the balancer.
pub(crate) fn connect(control: &Path) -> Result<Operator> {
    find(control)?.with_context(|| {
        format!(
            "{}: no balancer runs here: start hvb balance, or give its --control",
            control.display()
        )
    })
}

/// Connects to the balancer, if one runs.
pub(crate) fn find(control: &Path) -> Result<Option<Operator>> {
    match Operator::connect(control, ANSWER) {
        Ok(balancer) => Ok(Some(balancer)),
        Err(ClientError::NoSocket { .. } | ClientError::NobodyListens { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Shows the host and all machines.
pub(super) fn status(control: &Path, json: bool) -> Result<()> {
    let status = connect(control)?.status()?;
    if json {
        return report::line(&serde_json::to_string(&status)?);
    }
    report::line(&host(&status.host, status.dry_run))?;
    for reservation in &status.reservations {
        let ReservationStatus { size_kib, state, ends_in_ms, .. } = reservation;
        let (size, left) = (kib(*size_kib), ends_in_ms / 1000);
        report::line(&format!("reserved: {size} for {left} s more. {state}"))?;
    }
    if status.vms.is_empty() {
        return report::line("no virtual machine was found");
    }
    let head = ["NAME", "ASSIGNED", "TARGET", "DEMAND", "MINIMUM", "MAXIMUM", "PRESSURE", "STATUS"];
    let head = head.into_iter().chain(["AGE", "NOTE"]).map(str::to_owned);
    let mut rows: Vec<[String; 10]> = Vec::new();
    rows.extend(<[String; 10]>::try_from(head.collect::<Vec<_>>()).ok());
    rows.extend(status.vms.iter().map(row));
    report::table(&rows)
}

fn host(host: &HostStatus, dry_run: bool) -> String {
    let dry = if dry_run { " (dry run: nothing is changed)" } else { "" };
    if host.zone == "unknown" {
        return format!("host: its figures are missing, so nothing is changed{dry}");
    }
    let mut text = format!(
        "host: {}, {} for VMs, {} of it given, {} available, pressure {}.{} %{dry}",
        host.zone,
        kib(host.for_vms_kib),
        kib(host.targets_kib),
        kib(host.available_kib),
        host.psi_some_permille / 10,
        host.psi_some_permille % 10,
    );
    if host.overcommitted_kib > 0 {
        let over = kib(host.overcommitted_kib);
        text += &format!(", overcommitted by {over}: lower the minimum of some VM");
    }
    text
}

fn row(vm: &VmStatus) -> [String; 10] {
    let size = |size: Option<u64>| size.map_or_else(|| "-".to_owned(), kib);
    let settings = vm.settings;
    let note = vm.problem.as_deref().or(vm.obstacle.as_deref());
    // Without a report, the size is all that has an age.
    let age_ms = vm.report_age_ms.or(vm.age_ms);
    [
        vm.name.clone(),
        size(vm.assigned_kib),
        size(vm.target_kib),
        size(vm.demand_kib),
        size(settings.map(|settings| settings.minimum_kib)),
        size(settings.map(|settings| settings.maximum_kib)),
        vm.pressure_permille.map_or_else(|| "-".to_owned(), |p| format!("{} %", p / 10)),
        vm.status.clone().unwrap_or_else(|| "-".to_owned()),
        age_ms.map_or_else(|| "-".to_owned(), |ms| format!("{} s", ms / 1000)),
        note.unwrap_or(if vm.held { "held" } else { "" }).to_owned(),
    ]
}

/// Says why a machine has what it has.
pub(super) fn explain(control: &Path, vm: &str) -> Result<()> {
    let explanation = connect(control)?.explain(vm)?;
    let VmStatus { name, kind, socket, resident_kib, settings, .. } = &explanation.vm;
    report::line(&format!("{name}: {kind}, {socket}"))?;
    let figures = [
        ("assigned", explanation.vm.assigned_kib),
        ("target", explanation.vm.target_kib),
        ("demand", explanation.vm.demand_kib),
        ("with buffer", explanation.vm.wanted_kib),
        ("resident", *resident_kib),
    ];
    let known =
        figures.iter().filter_map(|(name, value)| Some(format!("{name} {}", kib((*value)?))));
    report::line(&known.collect::<Vec<_>>().join(", "))?;
    if let Some(settings) = settings {
        report::line(&format!(
            "startup {}, minimum {}, maximum {}, buffer {} %, weight {}",
            kib(settings.startup_kib),
            kib(settings.minimum_kib),
            kib(settings.maximum_kib),
            settings.buffer_percent,
            settings.weight
        ))?;
    }
    explanation.sentences.iter().try_for_each(|sentence| report::line(sentence))
}

/// Changes settings of a machine.
pub(super) fn set(control: &Path, vm: &str, wish: Wish) -> Result<()> {
    connect(control)?.set(vm, wish)?;
    Ok(())
}

/// Has memory freed for a machine, and waits for it.
pub(super) fn reserve(
    control: &Path,
    size: ByteSize,
    lasting: Duration,
    timeout: Duration,
) -> Result<()> {
    let mut balancer = connect(control)?;
    let is_interrupted = Arc::<AtomicBool>::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&is_interrupted))
            .context("cannot handle signals")?;
    }
    let reserved = balancer.reserve(size.bytes() / 1024, lasting.as_secs())?;
    let deadline = Instant::now() + timeout;
    let failure = loop {
        if is_interrupted.load(Ordering::Relaxed) {
            break "interrupted".to_owned();
        }
        let room = balancer.reservation(reserved)?;
        let room = room.context("the reservation has ended: a new machine has it, or its time")?;
        if room.ready {
            let left = room.ends_in_ms.div_ceil(1000);
            return report::line(&format!(
                "{size} are free, and kept free for {left} s or until a new machine is there"
            ));
        }
        if room.impossible {
            break room.state;
        }
        if Instant::now() >= deadline {
            break format!("not within {} s. {}", timeout.as_secs(), room.state);
        }
        thread::sleep(ASK_AGAIN);
    };
    withdraw(&mut balancer, reserved);
    bail!("{size} cannot be had: {failure}")
}

fn withdraw(balancer: &mut Operator, reserved: command::Reserved) {
    if let Err(error) = balancer.withdraw(reserved) {
        tracing::debug!("cannot withdraw the reservation: {error}");
    }
}

fn kib(kib: u64) -> String {
    human(kib.saturating_mul(1024))
}
