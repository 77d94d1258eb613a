//! Network cards, and the link to passt.

#[expect(dead_code, reason = "shared with other tests")]
mod driver;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use driver::{DATA, Driver, VERSION_1};
use rustix::io::{read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_mmio as register;
use virtio_devices::{Link, Mac, Net, Passt, Tap};

const HEADER: usize = 12;
const PATIENCE: Duration = Duration::from_secs(60);

/// A link, and the socket at passt's end.
fn link() -> (Passt, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (Passt::over(ours).unwrap(), theirs)
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

fn read_frame(socket: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn frames_arrive_whole_however_the_stream_is_cut() {
    let (link, mut passt) = link();
    let frames: [&[u8]; 3] = [&[1; 60], &[], &[2; 1514]];
    let mut room = [0; 2000];
    let mut found = Vec::new();
    for byte in frames.map(framed).concat() {
        passt.write_all(&[byte]).unwrap();
        if let Some(len) = link.receive(&mut room).unwrap() {
            found.push(room[..len].to_vec());
        }
    }
    // A frame of nothing is none.
    assert_eq!(found, [vec![1; 60], vec![2; 1514]]);
    assert_eq!(link.receive(&mut room).unwrap(), None);
}

#[test]
fn a_frame_that_is_too_long_and_an_end_are_errors() {
    let (link, mut passt) = link();
    passt.write_all(&u32::MAX.to_be_bytes()).unwrap();
    link.receive(&mut [0; 2000]).unwrap_err();
    let (link, passt) = self::link();
    drop(passt);
    link.receive(&mut [0; 2000]).unwrap_err();
}

/// A link, and the other end of an interface that takes and gives a frame at a time.
fn tap() -> (Tap, OwnedFd) {
    let flags = SocketFlags::empty();
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Tap::over(ours).unwrap(), theirs)
}

#[test]
fn an_interface_has_a_frame_for_each_read_and_write() {
    let (link, interface) = tap();
    let mut room = [0; 2000];
    assert_eq!(link.receive(&mut room).unwrap(), None);
    for frame in [[1; 60].as_slice(), &[2; 1514]] {
        write(&interface, frame).unwrap();
        assert_eq!(link.receive(&mut room).unwrap(), Some(frame.len()));
        assert_eq!(&room[..frame.len()], frame);
        assert!(link.flush().unwrap());
        link.put(frame);
        assert!(link.flush().unwrap());
        let read = read(&interface, &mut room).unwrap();
        assert_eq!(&room[..read], frame);
    }
    drop(interface);
    link.receive(&mut room).unwrap_err();
}

#[test]
fn a_frame_waits_while_the_host_takes_none() {
    let (link, interface) = tap();
    let mut sent = 0;
    while link.flush().unwrap() {
        link.put(&[sent; 1514]);
        sent += 1;
    }
    let mut room = [0; 2000];
    for number in 0..sent {
        assert_eq!(read(&interface, &mut room).unwrap(), 1514);
        assert_eq!(room[0], number);
        assert!(link.flush().unwrap());
    }
}

#[test]
fn interfaces_and_descriptors_that_are_not_there_are_told() {
    for name in ["no-such-if", "../../../tmp", ""] {
        let error = Tap::open(name).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput), "{error}");
    }
    Tap::inherited(9999).unwrap_err();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let link = Tap::inherited(theirs.as_raw_fd()).unwrap();
    drop(theirs);
    link.put(&[7; 60]);
    assert!(link.flush().unwrap());
    let mut frame = [0; 60];
    ours.read_exact(&mut frame).unwrap();
    assert_eq!(frame, [7; 60]);
}

#[test]
fn what_does_not_fit_into_the_socket_waits() {
    let (link, mut passt) = link();
    let mut sent = 0;
    while link.flush().unwrap() {
        link.put(&[7; 1514]);
        sent += 1;
    }
    for _ in 0..sent {
        link.flush().unwrap();
        assert_eq!(read_frame(&mut passt), [7; 1514]);
    }
    assert!(link.flush().unwrap());
}

