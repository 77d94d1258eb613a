//! `cargo xtask package`: packages every library, ready to be published.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};

use crate::workspace;

/// `cargo xtask package`.
#[derive(Debug, clap::Args)]
pub(crate) struct PackageArgs {
    /// Makes the packages but does not build their content.
    #[arg(long)]
    no_verify: bool,
}

/// Packages all libraries together, since they depend on each other and none is published yet.
pub(crate) fn main(args: &PackageArgs) -> Result<ExitCode> {
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let libraries = libraries(&metadata);
    let private: Vec<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .filter(|name| !libraries.iter().any(|library| library.name.as_str() == *name))
        .collect();
    for library in &libraries {
        check_contents(library, &private)?;
    }
    forget_unpacked(&libraries)?;
    forget_compiled(&libraries)?;
    // Uncommitted changes are checked as well.
    let mut cargo = workspace::cargo();
    cargo.args(["package", "--quiet", "--allow-dirty"]);
    if args.no_verify {
        cargo.arg("--no-verify");
    }
    for library in &libraries {
        cargo.args(["--package", &library.name]);
    }
    ensure!(cargo.status()?.success(), "cargo package failed");
    println!("{} libraries can be published", libraries.len());
    Ok(ExitCode::SUCCESS)
}

/// Removes what cargo unpacked of these libraries the last time. It takes a library of this path and
/// version as it was then, though it has changed. Sources of a registry without a host, as these, are
/// in directories that begin with a hyphen.
fn forget_unpacked(libraries: &[&Package]) -> Result<()> {
    let usual = env::var_os("CARGO_HOME").map(PathBuf::from);
    let usual = usual.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("no home")?;
    let Ok(sources) = fs::read_dir(usual.join("registry/src")) else { return Ok(()) };
    for source in sources {
        let source = source?;
        if !source.file_name().as_encoded_bytes().starts_with(b"-") {
            continue;
        }
        for library in libraries {
            let unpacked = source.path().join(format!("{}-{}", library.name, library.version));
            if unpacked.exists() {
                fs::remove_dir_all(&unpacked)
                    .with_context(|| format!("cannot remove {}", unpacked.display()))?;
            }
        }
    }
    Ok(())
}

/// Has cargo compile these libraries anew: what it compiled of a library of a registry it takes for
/// current as long as the version is the same.
fn forget_compiled(libraries: &[&Package]) -> Result<()> {
    let Ok(compiled) = fs::read_dir(workspace::target().join("debug/.fingerprint")) else {
        return Ok(());
    };
    for unit in compiled {
        let unit = unit?;
        let name = unit.file_name();
        let name = name.to_str().and_then(|name| Some(name.rsplit_once('-')?.0));
        if libraries.iter().any(|library| name == Some(library.name.as_str())) {
            fs::remove_dir_all(unit.path())
                .with_context(|| format!("cannot remove {}", unit.path().display()))?;
        }
    }
    Ok(())
}

/// The packages that may be published.
pub(crate) fn libraries(metadata: &Metadata) -> Vec<&Package> {
    let packages = metadata.workspace_packages().into_iter();
    packages.filter(|package| package.publish.as_ref().is_none_or(|to| !to.is_empty())).collect()
}

/// A test or example in a package must not need unpublished crates: cargo builds neither when it
/// verifies a package, but users of the package may.
fn check_contents(library: &Package, private: &[&str]) -> Result<()> {
    let list = workspace::cargo()
        .args(["package", "--quiet", "--allow-dirty", "--list", "--package", &library.name])
        .output()?;
    ensure!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr).trim());
    let dir = library.manifest_path.parent().context("a manifest without a directory")?;
    for file in String::from_utf8(list.stdout)?.lines().filter(|file| file.ends_with(".rs")) {
        let text = std::fs::read_to_string(dir.join(file)).with_context(|| file.to_owned())?;
        if let Some(name) = uses(&text, private) {
            bail!("{}: {file} needs {name}, which is not published: exclude it", library.name);
        }
    }
    Ok(())
}

/// The first of `crates` that the code uses.
fn uses<'a>(code: &str, crates: &[&'a str]) -> Option<&'a str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let taken = |line: &str, name: &str| {
        line.match_indices(name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            after.starts_with("::") && !before.ends_with(|c: char| is_word(c) || c == ':')
        })
    };
    let code = || code.lines().filter(|line| !line.trim_start().starts_with("//"));
    crates.iter().copied().find(|name| code().any(|line| taken(line, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_of_a_private_crate_is_found() {
        let private = ["guest_model", "host_faults"];
        assert_eq!(uses("use host_faults::Refusal;", &private), Some("host_faults"));
        assert_eq!(
            uses("let a = guest_model::vmbus::Client::new();", &private),
            Some("guest_model")
        );
    }

    #[test]
    fn words_comments_and_modules_are_no_use() {
        let private = ["vmm"];
        assert_eq!(uses("// vmm::Machine does this", &private), None);
        assert_eq!(uses("use my_vmm::A;\nuse crate::vmm::B;\nlet vmm = 1;", &private), None);
    }
}
