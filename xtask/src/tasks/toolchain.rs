//! `cargo xtask toolchain`: everything is checked with the oldest compiler that the project promises.
//!
//! Code that only ever met a newer compiler may need it. So CI has to run with the compiler that
//! README.md and the workspace's `rust-version` name; whether there is a `rust-toolchain.toml`, and
//! which compiler a machine takes by default, must not matter.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use cargo_metadata::semver::Version;

use crate::workspace;

/// What stands in README.md before the version, and after it.
const README_BEFORE: &str = "Rust (";
const README_AFTER: &str = " or newer)";

/// The part of a compiler's version that decides what it understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RustVersion {
    pub(crate) major: u64,
    pub(crate) minor: u64,
}

impl RustVersion {
    /// Reads `1.95`, `1.95.0` or `1.95.0-nightly`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-']);
        let mut number = || parts.next()?.parse().ok();
        Some(Self { major: number()?, minor: number()? })
    }

    /// Reads what `rustc --version` prints: `rustc 1.95.0 (59807616e 2026-04-14)`.
    fn of_rustc(output: &str) -> Option<Self> {
        Self::parse(output.strip_prefix("rustc ")?.split_whitespace().next()?)
    }
}

impl From<&Version> for RustVersion {
    fn from(version: &Version) -> Self {
        Self { major: version.major, minor: version.minor }
    }
}

impl fmt::Display for RustVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A toolchain of rustup.
#[derive(Clone, Debug)]
struct Installed {
    name: String,
    version: RustVersion,
}

