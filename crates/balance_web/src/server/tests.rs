//! The server as clients see it.

use super::*;
use balance_host::{ActionStatus, HostStatus, MovedStatus, SettingsStatus, Status, VmStatus};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream as Client;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const GIB: u64 = 1 << 20;

/// A machine of which all is known.
pub(crate) fn status() -> Status {
    let action = ActionStatus {
        number: 2,
        vm: "db".to_owned(),
        from_kib: GIB,
        to_kib: 2 * GIB,
        rule: "It gets what it needs.".to_owned(),
        reason: "The guest uses 1.0 GiB. It gets what it needs.".to_owned(),
        age_ms: 5000,
    };
    let moved =
        MovedStatus { added_kib: GIB, removed_kib: 0, add_operations: 3, remove_operations: 0 };
    let vm = VmStatus {
        name: "db".to_owned(),
        socket: "/run/hvb/db.sock".to_owned(),
        kind: "hvb".to_owned(),
        assigned_kib: Some(2 * GIB),
        target_kib: Some(2 * GIB),
        demand_kib: Some(GIB),
        wanted_kib: Some(3 * GIB / 2),
        available_kib: Some(GIB),
        pressure_permille: Some(750),
        status: Some("Low".to_owned()),
        settings: Some(SettingsStatus {
            startup_kib: GIB,
            minimum_kib: GIB / 2,
            maximum_kib: 4 * GIB,
            buffer_percent: 20,
            weight: 5000,
        }),
        resident_kib: Some(GIB),
        psi_some_permille: Some(1),
        age_ms: Some(500),
        report_age_ms: Some(1500),
        moved,
        last_action: Some(action),
        ..VmStatus::default()
    };
    let host = HostStatus {
        zone: "tight".to_owned(),
        total_kib: 8 * GIB,
        available_kib: 4 * GIB,
        for_vms_kib: 3 * GIB,
        targets_kib: 2 * GIB,
        ..HostStatus::default()
    };
    Status { host, vms: vec![vm], decisions: 1, moved, stale_after_ms: 10_000, ..Status::default() }
}

/// Counts how often it was looked at, and shows that as the number of decisions.
#[derive(Clone, Default)]
pub(crate) struct Counted {
    pub(crate) looks: Arc<AtomicU64>,
    /// The length of a machine's name: what makes an answer long.
    length: usize,
}

impl Source for Counted {
    fn status(&self) -> Status {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        let mut status = Status { decisions: looks + 1, ..status() };
        if self.length > 0 {
            status.vms[0].name = "x".repeat(self.length);
        }
        status
    }

    fn actions(&self) -> Vec<ActionStatus> {
        let action = status().vms[0].last_action.clone().unwrap();
        vec![action.clone(), ActionStatus { number: 1, ..action }]
    }
}

fn serve(token: Option<Token>, source: Counted) -> Web {
    Socket::bind("127.0.0.1:0".parse().unwrap(), token).unwrap().serve(source).unwrap()
}

fn connect(web: &Web) -> Client {
    Client::connect(web.address()).unwrap()
}

/// All that comes for these words.
fn send(web: &Web, words: &str) -> String {
    let mut client = connect(web);
    client.write_all(words.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A server that does not read all of a request that is too long resets the connection.
    let _ = client.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn get(web: &Web, target: &str) -> String {
    send(web, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// The parts of a stream.
fn stream(web: &Web) -> BufReader<Client> {
    let mut client = connect(web);
    client.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    BufReader::new(client)
}

fn line_with(reader: &mut impl BufRead, part: &str) -> String {
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "it ended before {part}");
    }
    line
}

#[test]
fn everything_is_served_with_its_type() {
    let web = serve(None, Counted::default());
    for (target, kind, part) in [
        ("/", "text/html; charset=utf-8", "<title>hvb balance</title>"),
        ("/metrics", metrics::CONTENT_TYPE, "# EOF"),
        ("/api/v1/vms", "application/json", "\"name\":\"db\""),
        ("/api/v1/decisions", "application/json", "\"number\":1"),
    ] {
        let answer = get(&web, target);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{answer}");
        assert!(answer.contains("cache-control: no-store\r\n"), "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
        assert!(answer.contains(part), "{answer}");
    }
    let newer = get(&web, "/api/v1/decisions?after=1");
    assert!(newer.contains("\"number\":2") && !newer.contains("\"number\":1"), "{newer}");
    let head = send(&web, "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn the_json_is_the_status_of_the_control_socket() {
    let web = serve(None, Counted::default());
    let answer = get(&web, "/api/v1/vms");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let read: Status = serde_json::from_str(body).unwrap();
    assert_eq!(read.vms, status().vms);
}

#[test]
fn bad_requests_are_refused_with_a_remedy() {
    let web = serve(None, Counted::default());
    let host = "Host: localhost\r\n\r\n";
    let long = "x".repeat(64 << 10);
    for (words, status, part) in [
        (format!("GET /x HTTP/1.1\r\n{host}"), "404", "there are /, /metrics"),
        (format!("POST / HTTP/1.1\r\nContent-Length: 0\r\n{host}"), "405", "only GET and HEAD"),
        (format!("GET /api/v1/decisions?after=x HTTP/1.1\r\n{host}"), "400", "after=NUMBER"),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), "403", "--listen-token-file"),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), "403", "localhost"),
        (format!("GET / HTTP/1.1\r\nSec-Fetch-Site: cross-site\r\n{host}"), "403", "origins"),
        ("nonsense\r\n\r\n".to_owned(), "400", ""),
        (format!("GET / HTTP/1.1\r\nX: {long}\r\n{host}"), "431", ""),
        (format!("GET /{long} HTTP/1.1\r\n{host}"), "4", ""),
        (format!("GET / HTTP/1.1\r\n{}{host}", "X: y\r\n".repeat(100)), "431", ""),
    ] {
        let answer = send(&web, &words);
        let start: String = words.chars().take(50).collect();
        // A connection that was reset may lose the answer.
        let is_reset = answer.is_empty() && words.len() > 16 << 10;
        assert!(
            is_reset
                || answer.starts_with(&format!("HTTP/1.1 {status}"))
                || answer.starts_with(&format!("HTTP/1.0 {status}")),
            "{start}: {answer}"
        );
        assert!(is_reset || answer.contains(part), "{start}: {answer}");
    }
    assert!(get(&web, "/metrics").contains("# EOF"), "it is well afterwards");
}

