//! What a scenario says, as it is written and checked.
//!
//! The format is described in `docs/policies.md`. The forms here can be read from TOML or any other
//! format of serde that tells where in the text a table is.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use balancer::{SettingsForm, VmSettings};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde_spanned::Spanned;

/// The most that a figure of memory may be, in MiB: 1 TiB.
const MOST_MIB: u64 = 1 << 20;
/// The longest time, in seconds: a week.
const MOST_SECONDS: u64 = 7 * 24 * 60 * 60;
/// The most VMs of a scenario.
const MOST_VMS: u64 = 4096;

/// A whole number from `LEAST` to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Within<const LEAST: u64, const MOST: u64>(u64);

type Mib = Within<0, MOST_MIB>;
type SomeMib = Within<1, MOST_MIB>;
type Seconds = Within<0, MOST_SECONDS>;
type SomeSeconds = Within<1, MOST_SECONDS>;

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Within<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<const LEAST: u64, const MOST: u64>;

        impl<const LEAST: u64, const MOST: u64> Visitor<'_> for Reader<LEAST, MOST> {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {LEAST} to {MOST}")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
                if (LEAST..=MOST).contains(&number) {
                    Ok(number)
                } else {
                    Err(E::invalid_value(Unexpected::Unsigned(number), &self))
                }
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
                }
            }
        }

        deserializer.deserialize_any(Reader::<LEAST, MOST>).map(Self)
    }
}

/// A scenario as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScenarioForm {
    seconds: SomeSeconds,
    #[serde(default = "seed")]
    seed: Within<0, { i64::MAX as u64 }>,
    host: Spanned<HostForm>,
    vms: Vec<Spanned<GroupForm>>,
}

fn seed() -> Within<0, { i64::MAX as u64 }> {
    Within(1)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct HostForm {
    memory_mib: Option<SomeMib>,
    memory_percent: Option<Within<1, 10_000>>,
    own_mib: Option<Mib>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GroupForm {
    name: String,
    count: Option<Within<1, MOST_VMS>>,
    minimum_mib: Option<SomeMib>,
    startup_mib: Option<SomeMib>,
    maximum_mib: SomeMib,
    buffer_percent: Option<Within<5, 2000>>,
    weight: Option<Within<1, 10_000>>,
    device: Option<Device>,
    refuses: Option<bool>,
    starts_after: Option<Seconds>,
    starts_within: Option<Seconds>,
    committed_percent: Option<Within<0, 1000>>,
    cache_mib: Option<Mib>,
    reads_mib_per_second: Option<Mib>,
    load: Vec<Spanned<LoadForm>>,
}

/// A load of any kind; so each error is found at its line, which a form for each would not allow.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LoadForm {
    kind: KindForm,
    low_mib: Option<Mib>,
    high_mib: Option<Mib>,
    period: Option<SomeSeconds>,
    spread: Option<Seconds>,
    noise_percent: Option<Within<0, 50>>,
    needs_mib: Option<[Mib; 2]>,
    lasts: Option<[Seconds; 2]>,
    pause: Option<[SomeSeconds; 2]>,
    rises_mib_per_second: Option<SomeMib>,
    first_after: Option<[Seconds; 2]>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KindForm {
    Wave,
    Bursts,
}

/// What is wrong with a scenario that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Mistake {
    /// Where in the text what is wrong begins, in bytes.
    pub at: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A scenario that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// How long it lasts.
    pub seconds: u64,
    /// What all that is random follows from.
    pub seed: u64,
    /// The host.
    pub host: Host,
    /// The VMs, by kind.
    pub groups: Vec<Group>,
}

/// The host of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its memory in KiB; `None` to take `memory_percent`.
    pub memory_kib: Option<u64>,
    /// Its memory as a percentage of the most that all guests need at the same time.
    pub memory_percent: u64,
    /// What the host needs itself, in KiB; `None` for a fiftieth of its memory.
    pub own_kib: Option<u64>,
}

