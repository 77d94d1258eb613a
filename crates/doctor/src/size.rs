//! Sizes in the forms of QEMU and libvirt.

/// Bytes of a KiB, a MiB and a GiB.
pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A size as QEMU's options take it: a number, decimal or hexadecimal, and a letter; `unit` is what a
/// number without a letter counts, in bytes.
pub(crate) fn of_option(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok()?.checked_mul(unit);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, letter) = text.split_at(end);
    let unit = match letter.to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" => KIB,
        "m" => MIB,
        "g" => GIB,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => return None,
    };
    scaled(number, unit)
}

/// A size as libvirt's elements have it: a number, and a unit, which is KiB if there is none.
pub(crate) fn of_element(number: &str, unit: Option<&str>) -> Option<u64> {
    let unit = match unit.unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "K" | "KiB" => KIB,
        "MB" => 1_000_000,
        "m" | "M" | "MiB" => MIB,
        "GB" => 1_000_000_000,
        "g" | "G" | "GiB" => GIB,
        "TB" => 1_000_000_000_000,
        "t" | "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// A decimal number with a fraction, times `unit`, rounded down.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(9))?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / scale;
    u64::try_from(whole.checked_add(part)?).ok()
}

/// The size in the largest unit of which it is a multiple, as an option.
pub(crate) fn option(bytes: u64) -> String {
    let units = [(1 << 40, 'T'), (GIB, 'G'), (MIB, 'M'), (KIB, 'K')];
    match units.into_iter().find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, letter)) => format!("{}{letter}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// The size for a reader.
pub(crate) fn words(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} bytes");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        part => format!("{}.{part} {name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_options_have_qemu_s_letters() {
        let mib = |text| of_option(text, MIB);
        assert_eq!(mib("8192"), Some(8 * GIB));
        assert_eq!(mib("8G"), Some(8 * GIB));
        assert_eq!(mib("1.5g"), Some(3 * GIB / 2));
        assert_eq!(mib("8388608k"), Some(8 * GIB));
        assert_eq!(mib("0x400"), Some(GIB));
        for text in ["", "G", "8Q", "-1", "1..2G", "99999999999999999999", "16777216T", "8 G", "é"]
        {
            assert_eq!(mib(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_of_elements_have_libvirt_s_units() {
        assert_eq!(of_element("4194304", None), Some(4 * GIB));
        assert_eq!(of_element(" 4 ", Some("GiB")), Some(4 * GIB));
        assert_eq!(of_element("2", Some("MB")), Some(2_000_000));
        assert_eq!(of_element("4", Some("Gib")), None);
        assert_eq!(of_element("18446744073709551615", Some("KiB")), None);
    }

    #[test]
    fn sizes_are_written_without_loss_for_options() {
        assert_eq!(option(40 * GIB), "40G");
        assert_eq!(option(1536 * MIB), "1536M");
        assert_eq!(option(1), "1");
        assert_eq!(words(1536 * MIB), "1.5 GiB");
        assert_eq!(words(0), "0 bytes");
    }
}
