//! Sizes for people.

use core::fmt;

/// A number of KiB, shown in the unit that suits it, with one decimal, rounded down.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            0..1024 => return write!(f, "{} KiB", self.0),
            1024..0x10_0000 => (10, "MiB"),
            0x10_0000..0x4000_0000 => (20, "GiB"),
            _ => (30, "TiB"),
        };
        let tenths = u128::from(self.0).saturating_mul(10) >> shift;
        write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_unit_suits_the_size() {
        let shown =
            [0, 1023, 1024, 1536, 1 << 20, 3 << 19, 5 << 30].map(|kib| Size(kib).to_string());
        assert_eq!(
            shown,
            ["0 KiB", "1023 KiB", "1.0 MiB", "1.5 MiB", "1.0 GiB", "1.5 GiB", "5.0 TiB"]
        );
    }
}
