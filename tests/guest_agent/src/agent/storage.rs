//! Commands that use disks: file systems, data that can be recognised, and records that are safe
//! once they are told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};

use nix::mount::umount;

use super::memory::sequence;
use super::number;
use crate::boot;

/// Bytes of a record, and of the unit in which data is written.
pub const RECORD: usize = 4096;

/// The content of record `number` of a sequence that `seed` names.
#[must_use]
pub fn record(seed: u64, number: u64) -> Vec<u8> {
    let start = (seed << 40 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    sequence(start).take(RECORD / 8).flat_map(u64::to_le_bytes).collect()
}

/// `mount KIND DEVICE DIR`.
pub(super) fn mount(arguments: &str) -> io::Result<String> {
    let [kind, device, dir] = words(arguments)?;
    boot::mount_fs(kind, device, dir, "").map(|()| String::new())
}

/// `umount DIR`.
pub(super) fn unmount(dir: &str) -> io::Result<String> {
    umount(dir)?;
    Ok(String::new())
}

/// `store PATH SEED MIB`: writes recognisable data and has it safe.
pub(super) fn store(arguments: &str) -> io::Result<String> {
    let [path, seed, mib] = words(arguments)?;
    let seed = number(seed)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    for page in 0..records(number(mib)?) {
        file.write_all(&record(seed, page))?;
    }
    file.sync_all()?;
    Ok(String::new())
}

/// `recall PATH SEED MIB`: reads that data again, from the disk.
pub(super) fn recall(arguments: &str) -> io::Result<String> {
    let [path, seed, mib] = words(arguments)?;
    let seed = number(seed)?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let mut file = File::open(path)?;
    let mut found = vec![0; RECORD];
    for page in 0..records(number(mib)?) {
        file.read_exact(&mut found)?;
        if found != record(seed, page) {
            return Err(io::Error::other(format!("other data in page {page} of {path}")));
        }
    }
    Ok(mib.to_owned())
}

/// `append PATH SEED COUNT`: appends records, each of which is told with `say` when it is safe.
pub(super) fn append(
    arguments: &str,
    mut say: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<String> {
    let [path, seed, count] = words(arguments)?;
    let (seed, count) = (number(seed)?, number(count)?);
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    for number in 0..count {
        file.write_all(&record(seed, number))?;
        file.sync_all()?;
        say(number)?;
    }
    Ok(String::new())
}

fn records(mib: u64) -> u64 {
    (mib << 20) / RECORD as u64
}

fn words<const COUNT: usize>(arguments: &str) -> io::Result<[&str; COUNT]> {
    let words: Vec<&str> = arguments.split(' ').collect();
    words.try_into().map_err(|_| io::Error::other(format!("not {COUNT} words: {arguments}")))
}
