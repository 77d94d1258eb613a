//! What the operator wants: settings in layers, of which the upper ones win.

use std::collections::BTreeMap;

use balancer::{MAX_KIB, Policy, SettingsError, SettingsForm, VmSettings};
use serde::{Deserialize, Serialize};

use crate::reading::Facts;

/// The settings of a VM, as far as somebody gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Wish {
    /// What the VM boots with, and keeps until it is known what it needs. By default what the monitor
    /// says.
    #[serde(default)]
    pub startup_kib: Option<u64>,
    /// It never gets less. By default 512 MiB, or what it boots with if that is less.
    #[serde(default)]
    pub minimum_kib: Option<u64>,
    /// It never gets more. By default what the monitor says.
    #[serde(default)]
    pub maximum_kib: Option<u64>,
    /// Memory to have ready beyond the demand, in percent of it.
    #[serde(default)]
    pub buffer_percent: Option<u32>,
    /// How much the VM counts where memory is short.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Whether to leave it as it is.
    #[serde(default)]
    pub hold: Option<bool>,
}

/// Settings that contradict each other or are out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// The VM's own settings contradict each other.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no size between the two.
    #[error(
        "the minimum of {} is above the maximum of {}: lower the one or raise the other",
        mib(*.minimum_kib), mib(*.maximum_kib)
    )]
    MinimumAboveMaximum {
        /// The minimum.
        minimum_kib: u64,
        /// The maximum.
        maximum_kib: u64,
    },
}

fn mib(kib: u64) -> String {
    if kib.is_multiple_of(1024) { format!("{} MiB", kib / 1024) } else { format!("{kib} KiB") }
}

impl Wish {
    /// These settings, and those of `below` where they say nothing.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            startup_kib: self.startup_kib.or(below.startup_kib),
            minimum_kib: self.minimum_kib.or(below.minimum_kib),
            maximum_kib: self.maximum_kib.or(below.maximum_kib),
            buffer_percent: self.buffer_percent.or(below.buffer_percent),
            weight: self.weight.or(below.weight),
            hold: self.hold.or(below.hold),
        }
    }

    /// Checks what can be checked without the VM.
    ///
    /// # Errors
    /// The first contradiction or figure out of range.
    pub fn check(&self) -> Result<(), WishError> {
        if let (Some(minimum_kib), Some(maximum_kib)) = (self.minimum_kib, self.maximum_kib)
            && minimum_kib > maximum_kib
        {
            return Err(WishError::MinimumAboveMaximum { minimum_kib, maximum_kib });
        }
        // What was not said is made to fit what was.
        let defaults = SettingsForm::default();
        let startup = self.startup_kib.or(self.minimum_kib).or(self.maximum_kib);
        let startup_kib = startup.unwrap_or(defaults.startup_kib);
        VmSettings::new(SettingsForm {
            startup_kib,
            minimum_kib: self.minimum_kib.unwrap_or(startup_kib),
            maximum_kib: self.maximum_kib.unwrap_or(startup_kib.max(defaults.maximum_kib)),
            buffer_percent: self.buffer_percent.unwrap_or(defaults.buffer_percent),
            weight: self.weight.unwrap_or(defaults.weight),
        })?;
        Ok(())
    }

    /// The settings for a VM that can be what `facts` say: a size that it cannot have becomes the
    /// nearest one that it can.
    ///
    /// # Errors
    /// Buffer or weight are out of range.
    pub fn settle(&self, facts: Facts) -> Result<VmSettings, SettingsError> {
        let defaults = SettingsForm::default();
        let possible_kib = facts.maximum_kib.clamp(1, MAX_KIB);
        let boot_kib = facts.boot_kib.clamp(1, possible_kib);
        let maximum_kib = self.maximum_kib.unwrap_or(possible_kib).clamp(1, possible_kib);
        let minimum_kib = self.minimum_kib.unwrap_or(defaults.minimum_kib.min(boot_kib));
        let minimum_kib = minimum_kib.clamp(1, maximum_kib);
        VmSettings::new(SettingsForm {
            startup_kib: self.startup_kib.unwrap_or(boot_kib).clamp(minimum_kib, maximum_kib),
            minimum_kib,
            maximum_kib,
            buffer_percent: self.buffer_percent.unwrap_or(defaults.buffer_percent),
            weight: self.weight.unwrap_or(defaults.weight),
        })
    }
}

