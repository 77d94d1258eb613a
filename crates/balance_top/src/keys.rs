//! Keys, and what they mean.

use crate::screen::{Mode, Prompt, Screen};

/// The longest text that can be typed.
const LONGEST: usize = 64;

/// A key, as far as one has a meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// The line above.
    Up,
    /// The line below.
    Down,
    /// Ten lines up.
    PageUp,
    /// Ten lines down.
    PageDown,
    /// The first line.
    Home,
    /// The last line.
    End,
    /// Takes what was typed, or shows details.
    Enter,
    /// Gives up what was typed.
    Escape,
    /// Takes back a character.
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// What is to be done outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// End.
    Quit,
    /// Change a setting of a VM; the answer goes to [`Screen::answer`].
    Set {
        /// The VM.
        vm: String,
        /// The setting as `KEY=VALUE`, as `hvb balance set` takes it. Nobody has checked it.
        setting: String,
    },
}

impl Screen {
    /// Takes a key.
    pub fn press(&mut self, key: Key) -> Option<Effect> {
        if key == Key::Interrupt {
            return Some(Effect::Quit);
        }
        self.message = None;
        match std::mem::take(&mut self.mode) {
            Mode::Look => self.look(key),
            // Any key ends the help.
            Mode::Help => None,
            Mode::Filter => {
                self.type_filter(key);
                None
            }
            Mode::Set(prompt) => self.type_setting(prompt, key),
        }
    }

    fn look(&mut self, key: Key) -> Option<Effect> {
        const PAGE: isize = 10;
        match key {
            Key::Char('q') => return Some(Effect::Quit),
            Key::Up | Key::Char('k') => self.move_by(-1),
            Key::Down | Key::Char('j') => self.move_by(1),
            Key::PageUp => self.move_by(-PAGE),
            Key::PageDown => self.move_by(PAGE),
            Key::Home => self.move_by(isize::MIN),
            Key::End => self.move_by(isize::MAX),
            Key::Enter | Key::Char('d') => self.shows_detail = !self.shows_detail,
            Key::Escape if self.shows_detail => self.shows_detail = false,
            Key::Escape => self.filter.clear(),
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('?') => self.mode = Mode::Help,
            Key::Char('m') => self.ask("minimum"),
            Key::Char('M') => self.ask("maximum"),
            Key::Char('w') => self.ask("weight"),
            Key::Char('h') => return self.toggle_hold(),
            _ => {}
        }
        None
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Enter => return,
            Key::Escape => return self.filter.clear(),
            key => edit(&mut self.filter, key),
        }
        self.mode = Mode::Filter;
    }

    fn type_setting(&mut self, mut prompt: Prompt, key: Key) -> Option<Effect> {
        match key {
            Key::Escape => return None,
            Key::Enter if prompt.text.is_empty() => return None,
            Key::Enter => {
                let setting = format!("{}={}", prompt.key, prompt.text);
                return Some(Effect::Set { vm: prompt.vm, setting });
            }
            key => edit(&mut prompt.text, key),
        }
        self.mode = Mode::Set(prompt);
        None
    }

    /// Asks for a setting of the chosen VM, if there is somebody who could set it.
    fn ask(&mut self, key: &'static str) {
        if let Some(vm) = self.settable() {
            self.mode = Mode::Set(Prompt { vm, key, text: String::new() });
        }
    }

    fn toggle_hold(&mut self) -> Option<Effect> {
        let vm = self.settable()?;
        let held = self.chosen().is_some_and(|chosen| chosen.held);
        Some(Effect::Set { vm, setting: format!("hold={}", !held) })
    }
}

fn edit(text: &mut String, key: Key) {
    match key {
        Key::Char(c) if !c.is_control() && text.chars().count() < LONGEST => text.push(c),
        Key::Backspace => drop(text.pop()),
        _ => {}
    }
}
