//! One line a VM.

use balance_host::{ActionStatus, VmStatus};
use ratatui::layout::Constraint;
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table};

use crate::bar::bar;
use crate::screen::Screen;
use crate::size::{age, clean, short, short_or_dash};
use crate::sort::{Sort, age_ms};

/// The widths of the columns between the name and the last action, with the space after each.
const FIXED: u16 = 7 + 7 + 6 + 8 + 7 + 5;

/// Widths that depend on the terminal's.
struct Widths {
    name: u16,
    bar: u16,
}

impl Widths {
    /// For a line of this width. What is left is for the last action and its reason.
    fn of(width: u16) -> Self {
        let free = width.saturating_sub(FIXED);
        Self { name: (free / 4).clamp(6, 16), bar: (free / 3).clamp(8, 24) }
    }
}

/// The table, in the given width.
pub(crate) fn table(screen: &Screen, width: u16, now_ms: u64) -> Table<'static> {
    let widths = Widths::of(width);
    let columns = [
        Constraint::Length(widths.name),
        Constraint::Length(widths.bar),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(4),
        Constraint::Fill(1),
    ];
    let rows: Vec<Row<'static>> =
        screen.visible().into_iter().map(|vm| row(screen, vm, &widths, now_ms)).collect();
    let highlight = Style::new().add_modifier(Modifier::REVERSED);
    Table::new(rows, columns).header(head(screen)).row_highlight_style(highlight)
}

fn head(screen: &Screen) -> Row<'static> {
    let column = |text: &'static str, sort: Option<Sort>| {
        // The other order has another direction, so one mark is enough.
        let is_sorted = sort == Some(screen.sort);
        let style = if is_sorted { Style::new().underlined() } else { Style::new() };
        Span::styled(text, style)
    };
    let right = |text, sort| Cell::from(Line::from(column(text, sort)).right_aligned());
    let left = |text, sort| Cell::from(Line::from(column(text, sort)));
    Row::new([
        left("NAME", Some(Sort::Name)),
        left("0 TO MAXIMUM", None),
        right("ASSIGN", Some(Sort::Assigned)),
        right("DEMAND", Some(Sort::Demand)),
        right("PRESS", Some(Sort::Pressure)),
        left("STATUS", Some(Sort::Status)),
        right("RSS", Some(Sort::Resident)),
        right("AGE", Some(Sort::Age)),
        left("LAST ACTION", None),
    ])
    .style(Style::new().bold())
}

fn row(screen: &Screen, vm: &VmStatus, widths: &Widths, now_ms: u64) -> Row<'static> {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let is_stale = screen.is_stale(vm, now_ms);
    let waited_ms = screen.waited_ms(now_ms);
    let pressure = match vm.pressure_permille {
        // What it was says nothing of what it is.
        _ if is_stale => "?".to_owned(),
        Some(permille) => format!("{}%", (permille / 10).min(9999)),
        None => "-".to_owned(),
    };
    let age_text =
        age_ms(vm).map_or_else(|| "-".to_owned(), |ms| age(ms.saturating_add(waited_ms)));
    let row = Row::new([
        Cell::from(clean(&vm.name)),
        Cell::from(bar(vm, widths.bar.into())),
        right(short_or_dash(vm.assigned_kib)),
        right(short_or_dash(vm.demand_kib)),
        right(pressure),
        Cell::from(word(vm, is_stale)),
        right(short_or_dash(vm.resident_kib)),
        right(age_text),
        Cell::from(last(screen, vm, now_ms)),
    ]);
    if is_stale { row.style(Style::new().dim()) } else { row }
}

/// Hyper-V's word, or why there is none.
fn word(vm: &VmStatus, is_stale: bool) -> Span<'static> {
    match vm.status.as_deref() {
        _ if is_stale => Span::from("stale").fg(Color::Magenta),
        Some("Warning") => Span::from("Warning").fg(Color::Red).bold(),
        Some("Low") => Span::from("Low").fg(Color::Yellow),
        Some("OK") => Span::from("OK").fg(Color::Green),
        _ => Span::from("-"),
    }
}

/// What is wrong, or what was done last and why.
fn last(screen: &Screen, vm: &VmStatus, now_ms: u64) -> String {
    if let Some(problem) = vm.problem.as_ref().or(vm.obstacle.as_ref()) {
        return clean(problem);
    }
    let held = if vm.held { "held " } else { "" };
    match &vm.last_action {
        Some(action) => format!("{held}{}", tell(screen, action, now_ms)),
        None => held.trim_end().to_owned(),
    }
}

/// An action and the rule behind it, the shortest first, so that a narrow line has what matters.
pub(crate) fn tell(screen: &Screen, action: &ActionStatus, now_ms: u64) -> String {
    let ActionStatus { from_kib, to_kib, rule, age_ms, .. } = action;
    let (sign, kib) = match to_kib.checked_sub(*from_kib) {
        Some(more) => ('+', more),
        None => ('-', from_kib.saturating_sub(*to_kib)),
    };
    let would = if screen.status.dry_run { "(dry) " } else { "" };
    let age = age(age_ms.saturating_add(screen.waited_ms(now_ms)));
    let (change, to) = (short(kib), short(*to_kib));
    format!("{would}{sign}{change} {age}: to {to}. {}", clean(rule))
}
