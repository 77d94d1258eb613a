//! The serial port and the terminal or file behind it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::confine::{Confinement, Thread};
use crate::error::{MachineError, VmmError};
use crate::ports::Ports;

/// Bytes of output that may wait for a slow reader. Anything beyond is dropped: a terminal that
/// nobody reads must not stop the guest.
const OUTPUT_QUEUE: usize = 64 << 10;

/// How often pending input checks whether the guest has read the previous bytes.
const INPUT_RETRY: Duration = Duration::from_millis(10);

/// Bytes of input that may wait for the guest. The keys that leave the machine are looked for only among
/// these: a hung guest must not keep the user from leaving, who does not type as much.
const INPUT_QUEUE: usize = 64 << 10;

/// How long shutdown waits for a reader of the output before it drops the rest.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);

/// `Ctrl-A` then `x` leaves, as on QEMU's console; the terminal is in raw mode, so `Ctrl-C` goes to
/// the guest.
const ESCAPE: u8 = 0x01;
const LEAVE: u8 = b'x';

/// Registers of a 16550, and bits in them, that [`SerialPort`] has a say in.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVED_DATA_ENABLED: u8 = 1;
const IDENTIFICATION: u8 = 2;
const NO_INTERRUPT: u8 = 1;
const RECEIVED_DATA: u8 = 4;
const LINE_CONTROL: u8 = 3;
const DIVISOR_LATCH: u8 = 0x80;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;

/// Where the guest's serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialOutput {
    /// Standard input and output.
    Stdio,
    /// Output to a file, no input.
    File(PathBuf),
    /// Nowhere.
    None,
}

/// The interrupt of the serial port.
pub(crate) struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 in front of a console.
pub(crate) struct SerialPort(Serial<Interrupt, NoEvents, Output>);

impl SerialPort {
    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        let value = self.0.read(offset);
        match offset {
            // `vm-superio` takes the first byte that is read for the end of the interrupt. A driver that
            // reads so many bytes at a time (Linux: 256) would then never learn of the others, and no
            // more would find room.
            IDENTIFICATION if self.has_unread_input() => (value & !NO_INTERRUPT) | RECEIVED_DATA,
            _ => value,
        }
    }

    /// Whether there is input, of which the driver wants to know by interrupts.
    fn has_unread_input(&mut self) -> bool {
        let mut has = |offset, bit| self.0.read(offset) & bit != 0;
        has(LINE_STATUS, DATA_READY)
            && !has(LINE_CONTROL, DIVISOR_LATCH)
            && has(INTERRUPT_ENABLE, RECEIVED_DATA_ENABLED)
    }

    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        // The only possible failure is an overflow of the interrupt counter, and then an interrupt
        // is pending.
        let _ = self.0.write(offset, value);
    }

    /// The eventfd that raises the interrupt.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.0.interrupt_evt().0
    }

    /// Hands input to the guest; returns the number of bytes it had room for.
    fn enqueue(&mut self, input: &[u8]) -> usize {
        let room = self.0.fifo_capacity().min(input.len());
        input.get(..room).and_then(|part| self.0.enqueue_raw_bytes(part).ok()).unwrap_or(0)
    }
}