/// Everything that the operator can write into a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Where the sockets of the VMs are.
    pub patterns: Vec<String>,
    /// What holds for all VMs.
    pub policy: Policy,
    /// What VMs and the host's reserve may have together; `None` for all of the host.
    pub limit_kib: Option<u64>,
    /// The settings of VMs that have none of their own.
    pub defaults: Wish,
    /// The settings of single VMs.
    pub vms: BTreeMap<String, Wish>,
}

impl Configuration {
    /// The settings of the VM of this name.
    #[must_use]
    pub fn wish(&self, name: &str) -> Wish {
        self.vms.get(name).copied().unwrap_or_default().over(self.defaults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 20;

    fn wish(minimum: Option<u64>, maximum: Option<u64>) -> Wish {
        Wish { minimum_kib: minimum, maximum_kib: maximum, ..Wish::default() }
    }

    #[test]
    fn upper_layers_win_where_they_say_something() {
        let file = Wish { weight: Some(7), hold: Some(true), ..wish(Some(1), None) };
        let live = Wish { hold: Some(false), ..wish(Some(2), Some(3)) };
        let both = live.over(file);
        assert_eq!(both, Wish { weight: Some(7), hold: Some(false), ..wish(Some(2), Some(3)) });
    }

    #[test]
    fn contradictions_are_found_with_what_is_known() {
        assert_eq!(Wish::default().check(), Ok(()));
        assert_eq!(wish(Some(4 * GIB), None).check(), Ok(()));
        assert_eq!(wish(None, Some(GIB / 4)).check(), Ok(()));
        assert_eq!(
            wish(Some(4 * GIB), Some(2 * GIB)).check().unwrap_err().to_string(),
            "the minimum of 4096 MiB is above the maximum of 2048 MiB: lower the one or raise the other"
        );
        let startup = Wish { startup_kib: Some(GIB), ..wish(Some(2 * GIB), None) };
        assert!(startup.check().unwrap_err().to_string().contains("above the startup memory"));
        let weight = Wish { weight: Some(0), ..Wish::default() };
        assert!(weight.check().unwrap_err().to_string().contains("a weight of 0"));
        assert!(wish(Some(0), None).check().unwrap_err().to_string().contains("minimum is 0"));
    }

    #[test]
    fn what_a_vm_cannot_be_becomes_the_nearest_that_it_can() {
        let facts = Facts { boot_kib: 2 * GIB, maximum_kib: 8 * GIB };
        let settle = |wish: Wish| {
            let form = wish.settle(facts).unwrap().form();
            (form.minimum_kib, form.startup_kib, form.maximum_kib)
        };
        assert_eq!(settle(Wish::default()), (GIB / 2, 2 * GIB, 8 * GIB));
        assert_eq!(settle(wish(Some(4 * GIB), None)), (4 * GIB, 4 * GIB, 8 * GIB));
        assert_eq!(settle(wish(Some(16 * GIB), Some(32 * GIB))), (8 * GIB, 8 * GIB, 8 * GIB));
        assert_eq!(settle(wish(None, Some(GIB))), (GIB / 2, GIB, GIB));
        let small = Facts { boot_kib: 1, maximum_kib: 0 };
        assert!(Wish::default().settle(small).is_ok());
        let liar = Facts { boot_kib: u64::MAX, maximum_kib: u64::MAX };
        assert_eq!(Wish::default().settle(liar).unwrap().form().maximum_kib, MAX_KIB);
    }
}
