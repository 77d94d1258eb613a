//! The settings of the balancer as a TOML file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use balance_host::{Configuration, Policy, Wish};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use toml::{Spanned, Table};

use crate::definition;
use crate::size::ByteSize;

/// The longest time in a file, in seconds.
const MAX_SECONDS: u64 = 24 * 60 * 60;

#[derive(Debug, Default, DeriveDeserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    vms: Vec<String>,
    host: HostTable,
    policy: PolicyTable,
    defaults: Option<Spanned<VmTable>>,
    vm: BTreeMap<String, Spanned<VmTable>>,
}

#[derive(Debug, Default, DeriveDeserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct HostTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    reserve: Option<Written<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Written<Size>>,
}

#[derive(Debug, Default, DeriveDeserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct PolicyTable {
    stale_after: Option<Written<Age>>,
    surplus_lasts: Option<Written<Seconds>>,
    shrink_period: Option<Written<Seconds>>,
    stuck_after: Option<Written<Seconds>>,
    retry_after: Option<Written<Seconds>>,
    remember_paging: Option<Written<Seconds>>,
    vm_overhead: Option<Written<Size>>,
}

/// Settings of a VM, in the terms of Hyper-V.
#[derive(Clone, Copy, Debug, Default, DeriveDeserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct VmTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    startup: Option<Written<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum: Option<Written<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    maximum: Option<Written<Size>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buffer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<bool>,
}

/// A figure in the form of a file.
trait Form {
    /// What the file may say, for an error.
    const EXPECTED: &'static str;

    fn of_text(text: &str) -> Result<u64, String>;
    fn of_number(number: u64) -> Result<u64, String>;
    fn write(value: u64) -> toml::Value;
}

/// A size, in KiB: `"512M"`, or a number of bytes.
#[derive(Clone, Copy, Debug)]
struct Size;

/// A time, in milliseconds: a number of seconds.
#[derive(Clone, Copy, Debug)]
struct Seconds;

/// A time after which figures are old, in milliseconds: a number of seconds, and more than it takes to get
/// new ones.
#[derive(Clone, Copy, Debug)]
struct Age;

/// Figures come once a second, or every second and a half.
const LEAST_AGE_SECONDS: u64 = 3;

#[derive(Clone, Copy, Debug)]
struct Written<F> {
    value: u64,
    form: PhantomData<F>,
}

impl Form for Size {
    const EXPECTED: &'static str = "a size, such as \"512M\" or \"4G\"";

    fn of_text(text: &str) -> Result<u64, String> {
        let size: ByteSize =
            text.parse().map_err(|error| format!("invalid size '{text}': {error}"))?;
        Self::of_number(size.bytes())
    }

    fn of_number(bytes: u64) -> Result<u64, String> {
        if bytes < 1024 {
            return Err(format!("a size of {bytes} bytes is too small: give {}", Self::EXPECTED));
        }
        Ok(bytes / 1024)
    }

    fn write(kib: u64) -> toml::Value {
        let size = ByteSize::of_kib(kib);
        size.map_or_else(|| kib.to_string(), ByteSize::argument).into()
    }
}

impl Form for Seconds {
    const EXPECTED: &'static str = "a number of seconds";

    fn of_text(text: &str) -> Result<u64, String> {
        Err(format!("invalid time '{text}': give {} from 0 to {MAX_SECONDS}", Self::EXPECTED))
    }

    fn of_number(seconds: u64) -> Result<u64, String> {
        if seconds > MAX_SECONDS {
            return Self::of_text(&seconds.to_string());
        }
        Ok(seconds.saturating_mul(1000))
    }

    fn write(ms: u64) -> toml::Value {
        toml::Value::Integer(i64::try_from(ms / 1000).unwrap_or(i64::MAX))
    }
}

impl Form for Age {
    const EXPECTED: &'static str = "a number of seconds, 3 or more";

