//! What is written can be read, and whatever is read does no harm.

use super::*;
use crate::process::{Figures, Group};
use crate::reading::{Facts, Link, Reading};
use balancer::{CgroupLimit, Committed, GuestReport, Pool, ProcessSample};

fn file(entries: &[Entry]) -> Vec<u8> {
    let frames = entries.iter().flat_map(|entry| frame(entry).unwrap());
    head().into_iter().chain(frames).collect()
}

/// Entries in which everything is that an entry can have.
fn entries() -> Vec<Entry> {
    let wish = Wish {
        startup_kib: Some(1),
        minimum_kib: Some(2),
        maximum_kib: Some(3),
        buffer_percent: Some(4),
        weight: Some(7),
        hold: Some(true),
    };
    let mut configuration = Configuration::default();
    configuration.patterns.push("/run/*.sock".to_owned());
    configuration.vms.insert("db".to_owned(), wish);
    let guest = GuestReport {
        actual_kib: 300,
        available_kib: 20,
        committed: Some(Committed { reported_kib: 500, ballooned_kib: 100 }),
        swapped_in_kib: Some(6),
        oom_kills: Some(7),
    };
    let reading = Reading {
        facts: Facts { boot_kib: 300, maximum_kib: 600 },
        actual: Stamped { value: 300, at_ms: 4 },
        report: Some(Stamped { value: guest, at_ms: 3 }),
        can_report: true,
        told_kib: Some(300),
        obstacle: Some("timeout".to_owned()),
    };
    let sample = ProcessSample {
        rss_kib: 200,
        swapped_kib: 1,
        cgroup_limit_kib: Some(800),
        psi_some_permille: 9,
    };
    let figures = Figures { sample, pool: Pool::HugePages, group: Group::Unknown };
    let vm = VmInput {
        life: 3,
        link: Link::Down("it hangs".to_owned()),
        reading: Some(reading),
        process: Some(Stamped { value: figures, at_ms: 4 }),
        refusal: Some("no".to_owned()),
        is_settled: true,
        ..VmInput::default()
    };
    let host = HostSample {
        age_ms: 0,
        total_kib: 900,
        available_kib: 100,
        cgroup: Some(CgroupLimit { limit_kib: 800, current_kib: 600, reclaimable_kib: 1 }),
        limit_kib: None,
        psi_some_permille: 1,
        psi_full_permille: 2,
        swapped_in_kib: 3,
        huge_pages_free_kib: 4,
    };
    let order = Order {
        name: "db".to_owned(),
        life: 3,
        actual_kib: 300,
        target_kib: 400,
        reason: "so".to_owned(),
        is_reminder: false,
    };
    vec![
        Entry::Begin {
            hvb: "0".to_owned(),
            unix_ms: 1,
            dry_run: true,
            configuration: configuration.clone(),
        },
        Entry::Configuration(configuration),
        Entry::Name("db".to_owned()),
        Entry::Set { name: "db".to_owned(), wish },
        Entry::Reserve { size_kib: 1, now_ms: 2, ms: 3 },
        Entry::Withdraw { id: 4 },
        Entry::Round {
            now_ms: 5,
            host: Some(Stamped { value: host, at_ms: 4 }),
            changed: vec![(0, vm)],
            gone: vec![1],
        },
        Entry::Decided { digest: 6, orders: vec![order] },
        Entry::End,
    ]
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>, RecordError> {
    let mut reader = Entries::begin(bytes, Path::new("file"))?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    assert_eq!(reader.end, file(&entries).len() as u64);
    Ok(entries)
}

#[test]
fn another_format_has_another_version() {
    // If this fails, old recordings cannot be read any more: count `VERSION` up.
    assert_eq!((VERSION, crc32fast::hash(&file(&entries()))), (1, 3_390_663_369));
}

#[test]
fn what_is_written_is_read_and_what_is_cut_off_is_read_up_to_the_cut() {
    let (bytes, entries) = (file(&entries()), entries());
    assert_eq!(read(&bytes).unwrap(), entries);
    let mut last = 0;
    for cut in head().len()..bytes.len() {
        let read = read(&bytes[..cut]).unwrap();
        assert!(read.len() >= last && entries.starts_with(&read));
        last = read.len();
    }
    assert_eq!(last, entries.len() - 1);
}

#[test]
fn what_is_damaged_is_no_entry_and_what_is_something_else_is_no_recording() {
    let bytes = file(&entries());
    for at in head().len()..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        match read(&damaged) {
            Err(RecordError::Damaged { .. }) => {}
            // A longer length looks like a cut.
            Ok(read) => assert!(read.len() < entries().len(), "{at}"),
            Err(error) => panic!("{error}"),
        }
    }
    for text in [&b""[..], b"hvb-rec", b"{\"header\": 1}\n"] {
        let error = read(text).unwrap_err().to_string();
        assert_eq!(error, "file: no recording of hvb balance --record");
    }
    let error = read(b"hvb-rec\x02").unwrap_err().to_string();
    assert!(error.starts_with("file: a recording in format 2, and this hvb knows"), "{error}");
    let long: Vec<u8> = head().into_iter().chain([0xff; 8]).collect();
    assert!(matches!(read(&long), Err(RecordError::Damaged { entry: 1, .. })));
}

#[test]
fn a_disk_that_is_full_or_stands_still_ends_the_recording_and_nothing_else() {
    let error = Recorder::open(Path::new("/dev/full")).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    let mut recorder = Recorder::open(Path::new("/dev/null")).unwrap();
    let (frames, still) = channel();
    recorder.frames = Some(frames);
    let name = "x".repeat(1 << 20);
    for _ in 0..100 {
        recorder.record(&Entry::Name(name.clone()));
    }
    assert!(recorder.frames.is_none());
    let waiting: usize = still.try_iter().map(|frame| frame.len()).sum();
    assert!((MAX_WAITING..=MAX_WAITING + (2 << 20)).contains(&waiting), "{waiting}");
}

#[test]
fn a_recording_is_continued_from_its_last_whole_frame() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("recording");
    let record = || {
        let mut recorder = Recorder::open(&path).unwrap();
        recorder.record(&Entry::Withdraw { id: 1 });
        let second = Recorder::open(&path).unwrap_err().to_string();
        assert!(second.ends_with("another hvb balance records to it"), "{second}");
        recorder.end();
    };
    let both = [Entry::Withdraw { id: 1 }, Entry::End];
    record();
    let once = std::fs::read(&path).unwrap();
    assert_eq!(read(&once).unwrap(), both);
    // As after a loss of power: part of a frame, or nothing but zeros.
    for tail in [&once[8..14], &[0; 100]] {
        std::fs::write(&path, [&once[..], tail].concat()).unwrap();
        record();
        assert_eq!(read(&std::fs::read(&path).unwrap()).unwrap(), [&both[..], &both].concat());
    }
    // Damage in the middle is not the end: all that there is stays, under another name.
    // Its checksum, or its length, which then says that it was cut off.
    for (number, at) in [(1, 12), (2, 10)] {
        let mut damaged = [&once[..], &once[8..]].concat();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        record();
        assert_eq!(read(&std::fs::read(&path).unwrap()).unwrap(), both);
        let aside = place.path().join(format!("recording.damaged-{number}"));
        assert_eq!(std::fs::read(aside).unwrap(), damaged);
    }
    std::fs::write(&path, "my letters").unwrap();
    let error = Recorder::open(&path).unwrap_err().to_string();
    assert!(error.ends_with("no recording of hvb balance --record"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "my letters");
}
