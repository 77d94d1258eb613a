//! `cargo xtask public-api`: the listings of what each library makes public.
//!
//! rustdoc describes a crate as JSON, in a form that changes with the compiler. So the listings are
//! made with the compiler that README.md names, and are the same everywhere.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;
use public_api::Builder;

use super::{package, toolchain};
use crate::workspace;

/// Where the listings are, one file for each library.
const LISTINGS: &str = "docs/api";

/// `cargo xtask public-api`.
#[derive(Debug, clap::Args)]
pub(crate) struct PublicApiArgs {
    /// Compares the listings with the code instead of writing them.
    #[arg(long)]
    check: bool,
}

/// Writes the listings of all libraries, or compares them.
pub(crate) fn main(args: &PublicApiArgs) -> Result<ExitCode> {
    let promised = toolchain::promised()?;
    let Some(rustc) = toolchain::rustc(promised) else {
        ensure!(args.check, "the listings are made with Rust {promised}, which is not here");
        eprintln!("warning: NOT checked, no Rust {promised} here: the listings in {LISTINGS}");
        return Ok(ExitCode::SUCCESS);
    };
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let mut listings = BTreeMap::new();
    let libraries = package::libraries(&metadata);
    let names: Vec<&str> = libraries.iter().map(|library| library.name.as_str()).collect();
    for name in &names {
        listings.insert(format!("{name}.txt"), listing(name, &names, &rustc)?);
    }
    let dir = workspace::root().join(LISTINGS);
    if !args.check {
        write(&dir, &listings)?;
        return Ok(ExitCode::SUCCESS);
    }
    let findings = compare(&dir, &listings)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("if that is meant, write the listings anew: cargo xtask public-api");
    Ok(ExitCode::FAILURE)
}

/// The public items of one of our libraries with all its features, a line each.
fn listing(library: &str, ours: &[&str], rustc: &Path) -> Result<String> {
    let target = workspace::target().join("public-api");
    let mut rustdoc = workspace::cargo();
    rustdoc.args(["rustdoc", "--quiet", "--lib", "--all-features", "--package", library]);
    rustdoc.arg("--target-dir").arg(&target);
    rustdoc.args(["--", "-Z", "unstable-options", "--output-format", "json"]);
    rustdoc.env("RUSTC", rustc).env("RUSTDOC", rustc.with_file_name("rustdoc"));
    // Lets a released compiler describe these crates as JSON. The value is the same for all of them,
    // for dependencies are built anew where it changes.
    rustdoc.env("RUSTC_BOOTSTRAP", ours.join(","));
    ensure!(rustdoc.status()?.success(), "rustdoc failed for {library}");
    let json = target.join("doc").join(format!("{library}.json"));
    let items = |derived: bool| -> Result<Vec<String>> {
        let api = Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(!derived)
            .omit_auto_derived_impls(!derived)
            .build()
            .with_context(|| {
                format!(
                    "{} cannot be read: take the release of public-api for this compiler",
                    json.display()
                )
            })?;
        Ok(api.items().map(ToString::to_string).collect())
    };
    Ok(shortened(&items(true)?, &items(false)?))
}

/// Traits that most types have and that no compiler's release lists alike.
const MARKERS: [&str; 8] = [
    "Freeze",
    "RefUnwindSafe",
    "Send",
    "StructuralPartialEq",
    "Sync",
    "Unpin",
    "UnsafeUnpin",
    "UnwindSafe",
];

/// All of `written`; and of what is derived, that it is, without its methods. Types that are not `Send`
/// or not `Sync` are told from the others, which most are.
fn shortened(all: &[String], written: &[String]) -> String {
    let written: HashSet<&String> = written.iter().collect();
    let is_of = |item: &str, markers: &[&str]| {
        markers.iter().any(|marker| item.contains(&format!("::{marker} for ")))
    };
    let is_told = |item: &str| {
        let is_negative = item.contains(" !");
        item.starts_with("impl")
            && if is_negative { is_of(item, &["Send", "Sync"]) } else { !is_of(item, &MARKERS) }
    };
    let kept = all.iter().filter(|item| written.contains(item) || is_told(item));
    kept.map(|item| format!("{item}\n")).collect()
}

fn write(dir: &Path, listings: &BTreeMap<String, String>) -> Result<()> {
    fs::create_dir_all(dir)?;
    for name in files(dir)?.into_iter().filter(|name| !listings.contains_key(name)) {
        fs::remove_file(dir.join(name))?;
    }
    for (name, listing) in listings {
        fs::write(dir.join(name), listing)?;
    }
    Ok(())
}

/// What the files have that the code has not, and the reverse.
fn compare(dir: &Path, listings: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for name in files(dir)?.into_iter().filter(|name| !listings.contains_key(name)) {
        findings.push(format!("{name}: there is no such library"));
    }
    for (name, listing) in listings {
        let path = dir.join(name);
        let file = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let (old, new): (HashSet<&str>, HashSet<&str>) =
            (file.lines().collect(), listing.lines().collect());
        findings.extend(
            file.lines()
                .filter(|line| !new.contains(line))
                .map(|line| format!("{name}: no longer public: {line}")),
        );
        findings.extend(
            listing
                .lines()
                .filter(|line| !old.contains(line))
                .map(|line| format!("{name}: newly public: {line}")),
        );
        if findings.is_empty() && file != *listing {
            findings.push(format!("{name}: the same items in another order"));
        }
    }
    Ok(findings)
}

fn files(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_is_listed_without_its_methods() {
        let all = [
            "pub struct a::B",
            "impl core::clone::Clone for a::B",
            "pub fn a::B::clone(&self) -> Self",
            "impl core::marker::StructuralPartialEq for a::B",
            "impl core::marker::Send for a::B",
            "impl !core::marker::Sync for a::B",
            "impl !core::marker::Unpin for a::B",
            "pub fn a::B::c(&self)",
        ]
        .map(str::to_owned);
        let written = ["pub struct a::B", "pub fn a::B::c(&self)"].map(str::to_owned);
        let expected = "pub struct a::B\nimpl core::clone::Clone for a::B\n\
                        impl !core::marker::Sync for a::B\npub fn a::B::c(&self)\n";
        assert_eq!(shortened(&all, &written), expected);
    }

    #[test]
    fn every_difference_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let listings = |list: &[(&str, &str)]| {
            list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
        };
        let before = listings(&[("a.txt", "one\ntwo\n"), ("b.txt", "")]);
        write(dir.path(), &before).unwrap();
        assert_eq!(compare(dir.path(), &before).unwrap(), Vec::<String>::new());
        let after: BTreeMap<String, String> = listings(&[("a.txt", "two\nthree\n")]);
        let expected = [
            "b.txt: there is no such library",
            "a.txt: no longer public: one",
            "a.txt: newly public: three",
        ];
        assert_eq!(compare(dir.path(), &after).unwrap(), expected);
        let swapped = listings(&[("a.txt", "two\none\n"), ("b.txt", "")]);
        let order = compare(dir.path(), &swapped).unwrap();
        assert_eq!(order, ["a.txt: the same items in another order"]);
        write(dir.path(), &after).unwrap();
        assert_eq!(compare(dir.path(), &after).unwrap(), Vec::<String>::new());
    }
}
