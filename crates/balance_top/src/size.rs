//! Figures in few characters.

/// A size in at most five characters, for up to 9999 TiB.
pub(crate) fn short(kib: u64) -> String {
    const UNITS: [(char, u32); 4] = [('K', 0), ('M', 10), ('G', 20), ('T', 30)];
    let (letter, shift) =
        UNITS.into_iter().rev().find(|&(_, shift)| kib >> shift > 0).unwrap_or(('K', 0));
    let tenths = (u128::from(kib) * 10 + (1_u128 << shift) / 2) >> shift;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{letter}"),
        (whole, _) if whole >= 100 => format!("{whole}{letter}"),
        (whole, rest) => format!("{whole}.{rest}{letter}"),
    }
}

/// A size, or a dash where it is not known.
pub(crate) fn short_or_dash(kib: Option<u64>) -> String {
    kib.map_or_else(|| "-".to_owned(), short)
}

/// A time in at most four characters.
pub(crate) fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..=99 => format!("{seconds}s"),
        seconds @ 100..=5999 => format!("{}m", seconds / 60),
        seconds @ 6000..=359_999 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", (seconds / 86_400).min(999)),
    }
}

/// Thousandths as percent.
pub(crate) fn percent(permille: u32) -> String {
    format!("{}.{}", permille / 10, permille % 10)
}

/// The text without control characters, in one line.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (kib, text) in [
            (0, "0K"),
            (1023, "1023K"),
            (512 << 10, "512M"),
            (3 << 19, "1.5G"),
            ((123 << 20) + (1 << 19), "123G"),
            (4 << 30, "4T"),
        ] {
            assert_eq!(short(kib), text);
        }
        assert!(short(u64::MAX).ends_with('T'));
        for (ms, text) in [(0, "0s"), (99_999, "99s"), (100_000, "1m"), (86_400_000, "24h")] {
            assert_eq!(age(ms), text);
        }
        assert_eq!(age(u64::MAX), "999d");
        assert_eq!(percent(1234), "123.4");
        assert_eq!(clean("a\x1b[2J\nb"), "a [2J b");
    }
}
