//! Names of machines, and the sockets that belong to them.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory of the sockets of machines that have a name, if it is neither of the usual ones.
const DIRECTORY: &str = "HVB_RUN_DIR";

/// The longest name: the path of a socket has 107 bytes at most.
const MAX_LEN: usize = 48;

/// The name of a machine, for an option.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "invalid name '{text}': a name has 1 to {MAX_LEN} letters, digits, '-' and '_', and begins with a letter or digit"
    ))
}

/// The socket that an argument means: the one of the machine with this name, or else the file with
/// this path.
pub(crate) fn socket(text: &str) -> Result<PathBuf, String> {
    match is_name(text) {
        true => socket_of(text).map_err(|error| format!("{error:#}")),
        false => Ok(text.into()),
    }
}

/// The socket of the machine with this name.
///
/// # Errors
/// There is no directory for sockets.
pub(crate) fn socket_of(name: &str) -> Result<PathBuf> {
    Ok(directory()?.join(name).with_extension("sock"))
}

/// The name of the machine to which this socket in the directory belongs.
pub(crate) fn name_of(socket: &Path) -> Option<&str> {
    if socket.extension()? != "sock" {
        return None;
    }
    socket.file_stem()?.to_str().filter(|name| is_name(name))
}

/// The directory of sockets: `$HVB_RUN_DIR`, or `/run/hvb` for root, or `$XDG_RUNTIME_DIR/hvb`.
///
/// # Errors
/// This user has none.
pub(crate) fn directory() -> Result<PathBuf> {
    if let Some(directory) = env::var_os(DIRECTORY).filter(|directory| !directory.is_empty()) {
        return Ok(directory.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/run/hvb".into());
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
    let runtime = runtime.with_context(|| {
        format!("there is no directory for sockets: set {DIRECTORY}, or give a path with a '/'")
    })?;
    Ok(Path::new(&runtime).join("hvb"))
}

fn is_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    text.len() <= MAX_LEN
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_a_path() {
        for path in ["/run/x.sock", "./db", "db.sock", "-x", "_x", "", "ä", "a b", "a/b"] {
            assert_eq!(socket(path), Ok(path.into()));
            assert!(name(path).is_err(), "{path}");
        }
        for text in ["db", "db-1", "7_x", &"x".repeat(MAX_LEN)] {
            assert_eq!(name(text).as_deref(), Ok(text));
            assert!(socket(text).unwrap().ends_with(format!("{text}.sock")));
            assert_eq!(name_of(&socket(text).unwrap()), Some(text));
        }
        assert!(name(&"x".repeat(MAX_LEN + 1)).is_err());
        assert_eq!(name_of(Path::new("/run/hvb/lost+found")), None);
        assert_eq!(name_of(Path::new("/run/hvb/x.pid")), None);
    }
}
