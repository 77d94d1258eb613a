//! What clients cost that have left. Alone in its process, since it counts the process's files.

use qmp::{Client, Machine, MonitorError, RunState, Server};
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

struct Running;

impl Machine for Running {
    fn status(&self) -> RunState {
        RunState::running
    }
    fn balloon(&self, _: u64) -> Result<(), MonitorError> {
        Ok(())
    }
    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(4096)
    }
    fn system_reset(&self) {}
    fn quit(&self) {}
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn clients_that_left_leave_no_descriptor_though_no_other_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let _server = Server::start(&path, Arc::new(Running)).unwrap();
    let before = descriptors();
    let clients: Vec<_> = (0..4).map(|_| Client::connect(&path, PATIENCE).unwrap()).collect();
    assert!(descriptors() >= before + 8);
    drop(clients);
    let deadline = Instant::now() + PATIENCE;
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", descriptors());
        thread::sleep(Duration::from_millis(10));
    }
}
