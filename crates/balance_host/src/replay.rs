//! Does again what was recorded: the same decisions, or those that another configuration would have
//! made of the same samples.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use balancer::HostSample;

use crate::core::{Core, Order, VmInput};
use crate::reading::Stamped;
use crate::record::{Entries, Entry, RecordError};
use crate::status::Status;
use crate::wish::Configuration;

/// A decision that was made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it was made, in milliseconds since the beginning of the recording.
    pub at_ms: u64,
    /// The orders of now.
    pub orders: Vec<Order>,
    /// Those of then.
    pub recorded: Vec<Order>,
    /// Whether the whole decision is the same.
    pub is_same: bool,
}

/// A recording that is replayed. An iterator over its decisions; after an error it is at its end.
#[derive(Debug)]
pub struct Replay<R> {
    entries: Entries<R>,
    other: Option<Configuration>,
    recorded_by: String,
    began_unix_ms: u64,
    /// From the beginning of the recording to the start of the daemon that made the next decision.
    offset_ms: u64,
    now_ms: u64,
    core: Core,
    names: Vec<String>,
    vms: BTreeMap<u32, VmInput>,
    round: Option<(u64, Option<Stamped<HostSample>>)>,
    is_complete: bool,
    has_ended: bool,
}

impl Replay<BufReader<File>> {
    /// Opens a recording. With another configuration, that one is in force throughout; what the operator
    /// set live stays on top. The VMs do what they did then, whatever they are told now.
    ///
    /// # Errors
    /// The file cannot be read, or is no recording, or one in another format.
    pub fn open(path: &Path, other: Option<Configuration>) -> Result<Self, RecordError> {
        let file =
            File::open(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
        Self::new(BufReader::new(file), path, other)
    }
}

impl<R: Read> Replay<R> {
    /// As [`Replay::open`], with a recording from anywhere. `path` is its name in errors.
    ///
    /// # Errors
    /// It cannot be read, or is no recording, or one in another format.
    pub fn new(input: R, path: &Path, other: Option<Configuration>) -> Result<Self, RecordError> {
        let mut entries = Entries::begin(input, path)?;
        let first = entries.next()?;
        let Some(Entry::Begin { hvb, unix_ms, dry_run, configuration }) = first else {
            return Err(RecordError::NotARecording { path: path.to_owned() });
        };
        Ok(Self {
            entries,
            recorded_by: hvb,
            began_unix_ms: unix_ms,
            offset_ms: 0,
            now_ms: 0,
            core: Core::new(other.clone().unwrap_or(configuration), dry_run),
            other,
            names: Vec::new(),
            vms: BTreeMap::new(),
            round: None,
            is_complete: false,
            has_ended: false,
        })
    }

    /// The version of the daemon that made the next decision.
    #[must_use]
    pub fn recorded_by(&self) -> &str {
        &self.recorded_by
    }

    /// When the recording begins, in milliseconds since 1970 (UTC).
    #[must_use]
    pub fn began_unix_ms(&self) -> u64 {
        self.began_unix_ms
    }

    /// Whether the daemon ended as it was told to after what was read last. If not at the end of the
    /// recording, it still runs, or was killed, or the file was cut off.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// What was known of everything at the last decision. Kinds and sockets of VMs are not recorded.
    #[must_use]
    pub fn status(&self) -> Status {
        self.core.status(self.now_ms)
    }

    /// Another daemon continues the recording.
    fn begin_again(&mut self, hvb: String, unix_ms: u64, dry_run: bool, recorded: Configuration) {
        self.recorded_by = hvb;
        self.offset_ms = unix_ms.saturating_sub(self.began_unix_ms);
        self.core = Core::new(self.other.clone().unwrap_or(recorded), dry_run);
        self.names.clear();
        self.vms.clear();
        self.round = None;
    }

    /// Takes entries up to the next decision.
    fn step(&mut self) -> Result<Option<Step>, RecordError> {
        while let Some(entry) = self.entries.next()? {
            self.is_complete = matches!(entry, Entry::End);
            match entry {
                Entry::Begin { hvb, unix_ms, dry_run, configuration } => {
                    self.begin_again(hvb, unix_ms, dry_run, configuration);
                }
                Entry::End => {}
                Entry::Configuration(_) if self.other.is_some() => {}
                Entry::Configuration(configuration) => self.core.configure(configuration),
                // With another configuration it may contradict that, and then it was not set.
                Entry::Set { name, wish } => {
                    let _ = self.core.set(&name, wish);
                }
                Entry::Reserve { size_kib, now_ms, ms } => {
                    // Where there were too many, there are again.
                    let _ = self.core.reserve(size_kib, now_ms, ms);
                }
                Entry::Withdraw { id } => {
                    self.core.withdraw(id);
                }
                Entry::Name(name) => self.names.push(name),
                Entry::Round { now_ms, host, changed, gone } => {
                    for number in gone {
                        self.vms.remove(&number);
                    }
                    for (number, vm) in changed {
                        let name = usize::try_from(number).ok().and_then(|n| self.names.get(n));
                        let name = name.cloned().ok_or_else(|| self.entries.damaged())?;
                        self.vms.insert(number, VmInput { name, ..vm });
                    }
                    self.round = Some((now_ms, host));
                }
                Entry::Decided { digest, orders: recorded } => {
                    let round = self.round.take();
                    let (now_ms, host) = round.ok_or_else(|| self.entries.damaged())?;
                    let vms = self.vms.values().cloned().collect();
                    let orders = self.core.decide(now_ms, host, vms);
                    let is_same = orders == recorded && digest == self.core.digest();
                    self.now_ms = now_ms;
                    let at_ms = self.offset_ms.saturating_add(now_ms);
                    return Ok(Some(Step { at_ms, orders, recorded, is_same }));
                }
            }
        }
        Ok(None)
    }
}

impl<R: Read> Iterator for Replay<R> {
    type Item = Result<Step, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let step = self.step().transpose();
        self.has_ended = !matches!(step, Some(Ok(_)));
        step
    }
}
