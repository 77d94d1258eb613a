//! A process that cannot start threads any more. The filter that sees to this cannot be taken away
//! again, so this is a test program of its own.

use qmp::{Client, ClientError, Machine, MonitorError, RunState, Server, qapi};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

struct FakeMachine;

impl Machine for FakeMachine {
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

/// From now on the kernel says `EAGAIN` to every thread of this process that asks for another.
fn forbid_threads() {
    let calls = [libc::SYS_clone, libc::SYS_clone3];
    let rules: BTreeMap<i64, _> = calls.map(|call| (call, Vec::new())).into();
    let refuse = SeccompAction::Errno(libc::EAGAIN.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    apply_filter_all_threads(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn a_client_without_threads_is_told_so_and_the_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let server = Server::start(&path, Arc::new(FakeMachine)).unwrap();
    let mut early = Client::connect(&path, PATIENCE).unwrap();
    forbid_threads();

    for _ in 0..qmp::MAX_CLIENTS + 1 {
        match Client::connect(&path, PATIENCE) {
            Err(ClientError::TurnedAway { desc, .. }) => {
                assert!(desc.contains("cannot start threads"), "{desc}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(early.run(&qapi::query_balloon {}).unwrap().actual, 4096);

    drop(server);
    let error = Server::start(&path, Arc::new(FakeMachine)).unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on monitor socket"), "{error}");
    assert!(!path.exists(), "a server that could not start left its socket behind");
}
