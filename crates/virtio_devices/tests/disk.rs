//! Disks: requests of a driver, image files of all kinds, and what they do not accept.

#[expect(dead_code, reason = "shared with other tests")]
mod driver;
mod machine;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use driver::*;
use machine::*;
use tempfile::TempDir;
use virtio_devices::{Format, Image, ImageError};

const FORMATS: [Format; 2] = [Format::Raw, Format::Qcow2];

#[test]
fn what_was_written_is_read_again_and_is_there_at_the_next_start() {
    for format in FORMATS {
        let mut machine = machine(format);
        // Longer than the buffer in which it is copied.
        let bytes = pattern(300 << 10, 1);
        assert_eq!(machine.write(3, &bytes), OK);
        assert_eq!(machine.request(FLUSH, 0, &[]), OK);
        let half = u32::try_from(bytes.len() / 2).unwrap();
        assert_eq!(machine.read(3, 2 * half), bytes);
        assert_eq!(machine.read(3 + u64::from(half) / 512, half), bytes[half as usize..]);
        let Machine { driver, dir, .. } = machine;
        drop(driver);
        let image = Image::open(&dir.path().join("disk"), Some(format), true).unwrap();
        let mut machine = machine_with(dir, image);
        assert_eq!(machine.read(3, 2 * half), bytes);
        assert_eq!(machine.write(3, &[0; 512]), IOERR, "read-only");
    }
}

/// As after the end of the process: nothing is dropped in order.
#[test]
fn what_was_flushed_is_in_the_file() {
    let mut machine = machine(Format::Qcow2);
    let bytes = pattern(64 << 10, 2);
    assert_eq!(machine.write(0, &bytes), OK);
    assert_eq!(machine.request(FLUSH, 0, &[]), OK);
    let copy = machine.dir.path().join("copy");
    fs::copy(machine.dir.path().join("disk"), &copy).unwrap();
    let image = Image::open(&copy, Some(Format::Qcow2), true).unwrap();
    let mut copy = machine_with(tempfile::tempdir().unwrap(), image);
    assert_eq!(copy.read(0, 64 << 10), bytes);
}

#[test]
fn a_driver_that_cannot_flush_has_each_write_flushed() {
    let mut machine = machine(Format::Qcow2);
    machine.driver.set_up(VERSION_1);
    assert_eq!(machine.write(0, &pattern(512, 2)), OK);
    let copy = machine.dir.path().join("copy");
    fs::copy(machine.dir.path().join("disk"), &copy).unwrap();
    let image = Image::open(&copy, Some(Format::Qcow2), true).unwrap();
    let mut copy = machine_with(tempfile::tempdir().unwrap(), image);
    assert_eq!(copy.read(0, 512), pattern(512, 2));
}

#[test]
fn zeros_are_written_and_space_is_given_up() {
    for format in FORMATS {
        let mut machine = machine(format);
        let bytes = pattern(1 << 20, 3);
        assert_eq!(machine.write(0, &bytes), OK);
        assert_eq!(machine.request(FLUSH, 0, &[]), OK);
        let path = machine.dir.path().join("disk");
        let used = || path.metadata().unwrap().blocks() * 512;
        let before = used();
        // Not whole blocks, two ranges, with and without giving up the space.
        assert_eq!(machine.ranges(WRITE_ZEROES, &[(1, 300, 0), (500, 3, 1)]), OK);
        let mut expected = bytes.clone();
        expected[512..301 * 512].fill(0);
        expected[500 * 512..503 * 512].fill(0);
        assert_eq!(machine.read(0, 1 << 20), expected);
        assert_eq!(machine.ranges(DISCARD, &[(1024, 1024, 0)]), OK);
        assert_eq!(machine.read(0, 512 << 10), expected[..512 << 10]);
        assert_eq!(machine.request(FLUSH, 0, &[]), OK);
        match format {
            Format::Raw => assert!(used() + (256 << 10) <= before, "{before} then {}", used()),
            // The file stays as large, and what was given up is used again.
            Format::Qcow2 => {
                assert_eq!(machine.write(4096, &pattern(256 << 10, 3)), OK);
                assert_eq!(machine.request(FLUSH, 0, &[]), OK);
                assert!(used() <= before, "{before} then {}", used());
            }
        }
    }
}

