//! Settings: of one VM, in the terms of Hyper-V, and of the policy as a whole.

use crate::size::Size;

/// More than any machine has: 4 PiB. A larger figure in a sample is an error, not a size.
pub const MAX_KIB: u64 = 1 << 42;

/// Settings of a VM as somebody wrote them. [`VmSettings::new`] checks them.
///
/// Ranges and defaults are those of Hyper-V's Dynamic Memory (`Set-VMMemory`,
/// `Msvm_MemorySettingData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingsForm {
    /// What the VM boots with, and keeps until it is known what it needs.
    pub startup_kib: u64,
    /// It never gets less; at most `startup_kib`.
    pub minimum_kib: u64,
    /// It never gets more; at least `startup_kib`.
    pub maximum_kib: u64,
    /// Memory to have ready on top of the demand, as a percentage of the demand: 5 to 2000.
    pub buffer_percent: u32,
    /// How much the VM counts where there is not enough for all: 1 to 10,000.
    pub weight: u32,
}

impl Default for SettingsForm {
    /// 1 GiB to boot, 512 MiB to 1 TiB, 20 % buffer, weight 5000.
    fn default() -> Self {
        Self {
            startup_kib: 1 << 20,
            minimum_kib: 1 << 19,
            maximum_kib: 1 << 30,
            buffer_percent: 20,
            weight: 5000,
        }
    }
}

/// Settings that contradict each other or are out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A VM cannot run with nothing.
    #[error("the minimum is 0: a VM needs some memory")]
    NoMinimum,
    /// It would boot below its minimum.
    #[error("the minimum of {} is above the startup memory of {}", Size(*.minimum_kib), Size(*.startup_kib))]
    MinimumAboveStartup {
        /// The minimum.
        minimum_kib: u64,
        /// The startup memory.
        startup_kib: u64,
    },
    /// It would boot above its maximum.
    #[error("the startup memory of {} is above the maximum of {}", Size(*.startup_kib), Size(*.maximum_kib))]
    StartupAboveMaximum {
        /// The startup memory.
        startup_kib: u64,
        /// The maximum.
        maximum_kib: u64,
    },
    /// The maximum exceeds [`MAX_KIB`].
    #[error("the maximum of {} is above {}, the most that is supported", Size(*.maximum_kib), Size(MAX_KIB))]
    TooLarge {
        /// The maximum.
        maximum_kib: u64,
    },
    /// The buffer is out of range.
    #[error("a buffer of {buffer_percent} % is not between 5 and 2000 %")]
    Buffer {
        /// The buffer.
        buffer_percent: u32,
    },
    /// The weight is out of range.
    #[error("a weight of {weight} is not between 1 and 10000")]
    Weight {
        /// The weight.
        weight: u32,
    },
}

/// Checked settings of a VM. They may change from one decision to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSettings(SettingsForm);

impl VmSettings {
    /// Checks settings.
    ///
    /// # Errors
    ///
    /// Returns the first contradiction or figure out of range.
    pub fn new(form: SettingsForm) -> Result<Self, SettingsError> {
        let SettingsForm { startup_kib, minimum_kib, maximum_kib, buffer_percent, weight } = form;
        if minimum_kib == 0 {
            return Err(SettingsError::NoMinimum);
        }
        if minimum_kib > startup_kib {
            return Err(SettingsError::MinimumAboveStartup { minimum_kib, startup_kib });
        }
        if startup_kib > maximum_kib {
            return Err(SettingsError::StartupAboveMaximum { startup_kib, maximum_kib });
        }
        if maximum_kib > MAX_KIB {
            return Err(SettingsError::TooLarge { maximum_kib });
        }
        if !(5..=2000).contains(&buffer_percent) {
            return Err(SettingsError::Buffer { buffer_percent });
        }
        if !(1..=10_000).contains(&weight) {
            return Err(SettingsError::Weight { weight });
        }
        Ok(Self(form))
    }

    /// The settings as they were written.
    #[must_use]
    pub const fn form(&self) -> SettingsForm {
        self.0
    }

    /// `kib`, held between minimum and maximum.
    pub(crate) fn clamp(&self, kib: u64) -> u64 {
        kib.clamp(self.0.minimum_kib, self.0.maximum_kib)
    }

    /// The demand with the buffer on top.
    pub(crate) fn with_buffer(&self, demand_kib: u64) -> u64 {
        let buffer = demand_kib.saturating_mul(self.0.buffer_percent.into()) / 100;
        demand_kib.saturating_add(buffer)
    }
}

/// Figures of the policy that hold for all VMs. The default is meant to be right for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// Memory left to the host itself, or `None` for a twentieth of it, at least 512 MiB and at
    /// most a quarter of it. (Hosts under load need a share of their size for page tables and
    /// caches, and small ones a fixed part.)
    pub host_reserve_kib: Option<u64>,
    /// Data older than this is no ground for a change. Guests report each second; ten seconds allow
    /// for a guest that is busy, and for statistics polled every five.
    pub stale_after_ms: u64,
    /// A surplus must last this long before it is taken, so that a short lull costs nothing.
    pub surplus_lasts_ms: u64,
    /// Time between two steps of a shrink. Each takes half of the surplus, which gives the
    /// guest's reports time to show what the last step did.
    pub shrink_period_ms: u64,
    /// A VM that does not move towards its target for this long is stuck.
    pub stuck_after_ms: u64,
    /// A VM that could not grow gets another try after this time, which doubles up to 16 times.
    pub retry_after_ms: u64,
    /// A guest that was short and has had what it needed for so long is taken to have had a peak.
    pub remember_paging_ms: u64,
    /// What the process of a VM needs besides guest memory, where its cgroup has a limit.
    pub vm_overhead_kib: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            host_reserve_kib: None,
            stale_after_ms: 10_000,
            surplus_lasts_ms: 30_000,
            shrink_period_ms: 10_000,
            stuck_after_ms: 20_000,
            retry_after_ms: 60_000,
            remember_paging_ms: 600_000,
            vm_overhead_kib: 64 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn contradictions_are_named() {
        let error = |change: fn(&mut SettingsForm)| {
            let mut form = SettingsForm::default();
            change(&mut form);
            VmSettings::new(form).unwrap_err().to_string()
        };
        assert_eq!(
            error(|f| f.minimum_kib = 2 << 20),
            "the minimum of 2.0 GiB is above the startup memory of 1.0 GiB"
        );
        assert_eq!(
            error(|f| f.maximum_kib = 1 << 19),
            "the startup memory of 1.0 GiB is above the maximum of 512.0 MiB"
        );
        assert_eq!(error(|f| f.buffer_percent = 4), "a buffer of 4 % is not between 5 and 2000 %");
        assert_eq!(error(|f| f.weight = 0), "a weight of 0 is not between 1 and 10000");
        assert_eq!(error(|f| f.minimum_kib = 0), "the minimum is 0: a VM needs some memory");
        assert!(error(|f| f.maximum_kib = MAX_KIB + 1).starts_with("the maximum of"));
        assert!(VmSettings::new(SettingsForm::default()).is_ok());
    }
}
