//! The pane with all of one VM.

use balance_host::VmStatus;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols;
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline, Widget, Wrap};

use crate::past::Moment;
use crate::screen::Screen;
use crate::size::{clean, percent, short};
use crate::table::tell;

/// The lines that the pane takes.
pub(crate) const LINES: u16 = 11;

/// The width of what stands before and behind a line of history.
const LABEL: u16 = 9;
const VALUE: u16 = 11;

/// A figure with its history.
struct Figure {
    label: &'static str,
    of: fn(&Moment) -> Option<u64>,
    write: fn(u64) -> String,
    color: Color,
}

const FIGURES: [Figure; 4] = [
    Figure { label: "assigned", of: |m| m.assigned_kib, write: short, color: Color::Green },
    Figure { label: "demand", of: |m| m.demand_kib, write: short, color: Color::Cyan },
    Figure {
        label: "pressure",
        of: |m| m.pressure_permille,
        write: |permille| format!("{}%", permille / 10),
        color: Color::Yellow,
    },
    Figure { label: "RSS", of: |m| m.resident_kib, write: short, color: Color::Blue },
];

/// Draws the pane of the chosen VM.
pub(crate) fn draw(screen: &Screen, vm: &VmStatus, now_ms: u64, area: Rect, buffer: &mut Buffer) {
    let title = format!(" {}: {}, {} ", clean(&vm.name), clean(&vm.kind), clean(&vm.socket));
    let block = Block::new().borders(Borders::TOP).title(title.bold());
    let inside = block.inner(area);
    block.render(area, buffer);
    let [settings, figures, words] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(4), Constraint::Fill(1)])
            .areas(inside);
    Line::from(settings_text(vm)).render(settings, buffer);
    let lines = Layout::vertical([Constraint::Length(1); 4]).split(figures);
    for (figure, line) in FIGURES.iter().zip(lines.iter()) {
        figure.draw(screen, vm, *line, buffer);
    }
    Paragraph::new(sentences(screen, vm, now_ms)).wrap(Wrap { trim: true }).render(words, buffer);
}

impl Figure {
    fn draw(&self, screen: &Screen, vm: &VmStatus, area: Rect, buffer: &mut Buffer) {
        let [label, history, value] = Layout::horizontal([
            Constraint::Length(LABEL),
            Constraint::Fill(1),
            Constraint::Length(VALUE),
        ])
        .areas(area);
        let seconds = screen.past.of(&vm.name, self.of);
        let most = seconds.iter().flatten().copied().max();
        // The newest seconds, as many as there is room for.
        let room = usize::from(history.width);
        let newest = seconds.get(seconds.len().saturating_sub(room)..).unwrap_or_default();
        Line::from(self.label).render(label, buffer);
        Sparkline::default()
            .data(newest.to_vec())
            .max(most.unwrap_or(1).max(1))
            .bar_set(symbols::bar::NINE_LEVELS)
            .absent_value_symbol(" ")
            .style(Style::new().fg(self.color))
            .render(history, buffer);
        let most =
            most.map_or_else(|| "-".to_owned(), |most| format!("max {}", (self.write)(most)));
        Line::from(most).right_aligned().render(value, buffer);
    }
}

fn settings_text(vm: &VmStatus) -> String {
    let Some(settings) = vm.settings else { return "its size is not known yet".to_owned() };
    let held = if vm.held { ", held" } else { "" };
    let pressure = vm
        .psi_some_permille
        .map_or_else(String::new, |permille| format!(", PSI {} %", percent(permille)));
    format!(
        "minimum {}, maximum {}, startup {}, buffer {} %, weight {}{held}{pressure}",
        short(settings.minimum_kib),
        short(settings.maximum_kib),
        short(settings.startup_kib),
        settings.buffer_percent,
        settings.weight
    )
}

fn sentences(screen: &Screen, vm: &VmStatus, now_ms: u64) -> String {
    let mut text = Vec::new();
    if let Some(problem) = &vm.problem {
        text.push(format!("Its monitor does not answer: {}.", clean(problem)));
    }
    if let Some(obstacle) = &vm.obstacle {
        text.push(format!("Its monitor says of the last target: {}.", clean(obstacle)));
    }
    text.extend(vm.reason.as_deref().map(clean));
    if let Some(action) = &vm.last_action {
        text.push(format!("Last action: {}", tell(screen, action, now_ms)));
    }
    text.join(" ")
}
