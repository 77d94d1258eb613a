//! The goals, and whether they are met on the mix.

use balance_sim::{Account, Balanced, Scenario};
use balancer::{SettingsForm, VmSettings};

use crate::Case;
use crate::peers::{ALL, Kind, Peer};
use crate::table::gib_s;

pub(crate) fn print(cases: &[Case]) {
    println!("\nGoals:");
    for case in cases {
        for (peer, account) in &case.accounts {
            let below = account.sum(|vm| vm.below_minimum_kib_s);
            if below > 0 {
                let Case { name, vms, percent, .. } = case;
                println!(
                    "- {name}, {vms} VMs, {percent} %, {}: {below} KiB·s below minimum: MISSED",
                    peer.name
                );
            }
        }
    }
    for case in cases.iter().filter(|case| case.name == "mix") {
        mix(case);
    }
    for case in cases.iter().filter(|case| case.vms == 8) {
        own_minimum(case);
    }
}

fn unmet(account: &Account) -> f64 {
    gib_s(account.sum(|vm| vm.unmet_kib_s))
}

fn changes(account: &Account) -> u64 {
    account.sum(|vm| vm.changes)
}

/// `oracle` is what the oracle reaches, which nobody who does not know the next second can.
fn goal(case: &Case, what: &str, is: f64, most: f64, oracle: Option<f64>) {
    let verdict = match oracle {
        _ if is <= most => "met".to_owned(),
        Some(oracle) if oracle > most => format!("MISSED, as by the oracle: {oracle:.1}"),
        _ => "MISSED".to_owned(),
    };
    let Case { name, vms, percent, .. } = case;
    println!("- {name}, {vms} VMs, {percent} %: {what}: {is:.1}, at most {most:.1}: {verdict}");
}

fn mix(case: &Case) {
    let of = |test: &dyn Fn(&Peer) -> bool| case.accounts.iter().find(|(peer, _)| test(peer));
    let Some((_, ours)) = of(&|peer| peer.kind == Kind::Ours) else { return };
    let oracle = of(&|peer| peer.kind == Kind::Oracle).map(|(_, oracle)| unmet(oracle));
    if let Some((_, proxmox)) = of(&|peer| peer.name == "Proxmox") {
        let most = unmet(proxmox) / 10.0;
        goal(case, "unmet, GiB·s, to a tenth of Proxmox's", unmet(ours), most, oracle);
    }
    if let Some(oracle) = oracle {
        goal(case, "unmet, GiB·s, to 1.25 x the oracle's", unmet(ours), oracle * 1.25, None);
    }
    let others = case.accounts.iter().filter(|(peer, _)| peer.kind == Kind::Other);
    if let Some((peer, best)) =
        others.min_by(|(_, one), (_, two)| unmet(one).total_cmp(&unmet(two)))
    {
        let what = format!("unmet, GiB·s, to a third of {}'s, the best peer's", peer.name);
        goal(case, &what, unmet(ours), unmet(best) / 3.0, oracle);
        let (is, most) = (changes(ours) as f64, changes(best) as f64);
        goal(case, &format!("changes, to those of {}", peer.name), is, most, None);
    }
}

/// For each VM: if the static split is its minimum, it is not worse off than with the split.
fn own_minimum(case: &Case) {
    let Some(split) = ALL.iter().find(|peer| peer.kind == Kind::Split) else { return };
    let apart = apart(&case.scenario);
    let with_split = balance_sim::run(&apart, (split.begin)(&apart).as_mut());
    let mut worst = (0u64, 0u64);
    for (place, fixed) in with_split.vms.iter().enumerate() {
        let mut own = apart.clone();
        let Some(group) = own.groups.get_mut(place) else { continue };
        let form = group.settings.form();
        let startup_kib = form.startup_kib.max(fixed.size_kib);
        let form = SettingsForm { minimum_kib: fixed.size_kib, startup_kib, ..form };
        let Ok(settings) = VmSettings::new(form) else { continue };
        group.settings = settings;
        let account = balance_sim::run(&own, &mut Balanced::default());
        let ours = account.vms.get(place).map_or(u64::MAX, |vm| vm.unmet_kib_s);
        if ours.saturating_sub(fixed.unmet_kib_s) >= worst.0.saturating_sub(worst.1) {
            worst = (ours, fixed.unmet_kib_s);
        }
    }
    goal(
        case,
        "unmet of a VM, GiB·s, whose minimum is its static split, to that with the split",
        gib_s(worst.0),
        gib_s(worst.1),
        None,
    );
}

/// The same with a group for each VM.
fn apart(scenario: &Scenario) -> Scenario {
    let mut apart = scenario.clone();
    let groups = scenario.groups.iter();
    apart.groups = groups
        .flat_map(|group| {
            (0..group.count).map(|n| {
                let mut one = group.clone();
                one.count = 1;
                one.starts_after += group.starts_within * n / group.count;
                one.starts_within = 0;
                one
            })
        })
        .collect();
    apart
}
