//! A virtio disk: registers, rings and requests of any content, written at any time.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_devices::{Disk, Format, Image};

use crate::driver::{AVAIL, DATA, Driver, RAM, TABLE, USED, VERSION_1};

const MAX_STEPS: usize = 100;
const DISK: u64 = 64 << 10;
const ACCEPTED: u64 = VERSION_1 | 1 << 9 | 1 << 29;
const HEADER: u64 = DATA - 0x1000;
const STATUS: u64 = DATA - 0x800;

#[derive(Arbitrary, Debug)]
enum Place {
    Table(u8),
    Avail(u8),
    Used(u8),
    Data(u16),
    End(u8),
    Anywhere(u64),
}

impl Place {
    fn address(&self) -> u64 {
        match *self {
            Self::Table(at) => TABLE + u64::from(at),
            Self::Avail(at) => AVAIL + u64::from(at),
            Self::Used(at) => USED + u64::from(at),
            Self::Data(at) => DATA + u64::from(at),
            Self::End(at) => RAM - u64::from(at),
            Self::Anywhere(at) => at,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Register {
        register: u8,
        value: u32,
    },
    Access {
        offset: u64,
        data: [u8; 4],
        width: u8,
    },
    Write {
        at: Place,
        value: u64,
    },
    Describe {
        table: Place,
        index: u8,
        buffer: (Place, u32),
        flags: u8,
        next: u8,
    },
    Offer {
        head: u8,
        count: u8,
    },
    /// A sound request, except for its values.
    Request {
        kind: u8,
        sector: u16,
        len: u16,
        data: [u32; 4],
        is_written: bool,
    },
    Serve,
    SetUp {
        features: u64,
    },
}

/// Runs steps encoded in `data`.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (file, disk) = disk();
    let mut driver = Driver::start(Arc::new(disk), ACCEPTED);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        take(&mut driver, step);
    }
    driver.device.serve_now();
    assert_eq!(file.metadata().unwrap().len(), DISK, "the disk has another size");
    driver.set_up(ACCEPTED);
    while driver.completed().is_some() {}
    request(&mut driver, 0, 0, 512, true);
    driver.device.serve_now();
    assert_eq!(driver.completed(), Some((0, 513)), "the next driver is not served");
}

fn disk() -> (File, Disk) {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(DISK).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let image = Image::open(Path::new(&path), Some(Format::Raw), false).unwrap();
    let failures = |deed, error: &std::io::Error| panic!("the host failed to {deed}: {error}");
    (file, Disk::new(image, "fuzzed", Box::new(failures)))
}

fn take(driver: &mut Driver, step: Step) {
    match step {
        Step::Register { register, value } => driver.write(u32::from(register) & !3, value),
        Step::Access { offset, data, width } => {
            let data = &mut { data }[..usize::from(width % 5)];
            driver.device.write(offset, data);
            driver.device.read(offset, data);
        }
        Step::Write { at, value } => put(driver, at.address(), &value.to_le_bytes()),
        Step::Describe { table, index, buffer: (at, len), flags, next } => {
            let mut entry = at.address().to_le_bytes().to_vec();
            entry.extend(len.to_le_bytes());
            entry.extend([flags & 7, 0, next, 0]);
            put(driver, table.address().wrapping_add(u64::from(index) * 16), &entry);
        }
        Step::Offer { head, count } => (0..count).for_each(|_| driver.offer(head.into())),
        Step::Request { kind, sector, len, data, is_written } => {
            put(driver, DATA, &data.map(u32::to_le_bytes).concat());
            request(driver, kind.into(), sector.into(), len.into(), is_written);
        }
        Step::Serve => driver.device.serve_now(),
        Step::SetUp { features } => driver.set_up(features & ACCEPTED | VERSION_1),
    }
}

fn request(driver: &mut Driver, kind: u32, sector: u64, len: u32, is_written: bool) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.request(&[(HEADER, 16, false), (DATA, len, is_written), (STATUS, 1, true)]);
}

/// Writes where there is memory.
fn put(driver: &Driver, address: u64, bytes: &[u8]) {
    if address.checked_add(bytes.len() as u64).is_some_and(|end| end <= RAM) {
        driver.put(address, bytes);
    }
}
