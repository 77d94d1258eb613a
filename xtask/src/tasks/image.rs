//! `cargo xtask image`: makes a disk image with Debian.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::debian::release::Release;
use crate::disk_image::{self, Recipe};
use crate::rig;

/// `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// The directory for debian.img, vmlinuz and initrd.img [default: image in cargo's target
    /// directory].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The size of the image in MiB, or with a suffix M or G. The file takes up only what is in use.
    #[arg(long, default_value_t = disk_image::USUAL_MIB, value_parser = parse_size)]
    size: u64,
    /// The release of Debian, such as bookworm [default: this machine's].
    #[arg(long, value_parser = parse_name)]
    suite: Option<String>,
    /// A further package, such as kdump-tools; may be given several times.
    #[arg(long, value_name = "PACKAGE", value_parser = parse_name)]
    with: Vec<String>,
    /// A public key with which root may log in by ssh.
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Makes the image again even if it is there. What the guest wrote to it is lost.
    #[arg(long)]
    refresh: bool,
}

/// Makes the image if needed, and prints what boots it.
pub(crate) fn main(args: ImageArgs) -> Result<ExitCode> {
    let suite = match args.suite {
        Some(suite) => suite,
        None => Release::of_machine()?.codename,
    };
    let key = args.ssh_key.as_deref().map(read_key).transpose()?;
    let recipe = Recipe::new(suite, args.size, &args.with, key);
    let dir = args.output.unwrap_or_else(disk_image::directory);
    let made = disk_image::build(&recipe, &dir, args.refresh)?;
    println!("image  {}\nkernel {}", made.image.display(), made.kernel.display());
    println!("initrd {}\nappend {}", made.initrd.display(), disk_image::COMMAND_LINE);
    Ok(ExitCode::SUCCESS)
}

fn parse_size(text: &str) -> Result<u64> {
    let mib = rig::parse_mib(text)?;
    ensure!(mib >= 1024, "less than the 1G that the packages need");
    Ok(mib)
}

/// Parses the name of a package or a release.
fn parse_name(text: &str) -> Result<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ensure!(starts_well && text.chars().all(is_part), "not a name in Debian");
    Ok(text.to_owned())
}

fn read_key(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("--ssh-key {}", file.display()))?;
    let (file, hint) = (file.display(), "give the file that ends in .pub");
    ensure!(is_public_key(&text), "--ssh-key {file}: not a public key: {hint}");
    Ok(text)
}

/// Whether each line, of at least one, is a public key in OpenSSH's form: type, base 64, comment.
fn is_public_key(text: &str) -> bool {
    let is_key = |line: &str| {
        let mut words = line.split_whitespace();
        let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        ["ssh-", "ecdsa-", "sk-"].iter().any(|known| kind.starts_with(known))
            && data.starts_with("AAAA")
    };
    !text.trim().is_empty() && text.trim().lines().all(is_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_too_small_for_the_packages_are_refused_before_these_are_installed() {
        assert_eq!(parse_size("1G").unwrap(), 1024);
        assert!(parse_size("1023").is_err());
    }

    #[test]
    fn names_are_those_of_debian_and_nothing_that_tools_take_for_something_else() {
        for good in ["libstdc++6", "linux-image-6.1.0-48-cloud-amd64", "bookworm"] {
            assert_eq!(parse_name(good).unwrap(), good);
        }
        for bad in ["", "-x", "a,b", "a b", "../x", "A", "?essential"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_private_key_is_not_taken_for_a_public_one() {
        const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB me@here\n";
        assert!(is_public_key(KEY) && is_public_key(&KEY.repeat(2)));
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\n";
        for bad in ["", "\n", private, "ssh-ed25519", &format!("{KEY}{private}")] {
            assert!(!is_public_key(bad), "{bad}");
        }
    }
}
