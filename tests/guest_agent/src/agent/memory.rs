//! Memory with known contents, held by child processes.
//!
//! In a child, the memory belongs to a process as in real life, and running out of memory ends the
//! child rather than the agent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdout, Command, Stdio};

const PAGE: u64 = 4096;
pub(super) const PAGE_WORDS: usize = 512;
pub(super) const PAGES_PER_MIB: usize = 256;

/// The processes that hold filled memory, by seed.
#[derive(Debug, Default)]
pub struct Holders(BTreeMap<u64, Holder>);

/// A child that holds memory and answers questions about it, one line each.
#[derive(Debug)]
pub(super) struct Holder {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Holders {
    /// Starts a process that fills `mib` MiB with the pattern of `seed`; waits until it has.
    ///
    /// # Errors
    ///
    /// The seed is in use, or the process died: most likely for lack of memory.
    pub fn fill(&mut self, seed: u64, mib: u64) -> io::Result<String> {
        if self.0.contains_key(&seed) {
            return Err(io::Error::other(format!("seed {seed} is in use")));
        }
        let (holder, answer) = Holder::start("hold", &[seed, mib])?;
        self.0.insert(seed, holder);
        Ok(answer)
    }

    /// Lets the process of `seed` verify all its pages.
    ///
    /// # Errors
    ///
    /// A page differs, the process is gone or there is none.
    pub fn check(&mut self, seed: u64) -> io::Result<String> {
        self.ask(seed, "check")
    }

    /// Lets the process of `seed` count its pages at the guest-physical `address` or above.
    ///
    /// # Errors
    ///
    /// The process is gone or there is none.
    pub fn above(&mut self, seed: u64, address: u64) -> io::Result<String> {
        self.ask(seed, &format!("above {}", address / PAGE))
    }

    fn ask(&mut self, seed: u64, question: &str) -> io::Result<String> {
        self.0.get_mut(&seed).ok_or_else(|| unknown(seed))?.ask(question)
    }

    /// Ends the process of `seed`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn free(&mut self, seed: u64) -> io::Result<String> {
        self.0.remove(&seed).ok_or_else(|| unknown(seed))?.end()
    }
}

impl Holder {
    /// Starts this program in a role; waits until it says that it is ready, and returns what it says.
    ///
    /// # Errors
    ///
    /// The process died: most likely for lack of memory.
    pub(super) fn start(role: &str, arguments: &[u64]) -> io::Result<(Self, String)> {
        let mut child = myself(role)
            .args(arguments.iter().map(u64::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut holder = Self { child, answers: BufReader::new(stdout) };
        let answer = holder.read_answer()?;
        Ok((holder, answer))
    }

    /// Asks the process something.
    ///
    /// # Errors
    ///
    /// Its answer is an error, or it died.
    pub(super) fn ask(&mut self, question: &str) -> io::Result<String> {
        let pipe = self.child.stdin.as_mut().ok_or_else(|| io::Error::other("no pipe"))?;
        pipe.write_all(format!("{question}\n").as_bytes())?;
        self.read_answer()
    }

    /// Ends the process, and with it gives its memory back.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub(super) fn end(mut self) -> io::Result<String> {
        drop(self.child.stdin.take());
        self.child.wait().map(|_| String::new())
    }

    fn read_answer(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            return Err(io::Error::other(format!("the process with the memory died: {status}")));
        }
        match line.trim_end().split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            _ => Err(io::Error::other(line.trim_end().to_owned())),
        }
    }
}

fn unknown(seed: u64) -> io::Error {
    io::Error::other(format!("nothing was filled with seed {seed}"))
}

fn myself(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role);
    // What glibc's malloc hands out from this size on is mapped for itself, and so goes back to the
    // kernel at once when it is freed; by default that size grows with what was freed before.
    command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=262144");
    command
}

/// The child of [`Holders::fill`]: `hold SEED MIB`, then lines on standard input: `check`, or
/// `above FRAME`.
///
/// # Errors
///
/// Wrong arguments, or the agent is gone.
pub fn hold(mut args: impl Iterator<Item = String>) -> io::Result<()> {
    let (seed, mib) = (next_number(&mut args)?, next_number(&mut args)?);
    // It may well be more than the guest has: then this process dies and the agent reports it.
    let mut memory = vec![0; words(mib)?];
    for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
        fill_page(seed, page, words);
    }
    println!("ok {}", memory.len() / PAGE_WORDS);
    for line in io::stdin().lines() {
        match line?.strip_prefix("above ") {
            Some(frame) => println!("ok {}", frames_from(super::number(frame)?, &memory)?),
            None => println!("{}", verify(seed, &memory)),
        }
    }
    Ok(())
}

/// How many of this memory's pages have a page frame number of `first` or more.
fn frames_from(first: u64, memory: &[u64]) -> io::Result<usize> {
    Ok(frames(memory)?.filter(|frame| *frame >= first).count())
}

