//! The dialogue with `guest_agent` on the guest's console.

use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::MIB;
use crate::console::{Console, Line};

/// The agent in a running guest.
#[derive(Debug)]
pub struct Agent {
    pub(crate) console: Console,
}

/// An answer of the agent.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The text after `@ok`.
    pub text: String,
    /// The lines before it.
    pub lines: Vec<String>,
}

impl Answer {
    /// Adds a line; returns whether it is the last.
    fn add(&mut self, line: &Line) -> Result<bool> {
        if let Some(text) = line.text.strip_prefix("@ok") {
            text.trim().clone_into(&mut self.text);
            return Ok(true);
        }
        if let Some(text) = line.text.strip_prefix("@err ") {
            bail!("the guest answers: {text}");
        }
        if let Some(text) = line.text.strip_prefix("| ") {
            self.lines.push(text.to_owned());
        }
        Ok(false)
    }
}

/// The guest's view of its memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meminfo {
    /// `MemTotal`: the memory that the kernel manages; less when the balloon has taken some.
    pub total: u64,
    /// `MemFree`.
    pub free: u64,
    /// `MemAvailable`.
    pub available: u64,
    /// `Committed_AS`: the memory promised to processes.
    pub committed: u64,
}

/// The results of the guest's checker so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages of memory it currently has.
    pub pages: u64,
    /// Pages it verified, including those of its file.
    pub verified: u64,
    /// Pages whose content had changed.
    pub mismatches: u64,
    /// The first of them.
    pub first: String,
}

impl Agent {
    /// The agent of a guest whose serial console is the input and output of a process.
    #[must_use]
    pub fn new(input: ChildStdin, output: ChildStdout) -> Self {
        Self { console: Console::new(input, output) }
    }

    /// Waits until a booting guest reports that it is up; returns its time since boot.
    ///
    /// # Errors
    ///
    /// The guest does not come up, or not all its modules load.
    pub fn wait_up(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            let line = self.console.next_line(begin).context("`@up` of a guest that boots")?;
            let Some((_, text)) = line.text.split_once("@up ") else { continue };
            let seconds: f64 =
                text.parse().with_context(|| format!("the guest is up but {text}"))?;
            return Ok(Duration::from_secs_f64(seconds));
        }
    }

    /// Waits for the guest's first line of output; returns when it was there.
    ///
    /// # Errors
    ///
    /// The guest says nothing.
    pub fn first_word(&mut self) -> Result<Instant> {
        let line = self.console.next_line(Instant::now());
        Ok(line.context("the first word of a guest that boots")?.at)
    }

    /// Sends a command and waits for the answer.
    ///
    /// # Errors
    ///
    /// The agent answers `@err`, or not at all.
    pub fn ask(&mut self, command: &str) -> Result<Answer> {
        self.tell(command)?;
        let begin = Instant::now();
        let mut answer = Answer::default();
        loop {
            let line = self.console.next_line(begin);
            let line = line.with_context(|| format!("the answer to `{command}`"))?;
            if answer.add(&line).with_context(|| format!("`{command}`"))? {
                return Ok(answer);
            }
        }
    }

    /// Waits for the one-line answer to a command sent with [`Agent::tell`], and returns it with
    /// its time of arrival. None if it did not come before the deadline.
    ///
    /// # Errors
    ///
    /// The agent answers `@err`, or the guest is gone.
    pub fn answer_until(&mut self, deadline: Instant) -> Result<Option<(Answer, Instant)>> {
        let mut answer = Answer::default();
        while let Some(line) = self.console.line_until(deadline)? {
            if answer.add(&line)? {
                return Ok(Some((answer, line.at)));
            }
        }
        Ok(None)
    }

    /// The last lines of the guest's output.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.console.tail()
    }

    /// The next line, if it tells of a record.
    ///
    /// # Errors
    ///
    /// The agent answers `@err`, or the guest is gone.
    pub(crate) fn next_record(&self, begin: Instant) -> Result<Option<u64>> {
        let line = self.console.next_line(begin)?.text;
        ensure!(!line.starts_with("@err"), "the guest answers: {line}");
        Ok(line.strip_prefix("| ").and_then(|number| number.parse().ok()))
    }

    /// Sends a command without waiting for its answer, since the guest may not survive it.
    ///
    /// # Errors
    ///
    /// The console is closed.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.console.send(command).with_context(|| command.to_owned())
    }

    /// The guest's view of its memory.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn meminfo(&mut self) -> Result<Meminfo> {
        let text = self.ask("meminfo")?.text;
        let field = |name: &str| {
            let value = text.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
            let kib: u64 = value.with_context(|| format!("no {name} in {text}"))?.parse()?;
            anyhow::Ok(kib * 1024)
        };
        Ok(Meminfo {
            total: field("MemTotal")?,
            free: field("MemFree")?,
            available: field("MemAvailable")?,
            committed: field("Committed_AS")?,
        })
    }

    /// Makes a process in the guest hold `bytes` of known data.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn fill(&mut self, seed: u64, bytes: u64) -> Result<()> {
        self.ask(&format!("fill {seed} {}", bytes / MIB)).map(drop)
    }

    /// Makes that process verify its data.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`], and if any byte has changed.
    pub fn check(&mut self, seed: u64) -> Result<()> {
        self.ask(&format!("check {seed}")).map(drop)
    }

    /// Makes a process in the guest keep up to `bytes` of memory and a file, both permanently under
    /// check.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn start_checker(&mut self, seed: u64, bytes: u64) -> Result<()> {
        self.ask(&format!("checker start {seed} {}", bytes / MIB)).map(drop)
    }

    /// Sets that process's memory limit.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn size_checker(&mut self, bytes: u64) -> Result<()> {
        self.ask(&format!("checker size {}", bytes / MIB)).map(drop)
    }

    /// Makes that process verify all it has. The caller must check the mismatches.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn verify(&mut self) -> Result<Checked> {
        let text = self.ask("checker verify")?.text;
        let (numbers, first) = text.split_once(" first=").with_context(|| text.clone())?;
        let field = |name: &str| {
            let value = numbers.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
            anyhow::Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
        };
        Ok(Checked {
            pages: field("pages")?,
            verified: field("verified")?,
            mismatches: field("mismatches")?,
            first: first.to_owned(),
        })
    }

    /// How many bytes of that data lie at or above the guest-physical `address`.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn bytes_above(&mut self, seed: u64, address: u64) -> Result<u64> {
        let pages: u64 = self.ask(&format!("above {seed} {address}"))?.text.parse()?;
        Ok(pages * 4096)
    }

    /// Sets whether the guest's kernel brings memory online that is added from now on.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn set_auto_online(&mut self, on: bool) -> Result<()> {
        let state = if on { "online" } else { "offline" };
        self.ask(&format!("write /sys/devices/system/memory/auto_online_blocks {state}")).map(drop)
    }

    /// Makes the guest touch nearly all its free memory, so that the host must provide it.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn dirty_free_memory(&mut self) -> Result<()> {
        let meminfo = self.meminfo()?;
        // Newer kernels report less memory as available than is free. A kernel's reserve grows with
        // its memory.
        let free = meminfo.free - meminfo.free / 32;
        let mib = (meminfo.available.max(free) / MIB).saturating_sub(64);
        self.ask(&format!("dirty {mib}")).map(drop)
    }
}
