//! The policies bench: how well memory is balanced.
//!
//! The balancer, five policies of others, a static split and an oracle that knows the next second
//! play the same scenarios (`scenarios/*.toml`) in the simulator of `balance_sim`: with 8, 64 and 512
//! VMs, and with as much memory as 120, 90 and 70 % of the most that all guests need at once.
//!
//! `cargo run --release -p policies`

mod goals;
mod peers;
mod table;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use balance_sim::{Account, Scenario, ScenarioForm};
use clap::Parser;

/// Plays scenarios with our balancer, with others' policies and with an oracle.
#[derive(Debug, Parser)]
struct Options {
    /// Plays only these scenarios.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "web,build,database,desktops,batch,leak,boot,mix"
    )]
    scenarios: Vec<String>,
    /// Numbers of VMs: multiples of 8.
    #[arg(long, value_delimiter = ',', default_value = "8,64,512")]
    vms: Vec<u64>,
    /// The host's memory as percentages of the most that all guests need at once.
    #[arg(long, value_delimiter = ',', default_value = "120,90,70")]
    percent: Vec<u64>,
    /// Plays only policies whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Prints a row for each kind of VM as well.
    #[arg(long)]
    kinds: bool,
    /// The seed of all that is random [default: that of the files].
    #[arg(long)]
    seed: Option<u64>,
}

/// The scenarios, for 8 VMs each.
const FILES: [(&str, &str); 8] = [
    ("web", include_str!("../scenarios/web.toml")),
    ("build", include_str!("../scenarios/build.toml")),
    ("database", include_str!("../scenarios/database.toml")),
    ("desktops", include_str!("../scenarios/desktops.toml")),
    ("batch", include_str!("../scenarios/batch.toml")),
    ("leak", include_str!("../scenarios/leak.toml")),
    ("boot", include_str!("../scenarios/boot.toml")),
    ("mix", include_str!("../scenarios/mix.toml")),
];
const VMS_OF_A_FILE: u64 = 8;

/// A scenario on a host, and what came of each policy.
struct Case {
    name: &'static str,
    vms: u64,
    percent: u64,
    scenario: Scenario,
    accounts: Vec<(&'static peers::Peer, Account)>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut cases = cases(&options)?;
    play(&mut cases, &options.only);
    table::print(&cases, options.kinds);
    goals::print(&cases);
    Ok(())
}

fn cases(options: &Options) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for wanted in &options.scenarios {
        let (name, text) = FILES
            .into_iter()
            .find(|(name, _)| name == wanted)
            .with_context(|| format!("no scenario '{wanted}': see --help"))?;
        let form: ScenarioForm = toml::from_str(text).with_context(|| name.to_owned())?;
        let mut scenario = form.check().with_context(|| name.to_owned())?;
        scenario.seed = options.seed.unwrap_or(scenario.seed);
        for &vms in &options.vms {
            ensure!(vms > 0 && vms % VMS_OF_A_FILE == 0, "--vms {vms} is not a multiple of 8");
            let scenario = scenario.clone().times(vms / VMS_OF_A_FILE);
            let peak_kib = scenario.peak_kib();
            for &percent in &options.percent {
                let mut scenario = scenario.clone();
                scenario.host.memory_kib = Some(peak_kib * percent / 100);
                cases.push(Case { name, vms, percent, scenario, accounts: Vec::new() });
            }
        }
    }
    Ok(cases)
}

/// Plays all cases with all policies, on all processors.
fn play(cases: &mut [Case], only: &str) {
    let peers: Vec<&'static peers::Peer> =
        peers::ALL.iter().filter(|peer| peer.name.contains(only)).collect();
    let runs: Vec<(usize, &'static peers::Peer)> =
        (0..cases.len()).flat_map(|case| peers.iter().map(move |peer| (case, *peer))).collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let scenarios: Vec<&Scenario> = cases.iter().map(|case| &case.scenario).collect();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(case, peer)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(scenario) = scenarios.get(case) else { break };
                    let account = balance_sim::run(scenario, (peer.begin)(scenario).as_mut());
                    if let Ok(mut done) = done.lock() {
                        done.push((case, peer, account));
                    }
                }
            });
        }
    });
    for (case, peer, account) in done.into_inner().unwrap_or_default() {
        if let Some(case) = cases.get_mut(case) {
            case.accounts.push((peer, account));
        }
    }
    let order = |name: &str| peers.iter().position(|peer| peer.name == name);
    for case in cases {
        case.accounts.sort_by_key(|(peer, _)| order(peer.name));
    }
}