/// The page frame numbers of those of this memory's pages that are present.
///
/// Linux `Documentation/admin-guide/mm/pagemap.rst`: eight bytes for each virtual page; bit 63 says
/// that it is present, bits 0 to 54 are its frame.
pub(super) fn frames(memory: &[u64]) -> io::Result<impl Iterator<Item = u64>> {
    const PRESENT: u64 = 1 << 63;
    let frame = |entry: u64| (entry & PRESENT != 0).then_some(entry & ((1 << 55) - 1));
    let address = memory.as_ptr().addr() as u64;
    let mut entries = vec![0; memory.len() / PAGE_WORDS * size_of::<u64>()];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, address / PAGE * 8)?;
    let entries: Vec<u64> = entries
        .chunks_exact(8)
        .map(|e| u64::from_le_bytes(e.try_into().unwrap_or([0; 8])))
        .collect();
    Ok(entries.into_iter().filter_map(frame))
}

fn verify(seed: u64, memory: &[u64]) -> String {
    let mut expected = [0; PAGE_WORDS];
    let mut bad = memory.chunks_exact(PAGE_WORDS).enumerate().filter(|(page, words)| {
        fill_page(seed, *page, &mut expected);
        *words != expected
    });
    let pages = memory.len() / PAGE_WORDS;
    let Some((first, found)) = bad.next() else { return format!("ok {pages}") };
    let (found, count) = (found.to_vec(), 1 + bad.count());
    fill_page(seed, first, &mut expected);
    let offset = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or_default();
    format!(
        "{count} of {pages} pages differ, first page {first} at byte {}: {:#x} instead of {:#x}",
        offset * 8,
        found[offset],
        expected[offset]
    )
}

/// The page's start value from seed and number, then a linear congruential sequence: cheap enough
/// for an emulated machine, and no two pages are alike.
fn fill_page(seed: u64, page: usize, words: &mut [u64]) {
    let start = (seed << 40 ^ page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (word, value) in words.iter_mut().zip(sequence(start)) {
        *word = value;
    }
}

/// The endless linear congruential sequence from a start value on.
pub(super) fn sequence(start: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(start), |value| {
        Some(value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f))
    })
}

/// Lets a child touch `mib` MiB and end, so that the host has had to provide that memory.
///
/// # Errors
///
/// The child died, most likely for lack of memory.
pub fn dirty_in_child(mib: u64) -> io::Result<String> {
    let status = myself("dirty").arg(mib.to_string()).status()?;
    match status.success() {
        true => Ok(mib.to_string()),
        false => Err(io::Error::other(format!("the process that touches memory died: {status}"))),
    }
}

/// The child of [`dirty_in_child`]: `dirty MIB`.
///
/// # Errors
///
/// Wrong arguments.
pub fn dirty(mut args: impl Iterator<Item = String>) -> io::Result<()> {
    let mut memory: Vec<u64> = vec![0; words(next_number(&mut args)?)?];
    for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
        words[0] = page as u64 + 1;
    }
    std::hint::black_box(&memory);
    Ok(())
}

fn words(mib: u64) -> io::Result<usize> {
    let words = usize::try_from(mib).ok().and_then(|m| m.checked_mul(PAGES_PER_MIB * PAGE_WORDS));
    words.ok_or_else(|| io::Error::other(format!("too much: {mib} MiB")))
}

pub(super) fn next_number(args: &mut impl Iterator<Item = String>) -> io::Result<u64> {
    super::number(&args.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(seed: u64, pages: usize) -> Vec<u64> {
        let mut memory = vec![0; pages * PAGE_WORDS];
        for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
            fill_page(seed, page, words);
        }
        memory
    }

    #[test]
    fn untouched_memory_verifies() {
        assert_eq!(verify(3, &filled(3, 5)), "ok 5");
    }

    #[test]
    fn one_changed_bit_is_found_and_named() {
        let mut memory = filled(3, 5);
        memory[2 * PAGE_WORDS + 9] ^= 1 << 60;
        let report = verify(3, &memory);
        assert!(report.starts_with("1 of 5 pages differ, first page 2 at byte 72:"), "{report}");
    }

    #[test]
    fn swapped_and_zeroed_pages_are_found() {
        let mut memory = filled(3, 5);
        let (left, right) = memory.split_at_mut(PAGE_WORDS);
        left.swap_with_slice(&mut right[..PAGE_WORDS]);
        memory[4 * PAGE_WORDS..].fill(0);
        assert!(verify(3, &memory).starts_with("3 of 5 pages differ, first page 0 at byte 0:"));
    }

    #[test]
    fn all_pages_of_a_process_have_a_frame_number() {
        // Without privileges the kernel says that all are frame 0.
        assert!(frames_from(0, &filled(3, 5)).unwrap() >= 4);
        assert_eq!(frames_from(u64::MAX, &filled(3, 5)).unwrap(), 0);
    }

    #[test]
    fn another_seed_is_another_pattern() {
        assert!(verify(4, &filled(3, 2)).starts_with("2 of 2 pages differ"));
    }
}
