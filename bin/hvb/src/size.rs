//! Memory sizes in human-readable form.

use std::fmt;
use std::str::FromStr;

const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// A number of bytes, between 1 and `i64::MAX` (what QMP can carry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ByteSize(u64);

/// Error when parsing a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    Form,
    Zero,
    TooLarge,
    PartOfAByte,
}

impl ByteSize {
    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }

    /// A number of KiB as a size; `None` for 0 and for more than can be.
    pub(crate) fn of_kib(kib: u64) -> Option<Self> {
        let bytes = kib.checked_mul(1 << 10)?;
        (bytes > 0 && i64::try_from(bytes).is_ok()).then_some(Self(bytes))
    }

    /// The exact size in the form that options accept.
    pub(crate) fn argument(self) -> String {
        match UNITS.iter().find(|&&(_, unit)| self.0.is_multiple_of(unit)) {
            Some((letter, unit)) => format!("{}{letter}", self.0 / unit),
            None => self.0.to_string(),
        }
    }

    /// The smallest multiple of `unit` bytes that is at least this size; `None` above `i64::MAX`.
    pub(crate) fn next_multiple_of(self, unit: u64) -> Option<Self> {
        let bytes = self.0.checked_next_multiple_of(unit)?;
        i64::try_from(bytes).is_ok().then_some(Self(bytes))
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    /// Parses a number of bytes, or a decimal number with K, M, G or T for powers of 1024.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let last = text.chars().last().ok_or(SizeError::Form)?.to_ascii_uppercase();
        let (number, unit) = match UNITS.iter().find(|(letter, _)| *letter == last) {
            Some(&(_, unit)) => (&text[..text.len() - 1], unit),
            None => (text, 1),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let bytes = digits(whole)?.checked_mul(unit.into()).ok_or(SizeError::TooLarge)?;
        // No fraction of a unit needs more digits than 2^40 has factors of two.
        let scale = u32::try_from(fraction.len()).ok().and_then(|n| 10_u128.checked_pow(n));
        let scale = scale.ok_or(SizeError::PartOfAByte)?;
        let part = digits(fraction)?.checked_mul(unit.into()).ok_or(SizeError::PartOfAByte)?;
        if part % scale != 0 {
            return Err(SizeError::PartOfAByte);
        }
        let bytes = bytes.checked_add(part / scale).ok_or(SizeError::TooLarge)?;
        match i64::try_from(bytes).map(i64::unsigned_abs) {
            Ok(0) => Err(SizeError::Zero),
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(SizeError::TooLarge),
        }
    }
}

fn digits(text: &str) -> Result<u128, SizeError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::Form);
    }
    text.parse().map_err(|_| SizeError::TooLarge)
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "a size is a number with K, M, G or T, for example 512M or 4G",
            Self::Zero => "a size must be more than 0, for example 512M or 4G",
            Self::TooLarge => "a size must be less than 8388608T",
            Self::PartOfAByte => "a size must be a whole number of bytes, for example 1.5G",
        })
    }
}

impl std::error::Error for SizeError {}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        human(self.0).fmt(f)
    }
}

/// A number of bytes in the largest unit it fills, with at most two decimals.
pub(crate) fn human(bytes: u64) -> String {
    let Some(&(letter, unit)) = UNITS.iter().find(|&&(_, unit)| bytes >= unit) else {
        return format!("{bytes} B");
    };
    let hundredths = (u128::from(bytes) * 100 + u128::from(unit) / 2) / u128::from(unit);
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    match rest {
        0 => format!("{whole} {letter}iB"),
        _ if rest % 10 == 0 => format!("{whole}.{} {letter}iB", rest / 10),
        _ => format!("{whole}.{rest:02} {letter}iB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse().map(ByteSize::bytes)
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("1K"), Ok(1 << 10));
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("4G"), Ok(4 << 30));
        assert_eq!(parse("4g"), Ok(4 << 30));
        assert_eq!(parse("2T"), Ok(2 << 40));
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0.25K"), Ok(256));
        assert_eq!(parse("1.50G"), parse("1.5G"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "M", "12Q", "-1G", "+1G", "1 G", "1.G", ".5G", "1.2.3G", "1GiB", "0x10", "é"]
        {
            assert_eq!(parse(text), Err(SizeError::Form), "{text}");
        }
        assert_eq!(parse("0"), Err(SizeError::Zero));
        assert_eq!(parse("0.0G"), Err(SizeError::Zero));
        assert_eq!(parse("1.5"), Err(SizeError::PartOfAByte));
        assert_eq!(parse("0.3K"), Err(SizeError::PartOfAByte));
        assert_eq!(parse(&format!("0.{}1T", "0".repeat(60))), Err(SizeError::PartOfAByte));
    }

    #[test]
    fn the_largest_size_is_what_qmp_can_carry() {
        assert_eq!(parse("9223372036854775807"), Ok(i64::MAX.unsigned_abs()));
        assert_eq!(parse("9223372036854775808"), Err(SizeError::TooLarge));
        assert_eq!(parse("8388608T"), Err(SizeError::TooLarge));
        assert_eq!(parse(&"9".repeat(60)), Err(SizeError::TooLarge));
    }

    #[test]
    fn an_argument_is_the_size_to_the_byte() {
        for text in ["1", "4097", "4K", "513M", "1536M", "4G", "2T", "9223372036854775807"] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.argument(), text);
        }
    }

    #[test]
    fn multiples_stay_within_what_is_a_size() {
        let next = |bytes: u64, unit| ByteSize(bytes).next_multiple_of(unit).map(ByteSize::bytes);
        assert_eq!(next(1, 4096), Some(4096));
        assert_eq!(next(4096, 4096), Some(4096));
        assert_eq!(next(i64::MAX.unsigned_abs(), 4096), None);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(512 << 20), "512 MiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human((1 << 30) + (1 << 25)), "1.03 GiB");
        assert_eq!(human(u64::MAX), "16777216 TiB");
    }
}
