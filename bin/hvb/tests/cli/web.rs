//! `hvb balance --listen`, as a client of HTTP sees it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use rustix::process::Signal;

use crate::common::{Guest, Monitor, stderr};
use crate::place::{Balancer, MIB, Place, eventually};

/// A balancer that serves, and where.
pub(crate) fn serving(place: &Place, more: &[&str]) -> (Balancer, String) {
    let balancer = place.balancer_with(|command| {
        command.args(["--listen", "0"]).args(more);
    });
    let mut address = None;
    eventually("it serves", || {
        let log = place.log();
        let after = log.split_once("serving http://").map(|(_, rest)| rest.to_owned());
        address = after.and_then(|rest| Some(rest.split_once("/\n")?.0.to_owned()));
        address.is_some()
    });
    (balancer, address.unwrap())
}

fn get(address: &str, target: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_balancer_serves_what_it_knows_and_did() {
    let place = Place::new();
    let guest = Guest::new(256 * MIB).that_uses(64 * MIB);
    let vm = Monitor::start_at(&place.path("db.sock"), guest);
    let (balancer, address) = serving(&place, &[]);
    eventually("it shrinks", || {
        vm.report();
        vm.guest.target() < 128 * MIB
    });
    eventually("that is seen", || {
        let metrics = get(&address, "/metrics", "");
        metrics.contains("vm_remove_operations_total{vm=\"db\"} ")
            && !metrics.contains("vm_removed_bytes_total{vm=\"db\"} 0\n")
    });
    let decisions = get(&address, "/api/v1/decisions", "");
    assert!(
        decisions.contains("\"vm\":\"db\"") && decisions.contains("\"from-kib\":262144"),
        "{decisions}"
    );
    let vms = get(&address, "/api/v1/vms", "");
    assert!(vms.contains("\"last-action\":{") && vms.contains("\"stale\":false"), "{vms}");
    assert!(get(&address, "/", "").contains("<title>hvb balance</title>"));
    // A client that takes nothing holds nobody up at the end.
    let _idle = TcpStream::connect(&address).unwrap();
    assert_eq!(balancer.end(Signal::TERM), Some(0));
}

#[test]
fn a_token_opens_and_what_is_none_is_refused_at_the_start() {
    let place = Place::new();
    let file = place.path("token");
    fs::write(&file, "correct-horse-battery\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let path = file.to_str().unwrap();
    let (balancer, address) = serving(&place, &["--listen-token-file", path]);
    assert!(get(&address, "/metrics", "").starts_with("HTTP/1.1 401"));
    let header = "Authorization: Bearer correct-horse-battery\r\n";
    assert!(get(&address, "/metrics", header).contains("# EOF"));
    drop(balancer);
    let refused = |arguments: &[&str], expected: &str| {
        let output = place.command(arguments).stdin(Stdio::null()).output().unwrap();
        let error = stderr(&output);
        assert!(!output.status.success() && error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    refused(
        &["--listen", "0.0.0.0:0"],
        "can be reached from other hosts: give --listen-token-file",
    );
    refused(
        &["--listen", "example.org:80"],
        "--listen <ADDRESS>: invalid address 'example.org:80'",
    );
    refused(&["--listen-token-file", path], "--listen <ADDRESS>");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["--listen", "0", "--listen-token-file", path], "chmod 600");
}
