//! Minimum, assigned, demand and maximum of a VM as one bar.

use balance_host::VmStatus;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

/// What a cell of the bar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It has this and needs it.
    Needed,
    /// It has this beyond its demand.
    Spare,
    /// It needs this and has it not.
    Missing,
    /// It could have this.
    Room,
    /// Its minimum is here.
    Minimum,
}

impl Part {
    const fn symbol(self) -> &'static str {
        match self {
            Self::Needed => "█",
            Self::Spare => "▒",
            Self::Missing => "!",
            Self::Room => "·",
            Self::Minimum => "|",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Needed => Style::new().fg(Color::Green),
            Self::Spare => Style::new().fg(Color::Cyan),
            Self::Missing => Style::new().fg(Color::Red),
            Self::Room => Style::new().fg(Color::DarkGray),
            Self::Minimum => Style::new().fg(Color::White),
        }
    }
}

/// The bar of a VM. Its whole width is the VM's maximum. Empty where the size is not known.
pub(crate) fn bar(vm: &VmStatus, width: usize) -> Line<'static> {
    let Some(assigned_kib) = vm.assigned_kib else { return Line::default() };
    let maximum_kib = vm.settings.map_or(0, |settings| settings.maximum_kib);
    let minimum_kib = vm.settings.map_or(0, |settings| settings.minimum_kib);
    // What is not known to be spare counts as needed.
    let demand_kib = vm.demand_kib.unwrap_or(assigned_kib);
    let whole_kib = maximum_kib.max(assigned_kib).max(1);
    let cells = |kib: u64| cells(kib, whole_kib, width);
    let (assigned, demand) = (cells(assigned_kib), cells(demand_kib));
    // The last cell at or below the minimum; none for a minimum of nothing.
    let minimum = cells(minimum_kib).checked_sub(1);
    let part = |cell: usize| match cell {
        _ if Some(cell) == minimum => Part::Minimum,
        _ if cell < assigned.min(demand) => Part::Needed,
        _ if cell < assigned => Part::Spare,
        _ if cell < demand => Part::Missing,
        _ => Part::Room,
    };
    (0..width).map(|cell| Span::styled(part(cell).symbol(), part(cell).style())).collect()
}

/// How many cells a size fills; at least one for anything at all.
fn cells(kib: u64, whole_kib: u64, width: usize) -> usize {
    let width_u128 = width as u128;
    let half = u128::from(whole_kib) / 2;
    let filled = (u128::from(kib) * width_u128 + half) / u128::from(whole_kib);
    let filled = usize::try_from(filled.min(width_u128)).unwrap_or(width);
    if kib > 0 { filled.max(1).min(width) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use balance_host::SettingsStatus;

    const GIB: u64 = 1 << 20;

    fn text(minimum: u64, assigned: Option<u64>, demand: Option<u64>, maximum: u64) -> String {
        let settings = SettingsStatus {
            startup_kib: maximum,
            minimum_kib: minimum,
            maximum_kib: maximum,
            buffer_percent: 20,
            weight: 5000,
        };
        let vm = VmStatus {
            assigned_kib: assigned,
            demand_kib: demand,
            settings: Some(settings),
            ..VmStatus::default()
        };
        bar(&vm, 10).to_string()
    }

    #[test]
    fn a_bar_shows_what_a_vm_has_needs_and_may_have() {
        assert_eq!(text(GIB, Some(6 * GIB), Some(4 * GIB), 10 * GIB), "|███▒▒····");
        assert_eq!(text(2 * GIB, Some(4 * GIB), Some(6 * GIB), 10 * GIB), "█|██!!····");
        assert_eq!(text(0, Some(4 * GIB), None, 10 * GIB), "████······");
        assert_eq!(text(GIB, None, Some(GIB), 10 * GIB), "");
    }

    #[test]
    fn impossible_figures_fill_a_bar_and_no_more() {
        for figure in [0, 1, u64::MAX] {
            for other in [0, 1, u64::MAX] {
                let text = text(figure, Some(other), Some(figure), other);
                assert_eq!(text.chars().count(), 10, "{text}");
            }
        }
        assert_eq!(bar(&VmStatus { assigned_kib: Some(1), ..VmStatus::default() }, 0).width(), 0);
    }
}
