//! Why a VM gets what it gets, in sentences for its operator.

use core::fmt;

use crate::size::Size;

/// What the demand was judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// The guest's report.
    Report {
        /// In use: what the guest has and does not call available.
        used_kib: u64,
        /// The part that counts of what is committed beyond that.
        promised_kib: u64,
    },
    /// The guest's reports, which show that it uses more and more.
    Rising {
        /// In use.
        used_kib: u64,
        /// By how much that rises in a second.
        rises_kib: u64,
    },
    /// The guest's report, which shows that it is short.
    Short {
        /// In use.
        used_kib: u64,
        /// What it needs.
        demand_kib: u64,
        /// It reads from swap or kills processes; otherwise it has almost nothing available.
        pages: bool,
    },
    /// The guest was short before.
    Remembered {
        /// In use.
        used_kib: u64,
        /// What it needed then.
        was_short_kib: u64,
    },
    /// The guest reports nothing; the host's figures.
    HostOnly {
        /// Resident and swapped out.
        held_kib: u64,
        /// It counts as needing this at least.
        startup_kib: u64,
    },
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Report { used_kib, promised_kib: 0 } => {
                write!(f, "The guest uses {}.", Size(used_kib))
            }
            Self::Report { used_kib, promised_kib } => write!(
                f,
                "The guest uses {}; of what it has promised to programs beyond that, {} count.",
                Size(used_kib),
                Size(promised_kib)
            ),
            Self::Rising { used_kib, rises_kib } => write!(
                f,
                "The guest uses {}, and {} more each second, of which the next counts.",
                Size(used_kib),
                Size(rises_kib)
            ),
            Self::Short { used_kib, demand_kib, pages } => {
                let sign = if pages { "is paging" } else { "has almost nothing available" };
                write!(
                    f,
                    "The guest uses {} and {sign}, so it counts as needing {}.",
                    Size(used_kib),
                    Size(demand_kib)
                )
            }
            Self::Remembered { used_kib, was_short_kib } => write!(
                f,
                "The guest uses {}, but was short of memory before and needed {}.",
                Size(used_kib),
                Size(was_short_kib)
            ),
            Self::HostOnly { held_kib, startup_kib } => write!(
                f,
                "The guest reports nothing, so only the host's figures count: it holds {} for the \
                 VM, which gets at least its startup memory of {}.",
                Size(held_kib),
                Size(startup_kib)
            ),
        }
    }
}

/// Why a VM is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldCause {
    /// The operator said so.
    Operator,
    /// The host's figures are too old or impossible.
    Host,
    /// The VM's size is too old.
    OldSize {
        /// Its age.
        age_ms: u64,
    },
    /// The VM's size is 0 or larger than any machine.
    ImpossibleSize {
        /// The size.
        actual_kib: u64,
    },
    /// The guest can report and has not yet.
    NoReportYet,
    /// The guest's report is too old.
    OldReport {
        /// Its age.
        age_ms: u64,
    },
    /// The guest reports more than it has, or all of it, as available.
    ImpossibleReport {
        /// Reported as available.
        available_kib: u64,
        /// The size at that time.
        actual_kib: u64,
    },
    /// The figures of the process are too old, and there is nothing else.
    OldProcess {
        /// Their age.
        age_ms: u64,
    },
    /// Neither guest nor host tell anything.
    NothingKnown,
}

impl fmt::Display for HoldCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let old = |f: &mut fmt::Formatter<'_>, figure: &str, age_ms: u64| {
            write!(f, "{figure} {} seconds old", age_ms / 1000)
        };
        match *self {
            Self::Operator => f.write_str("the operator holds it"),
            Self::Host => f.write_str("the host's figures are missing, too old or impossible"),
            Self::OldSize { age_ms } => old(f, "the last known size is", age_ms),
            Self::ImpossibleSize { actual_kib } => {
                write!(f, "its size is given as {}", Size(actual_kib))
            }
            Self::NoReportYet => f.write_str("its guest has not reported yet"),
            Self::OldReport { age_ms } => old(f, "the guest's last report is", age_ms),
            Self::ImpossibleReport { available_kib, actual_kib } => write!(
                f,
                "the guest reports {} of {} as available, which cannot be",
                Size(available_kib),
                Size(actual_kib)
            ),
            Self::OldProcess { age_ms } => old(f, "the host's figures of it are", age_ms),
            Self::NothingKnown => f.write_str("nothing is known of what it uses"),
        }
    }
}

