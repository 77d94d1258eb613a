//! The guest's serial console: all its output so far, and new lines as they arrive.

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{PATIENCE, wait_for};

/// The console of a running `hvb`, over its standard input and output.
#[derive(Debug)]
pub(crate) struct Console {
    input: ChildStdin,
    lines: Receiver<Line>,
    said: Arc<Mutex<String>>,
}

/// A line of the console, without its line ending.
#[derive(Debug)]
pub(crate) struct Line {
    /// When its ending was read.
    pub(crate) at: Instant,
    /// The text.
    pub(crate) text: String,
}

impl Console {
    pub(crate) fn new(input: ChildStdin, output: ChildStdout) -> Self {
        let (sender, lines) = channel();
        let said = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&said);
        thread::spawn(move || listen(output, &log, &sender));
        Self { input, lines, said }
    }

    pub(crate) fn send(&mut self, line: &str) -> Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())?;
        Ok(self.input.flush()?)
    }

    /// The next line, if it arrives before the deadline.
    ///
    /// # Errors
    ///
    /// The console is closed, so there will be no more lines.
    pub(crate) fn line_until(&self, deadline: Instant) -> Result<Option<Line>> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest's console was closed"),
        }
    }

    /// The next line for a caller that has waited since `begin` for what it is about.
    ///
    /// # Errors
    ///
    /// No line arrived within [`PATIENCE`] of `begin`, or the console is closed.
    pub(crate) fn next_line(&self, begin: Instant) -> Result<Line> {
        let line = self.line_until(begin + PATIENCE)?;
        line.with_context(|| format!("not within {PATIENCE:?}"))
    }

    /// Waits for text that no line ending follows, such as a prompt, in the output so far or to come.
    ///
    /// # Errors
    ///
    /// The text does not come.
    pub(crate) fn wait_for(&self, text: &str) -> Result<()> {
        wait_for(&format!("'{text}' on the console"), || {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(said.contains(text).then_some(()))
        })
    }

    /// The last lines of the output.
    pub(crate) fn tail(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn listen(mut output: ChildStdout, log: &Mutex<String>, lines: &Sender<Line>) {
    let mut buffer = [0; 4096];
    let mut partial = Vec::new();
    while let Ok(length @ 1..) = output.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).replace('\r', "");
        log.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        for &byte in &buffer[..length] {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(&partial).into_owned();
                    let line = Line { at: Instant::now(), text };
                    partial.clear();
                    if lines.send(line).is_err() {
                        return;
                    }
                }
                b'\r' => {}
                byte => partial.push(byte),
            }
        }
    }
}
