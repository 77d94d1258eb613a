//! A look at a qcow2 file before it is used: is it whole? Reading past the end of a file that was cut
//! off gives zeros, which a guest would take for its data.
//!
//! The format is that of QEMU's `docs/interop/qcow2.txt`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The first four bytes.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header that all versions have.
const HEADER: usize = 72;
/// Bits of an entry that hold a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// The most entries of the L1 table, which is read as a whole; as in QEMU.
const MOST_L1_ENTRIES: u32 = 4 << 20;
/// An L2 entry whose cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// An L2 entry whose cluster reads as zeros, wherever it lies.
const ZERO: u64 = 1;

/// Whether all that the tables name is in the file. `false` also for tables that make no sense.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_whole(file: &File) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    let (cluster_bits, l1_entries) = (word(&header, 20), word(&header, 36));
    if !(9..=21).contains(&cluster_bits) || l1_entries > MOST_L1_ENTRIES {
        return Ok(false);
    }
    let cluster = 1 << cluster_bits;
    let l1 = (long(&header, 40), u64::from(l1_entries) * 8);
    let refcounts = (long(&header, 48), u64::from(word(&header, 56)) * cluster);
    let is_inside = |(place, len): (u64, u64)| place.checked_add(len).is_some_and(|to| to <= end);
    if !is_inside(l1) || !is_inside(refcounts) {
        return Ok(false);
    }
    let mut table = vec![0; usize::try_from(cluster).unwrap_or_default()];
    // Each has its own cluster, or this would never end.
    let mut room = end / cluster;
    for l2 in entries(&read(file, l1)?).map(|entry| entry & PLACE).filter(|place| *place != 0) {
        if room == 0 || !is_inside((l2, cluster)) {
            return Ok(false);
        }
        room -= 1;
        file.read_exact_at(&mut table, l2)?;
        // QEMU need not write the last cluster to its end.
        let is_there = |entry: u64| entry & (COMPRESSED | ZERO) != 0 || entry & PLACE < end;
        if !entries(&table).all(is_there) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(file: &File, (place, len): (u64, u64)) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    file.read_exact_at(&mut bytes, place)?;
    Ok(bytes)
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

fn word(header: &[u8; HEADER], at: usize) -> u32 {
    header.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |it| u32::from_be_bytes(*it))
}

fn long(header: &[u8; HEADER], at: usize) -> u64 {
    header.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |it| u64::from_be_bytes(*it))
}
