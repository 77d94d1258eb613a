//! The server: a thread that accepts, and a reading and a writing thread for each client.
//!
//! A client's reader executes its commands in order and queues the answers; its writer empties the
//! queue. If a client does not read its answers, only its own reader waits. Events go straight into
//! the queues; see [`Outbox`].
//!
//! A process without a free descriptor can accept no client, so it cannot tell one why. The server
//! therefore keeps one descriptor in reserve: it closes that, accepts the client in its place, says
//! why, and disconnects it.

use crate::command_set::{CommandSet, MachineCommands};
use crate::conversation::Conversation;
use crate::event::{Event, EventSender};
use crate::machine::Machine;
use crate::outbox::{Outbox, Queued};
use crate::socket::{Listener, ServerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::json;
use std::io::{self, Read, Write};
use std::net;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most clients at a time. A client beyond that is told so and disconnected.
pub const MAX_CLIENTS: usize = 16;

/// How long a server that ends waits for clients to read what is queued for them, such as the
/// `SHUTDOWN` event.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often that wait checks.
const FAREWELL_STEP: Duration = Duration::from_millis(2);

/// The size of a thread's stack. Smaller than a huge page, so that the kernel cannot back a whole one with
/// memory because of the few pages that a thread uses, as it does where transparent huge pages are always on.
const STACK_BYTES: usize = 512 << 10;

/// The pause after a failed accept, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Threads for each client.
const THREADS: usize = 2;

/// The message to a client whose connection took the last descriptor.
const NO_DESCRIPTOR: &str = "the virtual machine's process has no file descriptor left for another \
                             monitor client; end one, or raise its limit (prlimit --nofile)";

/// A monitor on a UNIX socket. Dropping it lets clients read what is queued for a moment, ends its
/// threads and removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Listener>,
    hub: Arc<Hub>,
    accepting: Option<JoinHandle<()>>,
}

/// What a thread of the server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerThread {
    /// Accepts clients and starts the threads of each.
    Accept,
    /// Reads a client's commands and executes them.
    Read,
    /// Writes answers and events to a client.
    Write,
}

/// Called on each thread before anything else; see [`Server::start_with`].
type Prepare = dyn Fn(ServerThread) -> io::Result<()> + Send + Sync;

/// All connected clients.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    clients: Mutex<Vec<Client>>,
}

/// One connected client.
#[derive(Debug)]
struct Client {
    connection: Arc<Connection>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// What a client's two threads share.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    outbox: Outbox,
    /// How many of the threads are still running.
    threads: AtomicUsize,
}

impl Server {
    /// Serves `machine` on a new socket at `path`, which only this user may use. Replaces a socket
    /// on which nobody listens any more.
    ///
    /// # Errors
    /// The path is in use, is not a socket, or is too long; or a system call failed.
    pub fn start(path: &Path, machine: Arc<dyn Machine>) -> Result<Self, ServerError> {
        Self::start_with(path, machine, |_| Ok(()))
    }

