//! A link to a tap interface of the host: a frame for each read and write (Linux
//! `Documentation/networking/tuntap.rst`).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tun_rs::{DeviceBuilder, Layer};

use super::Link;

/// The link.
#[derive(Debug)]
pub struct Tap {
    interface: OwnedFd,
    /// The frame that the host has not taken yet.
    unsent: Mutex<Option<Vec<u8>>>,
}

impl Tap {
    /// Opens a tap interface that is there, such as one made with `ip tuntap add NAME mode tap`.
    ///
    /// # Errors
    /// The system's: [`ErrorKind::NotFound`] if there is no such interface, and
    /// [`ErrorKind::ResourceBusy`] if another program has it open.
    pub fn open(name: &str) -> io::Result<Self> {
        // One that is made here would be gone with this program, and has no address yet.
        // No name at all asks the kernel for a new one.
        if name.is_empty() || name.contains('/') || !Path::new("/sys/class/net").join(name).exists()
        {
            return Err(ErrorKind::NotFound.into());
        }
        let builder = DeviceBuilder::new().name(name).layer(Layer::L2).packet_information(false);
        let interface = builder.inherit_enable_state().build_sync()?;
        Self::over(interface.as_fd().try_clone_to_owned()?)
    }

    /// Takes over a tap interface that the program which started this one has opened, with
    /// `IFF_NO_PI` and without `IFF_VNET_HDR`, as the descriptor of this number.
    ///
    /// # Errors
    /// The system's: there is no such descriptor.
    pub fn inherited(number: RawFd) -> io::Result<Self> {
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        Self::over(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?)
    }

    /// A link over a descriptor that gives and takes a frame at a time.
    ///
    /// # Errors
    /// The system's.
    pub fn over(interface: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&interface, true)?;
        Ok(Self { interface, unsent: Mutex::default() })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.interface.as_fd()
    }
}

impl Link for Tap {
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            return match read(&self.interface, &mut *frame) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => Ok(Some(length)),
                Err(Errno::INTR) => continue,
                // The interface may be down for a while.
                Err(Errno::AGAIN | Errno::IO) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
    }

    fn put(&self, frame: &[u8]) {
        *self.unsent.lock().unwrap_or_else(PoisonError::into_inner) = Some(frame.to_vec());
    }

    fn flush(&self) -> io::Result<bool> {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(frame) = &*unsent {
            match write(&self.interface, frame) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(false),
                // What the host does not want is lost, as on any wire: the interface is down, or the frame
                // is none.
                Ok(_) | Err(Errno::IO | Errno::INVAL) => *unsent = None,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}
