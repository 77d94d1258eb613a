//! Disks: requests of the guest (virtio 1.2, 5.2), served from an image file.

mod image;
mod lock;
mod qcow2;

pub use image::{Format, Image, ImageError};

use std::fmt;
use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::image::SECTOR;
use crate::{BUFFER, Chain, Device, Lost, VirtQueue, WorkerKind};

/// Requests that are served at the same time, each on a thread.
const IN_FLIGHT: usize = 4;
/// Entries of the queue.
const QUEUE: u16 = 128;
/// Buffers of a request that hold data. The two others are for header and status.
const SEGMENTS: u16 = QUEUE - 2;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of a range in a request that discards or writes zeros.
const RANGE: usize = 16;
/// The most ranges in such a request.
const RANGES: u32 = 16;
/// The most sectors in a range to discard: 1 GiB.
const MOST_DISCARDED: u32 = 1 << 21;
/// The most sectors in a range of zeros: 32 MiB, since they may have to be written.
const MOST_ZEROED: u32 = 1 << 16;
/// Bytes of the configuration space.
const CONFIG: usize = 60;

/// What an image could not do for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Reading.
    Read,
    /// Writing, or writing zeros.
    Write,
    /// Having it on the disk.
    Flush,
    /// Discarding.
    Discard,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// Told of each request that failed because of the host. The guest is told too, and the machine runs
/// on. A guest can cause many such failures.
pub type Failures = Box<dyn Fn(Deed, &io::Error) + Send + Sync>;

/// A disk.
pub struct Disk {
    image: Image,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    config: [u8; CONFIG],
    failures: Failures,
}

/// Why a request was not served.
enum Failed {
    /// It is void.
    Gone,
    /// It makes no sense, or its memory is not there.
    Senseless,
    /// It is not supported.
    Unsupported,
    /// The image failed.
    Host(Deed, io::Error),
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Request => Self::Gone,
            Lost::Memory => Self::Senseless,
        }
    }
}

impl Failed {
    fn host(deed: Deed) -> impl Fn(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::Unsupported => Self::Unsupported,
            _ => Self::Host(deed, error),
        }
    }
}

impl Disk {
    /// A disk with this image. The guest finds the first 20 bytes of `id` in
    /// `/sys/block/vda/serial`, and so under `/dev/disk/by-id`.
    #[must_use]
    pub fn new(image: Image, id: &str, failures: Failures) -> Self {
        let mut padded = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (place, byte) in padded.iter_mut().zip(id.bytes()) {
            *place = byte;
        }
        let config = config(image.size() / SECTOR);
        Self { image, id: padded, config, failures }
    }

    /// Serves a request. Returns the number of bytes that were written to its buffers, or `None` if it
    /// is void.
    fn answer(&self, queue: &VirtQueue, chain: &Chain, buffer: &mut [u8]) -> Option<u32> {
        // The last byte is for the status.
        let room = chain.writable_len().checked_sub(1);
        let result = match room {
            Some(room) => Request { disk: self, queue, chain, room }.serve(buffer),
            None => Err(Failed::Senseless),
        };
        let (status, written) = match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failed::Gone) => return None,
            Err(Failed::Senseless) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failed::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Failed::Host(deed, error)) => {
                (self.failures)(deed, &error);
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        let status = [u8::try_from(status).unwrap_or_default()];
        // A guest that left no room for the status learns nothing.
        let told = room.is_some_and(|room| queue.copy_to(chain, room, &status).is_ok());
        Some(u32::try_from(written + u64::from(told)).unwrap_or(u32::MAX))
    }

    /// The first byte of a range of sectors, and its length in bytes; an error for one that is not on
    /// the disk.
    fn range(&self, sector: u64, bytes: u64) -> Result<(u64, u64), Failed> {
        sector
            .checked_mul(SECTOR)
            .filter(|start| start.checked_add(bytes).is_some_and(|end| end <= self.image.size()))
            .filter(|_| bytes.is_multiple_of(SECTOR))
            .map(|start| (start, bytes))
            .ok_or(Failed::Senseless)
    }
}

/// A request being served.
struct Request<'a> {
    disk: &'a Disk,
    queue: &'a VirtQueue,
    chain: &'a Chain,
    /// Writable bytes before the status.
    room: u64,
}

