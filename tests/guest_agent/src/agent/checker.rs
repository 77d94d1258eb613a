//! A process that keeps its own memory and a file under check for as long as it lives.
//!
//! Each page holds a sequence that depends on seed, page number and generation, so that a page that
//! is lost, swapped with another, or an older version of itself is detected. In the background the
//! process verifies one page after another, rewrites some, and lets its memory grow and shrink:
//! pages that it frees go through the balloon and come back to it, or to other processes. It leaves
//! the guest enough to balloon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::memory::{Holder, PAGE_WORDS, PAGES_PER_MIB, frames, next_number, sequence};
use crate::boot;

const PAGE: usize = PAGE_WORDS * 8;

/// The directory of the file: a file system that consists only of page cache.
const FILE_DIR: &str = "/checked";
const FILE_PAGES: usize = 8 * PAGES_PER_MIB;

/// The process shrinks if the kernel has less left than this, and grows only if it has twice as
/// much.
const RESERVE_MIB: u64 = 32;

/// The pause between two slices of background work, which leaves balloon and host a share of the
/// processors, even of emulated ones.
const REST: Duration = Duration::from_millis(20);

/// The work of a slice, in pages.
const SLICE_VERIFIED: usize = 48;
const SLICE_REWRITTEN: usize = 12;
const SLICE_OF_FILE: usize = 8;
/// How many slices the process stays at one size.
const SLICES_AT_A_SIZE: u64 = 24;
/// How far a slice moves towards another size, in MiB.
const MOST_STEPS: usize = 8;

/// The agent's handle of the process.
#[derive(Debug, Default)]
pub struct Checker(Option<Holder>);

impl Checker {
    /// Executes the rest of a `checker` command.
    ///
    /// # Errors
    ///
    /// There is no such process, it died, or there already is one.
    pub fn obey(&mut self, what: &str) -> io::Result<String> {
        let words: Vec<&str> = what.split(' ').collect();
        match (words.as_slice(), &mut self.0) {
            (["start", ..], Some(_)) => Err(io::Error::other("a checker runs already")),
            (["start", seed, mib], None) => {
                boot::mount_fs("tmpfs", "tmpfs", FILE_DIR, "size=64m")?;
                let numbers = [super::number(seed)?, super::number(mib)?];
                let (holder, answer) = Holder::start("check", &numbers)?;
                self.0 = Some(holder);
                Ok(answer)
            }
            (["stop"], holder @ Some(_)) => holder.take().map_or(Ok(String::new()), Holder::end),
            (_, Some(holder)) => holder.ask(what),
            (_, None) => Err(io::Error::other("no checker runs")),
        }
    }
}

