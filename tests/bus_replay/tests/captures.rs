//! Every recorded guest hears today what it heard when it was recorded.

use std::fs;
use std::path::Path;

use bus_replay::replay;

#[test]
fn every_recorded_guest_hears_the_same_again() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let files = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let captures: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|name| name == "jsonl")).collect();
    assert!(!captures.is_empty(), "no captures in {}", dir.display());
    let mut differences = Vec::new();
    for path in captures {
        let name = path.display();
        let recording = bus_recording::read(&fs::read(&path).unwrap());
        let recording = recording.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!recording.is_cut_off, "{name} was cut off: record it again");
        match replay(&recording) {
            // Each shows a whole session: otherwise a capture tests less than it seems to.
            Ok(compared) => assert!(
                compared.messages > 4 && compared.packets > 4 && compared.added > 0,
                "{name}: {compared:?}"
            ),
            Err(error) => differences.push(format!("{name}: {error}")),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