impl Request<'_> {
    fn serve(&self, buffer: &mut [u8]) -> Result<u64, Failed> {
        let mut header = [0; HEADER];
        self.queue.copy_from(self.chain, 0, &mut header)?;
        let data = self.chain.readable_len() - HEADER as u64;
        let [kind, _, low, high] = words(&header);
        let sector = u64::from(high) << 32 | u64::from(low);
        let writes = !matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID | VIRTIO_BLK_T_FLUSH);
        if writes && self.disk.image.is_read_only() {
            return Err(Failed::Senseless);
        }
        match kind {
            VIRTIO_BLK_T_IN => {
                self.read(self.disk.range(sector, self.room)?, buffer)?;
                return Ok(self.room);
            }
            VIRTIO_BLK_T_GET_ID => {
                self.queue.copy_to(self.chain, 0, &self.disk.id)?;
                return Ok(self.disk.id.len() as u64);
            }
            VIRTIO_BLK_T_OUT => self.write(self.disk.range(sector, data)?, buffer)?,
            VIRTIO_BLK_T_FLUSH => self.flush()?,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.change_ranges(kind, data)?,
            _ => return Err(Failed::Unsupported),
        }
        if writes && self.queue.features() >> VIRTIO_BLK_F_FLUSH & 1 == 0 {
            // A driver that does not flush relies on each write being safe.
            self.flush()?;
        }
        Ok(0)
    }

    fn read(&self, (start, len): (u64, u64), buffer: &mut [u8]) -> Result<(), Failed> {
        for (at, count) in pieces(len) {
            let piece = buffer.get_mut(..count).ok_or(Failed::Senseless)?;
            self.disk.image.read(piece, start + at).map_err(Failed::host(Deed::Read))?;
            self.queue.copy_to(self.chain, at, piece)?;
        }
        Ok(())
    }

    fn write(&self, (start, len): (u64, u64), buffer: &mut [u8]) -> Result<(), Failed> {
        for (at, count) in pieces(len) {
            let piece = buffer.get_mut(..count).ok_or(Failed::Senseless)?;
            self.queue.copy_from(self.chain, HEADER as u64 + at, piece)?;
            self.disk.image.write(piece, start + at).map_err(Failed::host(Deed::Write))?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Failed> {
        self.disk.image.flush().map_err(Failed::host(Deed::Flush))
    }

    /// Discards the ranges that the request names, or fills them with zeros.
    fn change_ranges(&self, kind: u32, len: u64) -> Result<(), Failed> {
        let discards = kind == VIRTIO_BLK_T_DISCARD;
        let most = if discards { MOST_DISCARDED } else { MOST_ZEROED };
        let mut ranges = [0; RANGE * RANGES as usize];
        let ranges = usize::try_from(len).ok().and_then(|len| ranges.get_mut(..len));
        let ranges = ranges.filter(|it| it.len().is_multiple_of(RANGE)).ok_or(Failed::Senseless)?;
        self.queue.copy_from(self.chain, HEADER as u64, ranges)?;
        for range in ranges.as_chunks::<RANGE>().0 {
            let [low, high, sectors, flags] = words(range);
            let known = if discards { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
            if flags & !known != 0 {
                return Err(Failed::Unsupported);
            }
            if sectors > most {
                return Err(Failed::Senseless);
            }
            let sector = u64::from(high) << 32 | u64::from(low);
            let (start, len) = self.disk.range(sector, u64::from(sectors) * SECTOR)?;
            let image = &self.disk.image;
            if discards {
                image.discard(start, len).map_err(Failed::host(Deed::Discard))?;
            } else {
                image.write_zeroes(start, len, flags != 0).map_err(Failed::host(Deed::Write))?;
            }
        }
        Ok(())
    }
}

impl Device for Disk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        always
            | if self.image.is_read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn service(&self, _: usize) -> (WorkerKind, usize) {
        (WorkerKind::Disk, IN_FLIGHT)
    }

    fn serve(&self, (_, queue): (usize, &VirtQueue), chain: &Chain, buffer: &mut [u8]) {
        if let Some(written) = self.answer(queue, chain, buffer) {
            queue.complete(chain, written);
        }
    }
}

/// `struct virtio_blk_config`.
fn config(sectors: u64) -> [u8; CONFIG] {
    let mut config = [0; CONFIG];
    let mut put = |at: usize, value: &[u8]| {
        for (place, byte) in config.iter_mut().skip(at).zip(value) {
            *place = *byte;
        }
    };
    put(0, &sectors.to_le_bytes());
    put(12, &u32::from(SEGMENTS).to_le_bytes());
    put(36, &MOST_DISCARDED.to_le_bytes());
    put(40, &RANGES.to_le_bytes());
    // In sectors; a discard of less keeps what is there.
    put(44, &8_u32.to_le_bytes());
    put(48, &MOST_ZEROED.to_le_bytes());
    put(52, &RANGES.to_le_bytes());
    put(56, &[1]);
    config
}

/// The pieces in which `len` bytes are copied: where each begins, and its length.
fn pieces(len: u64) -> impl Iterator<Item = (u64, usize)> {
    let piece = move |at| (at, usize::try_from(len - at).map_or(BUFFER, |rest| rest.min(BUFFER)));
    (0..len).step_by(BUFFER).map(piece)
}

/// Four little-endian words.
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| words.get(at).map_or(0, |word| u32::from_le_bytes(*word)))
}
