//! Replays one run and prints its trace.

use sim::{SEED, VICES, Vice};

use crate::number;

/// `HV_BALLOON_SEED=N` names the run; without it there is nothing to do.
#[test]
fn replay() {
    let Some(seed) = number(SEED) else { return };
    let vices = std::env::var(VICES).ok().map(|names| vices(&names));
    match sim::replay(seed, vices.as_deref()) {
        Ok((_, trace)) => println!("{}\nseed {seed}: all held", trace.join("\n")),
        Err(failure) => {
            failure.trace.iter().for_each(|line| println!("{line}"));
            panic!("seed {seed}: {}", failure.what);
        }
    }
}

fn vices(names: &str) -> Vec<Vice> {
    let of = |name: &str| Vice::ALL.into_iter().find(|vice| vice.name() == name);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| of(name).unwrap_or_else(|| panic!("{VICES}: no vice {name}"))).collect()
}

#[test]
fn a_seed_is_a_run() {
    for seed in [1, 7, 1834, u64::MAX] {
        let (_, first) = sim::replay(seed, None).unwrap();
        let (_, second) = sim::replay(seed, None).unwrap();
        assert!(first.len() > 20);
        assert_eq!(first, second);
    }
}

#[test]
fn seeds_are_different_runs() {
    let (_, first) = sim::replay(1, None).unwrap();
    let (_, second) = sim::replay(2, None).unwrap();
    assert_ne!(first, second);
}
