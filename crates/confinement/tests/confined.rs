//! What a confined thread may do and what not, in processes of their own: a filter stays for ever.

// UNSAFETY: the calls are made as nothing safe makes them.
#![expect(unsafe_code, reason = "bare system calls")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use confinement::{Check, Filter, Mode, Rules, Sysno, VIOLATION_STATUS, report_violations};

/// Says what a process started by these tests is to do.
const DEED: &str = "CONFINED_DEED";
/// What such a process prints if it gets to the end.
const THE_END: &str = "got to the end";

/// Starts this program anew, to do this deed and nothing else.
fn process(deed: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deeds", "--nocapture", "--test-threads=1"])
        .env(DEED, deed)
        .output()
        .unwrap()
}

/// Not a test: what the processes do that the tests start. Without a deed it does nothing.
#[test]
fn deeds() {
    let Ok(deed) = std::env::var(DEED) else { return };
    let mode = if deed.ends_with("log") { Mode::Log } else { Mode::Enforce };
    if deed != "unreported" {
        report_violations("see the manual").unwrap();
    }
    Filter::compile("worker", &rules(), mode).unwrap().apply().unwrap();
    match deed.as_str() {
        "allowed" => {
            assert!(call(Sysno::dup, [1, 0, 0]).is_ok());
            assert!(call(Sysno::fcntl, [1, F_GETFD, 0]).is_ok());
            assert!(call(Sysno::fcntl, [1, F_GETFL, 0]).is_ok());
            // The kernel does not look at the upper half either.
            assert!(call(Sysno::fcntl, [1, F_GETFL + (7 << 32), 0]).is_ok());
        }
        "other-argument" => drop(call(Sysno::fcntl, [1, F_DUPFD, 0])),
        "other-call" | "unreported" | "log" => drop(call(Sysno::socket, [1, 1, 0])),
        "executable" => drop(call(Sysno::mprotect, [0, 0, PROT_READ_EXEC])),
        "not-executable" => assert_eq!(call(Sysno::mprotect, [0, 0, PROT_READ_EXEC & 3]), Ok(0)),
        "refused" => {
            assert_eq!(call(Sysno::clone3, [0, 0, 0]), Err(libc::ENOSYS));
            assert_eq!(call(Sysno::openat, [0, 0, 7]), Err(libc::EACCES));
        }
        "refused-otherwise" => drop(call(Sysno::openat, [0, 0, 8])),
        "more-rules" => {
            let fewer = Rules::new().allow([Sysno::write, Sysno::exit_group]);
            Filter::compile("worker", &fewer, mode).unwrap().apply().unwrap();
        }
        "status" => println!("{}", fs::read_to_string("/proc/thread-self/status").unwrap()),
        other => panic!("no deed {other}"),
    }
    println!("{THE_END}");
}

const F_DUPFD: u64 = 0;
const F_GETFD: u64 = 1;
const F_GETFL: u64 = 3;
const PROT_READ_EXEC: u64 = 5;

/// What the test harness needs at least, and what the deeds are about.
fn rules() -> Rules {
    Rules::new()
        .allow([Sysno::write, Sysno::futex, Sysno::mmap, Sysno::munmap, Sysno::brk, Sysno::exit])
        .allow([Sysno::exit_group, Sysno::sigaltstack, Sysno::madvise, Sysno::rt_sigprocmask])
        .allow([Sysno::close, Sysno::read, Sysno::lseek, Sysno::statx, Sysno::dup])
        .allow([Sysno::sched_getaffinity, Sysno::mremap])
        .allow_where(Sysno::openat, "a path", [Check::is(0, libc::AT_FDCWD)])
        .allow_where(Sysno::fcntl, "F_GETFD", [Check::is(1, F_GETFD)])
        .allow_where(Sysno::fcntl, "F_GETFL", [Check::is(1, F_GETFL)])
        .allow_where(Sysno::mprotect, "not executable", [Check::bits(2, libc::PROT_EXEC, 0)])
        .refuse(Sysno::clone3, "any", [], libc::ENOSYS)
        .refuse(Sysno::openat, "flags 7", [Check::is(0, 0), Check::is(2, 7)], libc::EACCES)
}

fn call(call: Sysno, [first, second, third]: [u64; 3]) -> Result<i64, i32> {
    // SAFETY: the deeds name no memory, or none that is there.
    let result = unsafe { libc::syscall(call.id().into(), first, second, third) };
    if result < 0 {
        Err(std::io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        Ok(result)
    }
}

#[track_caller]
fn goes_on(deed: &str) -> String {
    let output = process(deed);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains(THE_END), "{deed}: {output:?}");
    text
}

#[track_caller]
fn ends(deed: &str, call: &str) {
    let output = process(deed);
    let words = String::from_utf8_lossy(&output.stderr);
    let expected = format!("forbidden system call {call} in the thread 'worker': see the manual\n");
    assert!(words.ends_with(&expected), "{deed}: {words}");
    assert_eq!(output.status.code(), Some(VIOLATION_STATUS), "{deed}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(THE_END), "{deed}");
}

#[test]
fn what_the_rules_allow_is_done() {
    goes_on("allowed");
    goes_on("not-executable");
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named() {
    ends("other-call", "socket (41)");
}

#[test]
fn a_call_with_forbidden_arguments_is_a_forbidden_call() {
    ends("other-argument", "fcntl (72)");
    ends("executable", "mprotect (10)");
}

#[test]
fn a_call_that_is_to_fail_fails_with_these_arguments_only() {
    goes_on("refused");
    ends("refused-otherwise", "openat (257)");
}

#[test]
fn rules_cannot_be_changed_where_they_do_not_say_so() {
    ends("more-rules", "prctl (157)");
}

#[test]
fn in_the_log_mode_forbidden_calls_are_made() {
    goes_on("log");
}

#[test]
fn without_a_report_the_process_ends_by_the_signal() {
    let output = process("unreported");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
}

#[test]
fn the_kernel_says_that_the_thread_is_confined() {
    let status = goes_on("status");
    let has = |name: &str, value: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim) == Some(value)
    };
    assert!(has("NoNewPrivs:", "1") && has("Seccomp:", "2"), "{status}");
}
