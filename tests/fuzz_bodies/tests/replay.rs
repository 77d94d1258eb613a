//! Replays every input of the corpora, and checks that each target has a corpus.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz_bodies::{TARGETS, run};

/// The most inputs in a corpus, since all of them are replayed with every change.
const MAX_FILES: usize = 300;
const MAX_BYTES: usize = 300_000;

/// The workspace of the fuzzers.
fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Runs all inputs of a target, in order of their names; a panic names the input.
fn replay(target: &str) {
    struct Name(PathBuf);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the input was {}", self.0.display());
            }
        }
    }
    let dir = fuzz().join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{}: no corpus", dir.display());
    let mut bytes = 0;
    assert!(files.len() <= MAX_FILES, "{} files: too many to replay each time", files.len());
    for file in files {
        let data = fs::read(&file).unwrap();
        bytes += data.len();
        assert!(bytes <= MAX_BYTES, "{}: too large to replay each time", dir.display());
        let _name = Name(file);
        run(target, &data);
    }
}

macro_rules! replayed {
    ($($target:ident),* $(,)?) => {
        /// The targets that are replayed.
        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*
    };
}

// In the order of `TARGETS`.
replayed!(
    balance_recording,
    boot,
    device,
    dm_messages,
    doctor,
    hvb_options,
    hypercalls,
    page_set,
    qmp_lines,
    rings,
    saved_state,
    services,
    virtio,
    vmbus_messages,
    vsp,
);

#[test]
fn every_target_has_a_program_a_corpus_and_a_test() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, REPLAYED);
    let stems = |dir: &str| {
        let mut stems: Vec<_> = fs::read_dir(fuzz().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        stems.sort();
        stems
    };
    assert_eq!(stems("fuzz_targets"), names);
    assert_eq!(stems("corpus"), names);
}
