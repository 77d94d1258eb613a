//! Runs with one kind of guest each, so that no vice hides another.

use hv_balloon::FaultCounts;
use sim::Vice;

use crate::make;

/// The first seed for each kind of guest, apart from the seeds of the 100,000 runs.
const FIRST: u64 = 1 << 32;
const RUNS: u64 = 250;

#[test]
fn honest_guests_get_what_they_should() {
    let tally = make(FIRST, 4 * RUNS, Some(&[]));
    assert!(tally.count("notice", "target reached") > RUNS);
    for fault in ["duplicate-pages", "foreign-pages", "bad-ranges", "excess-pages", "malformed"] {
        assert!(FaultCounts::default().iter().any(|(name, _)| name == fault), "no fault {fault}");
        assert_eq!(tally.count("fault", fault), 0, "{fault}");
    }
}

#[test]
fn no_vice_breaks_anything() {
    for vice in Vice::ALL {
        let tally = make(FIRST, RUNS, Some(&[vice]));
        assert_eq!(tally.count("vice", vice.name()), RUNS);
    }
}

/// Each of these runs ends only when the operator has been told of the timeout, and of the outcome
/// of two more targets.
#[test]
fn guests_that_never_answer_let_the_operator_go_on() {
    for vice in [Vice::NeverAnswers, Vice::NeverReads, Vice::Dribbles] {
        let tally = make(FIRST, RUNS, Some(&[vice]));
        for what in ["balloon", "hot-add"] {
            assert!(tally.count("timeout", what) > 0, "{} {what}", vice.name());
        }
        let stops = tally.count("stop", "timeout");
        assert!(stops > RUNS / 4, "{}: {stops}", vice.name());
    }
}
