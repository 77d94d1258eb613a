//! The server: a thread that accepts, and a reading and a writing thread for each client.
//!
//! A client's reader executes its commands one after the other and queues the answers; its writer
//! empties the queue. Where a client does not read its answers its own reader waits, and nobody
//! else. Events go straight into the queues, see [`Outbox`].

use crate::conversation::Conversation;
use crate::event::{Event, EventSender};
use crate::machine::Machine;
use crate::outbox::{Outbox, Queued};
use crate::socket::{Listener, ServerError};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::json;
use std::io::{self, Read, Write};
use std::net;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most clients at a time. One more is told so and disconnected.
pub const MAX_CLIENTS: usize = 16;

/// How long the end of the server waits for clients to take what is queued for them, such as the
/// `SHUTDOWN` event.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often that wait looks.
const FAREWELL_STEP: Duration = Duration::from_millis(2);

/// Pause after an accept that failed, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A monitor on a UNIX socket. Dropping it says good-bye to all clients, ends its threads and
/// removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Listener>,
    hub: Arc<Hub>,
    accepting: Option<JoinHandle<()>>,
}

/// All clients there are.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    clients: Mutex<Vec<Client>>,
}

/// One connected client.
#[derive(Debug)]
struct Client {
    /// Its threads own it: the socket is closed with the last of them, not when the next client comes.
    connection: Weak<Connection>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// What a client's two threads share.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    outbox: Outbox,
}

impl Server {
    /// Starts to serve `machine` on a new socket at `path`, which only this user may use. A socket
    /// that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// The path is in use, no socket, too long, or the system refuses.
    pub fn start(path: &Path, machine: Arc<dyn Machine>) -> Result<Self, ServerError> {
        let listener = Arc::new(Listener::bind(path)?);
        let hub = Arc::<Hub>::default();
        let accepting = {
            let (listener, hub) = (listener.clone(), hub.clone());
            thread::Builder::new()
                .name("qmp-accept".to_owned())
                .spawn(move || accept_loop(&listener, &hub, &machine))
                .map_err(|source| ServerError::Listen { path: path.to_owned(), source })?
        };
        Ok(Self { listener, hub, accepting: Some(accepting) })
    }

    /// A handle that sends events to the clients.
    pub fn events(&self) -> EventSender {
        EventSender::new(self.hub.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // This makes accept fail, now and from now on.
        let _ = shutdown(self.listener.socket.as_raw_fd(), Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.hub.end();
    }
}

impl Hub {
    /// Queues the event for every client, see [`EventSender::emit`].
    pub(crate) fn broadcast(&self, event: &Event, at: Duration) {
        let value = event.to_json(at);
        let replaceable = event.is_a_state().then(|| event.name());
        for connection in self.lock().iter().filter_map(Client::connection) {
            if connection.outbox.push_event(&value, replaceable) == Queued::Overflow {
                tracing::warn!("a monitor client does not read its events: disconnected");
                connection.cut();
            }
        }
    }

    /// Takes a new client in, unless there are too many.
    fn admit(&self, stream: UnixStream, machine: &Arc<dyn Machine>) -> io::Result<()> {
        let mut clients = self.lock();
        clients.retain(|client| !client.is_finished());
        if clients.len() >= MAX_CLIENTS {
            return turn_away(stream);
        }
        clients.push(Client::start(stream, Conversation::new(machine.clone()))?);
        Ok(())
    }

    /// Disconnects all clients once they have what is queued for them, or after a while.
    fn end(&self) {
        let clients = std::mem::take(&mut *self.lock());
        for connection in clients.iter().filter_map(Client::connection) {
            // The reader sees the end of the stream and finishes the outbox.
            let _ = connection.stream.shutdown(net::Shutdown::Read);
        }
        let deadline = Instant::now() + FAREWELL;
        while !clients.iter().all(Client::is_finished) && Instant::now() < deadline {
            thread::sleep(FAREWELL_STEP);
        }
        clients.iter().filter_map(Client::connection).for_each(|connection| connection.cut());
        for client in clients {
            client.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn start(stream: UnixStream, conversation: Conversation) -> io::Result<Self> {
        let connection = Arc::new(Connection { stream, outbox: Outbox::default() });
        let writer = {
            let connection = connection.clone();
            let builder = thread::Builder::new().name("qmp-write".to_owned());
            builder.spawn(move || {
                // An error means that the client is gone.
                let _ = write_loop(&connection);
                connection.cut();
            })?
        };
        let reader = {
            let connection = connection.clone();
            let builder = thread::Builder::new().name("qmp-read".to_owned());
            builder.spawn(move || {
                let _finish = FinishOnDrop(&connection.outbox);
                read_loop(&connection, conversation);
            })
        };
        match reader {
            Ok(reader) => Ok(Self { connection: Arc::downgrade(&connection), reader, writer }),
            Err(error) => {
                connection.cut();
                Err(error)
            }
        }
    }

    /// The connection, unless it has ended.
    fn connection(&self) -> Option<Arc<Connection>> {
        self.connection.upgrade()
    }

    fn is_finished(&self) -> bool {
        self.reader.is_finished() && self.writer.is_finished()
    }

    fn join(self) {
        for thread in [self.reader, self.writer] {
            // A thread cannot wait for itself; `Machine` forbids this, but a hang would be worse.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Connection {
    /// Ends both directions at once and wakes both threads.
    fn cut(&self) {
        self.outbox.close();
        let _ = self.stream.shutdown(net::Shutdown::Both);
    }
}

/// Lets the writer end after the reader, also when a command panicked.
struct FinishOnDrop<'a>(&'a Outbox);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn accept_loop(listener: &Listener, hub: &Hub, machine: &Arc<dyn Machine>) {
    loop {
        match listener.socket.accept() {
            Ok((stream, _)) => {
                if let Err(error) = hub.admit(stream, machine) {
                    tracing::warn!(%error, "cannot serve a new monitor client");
                }
            }
            // The server ends.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept monitor clients");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn turn_away(mut stream: UnixStream) -> io::Result<()> {
    let desc = format!("too many monitor clients: at most {MAX_CLIENTS} at a time");
    tracing::debug!("{desc}");
    stream.set_nonblocking(true)?;
    let answer = json!({ "error": { "class": "GenericError", "desc": desc } });
    stream.write_all(format!("{answer}\r\n").as_bytes())
}

fn read_loop(connection: &Connection, mut conversation: Conversation) {
    let outbox = &connection.outbox;
    if !outbox.push_answer(&Conversation::greeting(), false) {
        return;
    }
    let mut buffer = [0; 4096];
    loop {
        match (&connection.stream).read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => conversation.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        while let Some(answer) = conversation.next_answer() {
            if !outbox.push_answer(&answer, conversation.has_negotiated()) {
                return;
            }
        }
    }
}

fn write_loop(connection: &Connection) -> io::Result<()> {
    while let Some(line) = connection.outbox.next_line() {
        (&connection.stream).write_all(&line)?;
    }
    Ok(())
}
