//! A blocking QMP client for our server and for QEMU's.

use crate::framer::{FrameError, Framer, parse};
use crate::kept::KeptEvents;
use crate::socket::{MAX_PATH_BYTES, connect_within};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt::PeerCredentials};
use qapi_qmp::VersionInfo;
use qapi_spec::{Command, ErrorClass};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest message accepted from a server, in bytes. QEMU's schema, the longest of all, has
/// about 250 KB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// As much is read at a time.
const READ_BYTES: usize = 4 << 10;

/// The most answers in a row that may be late: as many as anybody has commands under way.
const MAX_LATE_ANSWERS: u32 = 1000;

/// A connection to a QMP server, past negotiation.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    framer: Framer,
    max_message_bytes: usize,
    events: KeptEvents,
    /// Why nothing more can be read, after events that came before.
    fault: Option<ClientError>,
    version: VersionInfo,
    timeout: Duration,
    /// How long a read of the stream waits.
    waits: Duration,
    last_id: u64,
}

/// An event as it came from the server.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ReceivedEvent {
    /// Its name, for example `BALLOON_CHANGE`.
    #[serde(rename = "event")]
    pub name: String,
    /// Its data; null if there is none.
    #[serde(default)]
    pub data: Value,
}

/// Why a server could not be reached, or did not carry out a command.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such file.
    #[error("{}: no such socket: is the virtual machine running?", .path.display())]
    NoSocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The file is not a socket.
    #[error("{}: not a socket: give the path that follows --qmp", .path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The socket exists, but nobody listens on it.
    #[error("{}: nobody listens on this socket: its virtual machine has ended", .path.display())]
    NobodyListens {
        /// The path asked for.
        path: PathBuf,
    },
    /// This user may not use the socket.
    #[error("{}: permission denied: run this as the user who runs the virtual machine", .path.display())]
    Permission {
        /// The path asked for.
        path: PathBuf,
    },
    /// The kernel does not support a socket path of this length.
    #[error(
        "{}: socket paths must be 1 to {MAX_PATH_BYTES} bytes long: change directory and use a relative path",
        .path.display()
    )]
    PathLength {
        /// The path asked for.
        path: PathBuf,
    },
    /// The server accepts no connection, or sends nothing.
    #[error(
        "{}: no QMP greeting within {:.0?}: not a QMP socket, or another client holds it (QEMU serves one client per socket)",
        .path.display(), .timeout
    )]
    NoGreeting {
        /// The server's path.
        path: PathBuf,
        /// How long the client waited.
        timeout: Duration,
    },
    /// The server speaks another protocol.
    #[error("{}: not a QMP socket: it says {said}", .path.display())]
    NotQmp {
        /// The server's path.
        path: PathBuf,
        /// The beginning of what it sent.
        said: String,
    },
    /// The server speaks QMP but refused the connection.
    #[error("{}: refused: {desc}", .path.display())]
    TurnedAway {
        /// The server's path.
        path: PathBuf,
        /// Its reason.
        desc: String,
    },
    /// The server closed the connection.
    #[error("{}: the connection ended: the virtual machine has gone", .path.display())]
    Closed {
        /// The server's path.
        path: PathBuf,
    },
    /// No answer came in time.
    #[error("{}: no answer to '{command}' within {:.0?}", .path.display(), .timeout)]
    Timeout {
        /// The server's path.
        path: PathBuf,
        /// The command.
        command: String,
        /// How long the client waited.
        timeout: Duration,
    },
    /// The server rejected the command, or the command failed.
    #[error("{command}: {desc}")]
    Command {
        /// The command.
        command: String,
        /// QEMU's error class, or another word.
        class: Value,
        /// The server's description.
        desc: String,
    },
    /// The answer does not have the shape that the command calls for.
    #[error("{command}: unexpected answer: {source}")]
    Answer {
        /// The command.
        command: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// A system call failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The server's path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl ClientError {
    /// Whether the server answered with an error of this class.
    pub fn is_class(&self, wanted: &ErrorClass) -> bool {
        matches!(self, Self::Command { class, .. } if *class == json!(wanted))
    }
}

