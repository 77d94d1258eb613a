//! A link to `passt`, which connects the guest to the host's network as any program is connected, and
//! so needs no privileges: a stream of frames over a Unix socket, each after its length in four
//! bytes, the highest first (passt's `tap.c`, QEMU's `-netdev stream`).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};

use super::{Link, MTU};

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// No frame is longer, whatever its link.
const LONGEST: usize = 64 << 10;

/// The link.
#[derive(Debug)]
pub struct Passt {
    socket: UnixStream,
    /// What has arrived and is no whole frame yet.
    received: Mutex<Vec<u8>>,
    /// What is to be sent, from the first byte that was not.
    unsent: Mutex<Vec<u8>>,
}

impl Passt {
    /// Connects to a `passt` that listens at a socket. Its MTU (`--mtu`) should be [`MTU`] at most,
    /// since longer frames do not reach the guest.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?)
    }

    /// Starts `passt`, which ends with the link.
    ///
    /// # Errors
    /// The system's: [`ErrorKind::NotFound`] if there is no such program.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // The program inherits its end.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&theirs).to_string();
        let status = Command::new("passt")
            .args(["--quiet", "--one-off", "--mtu", &MTU.to_string(), "--fd", &number])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
        Self::over(ours)
    }

    /// A link over a socket that is connected.
    ///
    /// # Errors
    /// The system's.
    pub fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: Mutex::default(), unsent: Mutex::default() })
    }
}

impl AsFd for Passt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for Passt {
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let mut received = lock(&self.received);
        loop {
            let wanted = match received.first_chunk::<LENGTH>() {
                None => LENGTH,
                Some(length) => {
                    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                    if length > LONGEST {
                        let text = format!("it sends a frame of {length} bytes");
                        return Err(io::Error::new(ErrorKind::InvalidData, text));
                    }
                    LENGTH + length
                }
            };
            if received.len() == wanted && wanted > LENGTH {
                let bytes = received.get(LENGTH..).unwrap_or_default();
                for (place, byte) in frame.iter_mut().zip(bytes) {
                    *place = *byte;
                }
                received.clear();
                return Ok(Some(wanted - LENGTH));
            }
            let have = received.len();
            if have == wanted {
                // A frame of no bytes.
                received.clear();
                continue;
            }
            received.resize(wanted, 0);
            let result = (&self.socket).read(received.get_mut(have..).unwrap_or_default());
            received.truncate(have + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn put(&self, frame: &[u8]) {
        let mut unsent = lock(&self.unsent);
        // A frame has less than 64 KiB.
        unsent.extend(u32::try_from(frame.len()).unwrap_or_default().to_be_bytes());
        unsent.extend(frame);
    }

    fn flush(&self) -> io::Result<bool> {
        let mut unsent = lock(&self.unsent);
        while !unsent.is_empty() {
            match (&self.socket).write(&unsent) {
                Ok(sent) => drop(unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