/// A card whose driver uses one queue, with its threads; what it tells of a lost link; passt's end.
struct Card {
    driver: Driver,
    threads: Vec<thread::JoinHandle<()>>,
    lost: Receiver<()>,
    passt: UnixStream,
}

impl Card {
    fn start(queue: u32) -> Self {
        let (link, passt) = link();
        let (lost, told) = channel();
        let lost = Mutex::new(lost);
        let lost = Box::new(move |_: &std::io::Error| lost.lock().unwrap().send(()).unwrap());
        let net = Net::new(Box::new(link), Mac::local([1, 2, 3, 4]), lost);
        let mut driver = Driver::start(Arc::new(net), VERSION_1);
        driver.queue = queue;
        driver.set_up(VERSION_1);
        let workers = driver.device.workers().into_iter();
        let threads = workers.map(|worker| thread::spawn(worker.run)).collect();
        Self { driver, threads, lost: told, passt }
    }

    fn notify(&self) {
        self.driver.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, self.driver.queue);
    }

    fn completed(&mut self) -> u32 {
        loop {
            match self.driver.completed() {
                Some((_, len)) => return len,
                None => thread::yield_now(),
            }
        }
    }

    fn stop(self) {
        self.driver.device.stop();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_frame_goes_into_the_next_buffer_and_one_too_long_nowhere() {
    let mut card = Card::start(0);
    let mut mac = [0; 6];
    card.driver.device.read(0x100, &mut mac);
    assert_eq!(mac, [0x52, 0x48, 1, 2, 3, 4]);
    for fill in 1..10 {
        card.driver.request(&[(DATA, 12, true), (DATA + 0x1000, 1514, true)]);
        card.notify();
        card.passt.write_all(&framed(&[9; 1515])).unwrap();
        card.passt.write_all(&framed(&[fill; 100])).unwrap();
        assert_eq!(card.completed(), 112);
        assert_eq!(card.driver.get(DATA, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(card.driver.get(DATA + 0x1000, 100), [fill; 100]);
    }
    card.stop();
}

#[test]
fn a_frame_of_the_guest_is_sent_and_what_is_none_is_not() {
    let mut card = Card::start(1);
    card.driver.put(DATA, &[8; 4096]);
    for buffers in [
        vec![(DATA, 12, false)],
        vec![(DATA, 20, false)],
        vec![(DATA, 12, false), (u64::MAX - 100, 1514, false)],
        vec![(DATA, 12, false), (DATA, 1 << 20, false)],
        vec![(DATA, 12, false), (DATA, 100, false)],
    ] {
        card.driver.request(&buffers);
        card.notify();
        assert_eq!(card.completed(), 0);
    }
    assert_eq!(read_frame(&mut card.passt), [8; 100]);
    card.stop();
}

#[test]
fn a_peer_that_does_not_read_holds_up_no_reset_and_no_end() {
    let mut card = Card::start(1);
    // More than the socket takes.
    let mut sent = 0;
    loop {
        card.driver.request(&[(DATA, 12, false), (DATA, 1514, false)]);
        card.notify();
        let begin = std::time::Instant::now();
        while card.driver.completed().is_none() && begin.elapsed() < Duration::from_secs(1) {
            thread::yield_now();
        }
        if begin.elapsed() >= Duration::from_secs(1) {
            break;
        }
        sent += 1;
    }
    assert!(sent > 10);
    card.driver.set_up(VERSION_1);
    card.stop();
}

#[test]
fn a_link_that_is_lost_is_told_once_and_the_card_goes_on() {
    let mut card = Card::start(1);
    let (_ours, other) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut card.passt, other));
    for _ in 0..3 {
        card.driver.request(&[(DATA, 12, false), (DATA, 100, false)]);
        card.notify();
        assert_eq!(card.completed(), 0);
    }
    card.lost.recv_timeout(PATIENCE).unwrap();
    assert!(card.lost.try_recv().is_err());
    card.stop();
}
