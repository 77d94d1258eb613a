//! All that is shown, and what the user chose.

use balance_host::{Status, VmStatus};

use crate::past::Past;
use crate::sort::Sort;

/// Where what is shown comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a balancer, which can be told settings.
    Balancer,
    /// From the machines' own monitors, since no balancer runs. Nobody changes anything.
    Monitors,
}

/// What keys mean at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They move and choose.
    #[default]
    Look,
    /// They show this list until the next key.
    Help,
    /// They type a filter.
    Filter,
    /// They type a setting.
    Set(Prompt),
}

/// A setting that is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) vm: String,
    pub(crate) key: &'static str,
    pub(crate) text: String,
}

/// A line for the user, until the next key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) is_bad: bool,
}

/// All state of `hvb top`.
#[derive(Clone, Debug)]
pub struct Screen {
    pub(crate) source: Source,
    pub(crate) status: Status,
    /// When the status came, in milliseconds of the caller's clock; `None` before the first.
    pub(crate) received_ms: Option<u64>,
    /// Why nothing newer came.
    pub(crate) problem: Option<String>,
    pub(crate) past: Past,
    pub(crate) sort: Sort,
    pub(crate) reversed: bool,
    pub(crate) filter: String,
    /// The name of the chosen VM, which may be gone or filtered out.
    pub(crate) chosen: Option<String>,
    pub(crate) shows_detail: bool,
    pub(crate) mode: Mode,
    pub(crate) message: Option<Message>,
}

impl Screen {
    /// A screen that has nothing to show yet.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            status: Status::default(),
            received_ms: None,
            problem: None,
            past: Past::default(),
            sort: Sort::default(),
            reversed: false,
            filter: String::new(),
            chosen: None,
            shows_detail: false,
            mode: Mode::default(),
            message: None,
        }
    }

    /// Sorts lines by this.
    #[must_use]
    pub fn sorted_by(self, sort: Sort) -> Self {
        Self { sort, ..self }
    }

    /// Shows only VMs with this text in their name, whatever the case of its letters.
    #[must_use]
    pub fn filtered_by(self, filter: &str) -> Self {
        Self { filter: filter.to_owned(), ..self }
    }

    /// Takes in what a second brought. `now_ms` is of any clock that does not go back, and the same for
    /// all calls.
    pub fn take(&mut self, status: Status, now_ms: u64) {
        self.past.take(&status.vms);
        self.status = status;
        self.received_ms = Some(now_ms);
        self.problem = None;
    }

    /// Nothing new came, for this reason. What was there before is shown as old.
    pub fn fail(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Tells the user what became of [`Effect::Set`](crate::Effect::Set).
    pub fn answer(&mut self, answer: Result<String, String>) {
        let is_bad = answer.is_err();
        let (Ok(text) | Err(text)) = answer;
        self.message = Some(Message { text, is_bad });
    }

    /// What was received last, with the VMs that are shown, in the order of their lines.
    #[must_use]
    pub fn status(&self) -> Status {
        Status { vms: self.visible().into_iter().cloned().collect(), ..self.status.clone() }
    }

    /// The VMs that are shown, in the order of their lines.
    pub(crate) fn visible(&self) -> Vec<&VmStatus> {
        let filter = self.filter.to_lowercase();
        let matches = |vm: &&VmStatus| vm.name.to_lowercase().contains(&filter);
        let mut vms: Vec<&VmStatus> = self.status.vms.iter().filter(matches).collect();
        vms.sort_by(|one, other| self.sort.compare(one, other));
        if self.reversed {
            vms.reverse();
        }
        vms
    }

    /// The place of the chosen VM among those that are shown: the first, if none was chosen.
    pub(crate) fn place(&self) -> usize {
        let chosen = self.chosen.as_deref();
        self.visible().iter().position(|vm| Some(vm.name.as_str()) == chosen).unwrap_or(0)
    }

    /// The chosen VM, or the first; `None` if none is shown.
    pub(crate) fn chosen(&self) -> Option<&VmStatus> {
        self.visible().get(self.place()).copied()
    }

    pub(crate) fn move_by(&mut self, lines: isize) {
        let last = self.visible().len().saturating_sub(1);
        let place = self.place().saturating_add_signed(lines).min(last);
        self.chosen = self.visible().get(place).map(|vm| vm.name.clone());
    }

    /// The name of the chosen VM, if somebody could set something for it; or else says why not.
    pub(crate) fn settable(&mut self) -> Option<String> {
        if self.source == Source::Monitors {
            let text = "no balancer runs that could set this: start hvb balance";
            self.answer(Err(text.to_owned()));
            return None;
        }
        self.chosen().map(|vm| vm.name.clone())
    }

    /// How old what is shown is, beyond the ages in it.
    pub(crate) fn waited_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.received_ms.unwrap_or(now_ms))
    }

    /// Whether what is shown of a VM is too old to act on.
    pub(crate) fn is_stale(&self, vm: &VmStatus, now_ms: u64) -> bool {
        let limit_ms = self.status.stale_after_ms;
        let age_ms = crate::sort::age_ms(vm).unwrap_or(0);
        // A balancer of an older version does not tell the limit.
        vm.stale || limit_ms > 0 && age_ms.saturating_add(self.waited_ms(now_ms)) > limit_ms
    }
}

#[cfg(test)]
mod tests;