/// What kept a VM from getting what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Its minimum.
    Minimum {
        /// The minimum.
        kib: u64,
    },
    /// Its maximum.
    Maximum {
        /// The maximum.
        kib: u64,
    },
    /// The limit of its cgroup, less what its process needs.
    Cgroup {
        /// What is left for the guest.
        kib: u64,
    },
    /// Its process waits for the host's memory: with more, the guest would be slower.
    Stalls {
        /// The share of time.
        psi_some_permille: u32,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Minimum { kib } => write!(f, "Its minimum is {}.", Size(kib)),
            Self::Maximum { kib } => write!(f, "Its maximum is {}.", Size(kib)),
            Self::Cgroup { kib } => write!(f, "The limit of its cgroup leaves it {}.", Size(kib)),
            Self::Stalls { psi_some_permille } => write!(
                f,
                "Its process waits for host memory {} % of the time, so it does not grow.",
                psi_some_permille / 10
            ),
        }
    }
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Its size is as good as what it wants.
    Right,
    /// It gets demand and buffer at once.
    Grow,
    /// It gets what is free now, and the rest when others have given it.
    GrowAsFreed {
        /// The rest.
        missing_kib: u64,
    },
    /// It has a surplus that has not lasted long enough.
    SurplusMayPass {
        /// It is taken after this time.
        ms: u64,
    },
    /// It gives its surplus step by step.
    GiveSlowly {
        /// What it has to give in all.
        surplus_kib: u64,
    },
    /// Memory is short, so its surplus goes at once.
    GiveAtOnce {
        /// What it had beyond demand and buffer.
        surplus_kib: u64,
    },
    /// It gets its demand and a share of what there is for buffers.
    ShareOfBuffers {
        /// What is missing of its buffer.
        missing_kib: u64,
    },
    /// The demands of all do not fit: it gets its share by weight.
    ShareOfNeeds {
        /// What is missing of its demand.
        missing_kib: u64,
    },
    /// It has more than it may have.
    DownToLimit,
    /// It should grow and does not.
    CannotGrow {
        /// For how long.
        for_ms: u64,
    },
    /// It should shrink and does not.
    DoesNotGive {
        /// For how long.
        for_ms: u64,
    },
    /// It is left as it is.
    Hold(HoldCause),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Right => f.write_str("It has what it wants."),
            Self::Grow => f.write_str("It gets what it needs and its buffer at once."),
            Self::GrowAsFreed { missing_kib } => write!(
                f,
                "It gets what is free now, and {} more as soon as other VMs have given it.",
                Size(missing_kib)
            ),
            Self::SurplusMayPass { ms } => write!(
                f,
                "It has more than it wants; if that lasts for another {} seconds, it gives some.",
                ms.div_ceil(1000)
            ),
            Self::GiveSlowly { surplus_kib } => write!(
                f,
                "It has {} more than it wants and gives it step by step.",
                Size(surplus_kib)
            ),
            Self::GiveAtOnce { surplus_kib } => write!(
                f,
                "It has {} more than it wants, and memory is short: it gives at once.",
                Size(surplus_kib)
            ),
            Self::ShareOfBuffers { missing_kib } => write!(
                f,
                "There is not enough for all buffers: {} of its buffer are missing.",
                Size(missing_kib)
            ),
            Self::ShareOfNeeds { missing_kib } => write!(
                f,
                "There is not enough for what all VMs need: it gets its share by weight, and {} \
                 are missing.",
                Size(missing_kib)
            ),
            Self::DownToLimit => f.write_str("It has more than it may have and gives the rest."),
            Self::CannotGrow { for_ms } => write!(
                f,
                "It is stuck: it was told to grow and has not for {} seconds. Its share goes to \
                 others until it is asked again.",
                for_ms / 1000
            ),
            Self::DoesNotGive { for_ms } => write!(
                f,
                "It is stuck: it was told to give memory and has given none for {} seconds. It \
                 gets nothing from others meanwhile.",
                for_ms / 1000
            ),
            Self::Hold(cause) => write!(f, "It stays as it is: {cause}."),
        }
    }
}

/// The whole explanation of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What the demand was judged by, where it was.
    pub basis: Option<Basis>,
    /// The rule that decided.
    pub rule: Rule,
    /// The limit that it met.
    pub limit: Option<Limit>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(basis) = &self.basis {
            write!(f, "{basis} ")?;
        }
        self.rule.fmt(f)?;
        match &self.limit {
            Some(limit) => write!(f, " {limit}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_reason_reads_as_sentences() {
        let reason = Reason {
            basis: Some(Basis::Report { used_kib: 2 << 20, promised_kib: 1 << 19 }),
            rule: Rule::Grow,
            limit: Some(Limit::Maximum { kib: 3 << 20 }),
        };
        assert_eq!(
            reason.to_string(),
            "The guest uses 2.0 GiB; of what it has promised to programs beyond that, 512.0 MiB \
             count. It gets what it needs and its buffer at once. Its maximum is 3.0 GiB."
        );
        let rule = Rule::Hold(HoldCause::OldReport { age_ms: 12_300 });
        assert_eq!(
            Reason { basis: None, rule, limit: None }.to_string(),
            "It stays as it is: the guest's last report is 12 seconds old."
        );
    }
}
