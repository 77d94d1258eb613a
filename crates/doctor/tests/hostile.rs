//! Texts of any content: a report or an error, and no panic.

use std::fs;
use std::path::Path;

use doctor::{Description, Report, command_line, examine, libvirt};
use proptest::prelude::*;

/// All inputs of the golden tests.
fn samples() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let inputs = files.filter(|file| file.extension().is_some_and(|kind| kind != "txt"));
    let mut inputs: Vec<_> = inputs.collect();
    inputs.sort();
    inputs.into_iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// The number of reports that a text gives.
fn reports(text: &str) -> usize {
    let mut itself = |_: &str| Ok(text.to_owned());
    let invocation = command_line::of_text(text).ok();
    let plain = invocation.map(|invocation| Description::of_options(&invocation, &mut itself));
    let domain = libvirt::read(text, &mut itself).ok();
    let found: Vec<Description> = plain.into_iter().chain(domain).collect();
    for machine in &found {
        let report = Report { sections: vec![examine(machine)] };
        assert!(report.to_string().lines().count() >= 2);
    }
    found.len()
}

/// What to put in place of a part of a text.
fn words() -> impl Strategy<Value = String> {
    let words = [
        "",
        ",",
        "=",
        "'",
        "\"",
        "\\",
        "{",
        "<",
        "/>",
        "0",
        "-",
        "18446744073709551615",
        "maxmem=",
        "9E",
        ",,",
        "16777215T",
        "0xffffffffffffffff",
        "id=",
        "memdev=more",
        "slots=18446744073709551615",
    ];
    prop_oneof![proptest::sample::select(words.to_vec()).prop_map(str::to_owned), "\\PC{0,8}",]
}

proptest! {
    #[test]
    fn texts_of_any_content(text in "\\PC{0,200}") {
        reports(&text);
        reports(&format!("qemu-system-x86_64 {text}"));
        reports(&format!("<domain>{text}</domain>"));
    }

    #[test]
    fn samples_with_parts_replaced(
        sample in proptest::sample::select(samples()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..20_usize, words()), 1..6),
    ) {
        let mut letters: Vec<char> = sample.chars().collect();
        for (at, count, word) in changes {
            let at = at.index(letters.len());
            let end = at.saturating_add(count).min(letters.len());
            letters.splice(at..end, word.chars());
            if letters.is_empty() {
                break;
            }
        }
        reports(&letters.into_iter().collect::<String>());
    }
}

#[test]
fn the_samples_themselves_give_reports() {
    let given: usize = samples().iter().map(|sample| reports(sample)).sum();
    assert_eq!(given, 12, "all but the file of -readconfig");
}