    fn of_text(text: &str) -> Result<u64, String> {
        Err(format!("invalid time '{text}': give {}, up to {MAX_SECONDS}", Self::EXPECTED))
    }

    fn of_number(seconds: u64) -> Result<u64, String> {
        if seconds < LEAST_AGE_SECONDS {
            return Err(format!(
                "after {seconds} s all figures would be too old, since they come once a second: give \
                 {}",
                Self::EXPECTED
            ));
        }
        Seconds::of_number(seconds)
    }

    fn write(ms: u64) -> toml::Value {
        Seconds::write(ms)
    }
}

impl<F> Written<F> {
    const fn new(value: u64) -> Self {
        Self { value, form: PhantomData }
    }
}

impl<F: Form> Serialize for Written<F> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        F::write(self.value).serialize(serializer)
    }
}

impl<'de, F: Form> Deserialize<'de> for Written<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<F>(PhantomData<F>);

        impl<F: Form> Visitor<'_> for Reader<F> {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(F::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
                F::of_text(text).map_err(E::custom)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
                F::of_number(number).map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::custom(format!("{number} is not {}", F::EXPECTED))),
                }
            }
        }

        deserializer.deserialize_any(Reader(PhantomData::<F>)).map(Self::new)
    }
}

impl VmTable {
    fn wish(&self) -> Wish {
        let kib = |size: Option<Written<Size>>| size.map(|size| size.value);
        Wish {
            startup_kib: kib(self.startup),
            minimum_kib: kib(self.minimum),
            maximum_kib: kib(self.maximum),
            buffer_percent: self.buffer,
            weight: self.weight,
            hold: self.hold,
        }
    }

    fn of(wish: &Wish) -> Self {
        Self {
            startup: wish.startup_kib.map(Written::new),
            minimum: wish.minimum_kib.map(Written::new),
            maximum: wish.maximum_kib.map(Written::new),
            buffer: wish.buffer_percent,
            weight: wish.weight,
            hold: wish.hold,
        }
    }
}

impl PolicyTable {
    fn policy(&self, host: &HostTable) -> Policy {
        let usual = Policy::default();
        let or = |time: Option<Written<Seconds>>, usual| time.map_or(usual, |time| time.value);
        Policy {
            host_reserve_kib: host.reserve.map(|size| size.value),
            stale_after_ms: self.stale_after.map_or(usual.stale_after_ms, |age| age.value),
            surplus_lasts_ms: or(self.surplus_lasts, usual.surplus_lasts_ms),
            shrink_period_ms: or(self.shrink_period, usual.shrink_period_ms),
            stuck_after_ms: or(self.stuck_after, usual.stuck_after_ms),
            retry_after_ms: or(self.retry_after, usual.retry_after_ms),
            remember_paging_ms: or(self.remember_paging, usual.remember_paging_ms),
            vm_overhead_kib: self.vm_overhead.map_or(usual.vm_overhead_kib, |size| size.value),
        }
    }

    fn of(policy: &Policy) -> Self {
        let time = |ms| Some(Written::new(ms));
        Self {
            stale_after: Some(Written::new(policy.stale_after_ms)),
            surplus_lasts: time(policy.surplus_lasts_ms),
            shrink_period: time(policy.shrink_period_ms),
            stuck_after: time(policy.stuck_after_ms),
            retry_after: time(policy.retry_after_ms),
            remember_paging: time(policy.remember_paging_ms),
            vm_overhead: Some(Written::new(policy.vm_overhead_kib)),
        }
    }
}

