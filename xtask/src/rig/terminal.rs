//! The caller's terminal: its size, and raw mode while a command in the machine has it.

use std::io::{self, IsTerminal};

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows and columns, if input and output are both a terminal.
pub(crate) fn size_if_interactive() -> Option<(u16, u16)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Raw mode, until dropped: the terminal in the machine does all editing and sends the signals.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Switches to raw mode.
    ///
    /// # Errors
    ///
    /// Standard input is not a terminal.
    pub(crate) fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