/// The process: `check SEED MIB`, then `verify` and `size MIB` on standard input.
///
/// # Errors
///
/// Wrong arguments, no file to write to, or the agent is gone.
pub fn work(mut args: impl Iterator<Item = String>) -> io::Result<()> {
    let (seed, mib) = (next_number(&mut args)?, next_number(&mut args)?);
    // If memory runs out all the same, this process is to be killed.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(format!("{FILE_DIR}/data"))?;
    let mut keeper = Keeper::new(seed, mib, file)?;
    keeper.resize(keeper.most)?;
    say(&keeper.report())?;
    let questions = questions();
    loop {
        match questions.recv_timeout(REST) {
            Ok(question) => say(&keeper.answer(&question)?)?,
            Err(RecvTimeoutError::Timeout) => keeper.slice()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn say(answer: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}")?;
    out.flush()
}

/// The lines of standard input, until its end.
fn questions() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The start of a page's sequence: SplitMix64's finalizer over everything that identifies the page.
fn start_of(seed: u64, page: u64, generation: u32) -> u64 {
    let mut mixed = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(page << 32 | u64::from(generation))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn write_page(words: &mut [u64], start: u64) {
    for (word, value) in words.iter_mut().zip(sequence(start)) {
        *word = value;
    }
}

/// A word that differs from the expected value.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    byte: usize,
    found: u64,
    expected: u64,
}

fn verify_page(words: &[u64], start: u64) -> Option<Difference> {
    let mut pairs = words.iter().zip(sequence(start)).enumerate();
    pairs.find_map(|(n, (&found, expected))| {
        (found != expected).then_some(Difference { byte: n * 8, found, expected })
    })
}

/// One MiB, with the generation of each of its pages.
#[derive(Debug)]
struct Chunk {
    first: u64,
    words: Vec<u64>,
    generations: Vec<u32>,
}

impl Chunk {
    fn new(seed: u64, number: u64) -> Self {
        let pages = PAGES_PER_MIB;
        let mut chunk = Self {
            first: number * pages as u64,
            words: vec![0; pages * PAGE_WORDS],
            generations: vec![0; pages],
        };
        for page in 0..pages {
            chunk.write(seed, page);
        }
        chunk
    }

    fn start(&self, seed: u64, page: usize) -> u64 {
        start_of(seed, self.first + page as u64, self.generations[page])
    }

    fn page(&self, page: usize) -> &[u64] {
        &self.words[page * PAGE_WORDS..][..PAGE_WORDS]
    }

    fn write(&mut self, seed: u64, page: usize) {
        let start = self.start(seed, page);
        write_page(&mut self.words[page * PAGE_WORDS..][..PAGE_WORDS], start);
    }

    fn verify(&self, seed: u64, page: usize) -> Option<String> {
        let difference = verify_page(self.page(page), self.start(seed, page))?;
        let frame = frames(self.page(page)).ok().and_then(|mut all| all.next());
        let frame =
            frame.map_or_else(|| "no frame".to_owned(), |frame| format!("frame {frame:#x}"));
        let (number, generation) = (self.first + page as u64, self.generations[page]);
        Some(format!("page {number} at {frame}, generation {generation}: {difference:x?}"))
    }
}

/// What the process has done so far.
#[derive(Debug, Default)]
struct Counts {
    verified: u64,
    rewritten: u64,
    grown: u64,
    shrunk: u64,
    passes: u64,
    mismatches: u64,
    first: Option<String>,
}

/// The file: the generation of each page, and the number of the next page to verify.
#[derive(Debug)]
struct CheckedFile {
    file: File,
    generations: Vec<u32>,
    next: usize,
}

/// Everything under check.
#[derive(Debug)]
struct Keeper {
    seed: u64,
    /// In MiB, like `goal`.
    most: usize,
    goal: usize,
    chunks: Vec<Chunk>,
    next_chunk: u64,
    /// The next page to verify, counted over all chunks.
    next: usize,
    slices: u64,
    chance: u64,
    file: CheckedFile,
    counts: Counts,
}

impl Keeper {
    fn new(seed: u64, mib: u64, file: File) -> io::Result<Self> {
        let most = usize::try_from(mib).map_err(io::Error::other)?;
        let file = CheckedFile { file, generations: vec![0; FILE_PAGES], next: 0 };
        let mut keeper = Self {
            seed,
            most,
            goal: most,
            chunks: Vec::new(),
            next_chunk: 0,
            next: 0,
            slices: 0,
            chance: seed,
            file,
            counts: Counts::default(),
        };
        for page in 0..FILE_PAGES {
            keeper.write_file(page)?;
        }
        Ok(keeper)
    }

    fn answer(&mut self, question: &str) -> io::Result<String> {
        if let Some(mib) = question.strip_prefix("size ") {
            self.most = usize::try_from(super::number(mib)?).map_err(io::Error::other)?;
            self.goal = self.most;
        } else if question == "verify" {
            self.verify_all()?;
        } else {
            return Ok(format!("no such question: {question}"));
        }
        Ok(self.report())
    }

    fn report(&self) -> String {
        let Counts { verified, rewritten, grown, shrunk, passes, mismatches, first } = &self.counts;
        let pages = self.pages();
        let first = first.as_deref().unwrap_or("none");
        format!(
            "ok pages={pages} file={FILE_PAGES} verified={verified} rewritten={rewritten} \
             grown={grown} shrunk={shrunk} passes={passes} mismatches={mismatches} first={first}"
        )
    }

    fn pages(&self) -> usize {
        self.chunks.len() * PAGES_PER_MIB
    }

    fn verify_all(&mut self) -> io::Result<()> {
        for page in 0..self.pages() {
            self.verify(page);
        }
        for page in 0..FILE_PAGES {
            self.verify_file(page)?;
        }
        self.counts.passes += 1;
        Ok(())
    }

    /// A slice of background work.
    fn slice(&mut self) -> io::Result<()> {
        for _ in 0..SLICE_VERIFIED.min(self.pages()) {
            self.next = if self.next + 1 < self.pages() { self.next + 1 } else { 0 };
            self.counts.passes += u64::from(self.next == 0);
            self.verify(self.next);
        }
        for _ in 0..SLICE_REWRITTEN.min(self.pages()) {
            let page = self.random(self.pages());
            self.rewrite(page);
        }
        for _ in 0..SLICE_OF_FILE {
            self.file.next = (self.file.next + 1) % FILE_PAGES;
            self.verify_file(self.file.next)?;
        }
        let page = self.random(FILE_PAGES);
        self.verify_file(page)?;
        self.file.generations[page] = self.file.generations[page].wrapping_add(1);
        self.write_file(page)?;
        self.slices += 1;
        if self.slices.is_multiple_of(SLICES_AT_A_SIZE) {
            self.goal = self.most / 2 + self.random(self.most / 2 + 1);
        }
        self.resize(MOST_STEPS)
    }

    /// Moves towards the goal by at most this many chunks, or away from it if the guest runs short.
    fn resize(&mut self, steps: usize) -> io::Result<()> {
        let mut left = available_mib()?;
        for _ in 0..steps {
            let has = self.chunks.len();
            if has > 1 && (has > self.goal || left < RESERVE_MIB) {
                let victim = self.random(has);
                self.verify_chunk(victim);
                self.chunks.swap_remove(victim);
                self.counts.shrunk += 1;
                left += 1;
            } else if has < self.goal && left > 2 * RESERVE_MIB {
                self.chunks.push(Chunk::new(self.seed, self.next_chunk));
                self.next_chunk += 1;
                self.counts.grown += 1;
                left -= 1;
            }
        }
        Ok(())
    }

    /// Memory that is freed is verified a last time.
    fn verify_chunk(&mut self, chunk: usize) {
        for page in 0..PAGES_PER_MIB {
            self.verify(chunk * PAGES_PER_MIB + page);
        }
    }

    fn verify(&mut self, page: usize) {
        let (chunk, page) = (page / PAGES_PER_MIB, page % PAGES_PER_MIB);
        self.counts.verified += 1;
        let Some(words) = self.chunks[chunk].verify(self.seed, page) else { return };
        // Rewritten, so that a mismatch counts once.
        self.chunks[chunk].write(self.seed, page);
        self.mismatch(words);
    }

    fn rewrite(&mut self, page: usize) {
        self.verify(page);
        let (chunk, page) = (page / PAGES_PER_MIB, page % PAGES_PER_MIB);
        let generation = &mut self.chunks[chunk].generations[page];
        *generation = generation.wrapping_add(1);
        self.chunks[chunk].write(self.seed, page);
        self.counts.rewritten += 1;
    }

    /// The file's pages use another seed.
    fn file_start(&self, page: usize) -> u64 {
        start_of(!self.seed, page as u64, self.file.generations[page])
    }

    fn write_file(&mut self, page: usize) -> io::Result<()> {
        let words = sequence(self.file_start(page)).take(PAGE_WORDS);
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        self.file.file.write_all_at(&bytes, (page * PAGE) as u64)
    }

    fn verify_file(&mut self, page: usize) -> io::Result<()> {
        let mut bytes = [0; PAGE];
        self.file.file.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8]));
        let words: Vec<u64> = bytes.chunks_exact(8).map(word).collect();
        self.counts.verified += 1;
        if let Some(difference) = verify_page(&words, self.file_start(page)) {
            self.write_file(page)?;
            self.mismatch(format!("page {page} of the file: {difference:x?}"));
        }
        Ok(())
    }

    fn mismatch(&mut self, words: String) {
        self.counts.mismatches += 1;
        self.counts.first.get_or_insert(words);
    }

    /// A number below `bound`, which is not 0.
    fn random(&mut self, bound: usize) -> usize {
        self.chance = start_of(self.chance, 0, 0);
        usize::try_from(self.chance >> 32).unwrap_or(0) % bound
    }
}

