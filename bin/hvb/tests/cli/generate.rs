//! Man pages and completions.

use std::fs;
use std::process::Command;

use crate::common::{hvb, stderr, stdout};

/// The commands that a help text lists.
fn commands(of: &[&str]) -> Vec<String> {
    let help = stdout(&hvb(&[of, &["--help"]].concat()));
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let words = list.take_while(|line| !line.is_empty());
    let words = words.filter_map(|line| line.split_whitespace().next());
    words.filter(|word| *word != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_man_page_and_completions() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("share");
    let output = hvb(&["generate", directory.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("man/man1"));

    let page = |name: &str| {
        let file = directory.join("man/man1").join(format!("{name}.1"));
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let of_balance = commands(&["balance"]);
    assert!(page("hvb").contains("Boot and resize virtual machines"));
    assert!(of_balance.len() >= 8, "{of_balance:?}");
    for command in commands(&[]) {
        assert!(page(&format!("hvb-{command}")).contains("SYNOPSIS"), "{command}");
    }
    for command in &of_balance {
        assert!(page(&format!("hvb-balance-{command}")).contains("SYNOPSIS"), "{command}");
    }
    assert!(page("hvb-balance-set").contains("startup, minimum, maximum"));
    assert!(!directory.join("man/man1/hvb-generate.1").exists());

    for (file, text) in [
        ("fish/vendor_completions.d/hvb.fish", "reserve"),
        ("zsh/site-functions/_hvb", "#compdef hvb"),
    ] {
        assert!(fs::read_to_string(directory.join(file)).unwrap().contains(text), "{file}");
    }
    let script = directory.join("bash-completion/completions/hvb");
    let ask = "source \"$0\"; COMP_WORDS=(hvb balance re); COMP_CWORD=2; _hvb hvb re balance; \
               echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", ask]).arg(script).output().unwrap();
    let offered = stdout(&output);
    let mut offered: Vec<&str> = offered.split_whitespace().collect();
    offered.sort_unstable();
    let mut expected: Vec<&String> =
        of_balance.iter().filter(|command| command.starts_with("re")).collect();
    expected.sort_unstable();
    assert_eq!(offered, expected);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let output = hvb(&["generate", "/dev/null/share"]);
    assert!(!output.status.success());
    assert_eq!(stderr(&output), "hvb: /dev/null/share/man/man1: Not a directory (os error 20)\n");
}
