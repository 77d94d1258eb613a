//! A recorded guest can be replayed without it.

use anyhow::Result;

#[test]
fn a_recorded_guest_hears_the_same_in_a_replay() -> Result<()> {
    let dir = tempfile::tempdir()?;
    e2e::recorded::session(&dir.path().join("bus.jsonl")).map(drop)
}