/// VMs of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What they are called.
    pub name: String,
    /// How many there are.
    pub count: u64,
    /// Their settings.
    pub settings: VmSettings,
    /// What they are resized with.
    pub device: Device,
    /// Their guests give no memory back.
    pub refuses: bool,
    /// When the first starts, in seconds.
    pub starts_after: u64,
    /// Over how many seconds the starts are spread.
    pub starts_within: u64,
    /// What a guest has committed, as a percentage of its need.
    pub committed_percent: u64,
    /// How much cache is of use; each further KiB is of less, and beyond this of none.
    pub cache_kib: u64,
    /// How fast free memory fills with cache, in KiB a second.
    pub reads_kib: u64,
    /// What their guests do. The needs add up.
    pub loads: Vec<Load>,
}

/// What VMs are resized with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// Hyper-V's Dynamic Memory. The guest gives only memory that it does not use.
    #[default]
    HvBalloon,
    /// A virtio balloon: slow, and the guest gives memory that it uses.
    VirtioBalloon,
}

/// What makes a guest need memory. Sizes in KiB, times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The need rises and falls with a period. It goes on whatever the guest has.
    Wave {
        /// The least.
        low_kib: u64,
        /// The most.
        high_kib: u64,
        /// From one high to the next.
        period: u64,
        /// The waves of the VMs are shifted by up to this.
        spread: u64,
        /// By how much the need strays from the wave.
        noise_percent: u64,
    },
    /// Work that comes and goes. It slows down while the guest has less than it needs. Each pair is
    /// the least and the most, between which the figure is drawn anew each time.
    Bursts {
        /// How much the work needs.
        needs_kib: [u64; 2],
        /// How long it needs that.
        lasts: [u64; 2],
        /// How long until the next.
        pause: [u64; 2],
        /// How fast the need rises, in KiB a second.
        rises_kib: u64,
        /// When the first begins, after the start of the VM.
        first_after: [u64; 2],
    },
}

impl ScenarioForm {
    /// Checks what is written.
    ///
    /// # Errors
    ///
    /// Returns the first contradiction.
    pub fn check(self) -> Result<Scenario, Mistake> {
        let at = self.host.span().start;
        let HostForm { memory_mib, memory_percent, own_mib } = self.host.into_inner();
        if memory_mib.is_some() == memory_percent.is_some() {
            let message = "host: give either memory-mib or memory-percent".to_string();
            return Err(Mistake { at, message });
        }
        let host = Host {
            memory_kib: memory_mib.map(kib),
            memory_percent: memory_percent.map_or(100, |percent| percent.0),
            own_kib: own_mib.map(kib),
        };
        let mut groups: Vec<Group> = Vec::new();
        for form in self.vms {
            let at = form.span().start;
            let group = GroupForm::check(form)?;
            if groups.iter().any(|other| other.name == group.name) {
                let message =
                    format!("vms '{}': the name is given twice: choose another", group.name);
                return Err(Mistake { at, message });
            }
            groups.push(group);
        }
        let vms = groups.iter().fold(0u64, |sum, group| sum.saturating_add(group.count));
        if !(1..=MOST_VMS).contains(&vms) {
            let message =
                format!("{vms} VMs are not between 1 and {MOST_VMS}: change their counts");
            return Err(Mistake { at, message });
        }
        Ok(Scenario { seconds: self.seconds.0, seed: self.seed.0, host, groups })
    }
}

impl Scenario {
    /// The same with `times` as many VMs of each kind.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        for group in &mut self.groups {
            group.count = group.count.saturating_mul(times);
        }
        self
    }

    /// How many VMs there are.
    #[must_use]
    pub fn vms(&self) -> u64 {
        self.groups.iter().fold(0, |sum, group| sum.saturating_add(group.count))
    }
}

