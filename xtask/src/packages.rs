//! Debian packages: programs that must be there, and packages to unpack without installing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A program this project calls, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The file to find in `PATH`.
    pub(crate) file: &'static str,
    /// The package to install where it is missing.
    pub(crate) package: &'static str,
}

pub(crate) const QEMU: Program = Program { file: "qemu-system-x86_64", package: "qemu-system-x86" };
pub(crate) const XZ: Program = Program { file: "xz", package: "xz-utils" };
pub(crate) const ZSTD: Program = Program { file: "zstd", package: "zstd" };

/// Installs the packages of those programs that are missing.
///
/// # Errors
///
/// They cannot be installed from here; the text says what to install.
pub(crate) fn ensure_installed(programs: &[Program]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|p| !in_path(p.file)).map(|p| p.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    ensure!(in_path("apt-get"), "please install the programs of Debian's package(s) {names}");
    ensure!(rustix::process::geteuid().is_root(), "please run as root: apt-get install {names}");
    eprintln!("installing {names} with apt-get");
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    install.args(&missing);
    with_fresh_lists(|| run(&mut install))
}

/// Tries something with the package lists there are, and again with new ones if it fails. One bad
/// source among many fails the renewal, and may not matter.
fn with_fresh_lists(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    if attempt().is_ok() {
        return Ok(());
    }
    let renewed = update();
    attempt().or_else(|error| renewed.and(Err(error)))
}

/// What a package depends on, by name.
///
/// `suite` names a release such as `bookworm-backports` to prefer over the machine's own.
///
/// # Errors
///
/// The package is unknown even after the package lists were renewed.
pub(crate) fn depends(package: &str, suite: Option<&str>) -> Result<Vec<String>> {
    ensure!(in_path("apt-cache"), "there is no apt here to download {package} with");
    let found = query_depends(package, suite)?;
    if !found.is_empty() {
        return Ok(found);
    }
    let renewed = update();
    let found = query_depends(package, suite)?;
    if found.is_empty() {
        renewed?;
        bail!("apt knows no package {package}: are Debian's sources set up?");
    }
    Ok(found)
}

fn query_depends(package: &str, suite: Option<&str>) -> Result<Vec<String>> {
    let mut query = Command::new("apt-cache");
    query.args(prefer(suite)).args(["depends", "--important", package]);
    let output = query.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|l| Some(l.trim().strip_prefix("Depends: ")?.to_owned())).collect())
}

/// Downloads packages into `dir` and unpacks them there, under `tree`.
///
/// # Errors
///
/// A download or unpacking failed; the text has the tool's own words.
pub(crate) fn unpack(packages: &[String], suite: Option<&str>, dir: &Path) -> Result<()> {
    let mut download = apt_get(&["download"]);
    download.args(prefer(suite)).args(packages).current_dir(dir);
    with_fresh_lists(|| run(&mut download))?;
    let tree = dir.join("tree");
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&tree))?;
        }
    }
    Ok(())
}

fn update() -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    ensure!(root, "apt's package lists are missing or old: please run as root: apt-get update");
    eprintln!("renewing apt's package lists");
    run(&mut apt_get(&["update"]))
}

/// Everything apt-get needs to ask nobody anything and to wait for another apt.
fn apt_get(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "DPkg::Lock::Timeout=300"]);
    // As another user it could not write where root downloads to.
    command.args(["-o", "APT::Sandbox::User=root"]).args(args);
    command
}

fn prefer(suite: Option<&str>) -> Vec<String> {
    let option = suite.map(|s| vec!["-o".to_owned(), format!("APT::Default-Release={s}")]);
    option.unwrap_or_default()
}

/// Runs a tool without input, silent unless it fails.
fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&words).trim());
    }
    Ok(())
}

fn in_path(file: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(file).is_file())
}