/// The writing end; never blocks.
struct Output(Option<SyncSender<u8>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(queue) = &self.0 {
            for byte in bytes {
                let _ = queue.try_send(*byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The console. It outlives the serial ports of successive machines.
pub(crate) struct Console {
    queue: Option<SyncSender<u8>>,
    /// Disconnected once everything is written.
    written: Option<Receiver<()>>,
    input: Option<Arc<Input>>,
    /// The terminal's settings before raw mode.
    terminal: Option<Termios>,
    confinement: Confinement,
}

/// The serial port that currently receives input.
#[derive(Default)]
struct Input {
    ports: Mutex<Option<Arc<Ports>>>,
    changed: Condvar,
}

impl Console {
    /// Opens the terminal or file and starts the thread that writes to it.
    pub(crate) fn open(output: &SerialOutput, confinement: Confinement) -> Result<Self, VmmError> {
        let (queue, written, input, terminal) = (None, None, None, None);
        let mut console = Self { queue, written, input, terminal, confinement };
        match output {
            SerialOutput::None => {}
            SerialOutput::Stdio => {
                console.start_writer(io::stdout())?;
                console.input = Some(Arc::default());
            }
            SerialOutput::File(path) => {
                let file = File::create(path)
                    .map_err(|source| VmmError::Serial { path: path.clone(), source })?;
                console.start_writer(file)?;
            }
        }
        Ok(console)
    }

    /// A serial port for a machine.
    pub(crate) fn port(&self) -> Result<SerialPort, MachineError> {
        let interrupt = EventFd::new(EFD_NONBLOCK)
            .map_err(MachineError::system("cannot create the serial port's interrupt"))?;
        Ok(SerialPort(Serial::new(Interrupt(interrupt), Output(self.queue.clone()))))
    }

    /// Directs input to the serial port of `ports` from now on.
    pub(crate) fn connect(&self, ports: &Arc<Ports>) {
        if let Some(input) = &self.input {
            *input.ports.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(ports));
            input.changed.notify_all();
        }
    }

    /// Starts the thread that reads standard input, if that is the console. Calls `leave` when the
    /// user asks to leave. The thread ends with the process, since a read from a terminal cannot be
    /// cancelled.
    pub(crate) fn start_input(
        &mut self,
        leave: impl Fn() + Send + 'static,
    ) -> Result<(), VmmError> {
        let Some(input) = self.input.clone() else {
            return Ok(());
        };
        let terminal = io::stdin().is_terminal();
        if terminal {
            self.terminal = make_raw();
        }
        self.spawn(Thread::ConsoleIn, move || read_input(&input, terminal.then_some(leave)))?;
        Ok(())
    }

    fn start_writer(&mut self, output: impl Write + Send + 'static) -> Result<(), VmmError> {
        let (queue, bytes) = sync_channel(OUTPUT_QUEUE);
        self.queue = Some(queue);
        let (end, written) = channel();
        self.spawn(Thread::ConsoleOut, move || write_output(&bytes, output, end))?;
        self.written = Some(written);
        Ok(())
    }

    fn spawn(
        &self,
        thread: Thread,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), MachineError> {
        let confinement = self.confinement.clone();
        let confined = move || {
            if confinement.enter(thread).is_ok() {
                body();
            }
        };
        thread
            .builder()
            .spawn(confined)
            .map(drop)
            .map_err(MachineError::system("cannot start a console thread"))
    }
}

impl Drop for Console {
    /// Waits until everything the guest wrote is written, if someone reads it. The serial ports
    /// must be gone by then.
    fn drop(&mut self) {
        if let Some(before) = &self.terminal {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        self.queue = None;
        if let Some(input) = &self.input {
            *input.ports.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        if let Some(written) = &self.written {
            // The writer has finished or is stuck; either way the process is about to end.
            let _ = written.recv_timeout(OUTPUT_PATIENCE);
        }
    }
}

/// Passes every key to the guest at once and without echo; returns the previous settings. Output
/// processing stays on: the guest's terminal driver does not know where lines begin on this
/// terminal.
fn make_raw() -> Option<Termios> {
    let before = tcgetattr(io::stdin()).ok()?;
    let mut raw = before.clone();
    raw.local_modes -=
        LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
    raw.input_modes -= InputModes::IXON;
    tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
    Some(before)
}

/// Writes until all serial ports are gone. Dropping `_end` signals the end.
fn write_output(bytes: &Receiver<u8>, mut output: impl Write, _end: Sender<()>) {
    let mut is_failing = false;
    while let Ok(first) = bytes.recv() {
        let mut chunk = vec![first];
        chunk.extend(bytes.try_iter().take(OUTPUT_QUEUE));
        // A reader that has gone away, or a full disk, is no reason to stop the guest.
        let result = output.write_all(&chunk).and_then(|()| output.flush());
        if let Err(error) = &result
            && !is_failing
        {
            let remedy = crate::error::remedy(error.raw_os_error().unwrap_or_default());
            tracing::error!("output of the serial port is lost{remedy}: {error}");
        }
        is_failing = result.is_err();
    }
}

/// Hands standard input to the guest as fast as it reads it. What it does not read waits, however long it
/// takes: a guest may stand still for seconds on a busy host.
fn read_input(input: &Input, leave: Option<impl Fn()>) {
    let mut waiting = VecDeque::new();
    let mut keys = Keys { leave, escaped: false };
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        input.feed(&mut waiting);
        // Beyond that the other end of standard input waits.
        if !is_open || waiting.len() >= INPUT_QUEUE {
            input.wait();
        } else if let Some(bytes) = read_soon(!waiting.is_empty()) {
            is_open = !bytes.is_empty();
            waiting.extend(keys.pass(&bytes));
        }
    }
}

/// The next bytes of standard input, none at its end; `None` if there are none yet. Waits for them, but not
/// long if the guest `is_behind`.
fn read_soon(is_behind: bool) -> Option<Vec<u8>> {
    let stdin = io::stdin();
    let retry = Timespec { tv_sec: 0, tv_nsec: INPUT_RETRY.subsec_nanos().into() };
    let mut events = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = is_behind.then_some(&retry);
    if matches!(poll(&mut events, timeout), Ok(0) | Err(Errno::INTR)) {
        return None;
    }
    // Not by way of the library's buffer, which poll does not know.
    let mut bytes = vec![0; 256];
    match rustix::io::read(&stdin, &mut bytes[..]) {
        Err(Errno::INTR | Errno::AGAIN) => None,
        read => {
            bytes.truncate(read.unwrap_or_default());
            Some(bytes)
        }
    }
}

/// What the user types.
struct Keys<F> {
    /// Called for the keys that leave the machine, if they do.
    leave: Option<F>,
    escaped: bool,
}

impl<F: Fn()> Keys<F> {
    /// The bytes that are for the guest.
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (&self.leave, self.escaped, byte) {
                (Some(leave), true, LEAVE) => leave(),
                (Some(_), false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                _ => passed.push(byte),
            }
            self.escaped = false;
        }
        passed
    }
}

impl Input {
    /// Hands over as many bytes as the present machine's port has room for.
    fn feed(&self, waiting: &mut VecDeque<u8>) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ports) = &*ports {
            let taken = ports.serial().enqueue(waiting.make_contiguous());
            waiting.drain(..taken.min(waiting.len()));
        }
    }

    /// Waits a moment, in which the guest may have read, or another machine may be there.
    fn wait(&self) {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(ports, INPUT_RETRY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full for the first write, and reports each write.
    struct Disk {
        is_full: bool,
        writes: Sender<Option<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let is_full = std::mem::take(&mut self.is_full);
            self.writes.send((!is_full).then(|| bytes.to_vec())).unwrap();
            if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn keys_reach_the_guest_but_for_those_that_leave() {
        let left = std::cell::Cell::new(0);
        let mut keys = Keys { leave: Some(|| left.set(left.get() + 1)), escaped: false };
        // Ctrl-A is for the machine only before an x; typed twice it is for the guest.
        assert_eq!(keys.pass(b"a\x01"), b"a");
        assert_eq!((keys.pass(b"x"), left.get()), (b"".to_vec(), 1));
        assert_eq!(keys.pass(b"\x01\x01x"), b"\x01x");
        assert_eq!(left.get(), 1);
        let mut keys = Keys { leave: None::<fn()>, escaped: false };
        assert_eq!(keys.pass(b"\x01x"), b"\x01x");
    }

    /// As Linux reads: some bytes at an interrupt, and then it asks whether there is another.
    #[test]
    fn a_driver_that_reads_some_bytes_at_a_time_learns_of_the_others() {
        const DATA: u8 = 0;
        let interrupt = Interrupt(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut port = SerialPort(Serial::new(interrupt, Output(None)));
        port.write(INTERRUPT_ENABLE, RECEIVED_DATA_ENABLED);
        assert_eq!(port.read(IDENTIFICATION) & NO_INTERRUPT, NO_INTERRUPT);
        assert_eq!(port.enqueue(b"abc"), 3);
        for expected in *b"abc" {
            let why = port.read(IDENTIFICATION);
            assert_eq!(why & (RECEIVED_DATA | NO_INTERRUPT), RECEIVED_DATA, "{why:#x}");
            assert_eq!(port.read(DATA), expected);
        }
        assert_eq!(port.read(IDENTIFICATION) & NO_INTERRUPT, NO_INTERRUPT);
        // A driver that wants no interrupts is told of none.
        port.write(INTERRUPT_ENABLE, 0);
        port.enqueue(b"d");
        assert_eq!(port.read(IDENTIFICATION) & NO_INTERRUPT, NO_INTERRUPT);
    }

    #[test]
    fn output_goes_on_when_there_is_room_again() {
        let (queue, bytes) = sync_channel(OUTPUT_QUEUE);
        let (end, ended) = channel();
        let (writes, written) = channel();
        std::thread::spawn(move || write_output(&bytes, Disk { is_full: true, writes }, end));
        queue.send(b'a').unwrap();
        assert_eq!(written.recv().unwrap(), None);
        queue.send(b'b').unwrap();
        assert_eq!(written.recv().unwrap().as_deref(), Some(&b"b"[..]));
        drop(queue);
        assert!(ended.recv().is_err());
    }
}
