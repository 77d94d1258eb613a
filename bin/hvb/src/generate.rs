//! `hvb generate`: man pages and completions, from the definition of the command line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::report;

/// The shells, and where below /usr/share each looks for completions.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/hvb"),
    (Shell::Fish, "fish/vendor_completions.d/hvb.fish"),
    (Shell::Zsh, "zsh/site-functions/_hvb"),
];

/// Writes a page for each command, and a file for each shell.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let pages = directory.join("man/man1");
    make(&pages)?;
    clap_mangen::generate_to(Cli::command(), &pages)
        .with_context(|| format!("{}: cannot write the man pages", pages.display()))?;
    report::line(&pages.display().to_string())?;
    for (shell, path) in SHELLS {
        let path = directory.join(path);
        make(path.parent().unwrap_or(directory))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "hvb", &mut script);
        fs::write(&path, script).with_context(|| path.display().to_string())?;
        report::line(&path.display().to_string())?;
    }
    Ok(())
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}
