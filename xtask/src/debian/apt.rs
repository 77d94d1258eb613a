//! apt: packages to install, or to unpack without installing, from the machine's sources or from
//! backports.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::packages::{in_path, run};
use super::release::Release;

/// apt, and the package lists it uses.
#[derive(Debug)]
pub(crate) struct Apt {
    options: Vec<String>,
    /// Whether the lists are the machine's, which only root can update.
    shared: bool,
}

impl Apt {
    /// Uses the machine's own sources.
    pub(crate) fn of_machine() -> Self {
        Self { options: Vec::new(), shared: true }
    }

    /// Uses the machine's Debian release and, preferably, its backports.
    ///
    /// The lists are in `dir`, so that the machine's apt stays as it is and root is not needed.
    ///
    /// # Errors
    ///
    /// This system is not Debian, or the lists cannot be downloaded.
    pub(crate) fn of_backports(dir: &Path) -> Result<Self> {
        let release = Release::of_machine()?;
        fs::create_dir_all(dir.join("lists"))?;
        fs::write(dir.join("sources.list"), release.with_backports())?;
        let set = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            set("Dir::Etc::SourceList", dir.join("sources.list").display().to_string()),
            set("Dir::Etc::SourceParts", "-".to_owned()),
            set("APT::Default-Release", format!("{}-backports", release.codename)),
            set("Dir::State::Lists", dir.join("lists").display().to_string()),
            // Derived from the lists, for programs that query them often.
            set("Dir::Cache::pkgcache", String::new()),
            set("Dir::Cache::srcpkgcache", String::new()),
        ];
        let apt = Self { options: options.concat(), shared: false };
        apt.update()?;
        Ok(apt)
    }

    /// The names of the packages on which a package depends.
    ///
    /// # Errors
    ///
    /// The package is unknown even after an update of the package lists.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        ensure!(in_path("apt-cache"), "there is no apt here to download {package} with");
        let found = self.query_depends(package)?;
        if !found.is_empty() {
            return Ok(found);
        }
        let renewed = self.update();
        let found = self.query_depends(package)?;
        if found.is_empty() {
            renewed?;
            bail!("apt does not know the package {package}: are Debian's sources set up?");
        }
        Ok(found)
    }

    /// Installs packages.
    ///
    /// # Errors
    ///
    /// apt-get fails; the error contains its output.
    pub(crate) fn install(&self, packages: &[&str]) -> Result<()> {
        let mut install = self.get(&["install", "--yes", "--no-install-recommends"]);
        install.args(packages);
        self.with_fresh_lists(|| run(&mut install))
    }

    /// Downloads packages into `dir` and unpacks them there, under `tree`.
    ///
    /// # Errors
    ///
    /// A download or unpacking failed; the error contains the tool's output.
    pub(crate) fn unpack(&self, packages: &[String], dir: &Path) -> Result<()> {
        let mut download = self.get(&["download"]);
        download.args(packages).current_dir(dir);
        self.with_fresh_lists(|| run(&mut download))?;
        extract_all(dir, &dir.join("tree"))
    }

    /// Downloads a package and all its dependencies that are not installed on this machine, and
    /// unpacks them in `dir`, under `tree`.
    ///
    /// # Errors
    ///
    /// As [`Apt::unpack`].
    pub(crate) fn unpack_with_dependencies(&self, package: &str, dir: &Path) -> Result<()> {
        let archives = dir.join("archives");
        fs::create_dir_all(archives.join("partial"))?;
        let mut download = self.get(&["install", "--yes", "--no-install-recommends"]);
        download.args(["--download-only", package, "-o"]);
        download.arg(format!("Dir::Cache::archives={}", archives.display()));
        // Nothing is written to the machine's own directories.
        download.args(["-o", "Debug::NoLocking=1"]);
        self.with_fresh_lists(|| run(&mut download))?;
        extract_all(&archives, &dir.join("tree"))
    }

    /// How apt downloads here, as lines of its configuration: proxies, timeouts, checks.
    ///
    /// # Errors
    ///
    /// There is no apt.
    pub(crate) fn download_settings(&self) -> Result<String> {
        let mut dump = Command::new("apt-config");
        dump.args(&self.options).arg("dump").stdin(Stdio::null());
        let output = dump.output().context("there is no apt on this machine")?;
        Ok(download_settings(&String::from_utf8_lossy(&output.stdout)))
    }

    fn query_depends(&self, package: &str) -> Result<Vec<String>> {
        let mut query = Command::new("apt-cache");
        query.args(&self.options).args(["depends", "--important", package]);
        let output = query.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let name = |line: &str| Some(line.trim().strip_prefix("Depends: ")?.to_owned());
        Ok(text.lines().filter_map(name).collect())
    }

    /// Tries something with the current package lists, and again with updated ones if it fails. One
    /// bad source among many fails the update, and may not matter.
    fn with_fresh_lists(&self, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
        if attempt().is_ok() {
            return Ok(());
        }
        let renewed = self.update();
        attempt().or_else(|error| renewed.and(Err(error)))
    }

    fn update(&self) -> Result<()> {
        let may = !self.shared || rustix::process::geteuid().is_root();
        ensure!(may, "apt's package lists are missing or old: please run as root: apt-get update");
        eprintln!("updating apt's package lists");
        run(&mut self.get(&["update"]))
    }

    /// Everything that makes apt-get ask no questions and wait for another apt.
    fn get(&self, args: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]);
        // Another user could not write to root's download directory.
        command.args(["-o", "APT::Sandbox::User=root"]).args(&self.options).args(args);
        command
    }
}

fn extract_all(packages: &Path, tree: &Path) -> Result<()> {
    for entry in fs::read_dir(packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(tree))?;
        }
    }
    Ok(())
}

/// The lines of apt's configuration that concern downloads. Which indices there are concerns only
/// apt's other parts, and lines without a value are headings.
fn download_settings(configuration: &str) -> String {
    let wanted = |line: &&str| {
        line.starts_with("Acquire::")
            && !line.starts_with("Acquire::IndexTargets")
            && !line.ends_with(" \"\";")
    };
    configuration.lines().filter(wanted).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn download_settings_are_proxies_and_checks_and_not_headings() {
        let configuration = "APT \"\";\nAPT::Architecture \"amd64\";\nAcquire \"\";\n\
            Acquire::http \"\";\nAcquire::http::Proxy \"http://proxy:3142\";\n\
            Acquire::IndexTargets::deb::Packages::Optional \"0\";\n\
            Acquire::Languages:: \"none\";\nDir::Etc \"etc/apt\";\n";
        let expected =
            "Acquire::http::Proxy \"http://proxy:3142\";\nAcquire::Languages:: \"none\";\n";
        assert_eq!(download_settings(configuration), expected);
    }
}