#[test]
fn the_guest_is_told_the_disks_name() {
    let mut machine = machine(Format::Raw);
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 20, true)]), OK);
    assert_eq!(machine.driver.get(DATA, 20), b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 10, true)]), IOERR);
}

#[test]
fn requests_that_make_no_sense_are_errors() {
    for format in FORMATS {
        let mut machine = machine(format);
        let end = SIZE / 512;
        for (kind, sector, data, status) in [
            (IN, end - 1, vec![(DATA, 1024, true)], IOERR),
            (IN, end, vec![(DATA, 512, true)], IOERR),
            (IN, u64::MAX, vec![(DATA, 512, true)], IOERR),
            (IN, u64::MAX / 512, vec![(DATA, 512, true)], IOERR),
            (IN, 0, vec![(DATA, 511, true)], IOERR),
            (OUT, end, vec![(DATA, 512, false)], IOERR),
            (OUT, 0, vec![(DATA, 513, false)], IOERR),
            (IN, 0, vec![(3 << 30, 512, true)], IOERR),
            (OUT, 0, vec![(u64::MAX - 5, 512, false)], IOERR),
            (DISCARD, 0, vec![(DATA, 15, false)], IOERR),
            (DISCARD, 0, vec![(DATA, 16 * 17, false)], IOERR),
            (2, 0, vec![], UNSUPP),
            (u32::MAX, 0, vec![(DATA, 512, true)], UNSUPP),
        ] {
            assert_eq!(machine.request(kind, sector, &data), status, "{kind} {sector} {data:?}");
        }
        assert_eq!(machine.ranges(DISCARD, &[(end, 1, 0)]), IOERR);
        assert_eq!(machine.ranges(DISCARD, &[(0, u32::MAX, 0)]), IOERR);
        assert_eq!(machine.ranges(DISCARD, &[(0, 8, 1)]), UNSUPP);
        assert_eq!(machine.ranges(WRITE_ZEROES, &[(u64::MAX, 8, 0)]), IOERR);
        assert_eq!(machine.ranges(WRITE_ZEROES, &[(0, 8, 2)]), UNSUPP);
        // Without room for the status, or for the header.
        for buffers in [vec![(HEADER, 16, false)], vec![(HEADER, 8, false), (STATUS, 1, true)]] {
            machine.driver.request(&buffers);
            machine.driver.device.serve_now();
            assert!(machine.driver.completed().is_some());
        }
        assert_eq!(machine.read(0, 512), [0; 512], "all is as before");
        assert!(machine.failures.lock().unwrap().is_empty(), "the host did not fail");
    }
}

fn scratch() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    (dir, path)
}

#[test]
fn an_images_name_tells_its_format_and_its_content_does_not() {
    let (dir, raw) = scratch();
    create_qcow2(&raw, None);
    let error = Image::open(&raw, None, false).unwrap_err();
    assert!(matches!(error, ImageError::Ambiguous { .. }), "{error}");
    assert!(error.to_string().contains("format=qcow2"), "{error}");
    Image::open(&raw, Some(Format::Raw), false).unwrap();
    Image::open(&raw, Some(Format::Qcow2), false).unwrap();
    let qcow2 = dir.path().join("disk.qcow2");
    fs::write(&qcow2, [0; 4096]).unwrap();
    let error = Image::open(&qcow2, None, false).unwrap_err();
    assert!(matches!(error, ImageError::NotQcow2 { .. }), "{error}");
    Image::open(&qcow2, Some(Format::Raw), false).unwrap();
}

#[test]
fn what_is_no_image_is_refused() {
    let (dir, path) = scratch();
    let error = |path: &Path| Image::open(path, None, true).unwrap_err();
    assert!(matches!(error(&path), ImageError::Open { .. }));
    assert!(matches!(error(dir.path()), ImageError::NoFile { .. }));
    for bytes in [0, 511, 1000] {
        File::create(&path).unwrap().set_len(bytes).unwrap();
        assert!(matches!(error(&path), ImageError::Size { bytes: found, .. } if found == bytes));
    }
}

