//! `hvb balance simulate`: the policy on hosts that do not exist.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use balance_sim::{Account, Balanced, Scenario, ScenarioForm};

use super::file;
use crate::definition;
use crate::report;
use crate::size::human;

/// Plays the scenarios of these files, with the policy of `config` if it is given.
pub(super) fn run(files: &[impl AsRef<Path>], config: Option<&Path>) -> Result<()> {
    let policy = config.map(file::read).transpose()?.unwrap_or_default().policy;
    for file in files.iter().map(AsRef::as_ref) {
        let name = || file.display().to_string();
        let text = definition::read(file).with_context(name)?;
        let scenario = parse(&text).with_context(name)?;
        let account = balance_sim::run(&scenario, &mut Balanced::new(policy));
        report::line(&head(file, &scenario, &account))?;
        report::table(&rows(&scenario, &account))?;
    }
    Ok(())
}

fn parse(text: &str) -> Result<Scenario> {
    let form: ScenarioForm =
        toml::from_str(text).map_err(|error| definition::located(text, &error))?;
    let line = |at| definition::line_of(text, at);
    form.check().map_err(|mistake| anyhow!("line {}: {mistake}", line(mistake.at)))
}

fn head(file: &Path, scenario: &Scenario, account: &Account) -> String {
    let swapped = match account.host_swapped_kib_s {
        0 => String::new(),
        kib_s => format!("; the host swapped, {} of it", gib_s(kib_s)),
    };
    format!(
        "{}: {} VMs for {} s on a host of {}{swapped}",
        file.display(),
        scenario.vms(),
        scenario.seconds,
        human(account.host_kib.saturating_mul(1024)),
    )
}

fn rows(scenario: &Scenario, account: &Account) -> Vec<[String; 10]> {
    let head = ["VMS", "COUNT", "UNMET", "WAIT P50", "WAIT P99", "SHORT", "SURPLUS", "CACHE"];
    let head = head.map(str::to_owned).into_iter();
    let head = head.chain(["CHANGES", "BELOW MINIMUM"].map(str::to_owned));
    let mut rows: Vec<[String; 10]> = head.collect::<Vec<_>>().try_into().into_iter().collect();
    for group in &scenario.groups {
        rows.push(row(&group.name, &account.of_group(&group.name)));
    }
    if scenario.groups.len() > 1 {
        rows.push(row("all", account));
    }
    rows
}

fn row(name: &str, account: &Account) -> [String; 10] {
    let seconds = account.sum(|vm| vm.seconds).max(1);
    let vms = u64::try_from(account.vms.len()).unwrap_or(u64::MAX).max(1);
    let wait = |percent| {
        account
            .wait_ms(percent)
            .map_or("–".to_owned(), |ms| tenths(ms.saturating_mul(10), 1000, "s"))
    };
    let sum = |figure: fn(&balance_sim::VmAccount) -> u64| account.sum(figure);
    [
        report::printable(name),
        account.vms.len().to_string(),
        gib_s(sum(|vm| vm.unmet_kib_s)),
        wait(50),
        wait(99),
        tenths(sum(|vm| vm.short_s).saturating_mul(10), vms, "s a VM"),
        human((sum(|vm| vm.surplus_kib_s) / seconds).saturating_mul(1024)) + " a VM",
        account
            .cache_use_permille()
            .map_or("–".to_owned(), |permille| format!("{} %", permille / 10)),
        tenths(sum(|vm| vm.changes).saturating_mul(36_000), seconds, "a VM and hour"),
        gib_s(sum(|vm| vm.below_minimum_kib_s)),
    ]
}

/// A quotient of ten times a figure, with a decimal.
fn tenths(ten_times: u64, by: u64, unit: &str) -> String {
    let tenths = ten_times / by.max(1);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

fn gib_s(kib_s: u64) -> String {
    tenths(kib_s.saturating_mul(10), 1 << 20, "GiB·s")
}
