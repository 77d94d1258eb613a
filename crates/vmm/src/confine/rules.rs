//! The allowed system calls of each kind of thread, given glibc and the other libraries of this
//! program. `docs/confinement.md` lists them.
//!
//! A thread inherits the filter of the thread that starts it, and a call must pass both. So main,
//! and the thread that accepts monitor clients, must allow everything that the threads they start
//! may do.

use confinement::{Check, Rules, Sysno};
use virtio_devices::vhost_requests;

use super::Thread;
use super::kvm::{self, Request};
use crate::vcpu::kick_signal;

/// `FUTEX_CMD_MASK`: without the flags for private futexes and the clock.
const FUTEX_COMMAND: u64 = 0x7f;

/// `PIDFD_SELF_THREAD` (Linux `include/uapi/linux/pidfd.h`).
const THIS_THREAD: i32 = -10_000;

/// `MADV_GUARD_INSTALL` (Linux 6.13), with which glibc 2.42 creates a stack's guard pages.
const MADV_GUARD_INSTALL: i32 = 102;

/// `TCSETS2` (Linux `include/uapi/asm-generic/ioctls.h`).
const TCSETS2: u32 = 0x402c_542b;

/// The flags with which glibc starts a thread (`clone(2)`).
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// Everything a kind of thread may do.
pub(super) fn of(thread: Thread) -> Rules {
    every_thread().and(&its_own(thread))
}

/// The calls for allocating, waiting, logging, ending and failing.
pub(super) fn every_thread() -> Rules {
    Rules::new()
        .allow([
            Sysno::brk,
            Sysno::clock_gettime,
            Sysno::close,
            Sysno::exit,
            Sysno::exit_group,
            Sysno::getpid,
            Sysno::getrandom,
            Sysno::gettid,
            Sysno::mremap,
            Sysno::munmap,
            Sysno::restart_syscall,
            Sysno::rt_sigprocmask,
            Sysno::rt_sigreturn,
            Sysno::sched_getaffinity,
            Sysno::sched_yield,
            Sysno::sigaltstack,
            Sysno::write,
            Sysno::writev,
        ])
        .allow_where(Sysno::futex, "wait", futex(libc::FUTEX_WAIT))
        .allow_where(Sysno::futex, "wake", futex(libc::FUTEX_WAKE))
        .allow_where(Sysno::futex, "wait for bits", futex(libc::FUTEX_WAIT_BITSET))
        .allow_where(Sysno::futex, "wake for bits", futex(libc::FUTEX_WAKE_BITSET))
        .allow_where(
            Sysno::mmap,
            "anonymous, not executable",
            [without_bits(2, libc::PROT_EXEC), with_bits(3, libc::MAP_ANONYMOUS)],
        )
        .allow_where(Sysno::mprotect, "not executable", [without_bits(2, libc::PROT_EXEC)])
        .allow_where(Sysno::madvise, "DONTNEED", advice(libc::MADV_DONTNEED))
        // The standard library's handler restores the default action, so that a real fault ends the
        // process.
        .allow_where(Sysno::rt_sigaction, "SIGSEGV", [is(0, libc::SIGSEGV)])
        .allow_where(Sysno::rt_sigaction, "SIGBUS", [is(0, libc::SIGBUS)])
        .allow_where(Sysno::rt_sigaction, "SIGABRT", [is(0, libc::SIGABRT)])
        .allow_where(Sysno::tgkill, "SIGABRT to itself", signal(libc::SIGABRT))
        // In builds with debug assertions, the standard library checks a descriptor before it
        // closes it.
        .allow_where(Sysno::fcntl, "F_GETFD", [is(1, libc::F_GETFD)])
        // SIGTERM and similar signals arrive on any thread; the handler notifies the thread
        // `signals`.
        .allow_where(Sysno::sendto, "where connected, MSG_DONTWAIT", send(libc::MSG_DONTWAIT))
}

