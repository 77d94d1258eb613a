//! The screen: keys and figures in, frames out.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use balance_host::Status;
use balance_top::{Effect, Key, Screen};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::feed::Feed;

/// How often new figures come.
const PERIOD: Duration = Duration::from_secs(1);

/// What the screen is told.
enum Input {
    Key(Key),
    /// The terminal has another size.
    Resized,
    Figures(Result<Status, String>),
    Answer(Result<String, String>),
    /// A signal, or the terminal is gone.
    End,
}

/// A setting to change.
struct Order {
    vm: String,
    setting: String,
}

/// Shows the screen until the user has seen enough.
pub(super) fn show(feed: Feed, mut screen: Screen) -> Result<()> {
    let (inputs, received) = channel();
    let (orders, ordered) = channel();
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot handle signals")?;
    // Restores the terminal also after a panic.
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
        Builder::new().name(name.to_owned()).spawn(work).context("cannot start a thread")
    };
    let (keys, figures, ends) = (inputs.clone(), inputs.clone(), inputs);
    let started = start("keys", Box::new(move || read_keys(&keys)))
        .and_then(|_| start("figures", Box::new(move || read_figures(feed, &ordered, &figures))))
        .and_then(|_| start("signals", Box::new(move || wait_for_signal(signals, &ends))));
    let result = started.and_then(|_| run(&mut terminal, &mut screen, &received, &orders));
    ratatui::restore();
    result
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    inputs: &Receiver<Input>,
    orders: &Sender<Order>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        terminal
            .draw(|frame| screen.draw(now_ms, frame.area(), frame.buffer_mut()))
            .context("cannot write to the terminal")?;
        // Ages grow also while nothing comes.
        let input = match inputs.recv_timeout(PERIOD) {
            Ok(input) => input,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        match input {
            Input::Key(key) => match screen.press(key) {
                Some(Effect::Quit) => return Ok(()),
                Some(Effect::Set { vm, setting }) => {
                    // If the thread is gone, the figures grow old, which is seen.
                    let _ = orders.send(Order { vm, setting });
                }
                None => {}
            },
            Input::Resized => {}
            Input::Figures(Ok(status)) => {
                let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                screen.take(status, now_ms);
            }
            Input::Figures(Err(problem)) => screen.fail(problem),
            Input::Answer(answer) => screen.answer(answer),
            Input::End => return Ok(()),
        }
    }
}

fn read_keys(inputs: &Sender<Input>) {
    loop {
        let input = match event::read() {
            Ok(Event::Key(event)) => match key(event) {
                Some(key) => Input::Key(key),
                None => continue,
            },
            Ok(Event::Resize(..)) => Input::Resized,
            Ok(_) => continue,
            Err(_) => Input::End,
        };
        let is_end = matches!(input, Input::End);
        if inputs.send(input).is_err() || is_end {
            return;
        }
    }
}

/// Asks for figures each second, and changes settings in between.
fn read_figures(mut feed: Feed, orders: &Receiver<Order>, inputs: &Sender<Input>) {
    loop {
        let figures = feed.status().map_err(|error| format!("{error:#}"));
        if inputs.send(Input::Figures(figures)).is_err() {
            return;
        }
        let next = Instant::now() + PERIOD;
        // After a change, what came of it is shown at once.
        match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Order { vm, setting }) => {
                let answer = feed.set(&vm, &setting).map(|()| format!("{vm}: {setting} is set"));
                let answer = answer.map_err(|error| format!("{error:#}"));
                if inputs.send(Input::Answer(answer)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn wait_for_signal(mut signals: Signals, inputs: &Sender<Input>) {
    if signals.forever().next().is_some() {
        // The screen may have ended by itself.
        let _ = inputs.send(Input::End);
    }
}

fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    Some(match event.code {
        KeyCode::Char('c') if event.modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(_)
            if event.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) =>
        {
            return None;
        }
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