#[test]
fn who_has_the_token_is_served_under_any_name() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let web = serve(Some(Token::read(&file).unwrap()), Counted::default());
    let ask = |header: &str| {
        send(&web, &format!("GET /metrics HTTP/1.1\r\nHost: a.example\r\n{header}\r\n"))
    };
    for header in ["", "Authorization: Bearer wrong-horse-battery\r\n"] {
        let answer = ask(header);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.contains("www-authenticate: Basic") && !answer.contains("hvb_"), "{answer}");
    }
    let answer = ask("Authorization: Bearer correct-horse-battery\r\n");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("# EOF"), "{answer}");
}

#[test]
fn other_hosts_need_a_token_and_an_address_in_use_is_named() {
    let bind = |text: &str| Socket::bind(text.parse().unwrap(), None);
    let error = bind("0.0.0.0:9178").unwrap_err().to_string();
    assert_eq!(
        error,
        "0.0.0.0:9178 can be reached from other hosts: give --listen-token-file, or an address such as 127.0.0.1:9178"
    );
    let web = serve(None, Counted::default());
    let error = bind(&web.address().to_string()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {}: ", web.address())), "{error}");
}

#[test]
fn events_come_as_long_as_somebody_listens() {
    let web = serve(None, Counted::default());
    let mut events = stream(&web);
    line_with(&mut events, "text/event-stream");
    let count = |line: &str| {
        let (_, rest) = line.split_once("\"decisions\":").unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap()
    };
    let first = count(&line_with(&mut events, "data: {"));
    let second = count(&line_with(&mut events, "data: {"));
    assert!(second > first, "the second shows something newer");
    drop(web);
    let mut rest = Vec::new();
    // The end may be a reset.
    let _ = events.read_to_end(&mut rest);
}

#[test]
fn streams_and_connections_have_a_number() {
    let web = serve(None, Counted::default());
    let mut streams: Vec<_> = (0..MAX_STREAMS).map(|_| stream(&web)).collect();
    for stream in &mut streams {
        line_with(stream, "data: {");
    }
    let answer = get(&web, "/api/v1/events");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("close some"), "{answer}");
    assert!(get(&web, "/metrics").contains("# EOF"), "there is room for others");
    // Clients that say nothing take the rest.
    let mut silent: Vec<Client> = (MAX_STREAMS..MAX_CONNECTIONS).map(|_| connect(&web)).collect();
    let answer = get(&web, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    // They are cut off when their time is over, and others are served again.
    for client in &mut silent {
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    while !get(&web, "/metrics").contains("# EOF") {}
    drop(streams);
    while !get(&web, "/api/v1/vms").contains("\"name\":\"db\"") {}
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    // An answer that is longer than what the kernel keeps for a client.
    let source = Counted { length: 8 << 20, ..Counted::default() };
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let limits = Limits { request: Duration::from_secs(5), taken: Duration::from_millis(300) };
    let web = socket.serve_within(source, limits).unwrap();
    let mut slow = stream(&web);
    line_with(&mut slow, "text/event-stream");
    let mut idle = connect(&web);
    idle.write_all(b"GET /api/v1/vms HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    wait_until_reset(slow.get_ref());
    wait_until_reset(&idle);
}

/// Waits until the other side has given up a connection from which nothing is read.
fn wait_until_reset(client: &Client) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let mut watched = [PollFd::new(client, PollFlags::empty())];
        let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert!(poll(&mut watched, Some(&timeout)).unwrap() > 0, "it is never cut off");
        if watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
    }
}