/// What a kind of thread may do in addition.
pub(super) fn its_own(thread: Thread) -> Rules {
    match thread {
        Thread::Main => main(),
        Thread::Vcpu => vcpu(),
        Thread::Bus => bus(),
        Thread::Memory => memory(),
        Thread::QmpAccept => qmp_accept(),
        Thread::QmpRead => qmp_read(),
        Thread::QmpWrite => qmp_write(),
        Thread::ConsoleIn => Rules::new().allow([Sysno::ppoll, Sysno::read]),
        Thread::Disk => disk(),
        Thread::Entropy => entropy(),
        Thread::NetReceive => net_receive(),
        Thread::NetSend => net_send(),
        Thread::ConsoleOut | Thread::Recording | Thread::Log => Rules::new(),
        Thread::Signals => reads_a_socket()
            .allow_where(Sysno::recvfrom, "MSG_DONTWAIT", receive(libc::MSG_DONTWAIT))
            // To dump the flight recorder.
            .and(&kicks_vcpus())
            // For the event that the guest was asked to shut down; see `bus`.
            .allow([Sysno::shutdown]),
    }
}

/// Rebuilds the machine after each reset, starts the vCPUs, and cleans up at the end.
fn main() -> Rules {
    let rules = starts_threads()
        .and(&vcpu())
        .and(&disk())
        .and(&entropy())
        .and(&net_receive())
        .and(&net_send())
        .and(&ioctls(&kvm::TO_BUILD))
        .allow([
            Sysno::clock_nanosleep,
            Sysno::eventfd2,
            Sysno::lseek,
            Sysno::pread64,
            Sysno::read,
            Sysno::shutdown,
            Sysno::statx,
            Sysno::unlink,
        ]);
    // Pool memory is a memfd.
    rules
        .allow([Sysno::ftruncate, Sysno::memfd_create])
        .allow_where(Sysno::mmap, "not executable", [without_bits(2, libc::PROT_EXEC)])
        .allow_where(Sysno::madvise, "DONTDUMP", advice(libc::MADV_DONTDUMP))
        .and(&kicks_vcpus())
        // Sets the terminal back; the second is for older kernels.
        .allow_where(Sysno::ioctl, "TCSETS2", [is(1, TCSETS2)])
        .allow_where(Sysno::ioctl, "TCSETS", [is(1, libc::TCSETS)])
}

fn vcpu() -> Rules {
    // These two consume a pending kick.
    ioctls(&kvm::OF_VCPUS)
        // When the guest starts or resets a network card.
        .and(&vhost(&vhost_requests::to_lend()))
        .and(&vhost(&vhost_requests::to_learn()))
        .and(&vhost(&vhost_requests::to_release()))
        .allow([Sysno::rt_sigpending, Sysno::rt_sigtimedwait])
        // Of pages that the guest reports as free.
        .and(&discards())
}

fn bus() -> Rules {
    ioctls(&kvm::OF_THE_BUS)
        // An event for a monitor client that does not read ends its connection: `shutdown`.
        .allow([Sysno::epoll_ctl, Sysno::epoll_wait, Sysno::eventfd2, Sysno::read, Sysno::shutdown])
        .and(&kicks_vcpus())
}

/// Serves requests, which arrive at an eventfd, from files.
fn disk() -> Rules {
    Rules::new()
        .allow([Sysno::fdatasync, Sysno::ftruncate, Sysno::preadv, Sysno::pwritev, Sysno::read])
        .allow_where(
            Sysno::fallocate,
            "punch a hole",
            [is(1, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)],
        )
        .allow_where(Sysno::fallocate, "zero a range", [is(1, libc::FALLOC_FL_ZERO_RANGE)])
}

/// Waits at an eventfd.
fn entropy() -> Rules {
    Rules::new().allow([Sysno::read])
}

/// Waits for an eventfd or a socket, and reads from both.
fn net_receive() -> Rules {
    reads_a_socket()
        .allow([Sysno::epoll_create1, Sysno::epoll_ctl, Sysno::epoll_wait])
        // Takes the queues back when the kernel cannot serve them.
        .and(&vhost(&vhost_requests::to_release()))
}

/// The same, and writes to the socket.
fn net_send() -> Rules {
    net_receive().allow_where(
        Sysno::sendto,
        "where connected, MSG_NOSIGNAL",
        send(libc::MSG_NOSIGNAL),
    )
}

fn kicks_vcpus() -> Rules {
    Rules::new().allow_where(Sysno::tgkill, "the kick of a vCPU", signal(kick_signal()))
}

fn memory() -> Rules {
    ioctls(&kvm::OF_THE_MEMORY)
        // If they cannot learn of a change, they are released.
        .and(&vhost(&vhost_requests::to_learn()))
        .and(&vhost(&vhost_requests::to_release()))
        .allow([Sysno::pread64])
        .allow_where(Sysno::fallocate, "allocate", [is(1, 0)])
        .and(&discards())
}

