//! The frame: the host, the table, the details, and a line for the user.

use balance_host::HostStatus;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, StatefulWidget, TableState, Widget, Wrap};

use crate::detail;
use crate::screen::{Mode, Screen, Source};
use crate::size::{age, clean, percent, short};
use crate::table::{table, tell};

const HELP: &str = "\
Up, Down, k, j     choose a machine (also PgUp, PgDn, Home, End)
Enter, d           show or hide the details of the chosen machine
s, r               sort by the next column; the other way round
/                  show only names with a text; Esc shows all again
m, M, w            set the minimum, the maximum, the weight
h                  hold the machine as it is, or release it
q, Ctrl-C          quit

The bar is as long as the machine's maximum: █ it has and needs, ▒ it has
beyond its demand, ! it needs and has not, · it could have; | its minimum.";

impl Screen {
    /// Draws everything. `now_ms` is of the clock of [`take`](Self::take).
    pub fn draw(&self, now_ms: u64, area: Rect, buffer: &mut Buffer) {
        let notes = self.notes(now_ms);
        let notes_lines = u16::try_from(notes.len()).unwrap_or(u16::MAX);
        let chosen = self.chosen();
        // The table keeps some lines where there are few.
        let room = area.height.saturating_sub(notes_lines).saturating_sub(8);
        let detail_lines = match self.shows_detail && chosen.is_some() {
            true => detail::LINES.min(room),
            false => 0,
        };
        let [host, problems, lines, details, action, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(notes_lines),
            Constraint::Fill(1),
            Constraint::Length(detail_lines),
            Constraint::Length(1),
            Constraint::Length(1),
        ])
        .areas(area);
        self.host_line().render(host, buffer);
        Paragraph::new(notes).render(problems, buffer);
        if self.mode == Mode::Help {
            Clear.render(lines, buffer);
            Paragraph::new(HELP).wrap(Wrap { trim: false }).render(lines, buffer);
        } else {
            self.draw_table(now_ms, lines, buffer);
        }
        if let Some(vm) = chosen {
            if detail_lines > 0 {
                detail::draw(self, vm, now_ms, details, buffer);
            } else {
                // A narrow table has no room for the reason.
                let last = vm.last_action.as_ref();
                let text =
                    last.map(|last| format!("{} {}", clean(&vm.name), tell(self, last, now_ms)));
                Line::from(text.unwrap_or_default()).render(action, buffer);
            }
        }
        self.foot().render(foot, buffer);
    }

    /// What [`draw`](Self::draw) would show in so many columns, with all VMs and without the lines for
    /// the user.
    #[must_use]
    pub fn text(&self, now_ms: u64, columns: u16) -> String {
        let notes = self.notes(now_ms);
        let vms = u16::try_from(self.visible().len()).unwrap_or(u16::MAX);
        let notes_lines = u16::try_from(notes.len()).unwrap_or(u16::MAX);
        // A buffer has at most so many cells.
        let most = u16::MAX / columns.max(1);
        let height = vms.max(1).saturating_add(2).saturating_add(notes_lines).min(most);
        let area = Rect::new(0, 0, columns, height);
        let mut buffer = Buffer::empty(area);
        let [host, problems, lines] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(notes_lines),
            Constraint::Fill(1),
        ])
        .areas(area);
        self.host_line().render(host, &mut buffer);
        Paragraph::new(notes).render(problems, &mut buffer);
        if self.visible().is_empty() {
            Line::from(self.emptiness()).render(lines, &mut buffer);
        } else {
            Widget::render(table(self, columns, now_ms), lines, &mut buffer);
        }
        text_of(&buffer)
    }

    fn draw_table(&self, now_ms: u64, area: Rect, buffer: &mut Buffer) {
        if self.visible().is_empty() {
            return Line::from(self.emptiness()).render(area, buffer);
        }
        // The state is made anew for each frame: the table scrolls as far as the chosen line needs.
        let mut state = TableState::default().with_selected(self.place());
        StatefulWidget::render(table(self, area.width, now_ms), area, buffer, &mut state);
    }

    fn emptiness(&self) -> String {
        match self.received_ms {
            None => "waiting for the first figures".to_owned(),
            Some(_) if self.status.vms.is_empty() => "no virtual machine was found".to_owned(),
            Some(_) => format!("no name has '{}' in it: Esc shows all", clean(&self.filter)),
        }
    }

    fn host_line(&self) -> Line<'static> {
        let HostStatus {
            zone,
            total_kib,
            available_kib,
            for_vms_kib,
            targets_kib,
            psi_some_permille,
            psi_full_permille,
            ..
        } = &self.status.host;
        if self.received_ms.is_none() {
            return Line::from("host: -");
        }
        let style = match zone.as_str() {
            "comfort" => Style::new().fg(Color::Green),
            "tight" => Style::new().fg(Color::Yellow),
            "emergency" => Style::new().fg(Color::Red),
            _ => Style::new().fg(Color::Magenta),
        };
        if zone == "unknown" {
            let text = "unknown: the host's figures are missing, so nothing is changed";
            return Line::from(vec!["host ".into(), Span::styled(text, style)]);
        }
        let figures = format!(
            "  free {} of {}  VMs {} of {}  PSI some {} full {} %",
            short(*available_kib),
            short(*total_kib),
            short(*targets_kib),
            short(*for_vms_kib),
            percent(*psi_some_permille),
            percent(*psi_full_permille)
        );
        Line::from(vec!["host ".into(), Span::styled(clean(zone), style.bold()), figures.into()])
    }

    /// What is not as usual, a line each.
    fn notes(&self, now_ms: u64) -> Vec<Line<'static>> {
        let mut notes = Vec::new();
        if let Some(problem) = &self.problem {
            let waited = age(self.waited_ms(now_ms));
            let text = format!("nothing new for {waited}: {}", clean(problem));
            notes.push(Line::from(text).fg(Color::Red));
        }
        match self.source {
            Source::Monitors => {
                let text =
                    "no balancer runs: this is read from the monitors, and nothing is changed";
                notes.push(Line::from(text).fg(Color::Yellow));
            }
            Source::Balancer if self.status.dry_run => {
                notes.push(Line::from("dry run: nothing is changed").fg(Color::Yellow));
            }
            Source::Balancer => {}
        }
        let over_kib = self.status.host.overcommitted_kib;
        if over_kib > 0 {
            let over = short(over_kib);
            let text = format!("overcommitted by {over}: lower the minimum of some machine");
            notes.push(Line::from(text).fg(Color::Red));
        }
        let reserved = self.status.reservations.iter().map(|room| room.size_kib);
        let reserved_kib = reserved.fold(0, u64::saturating_add);
        if reserved_kib > 0 {
            notes.push(Line::from(format!("reserved for new machines: {}", short(reserved_kib))));
        }
        notes
    }

    /// What is being typed, what became of it, or which keys there are.
    fn foot(&self) -> Line<'static> {
        match &self.mode {
            Mode::Set(prompt) => {
                let (vm, key) = (clean(&prompt.vm), prompt.key);
                Line::from(format!("{key} of {vm}: {}_", prompt.text)).bold()
            }
            Mode::Filter => Line::from(format!("/{}_", clean(&self.filter))).bold(),
            _ => match &self.message {
                Some(message) if message.is_bad => Line::from(clean(&message.text)).fg(Color::Red),
                Some(message) => Line::from(clean(&message.text)).fg(Color::Green),
                None => Line::from(self.hints()).dim(),
            },
        }
    }

    fn hints(&self) -> String {
        let other = if self.reversed { ", reversed" } else { "" };
        let filter = match self.filter.as_str() {
            "" => String::new(),
            filter => format!("  filter '{}'", clean(filter)),
        };
        let sort = self.sort.word();
        format!("q quit  d details  s sort: {sort}{other}  / filter  m M w h set  ? help{filter}")
    }
}

/// The characters of a buffer, without spaces at the ends of lines.
fn text_of(buffer: &Buffer) -> String {
    let columns = usize::from(buffer.area.width).max(1);
    let lines = buffer.content.chunks(columns).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}
