//! A process that runs out of descriptors. They are the process's, so these tests have one of their
//! own and take turns.

mod common;

use common::{FakeMachine, PATIENCE};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use qmp::{Client, Server, qapi};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

static TURN: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn wait_for_descriptors(wanted: usize) {
    let deadline = Instant::now() + PATIENCE;
    while descriptors() != wanted {
        assert!(Instant::now() < deadline, "{} descriptors instead of {wanted}", descriptors());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Takes every descriptor there is; gives them back when dropped.
fn take_all() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// A socket that can be connected when there are no descriptors any more.
fn unconnected() -> UnixStream {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap().into()
}

/// The first line that a server says to this client.
fn first_words(client: &UnixStream, path: &Path) -> Value {
    connect(client.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

#[test]
fn who_comes_when_descriptors_have_run_out_is_told_and_the_others_are_served() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (before, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, most).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _server = Server::start(&path, Arc::new(FakeMachine)).unwrap();
    let mut early = Client::connect(&path, PATIENCE).unwrap();

    // They stay open to the end: what one of them gave back would be enough for the next.
    let late: Vec<UnixStream> = (0..5).map(|_| unconnected()).collect();
    let taken = take_all();
    // The kernel has set a descriptor aside for a server that waits in `accept` already.
    first_words(&late[0], &path);
    for client in &late[1..] {
        let said = first_words(client, &path);
        let why = said["error"]["desc"].as_str().unwrap_or_else(|| panic!("{said}"));
        assert!(why.contains("no file descriptor left") && why.contains("raise"), "{why}");
        assert_eq!(early.run(&qapi::query_balloon {}).unwrap().actual, 4096);
    }

    drop(taken);
    let mut next = Client::connect(&path, PATIENCE).unwrap();
    assert_eq!(next.run(&qapi::query_balloon {}).unwrap().actual, 4096);
    setrlimit(Resource::RLIMIT_NOFILE, before, most).unwrap();
}

#[test]
fn clients_that_are_gone_hold_no_descriptors() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let server = Server::start(&path, Arc::new(FakeMachine)).unwrap();
    // The descriptor in reserve is there before the first client is.
    drop(Client::connect(&path, PATIENCE).unwrap());
    let listening = 2;
    let others = {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sockets = sockets();
            if sockets == listening || Instant::now() > deadline {
                assert_eq!(sockets, listening);
                break descriptors();
            }
        }
    };
    let clients: Vec<Client> =
        (0..qmp::MAX_CLIENTS).map(|_| Client::connect(&path, PATIENCE).unwrap()).collect();
    assert_eq!(descriptors(), others + 2 * qmp::MAX_CLIENTS);
    // Nobody comes after them whose coming would tidy up.
    drop(clients);
    wait_for_descriptors(others);
    drop(server);
    assert_eq!(sockets(), 0);
}

fn sockets() -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}
