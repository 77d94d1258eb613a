use super::*;
use crate::control::control_channel;
use std::collections::HashMap;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;
use vmm_sys_util::signal::Killable;

/// The variable that tells a process started by these tests what to do, and as which thread.
const DEED: &str = "HVB_CONFINED_DEED";
const THE_END: &str = "got to the end";

/// Starts this program again, to do this deed as this thread and nothing else.
fn process(thread: Thread, deed: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confine::tests::deeds", "--nocapture", "--test-threads=1"])
        .env(DEED, format!("{} {deed}", thread.name()))
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

/// Not a test: the code of the processes that the tests start. It does nothing without a deed.
#[test]
fn deeds() {
    let Ok(words) = std::env::var(DEED) else { return };
    let (name, deed) = words.split_once(' ').unwrap();
    let kind = Thread::ALL.into_iter().find(|thread| thread.name() == name).unwrap();
    let seccomp = if deed == "log" { Seccomp::Log } else { Seccomp::On };
    let (control, _events) = control_channel();
    let confinement = Confinement::new(seccomp, control).unwrap();
    let mut signals = Signals::new([SIGTERM]).unwrap();
    let (ready, until_ready) = channel();
    let (go, gone) = channel();
    let deed = deed.to_owned();
    let confined = thread::Builder::new().name(name.into()).spawn(move || {
        confinement.apply(kind).unwrap();
        ready.send(()).unwrap();
        gone.recv().unwrap();
        perform(&deed);
    });
    let confined = confined.unwrap();
    until_ready.recv().unwrap();
    // A signal that ends the VM may arrive on any thread.
    confined.kill(SIGTERM).unwrap();
    assert_eq!(signals.forever().next(), Some(SIGTERM));
    go.send(()).unwrap();
    confined.join().unwrap();
    println!("{THE_END}");
}

fn perform(deed: &str) {
    match deed {
        "ordinary" => ordinary_life(),
        "socket" | "log" => drop(UdpSocket::bind("127.0.0.1:0")),
        "open" => drop(File::open("/etc/passwd")),
        "program" => drop(Command::new("/bin/true").spawn()),
        "thread" => thread::spawn(ordinary_life).join().unwrap(),
        "threads" => {
            let all_there = &Barrier::new(20);
            thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| {
                        let memory = std::hint::black_box(vec![vec![1_u8; 16 << 10]; 64]);
                        all_there.wait();
                        drop(memory);
                    });
                }
            });
        }
        "unlink" => drop(fs::remove_file("/no/such/file")),
        "terminal" => drop(rustix::termios::tcgetattr(std::io::stdin())),
        "abort" => std::process::abort(),
        "overflow" => println!("{}", deeper(1)),
        other => panic!("no deed {other}"),
    }
}

/// What any thread's code does sooner or later.
fn ordinary_life() {
    // Enough to make the thread's own arena grow and shrink, by blocks and by mappings.
    for size in [64, 5000, 40_000, 1 << 20] {
        let blocks: Vec<Vec<u8>> = (0..200).map(|_| vec![1; size]).collect();
        assert_eq!(blocks.len(), 200);
        drop(blocks);
    }
    let mut growing = Vec::new();
    (0..3_000_000_u64).for_each(|number| growing.push(number));
    assert_eq!(HashMap::from([(1, 2)]).get(&1), Some(&2));

    let (sender, receiver) = channel::<()>();
    assert!(receiver.recv_timeout(Duration::from_millis(1)).is_err());
    drop(sender);
    thread::yield_now();
    thread::park_timeout(Duration::from_millis(1));
    assert!(Instant::now().elapsed() < Duration::from_secs(60));
    let now = std::time::SystemTime::now();
    assert!(now > std::time::SystemTime::UNIX_EPOCH);
    eprintln!("a log line at {now:?}");

    let caught = std::panic::catch_unwind(|| panic!("a defect"));
    assert!(caught.is_err());
}

#[expect(unconditional_recursion, reason = "to overflow the stack")]
fn deeper(level: u64) -> u64 {
    let room = std::hint::black_box([level; 512]);
    deeper(level + 1) + room[0]
}

#[test]
fn every_thread_may_allocate_wait_log_panic_and_end() {
    for thread in Thread::ALL {
        let output = process(thread, "ordinary");
        let (text, words) = words(&output);
        assert!(output.status.success() && text.contains(THE_END), "{thread:?}: {words}");
        assert!(words.contains("a log line") && words.contains("a defect"), "{thread:?}: {words}");
    }
}

