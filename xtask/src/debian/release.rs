//! Debian's releases, and the mirrors from which this machine's apt takes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// A release of Debian, and its mirrors.
#[derive(Debug)]
pub(crate) struct Release {
    /// Such as `bookworm`.
    pub(crate) codename: String,
    /// The mirror of the main archive.
    site: String,
    /// The mirror of the security archive, if this machine uses one.
    security: Option<String>,
}

/// The release that never becomes stable, by both names: it has neither updates nor a security
/// archive.
const ROLLING: [&str; 2] = ["sid", "unstable"];

impl Release {
    /// This machine's.
    ///
    /// # Errors
    ///
    /// This system is not Debian, or apt has no source for its release.
    pub(crate) fn of_machine() -> Result<Self> {
        let codename = machine_codename()?;
        Self::find(&codename, &index_targets()?)
            .with_context(|| format!("apt has no source for Debian {codename}"))
    }

    /// A release by its name. The mirrors that have this machine's release have the others as well.
    ///
    /// # Errors
    ///
    /// apt has no source for that release nor for this machine's.
    pub(crate) fn named(codename: &str) -> Result<Self> {
        let targets = index_targets()?;
        if let Some(release) = Self::find(codename, &targets) {
            return Ok(release);
        }
        Ok(Self { codename: codename.to_owned(), ..Self::of_machine()? })
    }

    fn find(codename: &str, targets: &str) -> Option<Self> {
        Some(Self {
            codename: codename.to_owned(),
            site: site(targets, codename)?,
            security: site(targets, &format!("{codename}-security")),
        })
    }

    /// The sources of the release, its updates and its backports.
    pub(crate) fn with_backports(&self) -> String {
        ["", "-updates", "-backports"].map(|part| self.line(&self.site, part)).concat()
    }

    /// The sources of the release, its updates and its security updates.
    pub(crate) fn with_updates(&self) -> String {
        let mut sources = self.line(&self.site, "");
        if !ROLLING.contains(&self.codename.as_str()) {
            sources += &self.line(&self.site, "-updates");
            sources.extend(self.security.as_ref().map(|site| self.line(site, "-security")));
        }
        sources
    }

    fn line(&self, site: &str, part: &str) -> String {
        const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let signed = Path::new(KEYS).exists().then(|| format!("[signed-by={KEYS}] "));
        format!("deb {}{site} {}{part} main\n", signed.unwrap_or_default(), self.codename)
    }
}

fn machine_codename() -> Result<String> {
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = codename(&system).context("this machine does not run a release of Debian")?;
    Ok(codename.to_owned())
}

/// What apt would download here, in lines of `RELEASE|CODENAME|SITE`.
fn index_targets() -> Result<String> {
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(RELEASE)|$(CODENAME)|$(SITE)"]);
    let output = list.stdin(Stdio::null()).output().context("there is no apt on this machine")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn codename(os_release: &str) -> Option<&str> {
    let value =
        |name: &str| os_release.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
    (value("ID")? == "debian").then(|| value("VERSION_CODENAME"))?
}

/// The mirror of a release in lines of `RELEASE|CODENAME|SITE`. A source may name the release or,
/// if the lists are there to tell, its role: `stable`.
fn site(targets: &str, codename: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [release, name, site] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
        (release == codename || name == codename).then(|| site.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_is_debian() {
        let debian = "PRETTY_NAME=\"Debian\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(debian), Some("bookworm"));
        assert_eq!(codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(codename(""), None);
    }

    const TARGETS: &str = "nodistro|nodistro|https://other\n\
        bookworm-security|bookworm-security|http://security\n\
        stable|bookworm|http://mirror/debian\n";

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        assert_eq!(site(TARGETS, "bookworm").as_deref(), Some("http://mirror/debian"));
        assert_eq!(site(TARGETS, "trixie"), None);
        assert_eq!(site("bookworm||http://a\n", "bookworm").as_deref(), Some("http://a"));
    }

    #[test]
    fn updates_come_from_both_archives_except_where_a_release_has_none() {
        let sources = |release: &Release| {
            let text = release.with_updates();
            let site_and_suite = |line: &str| {
                let (rest, _) = line.strip_suffix(" main").unwrap().rsplit_once(' ').unwrap();
                let site = rest.rsplit(' ').next().unwrap();
                line[line.find(site).unwrap()..].to_owned()
            };
            text.lines().map(site_and_suite).collect::<Vec<_>>()
        };
        let release = Release::find("bookworm", TARGETS).unwrap();
        assert_eq!(
            sources(&release),
            [
                "http://mirror/debian bookworm main",
                "http://mirror/debian bookworm-updates main",
                "http://security bookworm-security main",
            ]
        );
        let rolling = Release { codename: "sid".to_owned(), ..release };
        assert_eq!(sources(&rolling), ["http://mirror/debian sid main"]);
    }
}
