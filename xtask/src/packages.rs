//! Debian packages: programs that must be there, and packages to unpack without installing.

use std::fs;
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
    let apt = Apt::of_machine();
    let mut install = apt.get(&["install", "--yes", "--no-install-recommends"]);
    install.args(&missing);
    apt.with_fresh_lists(|| run(&mut install))
}

/// apt, and the package lists it goes by.
#[derive(Debug)]
pub(crate) struct Apt {
    options: Vec<String>,
    /// Whether the lists are the machine's, which only root can renew.
    shared: bool,
}

impl Apt {
    /// With the machine's own sources.
    pub(crate) fn of_machine() -> Self {
        Self { options: Vec::new(), shared: true }
    }

    /// With the backports of the machine's Debian, and nothing else.
    ///
    /// The lists are in `dir`, so that the machine's apt stays as it is and root is not needed.
    ///
    /// # Errors
    ///
    /// This is no Debian, or the lists cannot be downloaded.
    pub(crate) fn of_backports(dir: &Path) -> Result<Self> {
        let source = format!("deb {}", backports_source()?);
        fs::create_dir_all(dir.join("lists"))?;
        fs::write(dir.join("sources.list"), source + "\n")?;
        let set = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            set("Dir::Etc::SourceList", dir.join("sources.list").display().to_string()),
            set("Dir::Etc::SourceParts", "-".to_owned()),
            set("Dir::State::Lists", dir.join("lists").display().to_string()),
            // Made from the lists, for those who ask often.
            set("Dir::Cache::pkgcache", String::new()),
            set("Dir::Cache::srcpkgcache", String::new()),
        ];
        let apt = Self { options: options.concat(), shared: false };
        apt.update()?;
        Ok(apt)
    }

    /// What a package depends on, by name.
    ///
    /// # Errors
    ///
    /// The package is unknown even after the package lists were renewed.
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
            bail!("apt knows no package {package}: are Debian's sources set up?");
        }
        Ok(found)
    }

    /// Downloads packages into `dir` and unpacks them there, under `tree`.
    ///
    /// # Errors
    ///
    /// A download or unpacking failed; the text has the tool's own words.
    pub(crate) fn unpack(&self, packages: &[String], dir: &Path) -> Result<()> {
        let mut download = self.get(&["download"]);
        download.args(packages).current_dir(dir);
        self.with_fresh_lists(|| run(&mut download))?;
        let tree = dir.join("tree");
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(&tree))?;
            }
        }
        Ok(())
    }

    fn query_depends(&self, package: &str) -> Result<Vec<String>> {
        let mut query = Command::new("apt-cache");
        query.args(&self.options).args(["depends", "--important", package]);
        let output = query.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let name = |line: &str| Some(line.trim().strip_prefix("Depends: ")?.to_owned());
        Ok(text.lines().filter_map(name).collect())
    }

    /// Tries something with the package lists there are, and again with new ones if it fails. One
    /// bad source among many fails the renewal, and may not matter.
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
        eprintln!("renewing apt's package lists");
        run(&mut self.get(&["update"]))
    }

    /// Everything apt-get needs to ask nobody anything and to wait for another apt.
    fn get(&self, args: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]);
        // As another user it could not write where root downloads to.
        command.args(["-o", "APT::Sandbox::User=root"]).args(&self.options).args(args);
        command
    }
}

/// Where this Debian's backports are: at the mirror that its main archive comes from.
fn backports_source() -> Result<String> {
    const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = codename(&system).context("only a Debian release has Debian's backports")?;
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(RELEASE)|$(CODENAME)|$(SITE)"]);
    let output = list.stdin(Stdio::null()).output().context("there is no apt here")?;
    let site = site(&String::from_utf8_lossy(&output.stdout), codename)
        .with_context(|| format!("apt has no source for Debian {codename}"))?;
    let signed =
        if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
    Ok(format!("{signed}{site} {codename}-backports main"))
}

fn codename(os_release: &str) -> Option<&str> {
    let value =
        |name: &str| os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

/// The mirror of a release in lines of `RELEASE|CODENAME|SITE`; a source may name the release or,
/// where the lists are there to tell, its role: `stable`.
fn site(targets: &str, codename: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [release, name, site] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
        (release == codename || name == codename).then(|| site.to_owned())
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_backports() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(debian), Some("bookworm"));
        assert_eq!(codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename(""), None);
    }

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let targets = "nodistro|nodistro|https://other\n\
            bookworm-security|bookworm-security|http://security\n\
            stable|bookworm|http://mirror/debian\n";
        assert_eq!(site(targets, "bookworm").as_deref(), Some("http://mirror/debian"));
        assert_eq!(site(targets, "trixie"), None);
        assert_eq!(site("bookworm||http://a\n", "bookworm").as_deref(), Some("http://a"));
    }
}
