//! Image files: which format, opening them with all files below, and input and output.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use thiserror::Error;

use super::lock::lock;
use super::qcow2;

/// The unit of the guest's addresses, in bytes.
pub(super) const SECTOR: u64 = 512;

/// The most files that an image may consist of, one below the other.
const MOST_FILES: usize = 64;

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's format, with a backing file or without.
    Qcow2,
}

/// An image cannot be used. Each text names the file and a remedy.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open the disk image '{}'", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file below the image cannot be opened.
    #[error(
        "cannot open '{}', the backing file of '{}': put it there, or name the right one with \
         qemu-img rebase -u",
        backing.display(), path.display()
    )]
    Backing {
        /// The image.
        path: PathBuf,
        /// The file that it names.
        backing: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a pipe or a terminal.
    #[error("'{}' is no disk image: name a file or a block device", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// The guest of a raw image may have written what looks like this, to have the host open
    /// other files.
    #[error(
        "'{}' begins like a qcow2 image, and its name does not end with .qcow2: add format=qcow2 \
         to --disk, or format=raw if its guest wrote that there",
        path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
    },
    /// It has another format.
    #[error("'{}' is not a qcow2 image: add format=raw to --disk if it is a raw one", path.display())]
    NotQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// Its end is missing, or its tables are garbled.
    #[error(
        "the qcow2 image '{}' is cut off or damaged: restore it from a copy (qemu-img check tells more)",
        path.display()
    )]
    CutOff {
        /// The file.
        path: PathBuf,
    },
    /// It needs what is not supported.
    #[error("cannot use the qcow2 image '{}': qemu-img convert -O qcow2 makes one that hvb can use", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The header does not say which format the backing file has.
    #[error(
        "'{}' does not say which format its backing file has: tell it with qemu-img rebase -u -F \
         FORMAT -b '{}'",
        path.display(), backing.display()
    )]
    UnknownBacking {
        /// The image.
        path: PathBuf,
        /// The file that it names.
        backing: PathBuf,
    },
    /// An image is its own backing file, perhaps through others.
    #[error(
        "the backing files of '{}' go round in a circle: name another one with qemu-img rebase -u",
        path.display()
    )]
    Circle {
        /// The file that is named twice.
        path: PathBuf,
    },
    /// Another program uses it.
    #[error(
        "the disk image '{}' is in use by another program, perhaps another virtual machine: end \
         that, or take a copy",
        path.display()
    )]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// It has no whole sectors.
    #[error(
        "the disk image '{}' has {bytes} bytes, and a disk has sectors of 512: give it a size \
         with truncate -s",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size, or that of the disk in it.
        bytes: u64,
    },
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    /// Locked for writing by what changes where data lies in the file.
    access: RwLock<FormatAccess<ImageFile>>,
    /// The file itself, to have it written to the disk. Its locks end with the last copy.
    file: File,
    is_read_only: bool,
}

