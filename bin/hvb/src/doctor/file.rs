//! Files of others: read up to a limit, whatever they are.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use doctor::MAX_TEXT_BYTES;

/// The text in a file that the user named, which may be a pipe; `-` is the standard input.
pub(super) fn text(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        return read(io::stdin().lock()).context("standard input");
    }
    let named = || file.display().to_string();
    read(File::open(file).with_context(named)?).with_context(named)
}

/// The text in a file that somebody else named.
pub(super) fn limited(file: &Path) -> Result<String> {
    let named = || file.display().to_string();
    // A pipe without a writer would let this wait for ever.
    let kind = std::fs::metadata(file).with_context(named)?.file_type();
    ensure!(kind.is_file(), "{}: not a file", file.display());
    read(File::open(file).with_context(named)?).with_context(named)
}

/// A file that another in this directory names.
pub(super) fn beside(directory: &Path, name: &str) -> Result<String, String> {
    let file = directory.join(name);
    limited(&file).map_err(|error| error.root_cause().to_string())
}

/// The words of the process with this directory in `/proc`.
pub(super) fn words(process: &Path) -> Result<Vec<String>> {
    let text = limited(&process.join("cmdline"))
        .map_err(|error| anyhow!("there is no such process, or it is another user's: {error:#}"))?;
    ensure!(!text.is_empty(), "{}: a process without a command line", process.display());
    Ok(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
}

fn read(source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_TEXT_BYTES)?.saturating_add(1);
    source.take(limit).read_to_end(&mut bytes)?;
    ensure!(bytes.len() <= MAX_TEXT_BYTES, doctor::Unreadable::TooLong);
    // Paths need not be UTF-8, and do not matter.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_is_no_file_or_too_long_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| format!("{:#}", limited(path).unwrap_err());
        assert!(said(dir.path()).ends_with(": not a file"));
        assert!(said(&dir.path().join("none")).contains("No such file"));
        let long = dir.path().join("long");
        File::create(&long).unwrap().set_len(u64::try_from(MAX_TEXT_BYTES).unwrap() + 1).unwrap();
        assert!(said(&long).contains("longer than 4 MiB"));
        std::fs::write(&long, b"\xff-m 1G").unwrap();
        assert_eq!(limited(&long).unwrap(), "\u{fffd}-m 1G");
    }

    #[test]
    fn a_pipe_that_the_user_named_is_read() {
        let (output, mut input) = io::pipe().unwrap();
        input.write_all(b"-m 1G").unwrap();
        drop(input);
        let name = format!("/dev/fd/{}", output.as_raw_fd());
        assert_eq!(text(Path::new(&name)).unwrap(), "-m 1G");
        let dir = tempfile::tempdir().unwrap();
        assert!(format!("{:#}", text(dir.path()).unwrap_err()).contains("directory"));
    }

    #[test]
    fn a_process_has_words() {
        let own = words(Path::new("/proc/self")).unwrap();
        assert_eq!(own, std::env::args().collect::<Vec<_>>());
        assert!(words(Path::new("/proc/0")).is_err());
    }
}
