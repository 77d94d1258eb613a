//! The order of the lines.

use std::cmp::{Ordering, Reverse};

use balance_host::VmStatus;

/// What lines are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// The name, from A.
    #[default]
    Name,
    /// The status, the worst first.
    Status,
    /// The pressure, the highest first.
    Pressure,
    /// What it has, the most first.
    Assigned,
    /// What it needs, the most first.
    Demand,
    /// What its process takes from the host, the most first.
    Resident,
    /// The age of its data, the oldest first.
    Age,
}

impl Sort {
    /// All, in the order in which a key goes through them.
    pub const ALL: [Self; 7] = [
        Self::Name,
        Self::Status,
        Self::Pressure,
        Self::Assigned,
        Self::Demand,
        Self::Resident,
        Self::Age,
    ];

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Status => "status",
            Self::Pressure => "pressure",
            Self::Assigned => "assigned",
            Self::Demand => "demand",
            Self::Resident => "rss",
            Self::Age => "age",
        }
    }

    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        let after = Self::ALL.into_iter().skip_while(|sort| *sort != self).nth(1);
        after.unwrap_or_default()
    }

    pub(crate) fn compare(self, one: &VmStatus, other: &VmStatus) -> Ordering {
        // What is not known comes last.
        let most = |figure: fn(&VmStatus) -> Option<u64>| {
            Reverse(figure(one)).cmp(&Reverse(figure(other)))
        };
        let order = match self {
            Self::Name => Ordering::Equal,
            Self::Status => most(|vm| Some(severity(vm))),
            Self::Pressure => most(|vm| vm.pressure_permille),
            Self::Assigned => most(|vm| vm.assigned_kib),
            Self::Demand => most(|vm| vm.demand_kib),
            Self::Resident => most(|vm| vm.resident_kib),
            Self::Age => most(age_ms),
        };
        order.then_with(|| one.name.cmp(&other.name))
    }
}

/// How urgently somebody should look at a VM.
fn severity(vm: &VmStatus) -> u64 {
    match vm.status.as_deref() {
        _ if vm.stale => 4,
        Some("Warning") => 3,
        Some("Low") => 2,
        Some("OK") => 0,
        _ => 1,
    }
}

/// The age of what is shown of a VM: without a report, its size is all that has an age.
pub(crate) fn age_ms(vm: &VmStatus) -> Option<u64> {
    vm.report_age_ms.or(vm.age_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_through_all_orders() {
        let mut sort = Sort::Name;
        for expected in Sort::ALL.into_iter().skip(1).chain([Sort::Name]) {
            sort = sort.next();
            assert_eq!(sort, expected);
        }
    }

    #[test]
    fn the_worst_the_largest_and_the_oldest_come_first_and_the_unknown_last() {
        let vm = |name: &str, figure: Option<u64>, status: &str, stale| VmStatus {
            name: name.to_owned(),
            assigned_kib: figure,
            age_ms: figure,
            status: Some(status.to_owned()),
            stale,
            ..VmStatus::default()
        };
        let vms = [
            vm("a", None, "OK", false),
            vm("b", Some(1), "Warning", false),
            vm("c", Some(3), "Low", false),
            vm("d", Some(1), "OK", true),
        ];
        let names = |sort: Sort| {
            let mut vms: Vec<&VmStatus> = vms.iter().rev().collect();
            vms.sort_by(|one, other| sort.compare(one, other));
            vms.into_iter().map(|vm| vm.name.as_str()).collect::<String>()
        };
        assert_eq!(names(Sort::Name), "abcd");
        assert_eq!(names(Sort::Status), "dbca");
        assert_eq!(names(Sort::Assigned), "cbda");
        assert_eq!(names(Sort::Age), "cbda");
        assert_eq!(names(Sort::Demand), "abcd");
    }
}
