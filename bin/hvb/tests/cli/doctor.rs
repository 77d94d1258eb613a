//! `hvb doctor` tells by its exit status whether something stops Dynamic Memory, and what could not
//! be looked at in one line.

use crate::common::{Guest, Monitor, hvb, stderr, stdout};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

/// Machines as people have them, from the crate's own tests.
fn golden(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/doctor/tests/golden");
    directory.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_machine_that_lacks_something_is_explained_after_the_host() {
    let output = hvb(&["doctor", "--command-line", &golden("plain-linux.args")]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("Host\n"), "{text}");
    assert!(text.contains("\nVM debian12 (QEMU)\n"), "{text}");
    assert!(text.contains("-cpu host,kvm=off,hv-vpindex,hv-synic\n"), "{text}");
}

#[test]
fn a_file_that_a_command_line_names_is_looked_for_beside_it() {
    let output = hvb(&["doctor", "--command-line", &golden("plain-good.args")]);
    let text = stdout(&output);
    let (_, machine) = text.split_once("\nVM both (QEMU)\n").unwrap();
    assert!(machine.ends_with("  Nothing stops Dynamic Memory.\n"), "{machine}");
}

#[test]
fn json_is_one_line_with_the_same_findings() {
    let xml = golden("libvirt-gaming.xml");
    let output = hvb(&["doctor", "--json", "--guest", "linux", "--xml", &xml]);
    assert_eq!(output.status.code(), Some(1));
    let report: qmp::Value = serde_json::from_str(stdout(&output).trim_end()).unwrap();
    let findings = report["sections"][1]["findings"].as_array().unwrap();
    let of = |id: &str| findings.iter().find(|finding| finding["id"] == id);
    assert_eq!(of("hv-synic").unwrap()["level"], "stops");
    assert_eq!(of("hv-synic").unwrap()["remedies"][0]["text"], "<synic state='on'/>");
    assert_eq!(of("hv-stimer"), None, "Linux does without");
}

#[test]
fn what_cannot_be_looked_at_is_one_line_and_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm");
    let file_text = file.to_str().unwrap();
    for (text, option, said) in [
        ("qemu-system-x86_64 -name 'x", "--command-line", "a quote is not closed"),
        ("ls -l", "--command-line", "there is no QEMU in it"),
        ("<domain type='xen'/>", "--xml", "a domain of type 'xen'"),
        ("<network/>", "--xml", "there is no <domain> in it"),
        ("<!DOCTYPE d [<!ENTITY a 'a'>]><domain>&a;</domain>", "--xml", "not XML"),
    ] {
        fs::write(&file, text).unwrap();
        let output = hvb(&["doctor", option, file_text]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let error = stderr(&output);
        assert!(error.contains(said) && error.lines().count() == 1, "{error}");
    }
    for words in [["--xml", "/nonexistent"], ["--socket", "/nonexistent"], ["--pid", "4294967295"]]
    {
        let output = hvb(&["doctor", words[0], words[1]]);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert_eq!(stderr(&output).lines().count(), 1, "{words:?}");
    }
}

#[test]
fn our_own_machine_is_judged_by_its_guest() {
    let monitor = Monitor::start(Guest::new(1 << 30));
    let output = hvb(&["doctor", "--socket", monitor.path()]);
    let text = stdout(&output);
    let (_, machine) = text.split_once("\nVM ").unwrap();
    assert!(machine.contains("the guest cannot grow past its boot memory"), "{machine}");
    assert!(machine.contains("--max-memory SIZE"), "{machine}");
}

#[test]
fn a_process_that_is_no_qemu_is_named() {
    let own = std::process::id().to_string();
    let output = hvb(&["doctor", "--pid", &own]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains(&format!("process {own}: there is no QEMU in it")));
}

#[test]
fn a_qemu_that_answers_nonsense_is_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let greeting = b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2}, \"package\": \"\"}, \"capabilities\": []}}\r\n";
        let _ = stream.write_all(greeting);
        let mut buffer = [0; 4096];
        let mut answers =
            [r#"{"return": {}}"#, r#"{"error": {"class": "CommandNotFound", "desc": "no"}}"#]
                .into_iter();
        // An answer without an identifier is one to whatever was asked.
        while let Ok(1..) = stream.read(&mut buffer) {
            let line =
                answers.next().unwrap_or(r#"{"return": [[{"type": 1}], "x", null, {"name": {}}]}"#);
            if stream.write_all(format!("{line}\n").as_bytes()).is_err() {
                return;
            }
        }
    });
    let output = hvb(&["doctor", "--socket", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stdout(&output).contains("\nVM without a name (QEMU)\n"));
}
