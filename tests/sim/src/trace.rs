//! The trace of a run, to find out why it failed.

use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

/// Lines that describe what happens, kept only on request. A run without a trace formats nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace(Option<Rc<RefCell<Vec<String>>>>);

impl Trace {
    /// A trace that keeps its lines.
    pub(crate) fn kept() -> Self {
        Self(Some(Rc::default()))
    }

    /// Adds the text that `line` returns.
    pub(crate) fn note(&self, now: Duration, line: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            let mut text = String::new();
            let _ = write!(text, "{:>12.6} {}", now.as_secs_f64(), line());
            lines.borrow_mut().push(text);
        }
    }

    /// All lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.as_ref().map(|lines| lines.borrow().clone()).unwrap_or_default()
    }
}
