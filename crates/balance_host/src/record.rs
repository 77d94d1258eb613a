//! The recording: all that decisions follow from, and the decisions.
//!
//! A file begins with [`MAGIC`] and the version of the format, one byte. Then come frames: the length of
//! the payload and its CRC-32, each as four bytes with the lowest first, and the payload, an [`Entry`] in
//! the `postcard` format. A file that was cut off can be read up to the cut. Each start of the daemon
//! adds to the file, from its last whole frame on.
//!
//! VMs are written when they change, and their names once for each start.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balancer::HostSample;
use serde::{Deserialize, Serialize};

use crate::core::{Order, VmInput};
use crate::reading::Stamped;
use crate::wish::{Configuration, Wish};

/// The beginning of a file. The version follows.
const MAGIC: [u8; 7] = *b"hvb-rec";

/// The version of the format: another one for each change of [`Entry`] or of a type in it.
const VERSION: u8 = 1;

/// The longest payload: that of some hundred thousand VMs.
const MAX_PAYLOAD: u32 = 64 << 20;

/// Bytes that may wait for the disk.
const MAX_WAITING: usize = 16 << 20;

/// At the end, the disk has so long for what still waits.
const FAREWELL: Duration = Duration::from_secs(2);

/// One thing that went into the core, or came out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// The daemon starts: the first entry, and again after each restart. `hvb` is its version.
    Begin { hvb: String, unix_ms: u64, dry_run: bool, configuration: Configuration },
    /// The configuration was read again.
    Configuration(Configuration),
    /// The operator set something.
    Set { name: String, wish: Wish },
    /// The operator wants room.
    Reserve { size_kib: u64, now_ms: u64, ms: u64 },
    /// The operator wants it no more.
    Withdraw { id: u64 },
    /// A VM that was not there before; the first has number 0.
    Name(String),
    /// A decision begins: the VMs that changed, and the numbers of those that went.
    Round {
        now_ms: u64,
        host: Option<Stamped<HostSample>>,
        changed: Vec<(u32, VmInput)>,
        gone: Vec<u32>,
    },
    /// The decision.
    Decided { digest: u32, orders: Vec<Order> },
    /// The daemon ended as it was told to.
    End,
}

impl Entry {
    pub(crate) fn begin(dry_run: bool, configuration: Configuration) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let hvb = env!("CARGO_PKG_VERSION").to_owned();
        Self::Begin { hvb, unix_ms, dry_run, configuration }
    }
}

/// What is wrong with a recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: no recording of hvb balance --record", .path.display())]
    NotARecording {
        /// The file.
        path: PathBuf,
    },
    /// The file has a format that this version does not know.
    #[error(
        "{}: a recording in format {version}, and this hvb knows format {VERSION}: use the hvb that \
         recorded it",
        .path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u8,
    },
    /// Somebody else writes to it.
    #[error("{}: another hvb balance records to it", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}: entry {entry} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The number of the entry, from 1.
        entry: u64,
    },
}

/// Writes a recording, on a thread of its own: a disk that is full or stands still ends the recording,
/// and nothing else.
#[derive(Debug)]
pub(crate) struct Recorder {
    frames: Option<Sender<Vec<u8>>>,
    /// The bytes of the frames that wait.
    waiting: Arc<AtomicUsize>,
    /// Disconnected once all is written.
    written: Receiver<()>,
    names: BTreeMap<String, u32>,
    last: BTreeMap<u32, VmInput>,
}

impl Recorder {
    /// Creates the file, or continues a recording. One that is damaged keeps all that it has, under another
    /// name.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordError> {
        match Self::open_sound(path) {
            Err(error @ RecordError::Damaged { .. }) => {
                let aside = aside(path);
                if let Err(source) = fs::rename(path, &aside) {
                    tracing::error!("it cannot be renamed to {}: {source}", aside.display());
                    return Err(error);
                }
                tracing::warn!("{error}: it is {} now, and a new one begins", aside.display());
                Self::open_sound(path)
            }
            opened => opened,
        }
    }

    fn open_sound(path: &Path) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RecordError::InUse { path: path.to_owned() },
            TryLockError::Error(source) => failed(source),
        })?;
        let size = file.metadata().map_err(failed)?;
        if size.is_file() && size.len() > 0 {
            let end = end_of(&file, path)?;
            file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failed)?;
        } else {
            file.write_all(&head()).map_err(failed)?;
        }
        let (frames, queue) = channel::<Vec<u8>>();
        let (is_writing, written) = channel();
        let waiting = Arc::<AtomicUsize>::default();
        let (count, name) = (Arc::clone(&waiting), path.to_owned());
        let builder = Builder::new().name("recording".to_owned());
        let write = move || {
            let _is_writing: Sender<()> = is_writing;
            // Closed, and so free for others, before the end is told.
            let mut file = file;
            for frame in queue {
                if let Err(error) = file.write_all(&frame) {
                    // The sender notices that nobody takes its frames.
                    return tracing::warn!("{}: {error}", name.display());
                }
                count.fetch_sub(frame.len(), Ordering::Relaxed);
            }
        };
        builder.spawn(write).map_err(failed)?;
        let (names, last) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { frames: Some(frames), waiting, written, names, last })
    }

    pub(crate) fn record(&mut self, entry: &Entry) {
        let Some(frames) = &self.frames else { return };
        let sent = frame(entry).is_some_and(|frame| {
            let before = self.waiting.fetch_add(frame.len(), Ordering::Relaxed);
            before <= MAX_WAITING && frames.send(frame).is_ok()
        });
        if !sent {
            // What follows could not be understood without it.
            tracing::warn!("the recording ends here: the disk is full or too slow");
            self.frames = None;
        }
    }

    /// Writes the end, and waits for the disk, but not for long.
    pub(crate) fn end(mut self) {
        self.record(&Entry::End);
        self.frames = None;
        // Nothing is ever sent: it waits until the thread has ended.
        let _ = self.written.recv_timeout(FAREWELL);
    }

    /// Records what a decision follows from; `vms` are in the order of their names.
    pub(crate) fn begin_round(
        &mut self,
        now_ms: u64,
        host: Option<Stamped<HostSample>>,
        vms: &[VmInput],
    ) {
        let mut changed = Vec::new();
        let mut present = BTreeMap::new();
        for vm in vms {
            let number = self.number(&vm.name);
            let last = self.last.remove(&number);
            if last.as_ref() != Some(vm) {
                changed.push((number, vm.clone()));
            }
            present.insert(number, vm.clone());
        }
        let gone = std::mem::replace(&mut self.last, present).into_keys().collect();
        self.record(&Entry::Round { now_ms, host, changed, gone });
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.insert(name.to_owned(), number);
        self.record(&Entry::Name(name.to_owned()));
        number
    }
}

