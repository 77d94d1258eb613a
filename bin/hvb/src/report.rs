//! Output for the user: results on stdout, one line per failure on stderr, logs.

use crate::log::Log;
use anyhow::{Context, Result};
use clap::error::{ContextKind, ErrorKind};
use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Exit status for an invalid command line.
const USAGE: u8 = 2;

/// Writes a line to stdout. A closed pipe is not a failure, because the exit status still reports
/// the outcome.
pub(crate) fn line(text: &str) -> Result<()> {
    line_if_read(text).map(|_| ())
}

/// As [`line()`]; whether somebody may read it. Output without end ends where nobody does.
pub(crate) fn line_if_read(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", printable(text)).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).context("cannot write to stdout"),
    }
}

/// As [`line()`], for lines of our own that have their ends.
pub(crate) fn text(text: &str) -> Result<()> {
    text.lines().try_for_each(line)
}

/// The longest text in a cell of a table, in characters.
const MAX_CELL: usize = 200;

/// Writes rows as a table, of which the first is the head.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> Result<()> {
    rows_of(rows).iter().try_for_each(|row| line(row))
}

/// The lines of a table. A text of somebody else may have any length, and is cut.
fn rows_of<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let cut = |text: &String| match text.char_indices().nth(MAX_CELL) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.clone(),
    };
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(cut)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line_of = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(text, &width)| format!("{text:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line_of).collect()
}

/// Reports a failure as one line, with the chain of causes.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    complain(&chain(error));
    ExitCode::FAILURE
}

/// An error with its causes. Some errors tell their cause themselves; it is told once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Reports an invalid command line, or prints the requested help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // As for `line`.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(USAGE)
        }
        _ => {
            complain(&usage_text(error));
            ExitCode::from(USAGE)
        }
    }
}

/// Reports options that are invalid and come from a file.
pub(crate) fn definition(file: &Path, error: &clap::Error) -> ExitCode {
    complain(&format!("{}: {}", file.display(), usage_text(error)));
    ExitCode::from(USAGE)
}

/// Sends logs to stderr at the level set by `HVB_LOG`, or else at the `usual` one, until the returned guard is dropped.
///
/// Lines that cannot be written, because a disk is full or nobody reads, are lost, with no other
/// effect.
pub(crate) fn start_logging(usual: &str) -> Result<Log> {
    // A guest can have it complain as fast as it can write registers; the devices tell what matters.
    let quiet = "virtio_queue=off".parse().context("no filter")?;
    let filter = match std::env::var("HVB_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .with_context(|| format!("HVB_LOG={text}: give a level such as debug"))?,
        Err(_) => EnvFilter::new(usual),
    };
    let log = Log::start(io::stderr()).context("cannot start the log's thread")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter.add_directive(quiet))
        .with_writer(log.lines())
        .with_ansi(io::stderr().is_terminal())
        // By default the subscriber reports its own failures to stderr too, with a call that panics
        // if writing fails.
        .log_internal_errors(false)
        .init();
    Ok(log)
}

/// The text without control characters, because it may come from an untrusted server.
pub(crate) fn printable(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn complain(text: &str) {
    // A failure here cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "hvb: {}", printable(text));
}

fn usage_text(error: &clap::Error) -> String {
    // The errors of our own value parsers are complete.
    if error.kind() == ErrorKind::ValueValidation
        && let (Some(argument), Some(reason)) = (error.get(ContextKind::InvalidArg), error.source())
    {
        return format!("{argument}: {reason}");
    }
    // clap's text has a paragraph with the problem, sometimes tips, then usage and help.
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ");
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("{}; see hvb --help", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn text(arguments: &str) -> String {
        usage_text(&Cli::try_parse_from(arguments.split_whitespace()).unwrap_err())
    }

    #[test]
    fn usage_errors_are_one_line_that_names_the_thing() {
        assert_eq!(
            text("hvb run --kernel k --memory 12Q"),
            "--memory <SIZE>: invalid size '12Q': a size is a number with K, M, G or T, for example 512M or 4G"
        );
        assert_eq!(
            text("hvb run --kernel k --cpus 0"),
            "--cpus <N>: invalid number of vCPUs '0': a guest needs at least 1"
        );
        assert_eq!(
            text("hvb run"),
            "the following required arguments were not provided: --kernel <FILE>; see hvb --help"
        );
        assert!(text("hvb run --kernal k").contains("--kernal"));
        assert!(text("hvb blloon").contains("'balloon'"));
        assert!(!text("hvb run --hugepages 3M --kernel k").contains('\n'));
    }

    #[test]
    fn a_text_without_end_does_not_take_the_table_with_it() {
        let row = |text: &str| [text.to_owned(), "x".to_owned()];
        let lines = rows_of(&[row("NAME"), row(&"é".repeat(70_000)), row("a")]);
        assert_eq!(lines[1], format!("{}…  x", "é".repeat(200)));
        assert_eq!(lines[2], format!("a{}  x", " ".repeat(200)));
    }

    #[test]
    fn a_cause_is_told_once() {
        let io = || io::Error::other("the disk is full");
        let told = anyhow::Error::new(io()).context("/x: the disk is full").context("cannot write");
        assert_eq!(chain(&told), "cannot write: /x: the disk is full");
        assert_eq!(chain(&anyhow::Error::new(io()).context("/x")), "/x: the disk is full");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\nc\u{9b}d"), "a [2Jb c d");
    }
}