fn discards() -> Rules {
    Rules::new()
        .allow_where(
            Sysno::process_madvise,
            "DONTNEED of this process",
            [is(0, THIS_THREAD), is(3, libc::MADV_DONTNEED)],
        )
        // Around pages that are discarded.
        .allow_where(Sysno::madvise, "HUGEPAGE", advice(libc::MADV_HUGEPAGE))
        .allow_where(Sysno::madvise, "NOHUGEPAGE", advice(libc::MADV_NOHUGEPAGE))
        .allow_where(
            Sysno::fallocate,
            "punch a hole",
            [is(1, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)],
        )
}

fn qmp_accept() -> Rules {
    starts_threads()
        .and(&qmp_read())
        .and(&qmp_write())
        .allow([Sysno::accept4, Sysno::clock_nanosleep])
        .allow_where(Sysno::ioctl, "FIONBIO", [is(1, libc::FIONBIO)])
        // For the descriptor kept in reserve, a copy of the listening one.
        .allow_where(Sysno::fcntl, "F_DUPFD_CLOEXEC", [is(1, libc::F_DUPFD_CLOEXEC)])
}

/// Executes commands: they go to other threads. The dump of the flight recorder asks the vCPUs.
fn qmp_read() -> Rules {
    // The figures for `resident` are in a file.
    reads_a_socket().and(&kicks_vcpus()).allow([Sysno::poll, Sysno::pread64, Sysno::shutdown])
}

fn qmp_write() -> Rules {
    let flags = send(libc::MSG_NOSIGNAL);
    Rules::new().allow([Sysno::shutdown]).allow_where(
        Sysno::sendto,
        "where connected, MSG_NOSIGNAL",
        flags,
    )
}

/// Which of the two the standard library uses depends on its version.
fn reads_a_socket() -> Rules {
    Rules::new().allow([Sysno::read]).allow_where(Sysno::recvfrom, "without flags", receive(0))
}

/// Also covers what a thread does before it has its own filter, and the installation of that.
fn starts_threads() -> Rules {
    Rules::new()
        .allow([Sysno::rseq, Sysno::set_robust_list])
        .allow_where(Sysno::clone, "a thread", [Check::is_long(0, THREAD_FLAGS)])
        // `clone3` has its flags in memory, where a filter cannot see them; glibc falls back to
        // `clone`.
        .refuse(Sysno::clone3, "as glibc does at first", [], libc::ENOSYS)
        .allow_where(Sysno::madvise, "GUARD_INSTALL", advice(MADV_GUARD_INSTALL))
        .allow_where(Sysno::prctl, "PR_SET_NAME", [is(0, libc::PR_SET_NAME)])
        .allow_where(Sysno::prctl, "PR_SET_NO_NEW_PRIVS", [is(0, libc::PR_SET_NO_NEW_PRIVS)])
        .allow_where(
            Sysno::seccomp,
            "add a filter",
            [is(0, libc::SECCOMP_SET_MODE_FILTER), is(1, 0)],
        )
}

fn ioctls(requests: &[Request]) -> Rules {
    requests.iter().fold(Rules::new(), |rules, request| {
        rules.allow_where(Sysno::ioctl, request.name, [Check::is(1, request.number)])
    })
}

fn vhost(requests: &[vhost_requests::Request]) -> Rules {
    let requests: Vec<Request> = requests.iter().copied().map(Into::into).collect();
    ioctls(&requests)
}

fn is(argument: u8, value: impl Into<i128>) -> Check {
    Check::is(argument, value)
}

fn without_bits(argument: u8, bits: i32) -> Check {
    Check::bits(argument, bits, 0)
}

fn with_bits(argument: u8, bits: i32) -> Check {
    Check::bits(argument, bits, bits)
}

/// For `futex`.
fn futex(command: i32) -> [Check; 1] {
    [Check::bits(1, FUTEX_COMMAND, command)]
}

/// For `madvise`.
fn advice(advice: i32) -> [Check; 1] {
    [is(2, advice)]
}

/// For `tgkill`, to threads of this process only.
fn signal(signal: i32) -> [Check; 2] {
    [is(0, std::process::id()), is(2, signal)]
}

/// For `recvfrom`, restricted to what `read` can do as well.
fn receive(flags: i32) -> [Check; 2] {
    [is(3, flags), Check::is_long(4, 0)]
}

/// For `sendto`, restricted to what `write` can do as well.
fn send(flags: i32) -> [Check; 2] {
    [is(3, flags), Check::is_long(4, 0)]
}
