//! The 100,000 runs.

use std::time::Instant;

use hv_balloon::{FaultCounts, StateName};
use sim::{Tally, Vice};

use crate::{make, number};

/// How many runs there are.
const RUNS: u64 = 100_000;

/// What the runs must have come across, by kind and name.
const SEEN: &[(&str, &[&str])] = &[
    ("notice", &["discard failed", "hot-added changed", "size changed", "target reached"]),
    ("timeout", &["balloon", "unballoon", "hot-add"]),
    (
        "stop",
        &[
            "guest-floor",
            "nothing-usable",
            "no-balloon-capability",
            "timeout",
            "discard-failed",
            "held-by-huge-pages",
            "no-hot-add-capability",
            "hot-add-refused",
            "hot-add-failed",
            "hot-add-timeout",
            "not-onlined",
            "no-address-space",
            "unconfirmed",
            "host-memory",
            "reset",
        ],
    ),
    (
        "bus fault",
        &[
            "unknown messages",
            "malformed messages",
            "out of state",
            "unknown channels",
            "contacts refused",
            "gpadls refused",
            "unknown gpadls",
            "opens refused",
            "changes refused",
            "queue full",
        ],
    ),
    ("ring error", &["write index", "read index", "packet length", "payload offset", "too long"]),
    ("event", &["reset", "unload", "kexec", "crash", "another VMM", "inhibited", "ring full"]),
];

/// `HV_BALLOON_RUNS=N` makes another number of runs, `HV_BALLOON_FIRST=N` begins with another seed.
#[test]
fn all_holds_in_every_run() {
    let runs = number("HV_BALLOON_RUNS").unwrap_or(RUNS);
    let first = number("HV_BALLOON_FIRST").unwrap_or(0);
    let start = Instant::now();
    let tally = make(first, runs, None);
    println!("{tally}{runs} runs in {:.1} s", start.elapsed().as_secs_f64());
    if runs >= RUNS {
        gets_about(&tally);
    }
}

/// Checks that the runs got everywhere: a simulation that gets nowhere finds nothing.
fn gets_about(tally: &Tally) {
    for state in StateName::ALL {
        assert!(tally.states(state) > 0, "never {state}");
    }
    for vice in Vice::ALL {
        assert!(tally.count("vice", vice.name()) > 0, "no guest {}", vice.name());
    }
    for (name, _) in FaultCounts::default().iter() {
        assert!(tally.count("fault", name) > 0, "no guest was at fault: {name}");
    }
    for (kind, names) in SEEN {
        for name in *names {
            assert!(tally.count(kind, name) > 0, "{kind}: never {name}");
        }
    }
}
