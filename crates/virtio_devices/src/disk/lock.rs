//! Locks on image files, so that no two programs use one image in ways that do not go together.
//!
//! They are those of QEMU (its `docs/system/qemu-block-drivers.rst.inc`, "Image locking"): locks of
//! single bytes of the file, held by the open file description. A byte says what its holder does
//! with the image, another one what the holder does not bear others to do. So `hvb`, QEMU and
//! `qemu-img` respect each other's images.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, c_int, c_short, flock, off_t};

/// Where the bytes begin of which the holder says: I do this.
const DOES: off_t = 100;
/// Where the bytes begin of which the holder says: I do not bear that others do this.
const FORBIDS: off_t = 200;

/// What may be done with an image: its byte.
#[derive(Clone, Copy)]
enum Deed {
    Read = 0,
    Write = 1,
    Resize = 3,
}

/// Locks an image for writing, or for reading only.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if another program uses it in a way that does not go together.
/// Where the file system has no locks, nothing is locked.
pub(super) fn lock(file: &File, writes: bool) -> io::Result<()> {
    let does: &[Deed] =
        if writes { &[Deed::Read, Deed::Write, Deed::Resize] } else { &[Deed::Read] };
    let forbids = [Deed::Write, Deed::Resize];
    let at = |start: off_t| move |deed: &Deed| start + *deed as off_t;
    // First take all, then look: of two programs at the same time, at least one sees the other.
    for byte in does.iter().map(at(DOES)).chain(forbids.iter().map(at(FORBIDS))) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&byte_lock(F_RDLCK, byte))) {
            Ok(_) => {}
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    for byte in does.iter().map(at(FORBIDS)).chain(forbids.iter().map(at(DOES))) {
        let mut other = byte_lock(F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut other))?;
        if c_int::from(other.l_type) != F_UNLCK {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
    }
    Ok(())
}

fn byte_lock(kind: c_int, byte: off_t) -> flock {
    // The constants are small numbers.
    let short = |number: c_int| c_short::try_from(number).unwrap_or_default();
    flock { l_type: short(kind), l_whence: short(SEEK_SET), l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_writer_or_many_readers() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(image.path()).unwrap();
        let busy =
            |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::ResourceBusy;
        let writer = open();
        lock(&writer, true).unwrap();
        assert!(busy(lock(&open(), true)));
        assert!(busy(lock(&open(), false)));
        drop(writer);
        let (one, other) = (open(), open());
        lock(&one, false).unwrap();
        lock(&other, false).unwrap();
        assert!(busy(lock(&open(), true)));
        drop((one, other));
        lock(&open(), true).unwrap();
    }
}
