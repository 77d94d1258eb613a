//! Cargo's subcommands that tasks build for themselves, once, in the target directory.

use std::process::Command;

use anyhow::Result;

use crate::debian::packages;
use crate::workspace;

/// A subcommand of cargo, by the package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CargoTool {
    /// `cargo-NAME`: the package, and its program.
    pub(crate) package: &'static str,
    /// The release to build. Other releases may take other options or print other tables.
    pub(crate) version: &'static str,
}

impl CargoTool {
    /// `cargo NAME`, in the root of the workspace. Builds the subcommand first if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be built; the error contains cargo's output.
    pub(crate) fn command(self) -> Result<Command> {
        let Self { package, version } = self;
        let root = workspace::target().join("tools").join(format!("{package}-{version}"));
        let bin = root.join("bin");
        if !bin.join(package).is_file() {
            eprintln!("building {package} {version}");
            let mut cargo = workspace::cargo();
            cargo.args(["install", package, "--version", version, "--locked", "--root"]);
            packages::run(cargo.arg(&root))?;
        }
        let mut command = workspace::cargo();
        command.arg(package.trim_start_matches("cargo-"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = [bin].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(dirs)?);
        Ok(command)
    }
}