impl Installed {
    /// Its compiler itself, past rustup's proxy.
    fn rustc(&self) -> Result<PathBuf> {
        let mut which = Command::new("rustup");
        let output = which.args(["which", "--toolchain", &self.name, "rustc"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
    }
}

/// With what to check.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// The compiler in use is the promised one.
    InUse,
    /// The toolchain of this name is.
    Other(String),
    /// There is only a newer compiler.
    OnlyNewer,
}

/// Prints the name of the toolchain to use, or nothing where the one in use is right.
pub(crate) fn main() -> Result<ExitCode> {
    let promised = promised()?;
    let readme = fs::read_to_string(workspace::root().join("README.md"))?;
    check_readme(&readme, promised)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let in_use = version_of(Command::new(&rustc).arg("--version"))
        .with_context(|| format!("{} --version", rustc.display()))?;
    match choose(promised, in_use, installed().as_deref())? {
        Choice::InUse => eprintln!("Rust {promised}, as README.md and rust-version say"),
        Choice::Other(name) => {
            eprintln!("Rust {promised}, as README.md and rust-version say: toolchain {name}");
            println!("{name}");
        }
        Choice::OnlyNewer => eprintln!(
            "warning: NOT checked: that everything compiles with Rust {promised}, as README.md and \
             rust-version say; this machine has only Rust {in_use}"
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// The workspace's `rust-version`, which is also that of this program.
pub(crate) fn promised() -> Result<RustVersion> {
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let packages = metadata.workspace_packages();
    let package = packages.iter().find(|package| package.name.as_str() == env!("CARGO_PKG_NAME"));
    let version = package.and_then(|package| package.rust_version.as_ref());
    Ok(version.context("the workspace has no rust-version")?.into())
}

fn check_readme(text: &str, promised: RustVersion) -> Result<()> {
    let missing = || format!("README.md does not say '{README_BEFORE}{promised}{README_AFTER}'");
    let (_, after) = text.split_once(README_BEFORE).with_context(missing)?;
    let (version, _) = after.split_once(README_AFTER).with_context(missing)?;
    ensure!(
        RustVersion::parse(version) == Some(promised),
        "README.md says Rust {version}, rust-version says {promised}"
    );
    Ok(())
}

/// `installed` is `None` without rustup.
fn choose(
    promised: RustVersion,
    in_use: RustVersion,
    installed: Option<&[Installed]>,
) -> Result<Choice> {
    if in_use == promised {
        return Ok(Choice::InUse);
    }
    let installed = installed.unwrap_or_default();
    if let Some(other) = installed.iter().find(|toolchain| toolchain.version == promised) {
        return Ok(Choice::Other(other.name.clone()));
    }
    let remedy = format!("install it: rustup toolchain install {promised}");
    ensure!(in_use > promised, "Rust {promised} is needed, this is Rust {in_use}; {remedy}");
    if installed.len() > 1 {
        let names: Vec<&str> = installed.iter().map(|toolchain| toolchain.name.as_str()).collect();
        bail!(
            "README.md and rust-version say Rust {promised}, which none of the toolchains here is \
             ({}); {remedy}",
            names.join(", ")
        );
    }
    Ok(Choice::OnlyNewer)
}

/// The toolchains that rustup has, without those that do not run; `None` without rustup.
fn installed() -> Option<Vec<Installed>> {
    let list = Command::new("rustup").args(["toolchain", "list"]).output().ok()?;
    let names = names_in(&String::from_utf8(list.stdout).ok()?);
    let toolchains = names.into_iter().filter_map(|name| {
        let version = version_of(Command::new("rustup").args(["run", &name, "rustc", "--version"]));
        Some(Installed { name, version: version.ok()? })
    });
    list.status.success().then(|| toolchains.collect())
}

/// The compiler of this version: one of rustup's, or the machine's own.
pub(crate) fn rustc(version: RustVersion) -> Option<PathBuf> {
    let of_rustup = installed().unwrap_or_default().into_iter();
    let of_rustup = of_rustup.filter(|toolchain| toolchain.version == version);
    let of_rustup = of_rustup.filter_map(|toolchain| toolchain.rustc().ok());
    let own = ["rustc", "/usr/bin/rustc"].map(PathBuf::from);
    let version_of = |rustc: &PathBuf| version_of(Command::new(rustc).arg("--version"));
    of_rustup.chain(own).find(|rustc| version_of(rustc).is_ok_and(|found| found == version))
}

/// The first word of each line: `stable-x86_64-unknown-linux-gnu (active, default)`.
fn names_in(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// What a call of `rustc --version` says.
pub(crate) fn version_of(rustc: &mut Command) -> Result<RustVersion> {
    let output = rustc.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    RustVersion::of_rustc(&text).with_context(|| format!("no version in '{}'", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> RustVersion {
        RustVersion::parse(text).unwrap()
    }

    fn toolchains(list: &[(&str, &str)]) -> Vec<Installed> {
        let toolchain = |(name, text): &(&str, &str)| Installed {
            name: (*name).to_owned(),
            version: version(text),
        };
        list.iter().map(toolchain).collect()
    }

    fn chosen(in_use: &str, installed: &[(&str, &str)]) -> Result<Choice> {
        choose(version("1.95"), version(in_use), Some(&toolchains(installed)))
    }

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        assert_eq!(version("1.95"), version("1.95.1"));
        assert_eq!(version("1.97.0-nightly"), version("1.97"));
        assert!(version("1.100") > version("1.95"));
        assert_eq!(RustVersion::parse("stable"), None);
        let rustc = RustVersion::of_rustc("rustc 1.95.0 (59807616e 2026-04-14)\n");
        assert_eq!(rustc, Some(version("1.95")));
    }

    #[test]
    fn the_promised_compiler_in_use_is_right() {
        assert_eq!(chosen("1.95.0", &[]).unwrap(), Choice::InUse);
        assert_eq!(choose(version("1.95"), version("1.95"), None).unwrap(), Choice::InUse);
    }

    #[test]
    fn the_promised_compiler_is_taken_whatever_its_toolchain_is_called() {
        let installed = [("nightly", "1.97"), ("stable", "1.95")];
        assert_eq!(chosen("1.97", &installed).unwrap(), Choice::Other("stable".to_owned()));
    }

    #[test]
    fn a_missing_compiler_is_an_error_where_there_are_several() {
        let error = chosen("1.97", &[("nightly", "1.98"), ("stable", "1.97")]).unwrap_err();
        assert!(error.to_string().contains("rustup toolchain install 1.95"), "{error}");
    }

    #[test]
    fn a_single_newer_compiler_is_taken_with_a_warning() {
        assert_eq!(chosen("1.97", &[("stable", "1.97")]).unwrap(), Choice::OnlyNewer);
        assert_eq!(choose(version("1.95"), version("1.97"), None).unwrap(), Choice::OnlyNewer);
    }

    #[test]
    fn an_older_compiler_is_an_error() {
        assert!(choose(version("1.95"), version("1.85"), None).is_err());
        assert!(chosen("1.94", &[("stable", "1.94")]).is_err());
    }

    #[test]
    fn readme_must_name_the_same_version() {
        let readme = "On a Debian 12 machine with Rust (1.95 or newer), as root:";
        assert!(check_readme(readme, version("1.95")).is_ok());
        let error = check_readme(readme, version("1.96")).unwrap_err();
        assert_eq!(error.to_string(), "README.md says Rust 1.95, rust-version says 1.96");
        assert!(check_readme("With Rust.", version("1.95")).is_err());
    }

    #[test]
    fn toolchain_names_are_read_from_what_rustup_lists() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n1.95.0-x86_64\n";
        assert_eq!(names_in(list), ["stable-x86_64-unknown-linux-gnu", "1.95.0-x86_64"]);
    }
}