fn words(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn ends(thread: Thread, deed: &str, calls: &[&str]) {
    let output = process(thread, deed);
    let (text, words) = words(&output);
    let name = thread.name();
    let last = words.lines().last().unwrap_or_default();
    let named = |call: &&str| {
        last == format!("forbidden system call {call} in the thread '{name}': {ADVICE}")
    };
    assert!(calls.iter().any(named), "{thread:?} {deed}: {words}");
    assert_eq!(output.status.code(), Some(confinement::VIOLATION_STATUS), "{thread:?} {deed}");
    assert!(!text.contains(THE_END), "{thread:?} {deed}");
}

#[test]
fn no_thread_may_open_files_or_sockets_or_start_programs() {
    for thread in Thread::ALL {
        ends(thread, "socket", &["socket (41)"]);
        ends(thread, "open", &["openat (257)"]);
        let program = process(thread, "program");
        assert_eq!(program.status.signal(), Some(libc::SIGSYS), "{thread:?}: {program:?}");
    }
}

/// glibc blocks all signals around `clone`, so no line names the forbidden call.
#[test]
fn only_main_and_the_one_that_accepts_clients_may_start_threads() {
    for thread in Thread::ALL {
        match thread {
            Thread::Main | Thread::QmpAccept => {
                for deed in ["thread", "threads"] {
                    let output = process(thread, deed);
                    assert!(output.status.success(), "{thread:?} {deed}: {output:?}");
                }
            }
            _ => {
                let output = process(thread, "thread");
                assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{thread:?}: {output:?}");
            }
        }
    }
}

#[test]
fn only_main_removes_files_and_none_reads_from_the_terminal_what_it_is() {
    for thread in Thread::ALL {
        ends(thread, "terminal", &["ioctl (16)"]);
        match thread {
            Thread::Main => assert!(process(thread, "unlink").status.success()),
            _ => ends(thread, "unlink", &["unlink (87)"]),
        }
    }
}

#[test]
fn in_the_log_mode_every_call_is_made() {
    for thread in Thread::ALL {
        let output = process(thread, "log");
        assert!(output.status.success(), "{thread:?}: {output:?}");
    }
}

#[test]
fn other_ends_of_a_process_are_what_they_were() {
    for thread in Thread::ALL {
        assert_eq!(process(thread, "abort").status.signal(), Some(libc::SIGABRT), "{thread:?}");
        let overflow = process(thread, "overflow");
        assert_eq!(overflow.status.signal(), Some(libc::SIGABRT), "{overflow:?}");
        assert!(words(&overflow).1.contains("overflowed its stack"), "{overflow:?}");
    }
}

#[test]
fn nothing_is_confined_that_is_not_asked_for() {
    let (control, _events) = control_channel();
    let confinement = Confinement::new(Seccomp::default(), control).unwrap();
    confinement.enter(Thread::ConsoleOut).unwrap();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let has = |wanted: &str| status.lines().any(|line| line.replace('\t', " ") == wanted);
    // Ignores filters that surround the tests.
    let outside = fs::read_to_string("/proc/self/status").unwrap();
    let line =
        |text: &str| text.lines().find(|line| line.starts_with("Seccomp:")).map(str::to_owned);
    assert_eq!(line(&status), line(&outside));
    assert!(has("NoNewPrivs: 0") || outside.contains("NoNewPrivs:\t1"), "{status}");
}

/// The rows of the table in the documentation.
fn table() -> String {
    let row = |name: &str, rules: confinement::Rules| format!("| {name} | {rules} |\n");
    let threads = Thread::ALL.iter().map(|thread| {
        let rules = rules::its_own(*thread);
        if rules == confinement::Rules::new() {
            return format!("| `{}` | nothing more |\n", thread.name());
        }
        row(&format!("`{}`", thread.name()), rules)
    });
    row("every thread", rules::every_thread()) + &threads.collect::<String>()
}

#[test]
fn the_documentation_says_what_each_thread_may_do() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/confinement.md");
    let text = fs::read_to_string(document).unwrap();
    let table = table();
    assert!(text.contains(&table), "docs/confinement.md should have these rows:\n{table}");
}
