//! System call filters for the threads of a VM.
//!
//! Each thread installs its filter before it handles any outside input. The main thread installs
//! its own once all other threads that live as long as the VM exist, but before it builds the first
//! machine, so that a reset needs nothing that the first boot did not.

mod kvm;
mod rules;

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use confinement::{ApplyError, Filter, Mode};
use qmp::ServerThread;
use vmbus_kvm::THREAD_STACK_BYTES;

use crate::control::{Control, ControlSender};
use crate::error::{MachineError, VmmError};

/// How system calls that no part of the VMM needs are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// All calls are allowed.
    #[default]
    Off,
    /// They are allowed, and the kernel writes them to its audit log.
    Log,
    /// They end the process, with a line on stderr that names the call, and with status 159
    /// ([`confinement::VIOLATION_STATUS`]).
    On,
}

impl Seccomp {
    const fn mode(self) -> Option<Mode> {
        match self {
            Self::Off => None,
            Self::Log => Some(Mode::Log),
            Self::On => Some(Mode::Enforce),
        }
    }
}

/// Confines the calling thread, for good, to writing what other threads give it: for a program's
/// log thread, which exists before [`run`](crate::run()) confines the others.
///
/// # Errors
/// The kernel does not support filters, or rejects this one.
pub fn confine_log_thread(seccomp: Seccomp) -> Result<(), VmmError> {
    let Some(mode) = seccomp.mode() else { return Ok(()) };
    let rules = rules::of(Thread::Log);
    let filter = Filter::compile(Thread::Log.name(), &rules, mode)?;
    Ok(filter.apply().map_err(MachineError::Confine)?)
}

/// The advice printed after the name of a forbidden call.
const ADVICE: &str = "either the guest has taken over hvb, or this is a defect of hvb; please \
                      report this line. With --seccomp log such calls are made";

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thread {
    Main,
    Vcpu,
    Bus,
    Memory,
    QmpAccept,
    QmpRead,
    QmpWrite,
    ConsoleIn,
    ConsoleOut,
    Signals,
    Recording,
    Disk,
    Entropy,
    NetReceive,
    NetSend,
    /// The program's own, started before there is a machine.
    Log,
}

impl Thread {
    /// All kinds, in the order of their numbers.
    const ALL: [Self; 16] = [
        Self::Main,
        Self::Vcpu,
        Self::Bus,
        Self::Memory,
        Self::QmpAccept,
        Self::QmpRead,
        Self::QmpWrite,
        Self::ConsoleIn,
        Self::ConsoleOut,
        Self::Signals,
        Self::Recording,
        Self::Disk,
        Self::Entropy,
        Self::NetReceive,
        Self::NetSend,
        Self::Log,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Bus => "vmbus",
            Self::Memory => "memory",
            Self::QmpAccept => "qmp-accept",
            Self::QmpRead => "qmp-read",
            Self::QmpWrite => "qmp-write",
            Self::ConsoleIn => "console-in",
            Self::ConsoleOut => "console-out",
            Self::Signals => "signals",
            Self::Recording => "recording",
            Self::Disk => "disk",
            Self::Entropy => "entropy",
            Self::NetReceive => "net-receive",
            Self::NetSend => "net-send",
            Self::Log => "log",
        }
    }

    /// What such a thread starts with.
    pub(crate) fn builder(self) -> Builder {
        Builder::new().name(self.name().into()).stack_size(THREAD_STACK_BYTES)
    }
}

impl From<ServerThread> for Thread {
    fn from(thread: ServerThread) -> Self {
        match thread {
            ServerThread::Accept => Self::QmpAccept,
            ServerThread::Read => Self::QmpRead,
            ServerThread::Write => Self::QmpWrite,
        }
    }
}

/// The filters of all kinds of threads, or none.
#[derive(Clone)]
pub(crate) struct Confinement {
    /// In the order of [`Thread::ALL`].
    filters: Option<Arc<[Filter]>>,
    control: ControlSender,
}

impl Confinement {
    /// Compiles the filters; nothing is confined yet. Failures to confine a thread later are
    /// reported to `control`.
    pub(crate) fn new(seccomp: Seccomp, control: ControlSender) -> Result<Self, VmmError> {
        let Some(mode) = seccomp.mode() else { return Ok(Self { filters: None, control }) };
        settle_allocator();
        if mode == Mode::Enforce {
            confinement::report_violations(ADVICE)
                .map_err(MachineError::system("cannot handle forbidden system calls"))?;
        }
        let filter = |thread: &Thread| Filter::compile(thread.name(), &rules::of(*thread), mode);
        let filters = Thread::ALL.iter().map(filter).collect::<Result<_, _>>()?;
        Ok(Self { filters: Some(filters), control })
    }

    /// The channel for reporting threads that cannot be confined.
    pub(crate) fn control(&self) -> &ControlSender {
        &self.control
    }

    /// Confines the calling thread. If that fails, the machine is told to end, and the thread must
    /// do nothing but what that end waits for.
    pub(crate) fn enter(&self, thread: Thread) -> io::Result<()> {
        self.apply(thread).map_err(|error| {
            self.control.send(Control::Failed(MachineError::Confine(error).into()));
            io::Error::other("the thread cannot be confined")
        })
    }

    /// As [`Confinement::enter`], for a thread that reports the failure itself.
    pub(crate) fn apply(&self, thread: Thread) -> Result<(), ApplyError> {
        let filter = self.filters.as_ref().and_then(|filters| filters.get(thread as usize));
        filter.map_or(Ok(()), Filter::apply)
    }
}

/// Lets glibc's malloc read the files that it reads only once: `/proc/sys/vm/overcommit_memory`,
/// before a thread other than main gives memory back, and `/sys/devices/system/cpu/online`, to
/// learn the limit once there are more than eight arenas (one for each thread).
fn settle_allocator() {
    const THREADS: usize = 12;
    // Enough that freeing it shrinks an arena. With 2 MiB in one, which two threads may share, the kernel
    // could put a huge page there and leave all of it.
    const BLOCKS: usize = 24;
    let (arrive, arrivals) = channel();
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let closed = gate.lock();
        for _ in 0..THREADS {
            let (arrive, gate) = (arrive.clone(), &gate);
            let use_arena = move || {
                let memory = std::hint::black_box(vec![vec![1_u8; 16 << 10]; BLOCKS]);
                drop(arrive);
                drop(gate.lock());
                drop(memory);
            };
            // The C library keeps the stacks of threads that end, for those to come: they are to have the
            // same size. If the system has no room for so many threads, the VM will not have more either.
            let _ = Builder::new().stack_size(THREAD_STACK_BYTES).spawn_scoped(scope, use_arena);
        }
        drop(arrive);
        // Nobody sends. This returns when the last sender is dropped, so all threads have
        // allocated.
        let _: Result<(), _> = arrivals.recv();
        drop(closed);
    });
}

#[cfg(test)]
mod tests;