    /// As [`Server::start`], with `prepare` called on each of the server's threads before anything
    /// else, for example to confine it. A thread for which it fails ends at once; if that thread
    /// belongs to a client, the client is disconnected.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(
        path: &Path,
        machine: Arc<dyn Machine>,
        prepare: impl Fn(ServerThread) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        Self::start_on(path, Arc::new(MachineCommands(machine)), Arc::new(prepare))
    }

    /// As [`Server::start`], with commands other than those of a machine. Everything else is the
    /// same: greeting, negotiation, limits.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_for(path: &Path, commands: Arc<dyn CommandSet>) -> Result<Self, ServerError> {
        Self::start_on(path, commands, Arc::new(|_| Ok(())))
    }

    fn start_on(
        path: &Path,
        commands: Arc<dyn CommandSet>,
        prepare: Arc<Prepare>,
    ) -> Result<Self, ServerError> {
        let listener = Arc::new(Listener::bind(path)?);
        let hub = Arc::<Hub>::default();
        let accepting = {
            let (listener, hub) = (listener.clone(), hub.clone());
            let accept = move || {
                if let Err(error) = prepare(ServerThread::Accept) {
                    return tracing::error!(%error, "cannot prepare the monitor's thread");
                }
                accept_loop(&listener, &hub, &commands, &prepare);
            };
            spawn("qmp-accept", accept)
                .map_err(|source| ServerError::Listen { path: path.to_owned(), source })?
        };
        Ok(Self { listener, hub, accepting: Some(accepting) })
    }

    /// A handle for sending events to the clients.
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
    /// Queues the event for every client; see [`EventSender::emit`].
    pub(crate) fn broadcast(&self, event: &Event, at: Duration) {
        let value = event.to_json(at);
        let replaceable = event.is_a_state().then(|| event.name());
        for client in self.lock().iter() {
            if client.connection.outbox.push_event(&value, replaceable) == Queued::Overflow {
                tracing::warn!("disconnected a monitor client that does not read its events");
                client.connection.cut();
            }
        }
    }

    /// Admits a new client, or tells it why not.
    fn admit(
        self: &Arc<Self>,
        stream: UnixStream,
        commands: &Arc<dyn CommandSet>,
        prepare: &Arc<Prepare>,
    ) {
        let mut clients = self.lock();
        if clients.len() >= MAX_CLIENTS {
            let most = format!("too many monitor clients: at most {MAX_CLIENTS} at a time");
            return turn_away(&stream, &most);
        }
        let connection = Arc::new(Connection {
            stream,
            outbox: Outbox::default(),
            threads: AtomicUsize::new(THREADS),
        });
        match Client::start(&connection, Conversation::with(commands.clone()), self, prepare) {
            Ok(client) => clients.push(client),
            Err(error) => {
                drop(clients);
                tracing::error!(%error, "cannot start the threads of a monitor client");
                let why = format!(
                    "the virtual machine's process cannot start threads for another monitor \
                     client ({error}); raise its limits of memory and threads"
                );
                turn_away(&connection.stream, &why);
                connection.cut();
            }
        }
    }

    /// Drops a client whose threads have nothing more to do, and with it its descriptor.
    fn forget(&self, gone: &Arc<Connection>) {
        self.lock().retain(|client| !Arc::ptr_eq(&client.connection, gone));
    }

    /// Disconnects all clients once they have read what is queued for them, or after a while.
    fn end(&self) {
        let clients = std::mem::take(&mut *self.lock());
        for client in &clients {
            // The reader sees the end of the stream and finishes the outbox.
            let _ = client.connection.stream.shutdown(net::Shutdown::Read);
        }
        let deadline = Instant::now() + FAREWELL;
        while !clients.iter().all(Client::is_finished) && Instant::now() < deadline {
            thread::sleep(FAREWELL_STEP);
        }
        for client in &clients {
            client.connection.cut();
        }
        for client in clients {
            client.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn start(
        connection: &Arc<Connection>,
        conversation: Conversation,
        hub: &Arc<Hub>,
        prepare: &Arc<Prepare>,
    ) -> io::Result<Self> {
        // The reader first: it sends the greeting, and a client that is refused gets none.
        let presence = Presence { connection: connection.clone(), hub: hub.clone() };
        let (ready, go) = sync_channel(1);
        let prepare_reader = prepare.clone();
        let reader = spawn("qmp-read", move || {
            let connection = &presence.connection;
            let _finish = FinishOnDrop(&connection.outbox);
            if prepare_reader(ServerThread::Read).is_ok() && go.recv().is_ok() {
                read_loop(connection, conversation);
            }
        })?;
        let (of_writer, hub, prepare) = (connection.clone(), hub.clone(), prepare.clone());
        let writer = spawn("qmp-write", move || {
            // Only once the thread exists: if this thread dropped it, it would wait for itself.
            let presence = Presence { connection: of_writer, hub };
            let connection = &presence.connection;
            // An error means that the client is gone, or must go.
            let _ = prepare(ServerThread::Write).and_then(|()| write_loop(connection));
            connection.cut();
        })?;
        // The reader waits for this, or for the sender to be dropped.
        let _ = ready.send(());
        Ok(Self { connection: connection.clone(), reader, writer })
    }

    fn is_finished(&self) -> bool {
        self.reader.is_finished() && self.writer.is_finished()
    }

    fn join(self) {
        for thread in [self.reader, self.writer] {
            // A thread cannot join itself. `Machine` forbids this, but a hang would be worse.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Connection {
    /// Shuts down both directions and wakes both threads.
    fn cut(&self) {
        self.outbox.close();
        let _ = self.stream.shutdown(net::Shutdown::Both);
    }
}

/// Marks a running thread of a client. The last one to end removes the client from the list.
struct Presence {
    connection: Arc<Connection>,
    hub: Arc<Hub>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.connection.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.hub.forget(&self.connection);
        }
    }
}

/// Lets the writer end after the reader, even if a command panicked.
struct FinishOnDrop<'a>(&'a Outbox);

impl Drop for FinishOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn accept_loop(
    listener: &Listener,
    hub: &Arc<Hub>,
    commands: &Arc<dyn CommandSet>,
    prepare: &Arc<Prepare>,
) {
    let reserve = || listener.socket.as_fd().try_clone_to_owned().ok();
    let mut spare: Option<OwnedFd> = reserve();
    let mut is_failing = false;
    loop {
        match listener.socket.accept() {
            Ok((stream, _)) => {
                spare = spare.or_else(reserve);
                if spare.is_some() {
                    is_failing = false;
                    hub.admit(stream, commands, prepare);
                } else {
                    turn_away(&stream, NO_DESCRIPTOR);
                    drop(stream);
                    spare = reserve();
                }
            }
            // The server is ending.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Logged once, and again only after it has worked.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "cannot accept monitor clients");
                }
                if spare.take().is_none() {
                    thread::sleep(ACCEPT_PAUSE);
                    spare = reserve();
                }
            }
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body)
}

/// Tells a client why it is not served, if it can take that without blocking.
fn turn_away(mut stream: &UnixStream, why: &str) {
    tracing::debug!("refused a monitor client: {why}");
    let answer = json!({ "error": { "class": "GenericError", "desc": why } });
    // The client sees the end of the connection in any case.
    let _ = stream
        .set_nonblocking(true)
        .and_then(|()| stream.write_all(format!("{answer}\r\n").as_bytes()));
}

fn read_loop(connection: &Connection, mut conversation: Conversation) {
    let outbox = &connection.outbox;
    if !outbox.push_answer(&Conversation::greeting(), false) {
        return;
    }
    let mut buffer = [0; 4096];
    loop {
        wait_for_input(&connection.stream);
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

/// Waits until there is something to read. A thread that waits in a read would also be woken each time the
/// client takes something that was written to it.
fn wait_for_input(stream: &UnixStream) {
    let mut watched = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    // The read finds out what is wrong.
    let _ = poll(&mut watched, PollTimeout::NONE);
}

fn write_loop(connection: &Connection) -> io::Result<()> {
    while let Some(line) = connection.outbox.next_line() {
        (&connection.stream).write_all(&line)?;
    }
    Ok(())
}
