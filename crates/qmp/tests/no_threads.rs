//! A process that cannot start threads any more. The filter that sees to this cannot be taken away
//! again, so this is a test program of its own.

mod common;

use common::{FakeMachine, PATIENCE};
use host_faults::Refusal;
use qmp::{Client, ClientError, Server, qapi};
use std::sync::Arc;

#[test]
fn a_client_without_threads_is_told_so_and_the_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let server = Server::start(&path, Arc::new(FakeMachine)).unwrap();
    let mut early = Client::connect(&path, PATIENCE).unwrap();
    let calls = [libc::SYS_clone, libc::SYS_clone3];
    host_faults::from_now_on(&calls.map(|call| Refusal::of(call, libc::EAGAIN)));

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
    assert!(error.to_string().starts_with("cannot listen on socket"), "{error}");
    assert!(!path.exists(), "a server that could not start left its socket behind");
}