/// Becomes readable when the server sends something. The client may hold events that have arrived
/// already: take them by [`Client::events_at_hand`] or [`Client::next_event`] before you wait.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A line from the server.
enum Message {
    Event(ReceivedEvent),
    Answer { id: Value, result: Result<Value, Failure> },
}

/// What is made of a text.
type Form<T> = fn(&[u8]) -> Result<T, Unfit>;

/// What a server must not say.
enum Unfit {
    NotJson(FrameError),
    NotQmp(Value),
}

/// A line as it came, without what nobody needs.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    id: Value,
    #[serde(rename = "return", default, deserialize_with = "present")]
    answer: Option<Value>,
    error: Option<Value>,
}

/// Tells an answer of null from none.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct Failure {
    class: Value,
    desc: String,
}

impl Client {
    /// Connects to the server at `path` and negotiates. `timeout` applies to this and to each
    /// command.
    ///
    /// # Errors
    /// There is no server, it does not answer, or it does not speak QMP.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect_limited(path, timeout, MAX_MESSAGE_BYTES)
    }

    /// As [`connect`](Self::connect), and accepts no message longer than `max_message_bytes`: for
    /// programs with many connections to servers that they do not trust.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_limited(
        path: &Path,
        timeout: Duration,
        max_message_bytes: usize,
    ) -> Result<Self, ClientError> {
        let stream =
            connect_within(path, timeout).map_err(|errno| connect_error(path, errno, timeout))?;
        let mut client = Self {
            path: path.to_owned(),
            stream,
            framer: Framer::new(max_message_bytes),
            max_message_bytes,
            events: KeptEvents::default(),
            fault: None,
            version: VersionInfo { qemu: triple(0, 0, 0), package: String::new() },
            timeout,
            waits: timeout,
            last_id: 0,
        };
        client.version = client.greeting()?;
        client.execute("qmp_capabilities", Value::Null)?;
        Ok(client)
    }

    /// The process that serves the socket; `None` if the kernel does not tell.
    pub fn server_process(&self) -> Option<u32> {
        let credentials = getsockopt(&self.stream, PeerCredentials).ok()?;
        u32::try_from(credentials.pid()).ok().filter(|&pid| pid != 0)
    }

    /// The server's version, from its greeting.
    pub fn version(&self) -> &VersionInfo {
        &self.version
    }

    /// Executes a typed command, from [`crate::qapi`] for example.
    ///
    /// # Errors
    /// The server reports a failure, does not answer in time, or answers in another form.
    pub fn run<C: Command>(&mut self, command: &C) -> Result<C::Ok, ClientError> {
        let unexpected = |source| ClientError::Answer { command: C::NAME.to_owned(), source };
        let arguments = serde_json::to_value(command).map_err(unexpected)?;
        let answer = self.execute(C::NAME, arguments)?;
        serde_json::from_value(answer).map_err(unexpected)
    }

    /// Executes a command. `arguments` is an object, or null for none. Events that arrive in the
    /// meantime are kept for [`next_event`](Self::next_event), except very long ones.
    ///
    /// # Errors
    /// The server reports a failure, or does not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        self.last_id += 1;
        let wanted = json!(self.last_id);
        let arguments = if arguments.is_null() { json!({}) } else { arguments };
        let request = json!({ "execute": command, "arguments": arguments, "id": wanted });
        let deadline = Instant::now() + self.timeout;
        self.stream.write_all(format!("{request}\n").as_bytes()).map_err(|e| self.io_error(e))?;
        loop {
            match self.receive(deadline, message)? {
                None => return Err(self.timed_out(command)),
                // A late answer carries the id of an older command; a parse error carries none.
                Some(Message::Answer { id, result }) if id == wanted || id.is_null() => {
                    return result.map_err(|Failure { class, desc }| ClientError::Command {
                        command: command.to_owned(),
                        class,
                        desc,
                    });
                }
                Some(Message::Answer { .. }) => {}
                Some(Message::Event(event)) => self.events.keep(event),
            }
            // A server that says something else all the time has not answered either.
            if Instant::now() >= deadline {
                return Err(self.timed_out(command));
            }
        }
    }

    /// The next event, or `None` if there is none within `timeout`. With a timeout of zero, what has
    /// arrived is read, and nothing waited for. Answers that came too late are skipped.
    ///
    /// # Errors
    /// The server closed the connection, or answers what nobody asked.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<ReceivedEvent>, ClientError> {
        if let Some(event) = self.events.pop() {
            return Ok(Some(event));
        }
        let deadline = Instant::now() + timeout;
        for _ in 0..MAX_LATE_ANSWERS {
            match self.receive(deadline, message)? {
                None => return Ok(None),
                Some(Message::Event(event)) => return Ok(Some(event)),
                Some(Message::Answer { .. }) => {}
            }
        }
        Err(self.not_qmp("answers that nobody asked for"))
    }

    /// The events at hand: those kept, and those that one read brings, which waits for nothing. Answers that
    /// came too late are skipped.
    ///
    /// However much a server sends, one call reads little of it. This is for programs that wait for many
    /// servers at a time; what a call leaves makes the client readable again.
    ///
    /// # Errors
    /// The server closed the connection, or sends what is no QMP. The events before that come first.
    pub fn events_at_hand(&mut self) -> Result<Vec<ReceivedEvent>, ClientError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let mut events = Vec::new();
        match self.take_at_hand(&mut events) {
            Err(fault) if events.is_empty() => return Err(fault),
            outcome => self.fault = outcome.err(),
        }
        Ok(events)
    }

    fn take_at_hand(&mut self, events: &mut Vec<ReceivedEvent>) -> Result<(), ClientError> {
        events.extend(std::iter::from_fn(|| self.events.pop()));
        self.take_framed(events)?;
        self.fill(Duration::ZERO)?;
        self.take_framed(events)
    }

    fn take_framed(&mut self, events: &mut Vec<ReceivedEvent>) -> Result<(), ClientError> {
        while let Some(message) = self.framed(message)? {
            if let Message::Event(event) = message {
                events.push(event);
            }
        }
        Ok(())
    }

    fn greeting(&mut self) -> Result<VersionInfo, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let Some(mut value) = self.receive(deadline, value)? else {
            let path = self.path.clone();
            return Err(ClientError::NoGreeting { path, timeout: self.timeout });
        };
        let version = value.pointer_mut("/QMP/version").map(Value::take);
        if let Some(version) = version.and_then(|v| VersionInfo::deserialize(v).ok()) {
            return Ok(version);
        }
        match value.pointer("/error/desc").and_then(Value::as_str) {
            Some(desc) => {
                Err(ClientError::TurnedAway { path: self.path.clone(), desc: desc.to_owned() })
            }
            None => Err(self.not_qmp(&value.to_string())),
        }
    }

    /// The next value on the wire, or `None` once the deadline has passed. Then what is there is read all the
    /// same, but no more than one message can have: blanks are no message, and may come without end.
    fn receive<T>(&mut self, deadline: Instant, form: Form<T>) -> Result<Option<T>, ClientError> {
        let mut late = 0_usize;
        loop {
            if let Some(value) = self.framed(form)? {
                return Ok(Some(value));
            }
            if late > self.max_message_bytes {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let read = self.fill(left)?;
            if left.is_zero() {
                if read == 0 {
                    return Ok(None);
                }
                late = late.saturating_add(read);
            }
        }
    }

    /// The next value of what was read.
    fn framed<T>(&mut self, form: Form<T>) -> Result<Option<T>, ClientError> {
        let Some(text) = self.framer.next_text() else { return Ok(None) };
        let said = match text.map_err(Unfit::NotJson).and_then(form) {
            Ok(value) => return Ok(Some(value)),
            Err(Unfit::NotJson(error)) => format!("something that is not JSON ({error})"),
            Err(Unfit::NotQmp(value)) => value.to_string(),
        };
        Err(self.not_qmp(&said))
    }

    /// Reads once, and waits for it at most `patience`. The number of bytes read.
    fn fill(&mut self, patience: Duration) -> Result<usize, ClientError> {
        let mut buffer = [0; READ_BYTES];
        let read = match patience.is_zero() {
            true => recv(self.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
                .map_err(io::Error::from),
            false => self.wait_at_most(patience).and_then(|()| self.stream.read(&mut buffer)),
        };
        match read {
            Ok(0) => Err(ClientError::Closed { path: self.path.clone() }),
            Ok(count) => {
                self.framer.push(&buffer[..count]);
                Ok(count)
            }
            Err(error) if is_timeout(&error) => Ok(0),
            Err(error) => Err(self.io_error(error)),
        }
    }

    /// Limits how long a read waits, to the millisecond, so that the limit hardly ever has to be set:
    /// it is the same for all answers.
    fn wait_at_most(&mut self, left: Duration) -> io::Result<()> {
        let ms = u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let waits = Duration::from_millis(ms);
        if waits != self.waits {
            self.stream.set_read_timeout(Some(waits))?;
            self.waits = waits;
        }
        Ok(())
    }

    fn not_qmp(&self, said: &str) -> ClientError {
        let said = said.chars().take(80).collect();
        ClientError::NotQmp { path: self.path.clone(), said }
    }

    fn timed_out(&self, command: &str) -> ClientError {
        ClientError::Timeout {
            path: self.path.clone(),
            command: command.to_owned(),
            timeout: self.timeout,
        }
    }

    fn io_error(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                ClientError::Closed { path }
            }
            _ => ClientError::Io { path, source },
        }
    }
}

