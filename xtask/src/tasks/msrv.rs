//! `cargo xtask msrv`: the libraries compile with the compilers that their `rust-version` names.
//!
//! Clippy knows since when each item of the standard library is stable, but not each piece of
//! syntax, and it takes the word of dependencies. So the real compiler is asked: one of rustup's
//! toolchains, the machine's own, or Debian's, which is downloaded for this and not installed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use cargo_metadata::MetadataCommand;

use super::package;
use super::toolchain::{self, RustVersion};
use crate::debian::apt::Apt;
use crate::debian::cache::Cache;
use crate::workspace;

/// The compiler of Debian 13, which Debian 12 has under another name.
const DEBIAN: RustVersion = RustVersion { major: 1, minor: 85 };
const PACKAGES: [&str; 2] = ["rustc-web", "rustc"];

/// Where Debian has libraries, in a tree of unpacked packages.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];

#[derive(Debug, Clone)]
struct Compiler {
    rustc: PathBuf,
    libraries: Option<OsString>,
}

impl Compiler {
    fn version(&self) -> Result<RustVersion> {
        toolchain::version_of(Command::new(&self.rustc).arg("--version").envs(self.environment()))
    }

    /// The variable that lets a compiler that is not installed find its libraries.
    fn environment(&self) -> Option<(&'static str, OsString)> {
        Some(("LD_LIBRARY_PATH", self.libraries.clone()?))
    }
}

/// Checks every library; says which could not be checked, for want of a compiler.
pub(crate) fn main() -> Result<ExitCode> {
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let mut by_version: BTreeMap<RustVersion, Vec<&str>> = BTreeMap::new();
    for library in package::libraries(&metadata) {
        let version = library.rust_version.as_ref();
        let version = version.with_context(|| format!("{} has no rust-version", library.name))?;
        by_version.entry(version.into()).or_default().push(&library.name);
    }
    let mut code = ExitCode::SUCCESS;
    for (version, names) in by_version {
        let names = names.join(" ");
        match find(version) {
            None => eprintln!("NOT checked, no Rust {version} here: {names}"),
            Some(compiler) if compiles(&compiler, version, &names)? => {
                eprintln!("compile with Rust {version}: {names}");
            }
            Some(_) => {
                eprintln!("error: do not compile with Rust {version}: {names}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn compiles(compiler: &Compiler, version: RustVersion, names: &str) -> Result<bool> {
    let mut check = workspace::cargo();
    check.args(["check", "--quiet", "--lib", "--target-dir"]);
    check.arg(workspace::target().join(format!("msrv/{version}")));
    for name in names.split(' ') {
        check.args(["--package", name]);
    }
    check.env("RUSTC", &compiler.rustc).envs(compiler.environment());
    Ok(check.status()?.success())
}

fn find(version: RustVersion) -> Option<Compiler> {
    let found = toolchain::rustc(version).map(|rustc| Compiler { rustc, libraries: None });
    found.or_else(|| {
        let compiler = (version == DEBIAN).then(debian)?;
        compiler.inspect_err(|error| eprintln!("warning: no compiler of Debian's: {error:#}")).ok()
    })
}

/// Debian's compiler in the cache, downloaded if need be.
fn debian() -> Result<Compiler> {
    let cache = Cache::open()?;
    let place = cache.path(&format!("rustc-{DEBIAN}"));
    let cached = in_tree(&place);
    if cached.version().is_ok_and(|version| version == DEBIAN) {
        return Ok(cached);
    }
    eprintln!("downloading Rust {DEBIAN} from Debian");
    let workshop = cache.workshop()?;
    let unpack = |package| Apt::of_machine().unpack_with_dependencies(package, workshop.path());
    let unpacked = PACKAGES.into_iter().any(|package| unpack(package).is_ok());
    ensure!(unpacked, "apt can download none of {PACKAGES:?}");
    let tree = workshop.path().join("tree");
    let version = in_tree(&tree).version()?;
    ensure!(version == DEBIAN, "it is Rust {version}, not {DEBIAN}");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(tree, &place)?;
    Ok(in_tree(&place))
}

fn in_tree(tree: &Path) -> Compiler {
    let libraries = std::env::join_paths(LIBRARIES.map(|dir| tree.join(dir))).ok();
    Compiler { rustc: tree.join("usr/bin/rustc"), libraries }
}
