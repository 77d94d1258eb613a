//! Machines with names, and machines defined in a file.

use crate::common::{Guest, Monitor, command, stderr, stdout};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

const GIB: u64 = 1 << 30;

fn in_directory(directory: &Path, arguments: &[&str]) -> Output {
    command(arguments).env("HVB_RUN_DIR", directory).output().unwrap()
}

fn path(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn machines_are_listed_and_can_be_called_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let monitor = Monitor::start_at(&directory.path().join("db.sock"), Guest::new(GIB));
    drop(UnixListener::bind(directory.path().join("gone.sock")).unwrap());
    fs::write(directory.path().join("notes.txt"), "").unwrap();

    let list = stdout(&in_directory(directory.path(), &["list"]));
    let lines: Vec<Vec<&str>> =
        list.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = [
        vec!["NAME", "STATUS", "MEMORY", "BOOT", "MAXIMUM"],
        vec!["db", "running", "1", "GiB", "1", "GiB", "1", "GiB"],
        vec!["gone", "ended"],
    ];
    assert_eq!(lines, expected);

    let output = in_directory(directory.path(), &["balloon", "db", "512M", "--wait"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(monitor.guest.target(), GIB / 2);
    let info = stdout(&in_directory(directory.path(), &["info", "db"]));
    assert!(info.contains("db.sock") && info.contains("512 MiB"), "{info}");

    let output = in_directory(directory.path(), &["info", "other"]);
    assert!(stderr(&output).contains("other.sock: no such socket"), "{}", stderr(&output));
}

#[test]
fn where_no_machine_runs_the_list_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("hvb");
    let output = in_directory(&missing, &["list"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("no machine runs that has a name"), "{}", stdout(&output));
    fs::write(&missing, "").unwrap();
    let output = in_directory(&missing, &["list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hvb: Not a directory"), "{}", stderr(&output));
}

#[test]
fn a_definition_is_printed_with_its_defaults_and_refused_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = path(&directory, "db.toml");
    let run = |text: &str, arguments: &[&str]| {
        fs::write(&file, text).unwrap();
        command(&[&["run", "--config", &file], arguments].concat()).output().unwrap()
    };
    let output = run("kernel = 'k'\nmemory = '2G'\n", &["--print-config", "--cpus", "4"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    for line in ["kernel = \"k\"", "memory = \"2G\"", "cpus = 4", "seccomp = \"on\""] {
        assert!(printed.lines().any(|it| it == line), "{line}: {printed}");
    }
    // What was printed is a definition of the same machine.
    assert_eq!(stdout(&run(&printed, &["--print-config"])), printed);

    for (text, status, expected) in [
        ("kernel = 'k'\nmemory = '12Q'\n", 2, "db.toml: --memory <SIZE>: invalid size '12Q'"),
        ("memory = '1G'\n", 2, "db.toml: the following required arguments were not provided"),
        ("kernel = 'k'\nkernal = 'k'\n", 1, "db.toml: unknown key 'kernal'"),
        ("kernel = \n", 1, "db.toml: line 1: "),
        ("kernel = 'k'\nmemory = '2G'\nmax-memory = '1G'\n", 1, "--max-memory 1G is below"),
    ] {
        let output = run(text, &["--print-config"]);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{expected}: {}", stderr(&output));
    }
    // What is wrong with the command line is not the file's fault.
    let output = run("kernel = 'k'\n", &["--cpus", "0"]);
    assert!(!stderr(&output).contains("db.toml"), "{}", stderr(&output));
}
