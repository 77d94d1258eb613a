//! `hvb balance simulate`: scenarios in files.

use std::fs;

use crate::common::{hvb, stderr, stdout};

const SCENARIO: &str = r#"seconds = 300

[host]
memory-mib = 16384

[[vms]]
name = "web"
count = 2
maximum-mib = 8192
cache-mib = 1024

[[vms.load]]
kind = "wave"
low-mib = 600
high-mib = 3000
period = 120

[[vms]]
name = "build"
maximum-mib = 8192

[[vms.load]]
kind = "bursts"
needs-mib = [4096, 4096]
lasts = [20, 20]
pause = [30, 30]
"#;

/// What `hvb balance simulate` says about a file with this text.
fn simulate(text: &str) -> Result<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("host.toml");
    fs::write(&file, text).unwrap();
    let output = hvb(&["balance", "simulate", file.to_str().unwrap()]);
    let place = format!("{}: ", file.display());
    if output.status.success() {
        return Ok(stdout(&output).strip_prefix(&place).unwrap().to_owned());
    }
    let error = stderr(&output);
    assert_eq!(error.lines().count(), 1, "{error}");
    let error = error.strip_prefix(&format!("hvb: {place}"));
    Err(error.unwrap_or_else(|| panic!("{}", stderr(&output))).to_owned())
}

#[test]
fn an_account_has_a_line_for_each_kind_of_vm() {
    let account = simulate(SCENARIO).unwrap();
    let lines: Vec<&str> = account.lines().collect();
    assert_eq!(lines[0], "3 VMs for 300 s on a host of 16 GiB");
    assert!(lines[1].starts_with("VMS ") && lines[1].contains("WAIT P99"), "{account}");
    let names = lines[2..].iter().filter_map(|line| line.split_whitespace().next());
    assert_eq!(names.collect::<Vec<_>>(), ["web", "build", "all"], "{account}");
    assert!(lines.iter().skip(2).all(|line| line.ends_with("0.0 GiB·s")), "{account}");
    assert_eq!(simulate(SCENARIO).unwrap(), account);
}

#[test]
fn a_bad_scenario_is_refused_with_line_and_remedy() {
    let with = |old: &str, new: &str| {
        assert!(SCENARIO.contains(old));
        simulate(&SCENARIO.replacen(old, new, 1)).unwrap_err()
    };
    for (old, new, expected) in [
        (
            "memory-mib = 16384",
            "memory-mib = \"12Q\"",
            "line 4: invalid type: string \"12Q\", expected a whole number from 1 to 1048576",
        ),
        (
            "count = 2",
            "count = 0",
            "line 8: invalid value: integer `0`, expected a whole number from 1 to 4096",
        ),
        ("count = 2", "cuont = 2", "line 8: unknown field `cuont`, expected one of `name`, "),
        ("memory-mib = 16384", "", "line 3: host: give either memory-mib or memory-percent"),
        (
            "maximum-mib = 8192",
            "maximum-mib = 8192\nminimum-mib = 4096",
            "line 6: vms 'web': the minimum of 4.0 GiB is above the startup memory of 1.0 GiB: ",
        ),
        ("\"build\"", "\"web\"", "line 18: vms 'web': the name is given twice: choose another"),
        ("low-mib = 600", "low-mib = 6000", "line 12: vms 'web': low-mib is above high-mib: swap"),
        ("[20, 20]", "[20]", "line 25: invalid length 1, expected "),
        (
            "period = 120",
            "",
            "line 12: vms 'web': a wave has low-mib, high-mib and period, and may ",
        ),
        (
            "lasts = [20, 20]",
            "spread = 5",
            "line 22: vms 'build': bursts have needs-mib, lasts and",
        ),
        ("kind = \"wave\"", "kind = \"wafe\"", "line 13: unknown variant `wafe`, expected `wave`"),
        ("seconds = 300", "seconds = ", "line 1: "),
    ] {
        let error = with(old, new);
        assert!(error.starts_with(expected), "{error}");
    }
    let output = hvb(&["balance", "simulate", "/does/not/exist"]);
    assert!(stderr(&output).starts_with("hvb: /does/not/exist: No such file"));
}