fn frame(entry: &Entry) -> Option<Vec<u8>> {
    let payload = postcard::to_allocvec(entry).ok()?;
    let length = u32::try_from(payload.len()).ok().filter(|length| *length <= MAX_PAYLOAD)?;
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    Some(frame)
}

fn head() -> [u8; MAGIC.len() + 1] {
    let [a, b, c, d, e, f, g] = MAGIC;
    [a, b, c, d, e, f, g, VERSION]
}

/// A name beside `path` that is free.
fn aside(path: &Path) -> PathBuf {
    let named = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    };
    (1..).map(named).find(|name| !name.exists()).unwrap_or_else(|| named(0))
}

/// Where the last whole frame of a recording ends.
fn end_of(file: &File, path: &Path) -> Result<u64, RecordError> {
    let io = |source| RecordError::Io { path: path.to_owned(), source };
    let mut entries = Entries::begin(BufReader::new(file), path)?;
    loop {
        match entries.next() {
            Ok(Some(_)) => {}
            // The rest of an entry that was being written, or a length that is damaged.
            Ok(None) if has_frame(&rest_of(file, entries.end).map_err(io)?) => {
                return Err(entries.damaged());
            }
            Ok(None) => return Ok(entries.end),
            Err(RecordError::Damaged { .. }) if is_zero_from(file, entries.end).map_err(io)? => {
                return Ok(entries.end);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a file has from here on; of more than one frame can have, the beginning.
fn rest_of(mut file: &File, start: u64) -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(u64::from(MAX_PAYLOAD) * 2).read_to_end(&mut rest)?;
    Ok(rest)
}

/// Whether there is a whole frame anywhere.
fn has_frame(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|start| {
        let (Some(head), Some(rest)) = (bytes.get(start..start + 8), bytes.get(start + 8..)) else {
            return false;
        };
        let &[a, b, c, d, ref crc @ ..] = head else { return false };
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let payload = rest.get(..length).filter(|payload| !payload.is_empty());
        payload.is_some_and(|payload| crc32fast::hash(payload).to_le_bytes() == *crc)
    })
}

/// Whether a file has nothing but zeros from here on: a loss of power can leave that behind the last write.
fn is_zero_from(mut file: &File, start: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(start))?;
    for byte in BufReader::new(file).bytes() {
        if byte? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads a recording.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    input: R,
    path: PathBuf,
    count: u64,
    /// Where the last entry that was read ends.
    end: u64,
}

impl<R: Read> Entries<R> {
    /// Reads the beginning.
    pub(crate) fn begin(mut input: R, path: &Path) -> Result<Self, RecordError> {
        let mut start = head();
        match input.read_exact(&mut start) {
            Err(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(RecordError::Io { path: path.to_owned(), source });
            }
            Ok(()) if start.starts_with(&MAGIC) => {}
            _ => return Err(RecordError::NotARecording { path: path.to_owned() }),
        }
        let [.., version] = start;
        if version != VERSION {
            return Err(RecordError::OtherVersion { path: path.to_owned(), version });
        }
        Ok(Self { input, path: path.to_owned(), count: 0, end: start.len() as u64 })
    }

    /// The next entry; `None` at the end, or where the file was cut off.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, RecordError> {
        let mut head = [0; 8];
        if !self.fill(&mut head)? {
            return Ok(None);
        }
        self.count += 1;
        let [a, b, c, d, crc @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > MAX_PAYLOAD {
            return Err(self.damaged());
        }
        // Only as much as there is, whatever the length says.
        let mut payload = Vec::new();
        let read = self.input.by_ref().take(length.into()).read_to_end(&mut payload);
        let read = read.map_err(|source| RecordError::Io { path: self.path.clone(), source })?;
        if u32::try_from(read) != Ok(length) {
            return Ok(None);
        }
        if crc32fast::hash(&payload) != u32::from_le_bytes(crc) {
            return Err(self.damaged());
        }
        let entry = postcard::from_bytes(&payload).map_err(|_| self.damaged())?;
        self.end = self.end.saturating_add(head.len() as u64).saturating_add(length.into());
        Ok(Some(entry))
    }

    pub(crate) fn damaged(&self) -> RecordError {
        RecordError::Damaged { path: self.path.clone(), entry: self.count }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, RecordError> {
        match self.input.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(RecordError::Io { path: self.path.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests;
