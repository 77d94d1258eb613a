//! The results as tables.

use balance_sim::Account;

use crate::Case;

/// KiB in a GiB.
const GIB: f64 = (1 << 20) as f64;

pub(crate) fn print(cases: &[Case], kinds: bool) {
    println!(
        "| scenario | VMs | memory, % | policy | unmet, GiB·s | wait p50, s | wait p99, s | short, s \
         a VM | the worst VM | surplus, GiB a VM | use of cache, % | changes, a VM and hour | host \
         swapped, GiB·s | below minimum |"
    );
    println!("|---|---:|---:|---|{}", "---:|".repeat(10));
    for case in cases {
        for (peer, account) in &case.accounts {
            let line = |name: &str, account: &Account| {
                let Case { vms, percent, .. } = case;
                println!("| {name} | {vms} | {percent} | {} | {} |", peer.name, row(account));
            };
            line(case.name, account);
            for group in case.scenario.groups.iter().filter(|_| kinds) {
                line(&format!("{}: {}", case.name, group.name), &account.of_group(&group.name));
            }
        }
    }
}

/// KiB times seconds as GiB times seconds.
pub(crate) fn gib_s(kib_s: u64) -> f64 {
    kib_s as f64 / GIB
}

fn row(account: &Account) -> String {
    let seconds = account.sum(|vm| vm.seconds).max(1) as f64;
    let vms = account.vms.len().max(1) as f64;
    let wait = |percent| account.wait_ms(percent).unwrap_or(0) as f64 / 1e3;
    let short = account.sum(|vm| vm.short_s) as f64 / vms;
    let worst = account.vms.iter().map(|vm| vm.short_s).max().unwrap_or(0);
    let cache = account
        .cache_use_permille()
        .map_or("–".to_owned(), |permille| format!("{:.0}", permille as f64 / 10.0));
    format!(
        "{:.1} | {:.1} | {:.1} | {short:.1} | {worst} | {:.2} | {cache} | {:.1} | {:.1} | {}",
        gib_s(account.sum(|vm| vm.unmet_kib_s)),
        wait(50),
        wait(99),
        account.sum(|vm| vm.surplus_kib_s) as f64 / GIB / seconds,
        account.sum(|vm| vm.changes) as f64 * 3600.0 / seconds,
        gib_s(account.host_swapped_kib_s),
        account.sum(|vm| vm.below_minimum_kib_s),
    )
}
