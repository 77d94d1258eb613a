//! Command lines and domains as people have them, and what is said of each.
//!
//! `golden/NAME.args` or `NAME.xml` is the input, `NAME.txt` the report. With the variable `RENEW` set,
//! reports are written instead of compared.

use std::fs;
use std::path::{Path, PathBuf};

use doctor::{Description, Report, command_line, examine, libvirt};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Reads files beside the input; others are not there.
fn beside(name: &str) -> Result<String, String> {
    fs::read_to_string(directory().join(name)).map_err(|_| "no such file".to_owned())
}

fn describe(file: &Path) -> Description {
    let text = fs::read_to_string(file).unwrap();
    if file.extension().is_some_and(|it| it == "xml") {
        libvirt::read(&text, &mut beside).unwrap()
    } else {
        Description::of_options(&command_line::of_text(&text).unwrap(), &mut beside)
    }
}

fn inputs() -> Vec<PathBuf> {
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let is_input = |file: &PathBuf| file.extension().is_some_and(|it| it == "args" || it == "xml");
    let mut files: Vec<PathBuf> = files.filter(is_input).collect();
    files.sort();
    files
}

#[test]
fn each_machine_has_its_report() {
    let files = inputs();
    assert_eq!(files.len(), 12);
    for file in files {
        let report = Report { sections: vec![examine(&describe(&file))] };
        let golden = file.with_extension("txt");
        if std::env::var_os("RENEW").is_some() {
            fs::write(&golden, report.to_string()).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap();
        assert_eq!(report.to_string(), expected, "{}", file.display());
    }
}

#[test]
fn a_machine_with_all_remedies_is_fine() {
    for file in ["plain-good.args", "libvirt-good.xml"] {
        let found = examine(&describe(&directory().join(file)));
        assert_eq!(Report { sections: vec![found] }.level(), doctor::Level::Note, "{file}");
    }
}
