//! The recording of the guest's whole conversation with bus and device (`hvb run --record-bus`).
//!
//! Events come from threads that hold locks of the bus, so they are only put in memory, and a thread of
//! its own writes them to the file several times a second. A file that is cut off can be read up to the
//! cut, so nothing needs to be repaired when `hvb` is killed.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use vmbus_kvm::bus_recording::{self, Event, Header, Line};

use crate::confine::{Confinement, Thread};
use crate::error::{MachineError, VmmError};

/// How often events are written.
const PAUSE: Duration = Duration::from_millis(20);

/// How much may wait for a slow disk, in bytes. A guest that does not attack the host says a few
/// kilobytes a second.
const MOST_WAITING: usize = 32 << 20;

/// How long the end waits for the last events to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// Records to a file.
pub(crate) struct BusRecorder {
    waiting: Arc<Mutex<Waiting>>,
    /// Tells the thread to write the rest; it answers when it has.
    end: Sender<Sender<()>>,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    /// Nothing is recorded any more.
    has_ended: bool,
    /// There was too much.
    is_too_much: bool,
    /// The time of the last event, in microseconds.
    last: u64,
}

impl Waiting {
    fn add(&mut self, line: &impl Serialize) {
        if self.has_ended {
            return;
        }
        bus_recording::write(&mut self.text, line);
        if self.text.len() > MOST_WAITING {
            self.stop();
            self.is_too_much = true;
        }
    }

    fn stop(&mut self) {
        self.has_ended = true;
        self.text = Vec::new();
    }
}

impl BusRecorder {
    /// Creates or overwrites the file and starts the thread that writes to it.
    ///
    /// # Errors
    /// The file cannot be created or written, or the system has no room for a thread.
    pub(crate) fn start(
        path: &Path,
        header: &Header,
        confinement: Confinement,
    ) -> Result<Self, VmmError> {
        let failed = |source| VmmError::Record { path: path.to_owned(), source };
        let mut file = File::create(path).map_err(failed)?;
        let mut text = Vec::new();
        bus_recording::write(&mut text, header);
        file.write_all(&text).map_err(failed)?;
        let name = path.display().to_string();
        let this = Self::with_output(file, name, move || confinement.enter(Thread::Recording))
            .map_err(MachineError::system("cannot start the thread that records the bus"))?;
        Ok(this)
    }

    fn with_output(
        output: impl Write + Send + 'static,
        name: String,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let (end, ends) = channel();
        let shared = Arc::clone(&waiting);
        Thread::Recording.builder().spawn(move || {
            if confine().is_ok() {
                write_all(output, &name, &shared, &ends);
            }
        })?;
        Ok(Self { waiting, end })
    }

    /// Takes an event. Does not wait for the disk.
    pub(crate) fn record(&self, at: Duration, device: u32, event: Event) {
        let t = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let mut waiting = lock(&self.waiting);
        waiting.last = waiting.last.max(t);
        waiting.add(&Line { t, device, event });
    }

    /// Ends the recording, and waits for a limited time until all is written.
    pub(crate) fn finish(&self) {
        let mut waiting = lock(&self.waiting);
        let end = Line { t: waiting.last, device: 0, event: Event::End };
        waiting.add(&end);
        drop(waiting);
        let (done, written) = channel();
        if self.end.send(done).is_ok() {
            let _ = written.recv_timeout(PATIENCE);
        }
    }
}

/// Writes what waits until the end, or until something cannot be written.
fn write_all(
    mut output: impl Write,
    name: &str,
    waiting: &Mutex<Waiting>,
    ends: &Receiver<Sender<()>>,
) {
    loop {
        let end = match ends.recv_timeout(PAUSE) {
            Ok(done) => Some(done),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut now = lock(waiting);
        let text = mem::take(&mut now.text);
        let is_too_much = now.is_too_much;
        drop(now);
        if is_too_much {
            tracing::error!(
                "the recording '{name}' ends here, because it cannot be written as fast as the guest \
                 speaks; the guest runs on"
            );
            return;
        }
        if let Err(error) = output.write_all(&text) {
            lock(waiting).stop();
            tracing::error!("the recording '{name}' ends here: {error}; the guest runs on");
            return;
        }
        if end.is_some() {
            return;
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::thread;
    use std::time::Instant;
    use vmbus_kvm::bus_recording::{BusSetup, DeviceSetup, ToDevice};

    fn header() -> Header {
        let bus = BusSetup { vp_count: 1, page_limit: 1, max_version: 1 };
        let device = DeviceSetup {
            boot_ram: vec![(0, 1)],
            hot_add: None,
            settle: None,
            status_reports: false,
            discard_unit: 1,
            inhibited: false,
        };
        Header::new(bus, device)
    }

    fn unconfined() -> Confinement {
        let (control, _) = crate::control::control_channel();
        Confinement::new(crate::confine::Seccomp::Off, control).unwrap()
    }

    fn say(recorder: &BusRecorder, times: u64) {
        for t in 0..times {
            recorder.record(Duration::from_micros(t), 0, Event::ToDevice(ToDevice::Signalled));
        }
    }

    #[test]
    fn what_is_recorded_is_in_the_file_soon_and_whole_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let recorder = BusRecorder::start(file.path(), &header(), unconfined()).unwrap();
        let read = || bus_recording::read(&fs::read(file.path()).unwrap()).unwrap();
        assert_eq!(read().header, header());
        say(&recorder, 100);
        let start = Instant::now();
        while read().lines.len() < 100 {
            assert!(start.elapsed().as_secs() < 20, "{}", read().lines.len());
            thread::yield_now();
        }
        assert!(read().is_cut_off);
        say(&recorder, 10);
        recorder.finish();
        let read = read();
        assert_eq!((read.lines.len(), read.is_cut_off), (110, false));
        assert_eq!(read.lines[99].line.t, 99);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_with_the_remedy() {
        for path in ["/nonexistent/recording", "/dev/full"] {
            let error = BusRecorder::start(Path::new(path), &header(), unconfined()).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(path) && text.contains("--record-bus"), "{text}");
        }
    }

    #[test]
    fn a_disk_that_is_full_ends_the_recording_and_holds_nobody_up() {
        let full = fs::File::create("/dev/full").unwrap();
        let recorder = BusRecorder::with_output(full, "full".into(), || Ok(())).unwrap();
        let start = Instant::now();
        while !lock(&recorder.waiting).has_ended {
            say(&recorder, 1);
            assert!(start.elapsed().as_secs() < 20, "nothing was written");
        }
        say(&recorder, 10);
        assert!(lock(&recorder.waiting).text.is_empty(), "nothing is kept any more");
        recorder.finish();
    }

    #[test]
    fn a_disk_that_stands_still_costs_a_limited_amount_of_memory() {
        let (reader, stuck) = std::os::unix::net::UnixStream::pair().unwrap();
        let recorder = BusRecorder::with_output(stuck, "stuck".into(), || Ok(())).unwrap();
        let event = || {
            Event::FromGuest(bus_recording::Packet {
                kind: 6,
                flags: 0,
                transaction: 0,
                bytes: vec![0; 1 << 20],
            })
        };
        let mut most = 0;
        // Twice as much, and what the thread has taken.
        for _ in 0..(3 * MOST_WAITING) >> 21 {
            recorder.record(Duration::ZERO, 0, event());
            most = most.max(lock(&recorder.waiting).text.len());
        }
        assert!(lock(&recorder.waiting).has_ended);
        assert!(most <= MOST_WAITING, "{most}");
        drop(reader);
    }
}