#[test]
fn a_qcow2_image_that_is_cut_off_anywhere_is_refused_or_whole() {
    let mut machine = machine(Format::Qcow2);
    assert_eq!(machine.write(0, &pattern(200 << 10, 4)), OK);
    assert_eq!(machine.write(SIZE / 512 - 2, &pattern(1024, 5)), OK);
    assert_eq!(machine.request(FLUSH, 0, &[]), OK);
    let Machine { driver, dir, .. } = machine;
    drop(driver);
    let whole = fs::read(dir.path().join("disk")).unwrap();
    let path = dir.path().join("cut");
    let cluster = 64 << 10;
    for len in (0..whole.len() - cluster).step_by(4096).chain([5, 71, 73]) {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Image::open(&path, Some(Format::Qcow2), true).unwrap_err();
        let is_told = matches!(error, ImageError::CutOff { .. } | ImageError::NotQcow2 { .. });
        assert!(is_told, "{len} of {}: {error}", whole.len());
    }
}

#[test]
fn garbled_headers_are_refused_or_make_a_disk_that_can_be_read() {
    let (_dir, path) = scratch();
    create_qcow2(&path, None);
    let whole = fs::read(&path).unwrap();
    for at in 4..112 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&path, &bytes).unwrap();
            if let Ok(image) = Image::open(&path, Some(Format::Qcow2), true) {
                let mut machine = machine_with(tempfile::tempdir().unwrap(), image);
                machine.request(IN, 0, &[(DATA, 512, true)]);
            }
        }
    }
}

#[test]
fn a_backing_file_is_read_and_never_written() {
    let (dir, base) = scratch();
    fs::write(&base, pattern(8 << 20, 6)).unwrap();
    let middle = dir.path().join("middle.qcow2");
    create_qcow2(&middle, Some(("disk.img", "raw")));
    let top = dir.path().join("top.qcow2");
    create_qcow2(&top, Some(("middle.qcow2", "qcow2")));
    let image = Image::open(&top, None, false).unwrap();
    let error = Image::open(&base, None, false).unwrap_err();
    assert!(matches!(error, ImageError::Busy { .. }), "{error}");
    let mut machine = machine_with(dir, image);
    assert_eq!(machine.read(0, 4096), pattern(4096, 6));
    assert_eq!(machine.write(1, &[9; 512]), OK);
    let mut expected = pattern(4096, 6);
    expected[512..1024].fill(9);
    assert_eq!(machine.read(0, 4096), expected);
    assert_eq!(fs::read(&base).unwrap(), pattern(8 << 20, 6));
}

#[test]
fn backing_files_that_cannot_be_used_are_named() {
    let (dir, path) = scratch();
    let top = dir.path().join("top.qcow2");
    let error = |backing| {
        create_qcow2(&top, Some(backing));
        let error = Image::open(&top, None, false).unwrap_err();
        fs::remove_file(&top).unwrap();
        error
    };
    let missing = error(("nowhere.img", "raw"));
    assert!(matches!(missing, ImageError::Backing { .. }), "{missing}");
    assert!(missing.to_string().contains("nowhere.img"), "{missing}");
    assert!(matches!(error(("top.qcow2", "qcow2")), ImageError::Circle { .. }));
    assert!(matches!(error(("top.qcow2", "vmdk")), ImageError::Unsupported { .. }));
    assert!(matches!(error((".", "raw")), ImageError::NoFile { .. }));
    File::create(&path).unwrap().set_len(512).unwrap();
    assert!(matches!(error(("disk.img", "qcow2")), ImageError::NotQcow2 { .. }));
    // A circle of two.
    let other = dir.path().join("other.qcow2");
    create_qcow2(&other, Some(("top.qcow2", "qcow2")));
    assert!(matches!(error(("other.qcow2", "qcow2")), ImageError::Circle { .. }));
    // No format: an extension of the header that ends the list, where that of the format was.
    create_qcow2(&top, Some(("disk.img", "raw")));
    let mut bytes = fs::read(&top).unwrap();
    let at = bytes.windows(4).position(|it| it == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    fs::write(&top, bytes).unwrap();
    let unknown = Image::open(&top, None, false).unwrap_err();
    assert!(matches!(unknown, ImageError::UnknownBacking { .. }), "{unknown}");
}

#[test]
fn one_image_is_written_by_one_machine() {
    for format in FORMATS {
        let machine = machine(format);
        let path = machine.dir.path().join("disk");
        for is_read_only in [false, true] {
            let error = Image::open(&path, Some(format), is_read_only).unwrap_err();
            assert!(matches!(error, ImageError::Busy { .. }), "{error}");
        }
    }
}