impl Image {
    /// Opens and locks an image, and all files below it for reading only.
    ///
    /// Without a format, the file's name decides: `.qcow2` or not. Its content does not, since that
    /// may be a guest's work.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(
        path: &Path,
        format: Option<Format>,
        is_read_only: bool,
    ) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Open { path: path.to_path_buf(), source };
        // A pipe without a writer would hold up the opening.
        if !is_disk(&path.metadata().map_err(failed)?) {
            return Err(ImageError::NoFile { path: path.to_path_buf() });
        }
        let file = File::options().read(true).write(!is_read_only).open(path).map_err(failed)?;
        let named = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2"));
        let begins = begins_like_qcow2(&file).map_err(failed)?;
        let format = match format {
            Some(format) => format,
            None if named => Format::Qcow2,
            None if begins => return Err(ImageError::Ambiguous { path: path.to_path_buf() }),
            None => Format::Raw,
        };
        let copy = file.try_clone().map_err(failed)?;
        let access = open_file(path, file, format, is_read_only, &mut Vec::new())?;
        let bytes = access.size();
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(ImageError::Size { path: path.to_path_buf(), bytes });
        }
        Ok(Self { access: RwLock::new(access), file: copy, is_read_only })
    }

    /// Whether the guest may not write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// The size of the disk in bytes.
    pub(super) fn size(&self) -> u64 {
        self.read_access(FormatAccess::size)
    }

    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_access(|access| access.read(bytes, offset))
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.read_access(|access| access.write(bytes, offset))
    }

    /// Returns when all that was written before is on the disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.read_access(|access| access.flush())?;
        self.file.sync_data()
    }

    /// Gives up what is there; what can be read afterwards is undefined.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_access(|access| access.discard_to_any(offset, len))
    }

    /// Writes zeros, and gives up the place where that is possible, if that `may_unmap`.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap {
            match self.write_access(|access| access.discard_to_zero(offset, len)) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                other => return other,
            }
        }
        self.read_access(|access| access.write_zeroes(offset, len))
    }

    fn read_access<T>(&self, work: impl FnOnce(&FormatAccess<ImageFile>) -> T) -> T {
        work(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_access<T>(&self, work: impl FnOnce(&mut FormatAccess<ImageFile>) -> T) -> T {
        work(&mut self.access.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn is_disk(metadata: &Metadata) -> bool {
    metadata.is_file() || metadata.file_type().is_block_device()
}

fn begins_like_qcow2(file: &File) -> io::Result<bool> {
    let mut magic = [0; qcow2::MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| magic == qcow2::MAGIC),
    }
}

/// Opens a file of an image and those below it. `above` holds the files above it, by device and
/// inode.
fn open_file(
    path: &Path,
    file: File,
    format: Format,
    is_read_only: bool,
    above: &mut Vec<(u64, u64)>,
) -> Result<FormatAccess<ImageFile>, ImageError> {
    let path_buf = || path.to_path_buf();
    let metadata =
        file.metadata().map_err(|source| ImageError::Open { path: path_buf(), source })?;
    let identity = (metadata.dev(), metadata.ino());
    if above.contains(&identity) || above.len() == MOST_FILES {
        return Err(ImageError::Circle { path: path_buf() });
    }
    above.push(identity);
    lock(&file, !is_read_only).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => ImageError::Busy { path: path_buf() },
        _ => ImageError::Open { path: path_buf(), source },
    })?;
    if format == Format::Qcow2 {
        check_qcow2(path, &file)?;
    }
    let unsupported = |source| ImageError::Unsupported { path: path_buf(), source };
    let options = StorageOpenOptions::new().filename(path).write(!is_read_only);
    let storage = ImageFile::from_open_file(file, options).map_err(unsupported)?;
    if format == Format::Raw {
        let raw = Raw::open_image(storage, !is_read_only).map_err(unsupported)?;
        return Ok(FormatAccess::new(raw));
    }
    let mut image = Qcow2::<ImageFile>::open_image(storage, !is_read_only).map_err(unsupported)?;
    if image.requires_external_data_file() {
        let source = io::Error::other("its data is in another file");
        return Err(unsupported(source));
    }
    image.set_data_file(None);
    let backing = match image.implicit_backing_file() {
        None => None,
        Some(name) => {
            let backing = path.parent().unwrap_or(Path::new("")).join(name);
            Some(open_backing(path, &backing, image.implicit_backing_format(), above)?)
        }
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

fn check_qcow2(path: &Path, file: &File) -> Result<(), ImageError> {
    let failed = |source| ImageError::Open { path: path.to_path_buf(), source };
    if !begins_like_qcow2(file).map_err(failed)? {
        Err(ImageError::NotQcow2 { path: path.to_path_buf() })
    } else if !qcow2::is_whole(file).map_err(failed)? {
        Err(ImageError::CutOff { path: path.to_path_buf() })
    } else {
        Ok(())
    }
}

fn open_backing(
    path: &Path,
    backing: &Path,
    format: Option<&String>,
    above: &mut Vec<(u64, u64)>,
) -> Result<FormatAccess<ImageFile>, ImageError> {
    let (path, backing) = (path.to_path_buf(), backing.to_path_buf());
    let format = match format.map(String::as_str) {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow2,
        Some(other) => {
            let source = io::Error::other(format!("its backing file has the format {other}"));
            return Err(ImageError::Unsupported { path, source });
        }
        // It could be found out, but what is there may be a guest's work.
        None => return Err(ImageError::UnknownBacking { path, backing }),
    };
    let is_disk = backing.metadata().map(|metadata| is_disk(&metadata));
    match is_disk.and_then(|is_disk| is_disk.then(|| File::open(&backing)).transpose()) {
        Ok(Some(file)) => open_file(&backing, file, format, true, above),
        Ok(None) => Err(ImageError::NoFile { path: backing }),
        Err(source) => Err(ImageError::Backing { path, backing, source }),
    }
}