impl GroupForm {
    fn check(form: Spanned<Self>) -> Result<Group, Mistake> {
        let at = form.span().start;
        let form = form.into_inner();
        let mistake =
            |message: String| Mistake { at, message: format!("vms '{}': {message}", form.name) };
        let usual = SettingsForm::default();
        let maximum_kib = kib(form.maximum_mib);
        let startup_kib = form.startup_mib.map_or(usual.startup_kib.min(maximum_kib), kib);
        let settings = VmSettings::new(SettingsForm {
            startup_kib,
            minimum_kib: form.minimum_mib.map_or(usual.minimum_kib.min(startup_kib), kib),
            maximum_kib,
            buffer_percent: small(form.buffer_percent).unwrap_or(usual.buffer_percent),
            weight: small(form.weight).unwrap_or(usual.weight),
        });
        let settings =
            settings.map_err(|error| mistake(format!("{error}: change one of the two")))?;
        if form.load.is_empty() {
            return Err(mistake("it does nothing: give it a load".to_string()));
        }
        Ok(Group {
            count: form.count.map_or(1, |count| count.0),
            settings,
            device: form.device.unwrap_or_default(),
            refuses: form.refuses.unwrap_or(false),
            starts_after: form.starts_after.map_or(0, |seconds| seconds.0),
            starts_within: form.starts_within.map_or(0, |seconds| seconds.0),
            committed_percent: form.committed_percent.map_or(125, |percent| percent.0),
            cache_kib: form.cache_mib.map_or(0, kib),
            reads_kib: form.reads_mib_per_second.map_or(8 << 10, kib),
            loads: form
                .load
                .into_iter()
                .map(|load| LoadForm::check(load, &form.name))
                .collect::<Result<_, _>>()?,
            name: form.name,
        })
    }
}

impl LoadForm {
    fn check(form: Spanned<Self>, name: &str) -> Result<Load, Mistake> {
        let at = form.span().start;
        let form = form.into_inner();
        let load = match form.kind {
            KindForm::Wave => form.wave(),
            KindForm::Bursts => form.bursts(),
        };
        load.map_err(|what| Mistake { at, message: format!("vms '{name}': {what}") })
    }

    fn wave(self) -> Result<Load, String> {
        let Self { low_mib, high_mib, period, spread, noise_percent, .. } = self;
        let is_burst = self.needs_mib.is_some()
            || self.lasts.is_some()
            || self.pause.is_some()
            || self.rises_mib_per_second.is_some()
            || self.first_after.is_some();
        let (Some(low_mib), Some(high_mib), Some(period), false) =
            (low_mib, high_mib, period, is_burst)
        else {
            return Err("a wave has low-mib, high-mib and period, and may have spread and \
                        noise-percent: give those"
                .to_string());
        };
        if low_mib.0 > high_mib.0 {
            return Err("low-mib is above high-mib: swap the two".to_string());
        }
        Ok(Load::Wave {
            low_kib: kib(low_mib),
            high_kib: kib(high_mib),
            period: period.0,
            spread: spread.map_or(0, |seconds| seconds.0),
            noise_percent: noise_percent.map_or(2, |percent| percent.0),
        })
    }

    fn bursts(self) -> Result<Load, String> {
        let Self { needs_mib, lasts, pause, rises_mib_per_second, first_after, .. } = self;
        let is_wave = self.low_mib.is_some()
            || self.high_mib.is_some()
            || self.period.is_some()
            || self.spread.is_some()
            || self.noise_percent.is_some();
        let (Some(needs_mib), Some(lasts), Some(pause), false) = (needs_mib, lasts, pause, is_wave)
        else {
            return Err("bursts have needs-mib, lasts and pause, and may have \
                        rises-mib-per-second and first-after: give those"
                .to_string());
        };
        let needs_kib = needs_mib.map(kib);
        let lasts = lasts.map(|seconds| seconds.0);
        let pause = pause.map(|seconds| seconds.0);
        let first_after = first_after.map_or(pause, |times| times.map(|seconds| seconds.0));
        for (what, [least, most]) in [
            ("needs-mib", needs_kib),
            ("lasts", lasts),
            ("pause", pause),
            ("first-after", first_after),
        ] {
            if least > most {
                return Err(format!("the least of {what} is above its most: swap the two"));
            }
        }
        let rises_kib = rises_mib_per_second.map_or(256 << 10, kib);
        Ok(Load::Bursts { needs_kib, lasts, pause, rises_kib, first_after })
    }
}

/// MiB as KiB; the bound on figures keeps it from overflowing.
fn kib<const LEAST: u64, const MOST: u64>(mib: Within<LEAST, MOST>) -> u64 {
    mib.0.saturating_mul(1024)
}

fn small<const LEAST: u64, const MOST: u64>(number: Option<Within<LEAST, MOST>>) -> Option<u32> {
    u32::try_from(number?.0).ok()
}