/// The memory that the kernel could give to processes, in MiB.
fn available_mib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    Ok(super::number(value.unwrap_or_default().trim().trim_end_matches(" kB"))? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(mib: u64) -> Keeper {
        let path = std::env::temp_dir().join(format!("checker-{}-{mib}", std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        fs::remove_file(path).unwrap();
        let mut keeper = Keeper::new(7, mib, file).unwrap();
        keeper.resize(64).unwrap();
        keeper
    }

    #[test]
    fn memory_and_file_stay_right_while_they_are_rewritten_and_resized() {
        let mut keeper = keeper(4);
        for _ in 0..200 {
            keeper.slice().unwrap();
        }
        let report = keeper.answer("verify").unwrap();
        assert!(report.ends_with("mismatches=0 first=none"), "{report}");
        let Counts { rewritten, grown, shrunk, passes, .. } = keeper.counts;
        assert!(rewritten > 2000 && grown > 4 && shrunk > 0 && passes > 5, "{report}");
    }

    #[test]
    fn a_changed_bit_a_zeroed_page_and_an_older_page_are_found_once_each() {
        let mut keeper = keeper(3);
        let old = keeper.chunks[2].page(9).to_vec();
        keeper.rewrite(2 * PAGES_PER_MIB + 9);
        keeper.chunks[0].words[5 * PAGE_WORDS + 511] ^= 1;
        keeper.chunks[1].words[..PAGE_WORDS].fill(0);
        keeper.chunks[2].words[9 * PAGE_WORDS..][..PAGE_WORDS].copy_from_slice(&old);
        let report = keeper.answer("verify").unwrap();
        assert!(report.contains("mismatches=3 first=page 5 at frame"), "{report}");
        let report = keeper.answer("verify").unwrap();
        assert!(report.contains("mismatches=3 "), "{report}");
    }

    #[test]
    fn a_changed_page_of_the_file_is_found() {
        let mut keeper = keeper(2);
        keeper.file.file.write_all_at(&[0; PAGE], 3 * PAGE as u64).unwrap();
        let report = keeper.answer("verify").unwrap();
        assert!(report.contains("mismatches=1 first=page 3 of the file"), "{report}");
    }

    #[test]
    fn a_page_that_is_given_up_is_looked_at_before() {
        let mut keeper = keeper(2);
        keeper.chunks[0].words[7] ^= 1;
        keeper.chunks[1].words[7] ^= 1;
        keeper.answer("size 1").unwrap();
        keeper.resize(8).unwrap();
        assert_eq!((keeper.chunks.len(), keeper.counts.mismatches), (1, 1));
    }

    #[test]
    fn swapped_pages_are_not_alike() {
        let mut chunk = Chunk::new(1, 0);
        let (left, right) = chunk.words.split_at_mut(PAGE_WORDS);
        left.swap_with_slice(&mut right[..PAGE_WORDS]);
        assert!(chunk.verify(1, 0).is_some() && chunk.verify(1, 1).is_some());
        assert_eq!(chunk.verify(1, 2), None);
    }
}
