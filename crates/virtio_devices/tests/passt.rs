//! The real `passt`, started by a user without privileges: the guest gets an address, and reaches the host.

mod frames;

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use frames::{BROADCAST, HEADERS, datagram};
use virtio_devices::{Link, Passt};

const PATIENCE: Duration = Duration::from_secs(20);
const MAC: [u8; 6] = [0x52, 0x48, 0, 0, 0, 1];
/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;
const NAME: &str = "a_user_without_root_gets_a_network";

/// The first frame that this finds something in.
fn find<T>(link: &Passt, mut found: impl FnMut(&[u8]) -> Option<T>) -> T {
    let begin = Instant::now();
    let mut room = [0; 2000];
    while begin.elapsed() < PATIENCE {
        match link.receive(&mut room).unwrap() {
            Some(len) => {
                if let Some(it) = found(&room[..len]) {
                    return it;
                }
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    panic!("passt does not answer");
}

fn send(link: &Passt, frame: &[u8]) {
    link.put(frame);
    assert!(link.flush().unwrap());
}

/// A DHCP request of this kind (RFC 2131, RFC 2132).
fn dhcp(kind: u8) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(b"hvb1");
    message[28..34].copy_from_slice(&MAC);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 255]);
    message.resize(300, 0);
    message
}

/// The content of an option in a DHCP message.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut options = message.get(240..)?;
    while let [code, len, rest @ ..] = options {
        let content = rest.get(..usize::from(*len))?;
        if *code == wanted {
            return Some(content);
        }
        options = rest.get(content.len()..)?;
    }
    None
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?))
}

#[test]
fn a_user_without_root_gets_a_network() {
    if rustix::process::geteuid().is_root() {
        return as_nobody();
    }
    let link = Passt::start().expect("passt (Debian's package passt) does not start");
    let everyone = ([0xff; 6], MAC);
    let zero = Ipv4Addr::UNSPECIFIED;
    send(&link, &datagram(everyone, (zero, 68), (BROADCAST, 67), &dhcp(1)));
    let (passt, ours, gateway) = find(&link, |frame| {
        let message = frame.get(HEADERS..)?;
        let is_offer = message.get(4..8)? == b"hvb1" && option(message, 53)? == [2];
        let passt = *frame.get(6..)?.first_chunk::<6>()?;
        is_offer.then_some((passt, address(message.get(16..)?)?, address(option(message, 3)?)?))
    });
    // The gateway's address is the host's own.
    let host = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = host.local_addr().unwrap().port();
    send(&link, &datagram((passt, MAC), (ours, 4000), (gateway, port), b"from the guest"));
    let mut room = [0; 100];
    let (len, from) = host.recv_from(&mut room).unwrap();
    assert_eq!(&room[..len], b"from the guest");
    host.send_to(b"from the host", from).unwrap();
    find(&link, |frame| (frame.get(HEADERS..)? == b"from the host").then_some(()));
}

/// Runs the test as a user who has nothing.
fn as_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("test");
    // Where this one is, that user may not get to.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut test = Command::new(&program);
    test.args(["--exact", NAME, "--nocapture"]).current_dir(dir.path());
    let status = test.uid(NOBODY).gid(NOBODY).status().unwrap();
    assert!(status.success(), "{status}");
}
