//! Writing log lines to stderr on a separate thread, so that neither a stalled reader nor a full
//! disk blocks the threads that log, which include the guest's vCPUs.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Builder;
use std::time::Duration;

/// Maximum number of lines waiting to be written; further ones are dropped.
const QUEUE: usize = 1024;

/// How long dropping the log waits for lines to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The size of the thread's stack: smaller than a huge page, as with all threads of a VM.
const STACK_BYTES: usize = 256 << 10;

enum Message {
    Line(Vec<u8>),
    /// A closure to run on the thread.
    Do(Box<dyn FnOnce() + Send>),
    /// Dropped when all earlier lines have been written.
    End(Sender<()>),
}

/// The log. Dropping it waits, for a limited time, until all lines are written.
pub(crate) struct Log(SyncSender<Message>);

/// A writer that takes one line per write and never fails.
pub(crate) struct Line(SyncSender<Message>);

impl Log {
    /// Starts the thread that writes lines to `output`. Lines that cannot be written are lost.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(crate) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, messages) = sync_channel(QUEUE);
        Builder::new()
            .name("log".into())
            .stack_size(STACK_BYTES)
            .spawn(move || write_lines(&messages, output))?;
        Ok(Self(sender))
    }

    /// Runs a closure on the log's thread and returns its result; `None` if the thread is gone.
    pub(crate) fn on_thread<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = channel();
        let what = move || drop(done.send(what()));
        self.0.send(Message::Do(Box::new(what))).ok()?;
        result.recv().ok()
    }

    /// Makes the writers of lines.
    pub(crate) fn lines(&self) -> impl Fn() -> Line + Send + Sync + use<> {
        let sender = self.0.clone();
        move || Line(sender.clone())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = channel();
        if self.0.try_send(Message::End(done)).is_ok() {
            let _ = written.recv_timeout(PATIENCE);
        }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(Message::Line(one_line(line)));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Texts of others are part of lines: a line break in them must not begin a line that looks like our own.
fn one_line(line: &[u8]) -> Vec<u8> {
    let mut bytes = line.to_vec();
    let inner = bytes.len().saturating_sub(1);
    let breaks = bytes.iter_mut().take(inner).filter(|byte| matches!(byte, b'\n' | b'\r'));
    breaks.for_each(|byte| *byte = b' ');
    bytes
}

fn write_lines(messages: &Receiver<Message>, mut output: impl Write) {
    for message in messages {
        match message {
            Message::Line(line) => {
                // The error cannot be reported anywhere.
                let _ = output.write_all(&line);
            }
            Message::Do(what) => what(),
            Message::End(done) => drop(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    #[test]
    fn lines_are_written_in_order_before_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        let log = Log::start(file.try_clone().unwrap()).unwrap();
        let lines = log.lines();
        for number in 0..500 {
            writeln!(lines(), "{number}").unwrap();
        }
        assert_eq!(log.on_thread(|| ()), Some(()), "behind all lines");
        drop(log);
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text.lines().count(), 500);
        assert!(text.lines().zip(0..).all(|(line, number)| line == number.to_string()));
    }

    #[test]
    fn a_line_break_within_a_line_begins_no_other() {
        assert_eq!(one_line(b"a\nb\r\nc\n"), b"a b  c\n");
        assert_eq!(one_line(b"\n"), b"\n");
        assert_eq!(one_line(b""), b"");
    }

    #[test]
    fn a_full_disk_and_a_reader_that_does_not_read_hold_nobody_up() {
        let full = Log::start(File::create("/dev/full").unwrap()).unwrap();
        let (_unread, blocked) = UnixStream::pair().unwrap();
        let blocked = Log::start(blocked).unwrap();
        for log in [full, blocked] {
            let lines = log.lines();
            for _ in 0..10 * QUEUE {
                writeln!(lines(), "{}", "x".repeat(200)).unwrap();
            }
        }
    }
}
