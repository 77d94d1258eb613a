//! UNIX sockets: listening, connecting, and errors that say plainly what is wrong.

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, setsockopt, socket,
};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path of a UNIX socket on Linux, in bytes: `sun_path` less its terminator.
pub(crate) const MAX_PATH_BYTES: usize = 107;

/// How many clients may wait to be accepted. None waits long.
const BACKLOG: i32 = 16;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The kernel does not support a socket path of this length.
    #[error(
        "socket {}: the path is {} bytes long, the kernel allows {MAX_PATH_BYTES}: choose a shorter one",
        .path.display(), .path.as_os_str().len()
    )]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
    },
    /// Another process listens on it.
    #[error(
        "socket {} is in use: another process answers on it; choose another path or end that process",
        .path.display()
    )]
    InUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path names something other than a socket, which is left alone.
    #[error("socket {}: the path exists and is not a socket; choose another path or remove it", .path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot listen on socket {}", .path.display())]
    Listen {
        /// The path asked for.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

/// A socket this process listens on. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file this created: a later file at this path is someone else's.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, for this user only. Replaces a socket on which nobody listens any more.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |source: io::Error| ServerError::Listen { path: path.to_owned(), source };
        let address =
            address(path).ok_or_else(|| ServerError::PathTooLong { path: path.to_owned() })?;
        remove_stale(path, &address)?;
        let socket = stream_socket(SockFlag::empty()).map_err(failed)?;
        // On Linux the file inherits the socket's mode, so it is never open to others, not even
        // between bind and a chmod.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| failed(e.into()))?;
        bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            Errno::EADDRINUSE => ServerError::InUse { path: path.to_owned() },
            errno => failed(errno.into()),
        })?;
        let backlog = Backlog::new(BACKLOG).map_err(|e| failed(e.into()))?;
        listen(&socket, backlog).map_err(|e| failed(e.into()))?;
        Ok(Self {
            socket: socket.into(),
            path: path.to_owned(),
            identity: fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino())),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path).ok().map(|file| (file.dev(), file.ino()));
        if found.is_some() && found == self.identity {
            // No one is left to report to; the next server replaces a stale file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to `path`, waiting at most `timeout` if the server is slow to accept. Reads and writes
/// on the stream have the same timeout.
pub(crate) fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, Errno> {
    let address = address(path).ok_or(Errno::ENAMETOOLONG)?;
    let socket = stream_socket(SockFlag::empty()).map_err(|_| Errno::last())?;
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    let limit = TimeVal::microseconds(micros);
    setsockopt(&socket, SendTimeout, &limit)?;
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

fn address(path: &Path) -> Option<UnixAddr> {
    // An empty path would bind to an address that the kernel picks.
    let fits = (1..=MAX_PATH_BYTES).contains(&path.as_os_str().len());
    fits.then(|| UnixAddr::new(path).ok()).flatten()
}

fn stream_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Removes what is at `path` if it is a socket on which nobody listens.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ServerError> {
    let failed = |source: io::Error| ServerError::Listen { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = stream_socket(SockFlag::SOCK_NONBLOCK).map_err(failed)?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed),
        // A server too busy to accept is still a server.
        Ok(()) | Err(Errno::EAGAIN) => Err(ServerError::InUse { path: path.to_owned() }),
        // It disappeared in the meantime.
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn the_socket_is_private_from_the_start_and_removed_at_the_end() {
        let directory = directory();
        let path = directory.path().join("qmp");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let directory = directory();
        let path = directory.path().join("qmp");
        let live = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ServerError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
        drop(live);
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = directory();
        let path = directory.path().join("qmp");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_replaced_and_what_it_names_stays() {
        let directory = directory();
        let (link, stale) = (directory.path().join("qmp"), directory.path().join("stale"));
        drop(UnixListener::bind(&stale).unwrap());
        std::os::unix::fs::symlink(&stale, &link).unwrap();
        let _listener = Listener::bind(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_socket());
        assert!(stale.exists());
    }

    #[test]
    fn a_link_to_nothing_is_not_followed() {
        let directory = directory();
        let (link, target) = (directory.path().join("qmp"), directory.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = Listener::bind(&link).unwrap_err();
        assert!(matches!(error, ServerError::InUse { .. }), "{error}");
        assert!(!target.exists());
    }

    #[test]
    fn a_file_is_left_alone() {
        let directory = directory();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ServerError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn somebody_elses_later_socket_is_not_removed() {
        let directory = directory();
        let path = directory.path().join("qmp");
        let first = Listener::bind(&path).unwrap();
        let moved = directory.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_path_too_long_is_named_with_the_limit() {
        let directory = directory();
        let path = directory.path().join("x".repeat(120));
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ServerError::PathTooLong { .. }));
        assert!(error.to_string().contains("107"), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_the_systems_reason() {
        let directory = directory();
        let error = Listener::bind(&directory.path().join("no/qmp")).unwrap_err();
        assert!(matches!(error, ServerError::Listen { .. }), "{error}");
    }
}
