//! The balloon's page accounting as rows of the table.

use super::Row;
use crate::size::human;
use qmp::{DynamicMemoryInfo, Faults, Reported};
use std::time::Duration;

/// The rows on the device: activity first, then sizes, then the guest. Values that are normally
/// zero are omitted when they are.
pub(super) fn rows(books: &DynamicMemoryInfo) -> Vec<Row> {
    let mut rows = progress(books);
    rows.extend(sizes(books));
    rows.extend(guest(books));
    rows
}

fn progress(books: &DynamicMemoryInfo) -> Vec<Row> {
    let target = books.target.map_or_else(|| "none".to_owned(), human);
    let mut state = books.state.clone();
    if let Some(ms) = books.ready_in_ms {
        state += &format!(", ready in {:.0?}", Duration::from_secs(ms.div_ceil(1000)));
    }
    let mut rows = vec![("target", target), ("balloon", state)];
    rows.extend(books.waiting.clone().map(|reason| ("waiting", reason)));
    rows.extend(
        books.stopped.as_ref().map(|why| ("stopped", format!("short of the target: {why}"))),
    );
    rows.extend(books.last_refusal.as_ref().map(|refusal| {
        ("refused", format!("a target of {}: {}", human(refusal.target), refusal.reason))
    }));
    rows
}

fn sizes(books: &DynamicMemoryInfo) -> Vec<Row> {
    let always = [("maximum", books.maximum), ("boot", books.boot), ("hot-added", books.hot_added)];
    let exceptions = [
        ("unconfirmed", books.unconfirmed, "added earlier; this kernel has not shown to have it"),
        ("in flight", books.in_flight, "given by the guest, not freed yet"),
        ("held", books.held, "given by the guest, kept by huge pages that are partly in use"),
        ("kept", books.undiscarded, "given by the guest, but the host could not free it"),
        ("foreign", books.foreign, "given by the guest, but never its own"),
        ("unexplained", books.unexplained, "in the host's memory, although the guest gave it"),
    ];
    let exceptions = exceptions
        .into_iter()
        .filter(|&(_, bytes, _)| bytes > 0)
        .map(|(name, bytes, meaning)| (name, format!("{} {meaning}", human(bytes))));
    let mut rows: Vec<Row> = always.into_iter().map(|(name, bytes)| (name, human(bytes))).collect();
    rows.push(("ballooned", human(books.ballooned)));
    rows.extend(books.reported.map(|reported| ("reported", reports(reported))));
    rows.extend(exceptions);
    rows
}

fn guest(books: &DynamicMemoryInfo) -> Vec<Row> {
    let system = match (&books.guest_os, books.guest_os_id) {
        (Some(name), Some(id)) => Some(format!("{name} ({id:#018x})")),
        (Some(name), None) => Some(name.clone()),
        (None, Some(id)) => Some(format!("{id:#018x}")),
        (None, None) => None,
    };
    let version = books.protocol_version.clone();
    let alignment = books.hot_add_alignment.map(human);
    [
        system.map(|system| ("guest OS", system)),
        version.map(|version| ("protocol", version)),
        alignment.map(|alignment| ("alignment", format!("{alignment} for added memory"))),
        faults(&books.faults).map(|faults| ("faults", faults)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the guest has reported as free.
fn reports(Reported { bytes, calls }: Reported) -> String {
    format!("{} as free; calls: {calls}", human(bytes))
}

/// The guest's faults; `None` if there were none.
fn faults(faults: &Faults) -> Option<String> {
    let occurred: Vec<_> = faults
        .iter()
        .filter(|&(_, count)| count > 0)
        .map(|(name, count)| format!("{count} {}", name.replace('-', " ")))
        .collect();
    (!occurred.is_empty()).then(|| occurred.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmp::Refusal;

    fn idle() -> DynamicMemoryInfo {
        DynamicMemoryInfo { state: "idle".to_owned(), ..DynamicMemoryInfo::default() }
    }

    fn shown(books: &DynamicMemoryInfo) -> Vec<String> {
        rows(books).iter().map(|(name, value)| format!("{name}: {value}")).collect()
    }

    #[test]
    fn a_guest_without_a_driver_has_its_sizes() {
        let books = DynamicMemoryInfo { maximum: 4 << 30, boot: 1 << 30, ..idle() };
        let expected = [
            "target: none",
            "balloon: idle",
            "maximum: 4 GiB",
            "boot: 1 GiB",
            "hot-added: 0 B",
            "ballooned: 0 B",
        ];
        assert_eq!(shown(&books), expected);
    }

    #[test]
    fn what_a_guest_has_reported_is_shown_if_it_can() {
        let reported = Some(Reported { bytes: 3 << 30, calls: 24 });
        let books = DynamicMemoryInfo { reported, ..idle() };
        assert_eq!(shown(&books)[6..], ["reported: 3 GiB as free; calls: 24"]);
    }

    #[test]
    fn why_a_guest_does_not_follow_is_shown() {
        let refusal = Refusal { target: 1 << 40, reason: "too much".to_owned() };
        let books = DynamicMemoryInfo {
            target: Some(1 << 29),
            ready_in_ms: Some(42_001),
            waiting: Some("the guest has only just started".to_owned()),
            stopped: Some("no more to give".to_owned()),
            last_refusal: Some(refusal),
            ..idle()
        };
        let expected = [
            "target: 512 MiB",
            "balloon: idle, ready in 43s",
            "waiting: the guest has only just started",
            "stopped: short of the target: no more to give",
            "refused: a target of 1 TiB: too much",
        ];
        assert_eq!(shown(&books)[..5], expected);
    }

    #[test]
    fn memory_that_is_not_where_it_should_be_is_shown() {
        let books = DynamicMemoryInfo {
            in_flight: 4096,
            held: 1 << 20,
            undiscarded: 8192,
            unconfirmed: 4096,
            foreign: 12288,
            unexplained: 1 << 21,
            ..idle()
        };
        let expected = [
            "unconfirmed: 4 KiB added earlier; this kernel has not shown to have it",
            "in flight: 4 KiB given by the guest, not freed yet",
            "held: 1 MiB given by the guest, kept by huge pages that are partly in use",
            "kept: 8 KiB given by the guest, but the host could not free it",
            "foreign: 12 KiB given by the guest, but never its own",
            "unexplained: 2 MiB in the host's memory, although the guest gave it",
        ];
        assert_eq!(shown(&books)[6..], expected);
    }

    #[test]
    fn the_guest_is_described() {
        let books = DynamicMemoryInfo {
            guest_os_id: Some(0x8100_0600_0000_0000),
            guest_os: Some("Linux 6.0".to_owned()),
            protocol_version: Some("2.0".to_owned()),
            hot_add_alignment: Some(128 << 20),
            faults: Faults::from_iter([("floods", 1), ("malformed", 0), ("duplicate-pages", 300)]),
            ..idle()
        };
        let expected = [
            "guest OS: Linux 6.0 (0x8100060000000000)",
            "protocol: 2.0",
            "alignment: 128 MiB for added memory",
            "faults: 300 duplicate pages, 1 floods",
        ];
        assert_eq!(shown(&books)[6..], expected);
        let unnamed = DynamicMemoryInfo { guest_os: None, ..books };
        assert_eq!(shown(&unnamed)[6], "guest OS: 0x8100060000000000");
    }
}