/// Reads a file.
///
/// # Errors
/// It cannot be read, or something in it is not right: one line with file, line and remedy.
pub(super) fn read(file: &Path) -> Result<Configuration> {
    let text = definition::read(file).with_context(|| file.display().to_string())?;
    parse(&text).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> Result<Configuration> {
    let file: File = toml::from_str(text).map_err(|error| definition::located(text, &error))?;
    let File { vms: patterns, host, policy, defaults, vm } = file;
    let configuration = Configuration {
        patterns,
        policy: policy.policy(&host),
        limit_kib: host.limit.map(|size| size.value),
        defaults: defaults.as_ref().map(|table| table.as_ref().wish()).unwrap_or_default(),
        vms: vm.iter().map(|(name, table)| (name.clone(), table.as_ref().wish())).collect(),
    };
    let check = |what: &str, wish: Wish, place: usize| {
        let line = definition::line_of(text, place);
        wish.check().map_err(|error| anyhow!("line {line}: {what}: {error}"))
    };
    if let Some(table) = &defaults {
        check("defaults", configuration.defaults, table.span().start)?;
    }
    for (name, table) in &vm {
        check(&format!("vm.{name}"), configuration.wish(name), table.span().start)?;
    }
    Ok(configuration)
}

/// All settings as a file.
pub(super) fn print(configuration: &Configuration) -> Result<String> {
    let Configuration { patterns, policy, limit_kib, .. } = configuration;
    let mut table = Table::new();
    let mut add = |name: &str, value| table.insert(name.to_owned(), value);
    add("vms", toml::Value::try_from(patterns)?);
    let host = HostTable {
        reserve: policy.host_reserve_kib.map(Written::new),
        limit: limit_kib.map(Written::new),
    };
    add("host", toml::Value::try_from(host)?);
    add("policy", toml::Value::try_from(PolicyTable::of(policy))?);
    add("defaults", toml::Value::try_from(VmTable::of(&configuration.defaults))?);
    let vms: BTreeMap<_, _> = configuration
        .vms
        .keys()
        .map(|name| (name, VmTable::of(&configuration.wish(name))))
        .collect();
    add("vm", toml::Value::try_from(vms)?);
    Ok(toml::to_string_pretty(&table)?)
}

/// Settings of a VM as words of a command line, KEY=VALUE.
///
/// # Errors
/// A word is none, or is no setting.
pub(crate) fn wish(words: &[String]) -> Result<Wish> {
    let mut keys = BTreeSet::new();
    let mut wish = Wish::default();
    for word in words {
        let (key, value) = word
            .split_once('=')
            .with_context(|| format!("'{word}' is no setting: give KEY=VALUE, as in minimum=2G"))?;
        let value = match value {
            "true" => toml::Value::Boolean(true),
            "false" => toml::Value::Boolean(false),
            text => definition::scalar(text),
        };
        // By itself, so that an error names it.
        let table = VmTable::deserialize(Table::from_iter([(key.to_owned(), value)])).map_err(
            |error: toml::de::Error| {
                anyhow!("{word}: {}", error.message().trim_end().replace('\n', "; "))
            },
        )?;
        if !keys.insert(key) {
            bail!("'{key}' is given twice");
        }
        wish = table.wish().over(wish);
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: &str = r#"
vms = ["/run/hvb/*.sock", "/run/vm/*/qmp"]

[host]
reserve = "2G"
limit = "24G"

[policy]
stale-after = 5
surplus-lasts = 60
shrink-period = 1
stuck-after = 30
retry-after = 90
remember-paging = 100
vm-overhead = "128M"

[defaults]
minimum = "1G"
buffer = 30

[vm.db]
startup = "4G"
minimum = "2G"
maximum = 17179869184
weight = 9000

[vm."web 1"]
hold = true
"#;

    fn refusal(text: &str) -> String {
        let error = format!("{:#}", parse(text).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn a_file_says_everything() {
        let configuration = parse(EVERYTHING).unwrap();
        assert_eq!(configuration.patterns, ["/run/hvb/*.sock", "/run/vm/*/qmp"]);
        let expected = Policy {
            host_reserve_kib: Some(2 << 20),
            stale_after_ms: 5000,
            surplus_lasts_ms: 60_000,
            shrink_period_ms: 1000,
            stuck_after_ms: 30_000,
            retry_after_ms: 90_000,
            remember_paging_ms: 100_000,
            vm_overhead_kib: 128 << 10,
        };
        assert_eq!((configuration.policy, configuration.limit_kib), (expected, Some(24 << 20)));
        let db = Wish {
            startup_kib: Some(4 << 20),
            minimum_kib: Some(2 << 20),
            maximum_kib: Some(16 << 20),
            buffer_percent: Some(30),
            weight: Some(9000),
            hold: None,
        };
        assert_eq!(configuration.wish("db"), db);
        assert_eq!(configuration.wish("web 1").hold, Some(true));
        assert_eq!(configuration.wish("other").minimum_kib, Some(1 << 20));
    }

    #[test]
    fn what_is_printed_is_a_file_for_the_same_settings() {
        for text in [EVERYTHING, "", "[vm.a]\n"] {
            let configuration = parse(text).unwrap();
            let printed = print(&configuration).unwrap();
            let again = parse(&printed).unwrap();
            assert_eq!(again.policy, configuration.policy, "{printed}");
            assert_eq!(again.patterns, configuration.patterns);
            for name in ["db", "web 1", "a", "other"] {
                assert_eq!(again.wish(name), configuration.wish(name), "{printed}");
            }
            assert_eq!(print(&again).unwrap(), printed);
        }
    }

    #[test]
    fn bad_settings_are_refused_with_line_and_remedy() {
        let error = refusal("[defaults]\n\n[vm.db]\nminimum = \"12Q\"\n");
        assert!(
            error.starts_with("line 4: invalid size '12Q': a size is a number with K"),
            "{error}"
        );
        let error = refusal("[vm.db]\nminimun = \"1G\"\n");
        assert!(error.starts_with("line 2: unknown field `minimun`, expected one of"), "{error}");
        assert!(error.contains("`minimum`"), "{error}");
        let error = refusal("\n[vm.db]\nminimum = \"4G\"\nmaximum = \"2G\"\n");
        let expected =
            "line 2: vm.db: the minimum of 4096 MiB is above the maximum of 2048 MiB: lower";
        assert!(error.starts_with(expected), "{error}");
        let error = refusal("[policy]\nstale-after = 0\n");
        assert!(error.starts_with("line 2: after 0 s all figures would be too old"), "{error}");
        let error = refusal("[vm.db]\n[vm.web]\n[vm.db]\n");
        assert!(error.starts_with("line 3: ") && error.contains("duplicate key"), "{error}");
        let error = refusal("[defaults]\nminimum = \"4G\"\n[vm.db]\nmaximum = \"2G\"\n");
        assert!(error.starts_with("line 3: vm.db: "), "{error}");
        let error = refusal("[defaults]\nbuffer = 1\n");
        assert!(error.starts_with("line 1: defaults: a buffer of 1 % is not"), "{error}");
        for text in [
            "[policy]\nstale-after = \"x\"",
            "[policy]\nstale-after = -1",
            "[policy]\nstale-after = 1.5",
            "[policy]\nstale-after = 86401",
            "[host]\nreserve = 5",
            "vms = \"x\"",
            "[vm]\ndb = 5",
            "[vm.db]\nhold = \"yes\"",
            "[machine.db]",
            "x",
        ] {
            assert!(refusal(text).starts_with("line "), "{text}");
        }
    }

    #[test]
    fn words_of_the_command_line_are_settings_of_the_file() {
        let words = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.into()).collect() };
        let read = wish(&words(&["minimum=2G", "weight=7", "hold=true"])).unwrap();
        let expected = Wish {
            minimum_kib: Some(2 << 20),
            weight: Some(7),
            hold: Some(true),
            ..Wish::default()
        };
        assert_eq!(read, expected);
        for (text, part) in [
            ("minimum", "give KEY=VALUE"),
            ("minimum=12Q", "invalid size '12Q'"),
            ("color=red", "unknown field `color`"),
            ("weight=many", "invalid type"),
        ] {
            let error = format!("{:#}", wish(&words(&[text])).unwrap_err());
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        assert!(wish(&words(&["weight=1", "weight=2"])).is_err());
    }
}
