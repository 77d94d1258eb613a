//! A machine with a disk.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};
use tempfile::TempDir;
use virtio_devices::{Deed, Disk, Format, Image};

use crate::driver::{DATA, Driver, MIB, VERSION_1};

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

pub(crate) const SIZE: u64 = 8 * MIB;
/// `VIRTIO_BLK_F_FLUSH`.
pub(crate) const FEATURES: u64 = VERSION_1 | 1 << 9;
pub(crate) const STATUS: u64 = 0x8_0000;
pub(crate) const HEADER: u64 = 0x8_1000;

pub(crate) struct Machine {
    pub(crate) driver: Driver,
    pub(crate) dir: TempDir,
    pub(crate) failures: Arc<Mutex<Vec<Deed>>>,
}

pub(crate) fn machine(format: Format) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    match format {
        Format::Raw => File::create(&path).unwrap().set_len(SIZE).unwrap(),
        Format::Qcow2 => create_qcow2(&path, None),
    }
    machine_with(dir, Image::open(&path, Some(format), false).unwrap())
}

pub(crate) fn machine_with(dir: TempDir, image: Image) -> Machine {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&failures);
    let disk = Disk::new(image, "root", Box::new(move |deed, _| told.lock().unwrap().push(deed)));
    Machine { driver: Driver::start(Arc::new(disk), FEATURES), dir, failures }
}

pub(crate) fn create_qcow2(path: &Path, backing: Option<(&str, &str)>) {
    let file = ImageFile::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let mut builder = Qcow2::<ImageFile>::create_builder(file).size(SIZE);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.to_owned(), format.to_owned());
    }
    builder.create().unwrap();
}

impl Machine {
    /// Makes a request with `data` buffers, and returns its status.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> u8 {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.driver.put(HEADER, &header);
        self.driver.put(STATUS, &[0xee]);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        self.driver.request(&buffers);
        self.driver.device.serve_now();
        assert!(self.driver.completed().is_some());
        self.driver.get(STATUS, 1)[0]
    }

    pub(crate) fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.driver.put(DATA, bytes);
        self.request(OUT, sector, &[(DATA, u32::try_from(bytes.len()).unwrap(), false)])
    }

    pub(crate) fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let place = DATA + 4 * MIB;
        self.driver.put(place, &vec![0xee; len as usize]);
        assert_eq!(self.request(IN, sector, &[(place, len, true)]), OK);
        self.driver.get(place, len as usize)
    }

    pub(crate) fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.driver.put(DATA, &bytes);
        self.request(kind, 0, &[(DATA, u32::try_from(bytes.len()).unwrap(), false)])
    }
}

pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 512 + seed) % 251).unwrap()).collect()
}