fn value(text: &[u8]) -> Result<Value, Unfit> {
    parse(text).map_err(Unfit::NotJson)
}

/// What a line from a server is.
fn message(text: &[u8]) -> Result<Message, Unfit> {
    // An array would do for the form of a line, too.
    let line = text.starts_with(b"{").then(|| serde_json::from_slice(text));
    match line {
        Some(Ok(Line { event: Some(name), data, .. })) => {
            Ok(Message::Event(ReceivedEvent { name, data }))
        }
        Some(Ok(Line { id, answer: Some(answer), .. })) => {
            Ok(Message::Answer { id, result: Ok(answer) })
        }
        Some(Ok(Line { id, error: Some(error), .. })) => match Failure::deserialize(&error) {
            Ok(failure) => Ok(Message::Answer { id, result: Err(failure) }),
            Err(_) => Err(Unfit::NotQmp(value(text)?)),
        },
        _ => Err(Unfit::NotQmp(value(text)?)),
    }
}

fn triple(major: i64, minor: i64, micro: i64) -> qapi_qmp::VersionTriple {
    qapi_qmp::VersionTriple { major, minor, micro }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

fn connect_error(path: &Path, errno: Errno, timeout: Duration) -> ClientError {
    let path = path.to_owned();
    match errno {
        Errno::ENAMETOOLONG => ClientError::PathLength { path },
        Errno::ENOENT | Errno::ENOTDIR => ClientError::NoSocket { path },
        // Linux refuses the connection also for a file or a directory.
        Errno::ECONNREFUSED if !is_socket(&path) => ClientError::NotASocket { path },
        Errno::ECONNREFUSED => ClientError::NobodyListens { path },
        Errno::EACCES => ClientError::Permission { path },
        Errno::EAGAIN => ClientError::NoGreeting { path, timeout },
        errno => ClientError::Io { path, source: errno.into() },
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
}
