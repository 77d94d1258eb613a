//! `hvb top`: what it prints, and its screen in a real terminal, which is tmux's.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Monitor, command, stderr, stdout};
use crate::place::{Balancer, MIB, Place, eventually};

/// A terminal in which `hvb top` runs.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(place: &Place, columns: u16, rows: u16, arguments: &[&str]) -> Self {
        let socket = place.path(&format!("tmux-{columns}"));
        let terminal = Self { socket: socket.to_str().unwrap().to_owned() };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        // The shell behind it shows what the terminal is like afterwards.
        let size = ["new-session", "-d", "-x", &columns, "-y", &rows];
        let shell = ["env", "PS1=done ", "PROMPT_COMMAND=", "bash", "--norc", "--noprofile"];
        terminal.tmux(&[&["-f", "/dev/null"], &size[..], &shell].concat());
        let directory = place.0.path().to_str().unwrap();
        let (hvb, arguments) = (env!("CARGO_BIN_EXE_hvb"), arguments.join(" "));
        terminal.type_text(&format!("HVB_RUN_DIR={directory} {hvb} top {arguments}"));
        terminal.press("Enter");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        // Characters beyond ASCII, whatever the locale.
        let mut tmux = Command::new("tmux");
        let output = tmux.args(["-u", "-S", &self.socket]).args(arguments).env_remove("TMUX");
        let output = output.env("TERM", "xterm-256color").output().expect("tmux is needed");
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    fn lines(&self) -> Vec<String> {
        self.tmux(&["capture-pane", "-p"]).lines().map(str::to_owned).collect()
    }

    /// Sends the program in the terminal a signal.
    fn signal(&self, signal: Signal) {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = format!("/proc/{shell}/task/{shell}/children");
        let child = std::fs::read_to_string(children).unwrap();
        let child = child.split_whitespace().next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(child).unwrap(), signal).unwrap();
    }

    /// Waits for a frame.
    fn until(&self, what: &str, mut holds: impl FnMut(&[String]) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        eventually(what, || {
            lines = self.lines();
            holds(&lines)
        });
        lines
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may be gone.
        let mut tmux = Command::new("tmux");
        let _ = tmux.args(["-S", &self.socket, "kill-server"]).stderr(Stdio::null()).status();
    }
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

/// Machines of which one needs more than it has.
fn machines(place: &Place) -> [Monitor; 3] {
    place.machines([("db", 256, 64), ("mail", 128, 40), ("web", 192, 100)])
}

/// The machines under a balancer that has told them what they should have.
fn balanced(place: &Place) -> ([Monitor; 3], Balancer) {
    let vms = machines(place);
    let balancer = place.balancer();
    eventually("they shrink", || {
        vms.iter().for_each(Monitor::report);
        vms[0].guest.target() < 128 * MIB
    });
    (vms, balancer)
}

#[test]
fn eighty_columns_show_and_set_everything() {
    let place = Place::new();
    let (vms, balancer) = balanced(&place);
    let terminal = Terminal::start(&place, 80, 24, &[]);
    let lines = terminal.until("all are shown", |lines| {
        vms.iter().for_each(Monitor::report);
        has(lines, "db ") && has(lines, "mail ") && has(lines, "web ")
    });
    assert!(lines[0].starts_with("host ") && lines[0].contains("PSI some "), "{lines:#?}");
    assert!(lines[1].starts_with("NAME ") && lines[1].contains(" STATUS "), "{lines:#?}");
    assert!(lines[2].contains('█') && lines[2].contains(" OK "), "{lines:#?}");
    assert!(lines[23].starts_with("q quit"), "{lines:#?}");
    // The pane with the last minute.
    terminal.press("d");
    terminal.until("details", |lines| has(lines, " db: hvb, ") && has(lines, "weight 5000"));
    terminal.until("history", |lines| {
        lines.iter().any(|line| line.starts_with("assigned") && line.contains("█ "))
    });
    // Another machine, and a setting for it.
    terminal.press("Down");
    terminal.until("the next", |lines| has(lines, " mail: hvb, "));
    terminal.press("m");
    terminal.type_text("100M");
    terminal.until("what was typed", |lines| has(lines, "minimum of mail: 100M_"));
    terminal.press("Enter");
    terminal.until("the answer", |lines| has(lines, "mail: minimum=100M is set"));
    terminal.until("the new minimum", |lines| has(lines, "minimum 100M"));
    terminal.press("M");
    terminal.type_text("12Q");
    terminal.press("Enter");
    terminal.until("the refusal", |lines| has(lines, "invalid size '12Q'"));
    terminal.press("h");
    terminal.until("it is held", |lines| has(lines, ", held"));
    // Names with a text, and all again.
    terminal.press("/");
    terminal.type_text("we");
    terminal.until("one name", |lines| has(lines, "/we_") && !has(lines, "\nmail "));
    terminal.press("Escape");
    terminal.press("s");
    terminal.until("another order", |lines| has(lines, "s sort: status"));
    // The balancer goes away and comes back.
    drop(balancer);
    terminal.until("what is shown is old", |lines| {
        has(lines, "nothing new for ") && has(lines, "no balancer runs here")
    });
    let _balancer = place.balancer();
    terminal.until("it is back", |lines| {
        vms.iter().for_each(Monitor::report);
        !has(lines, "nothing new for ") && has(lines, " OK ")
    });
    terminal.press("q");
    terminal.until("the shell is back", |lines| has(lines, "done") && !has(lines, "q quit"));
    terminal.type_text("echo $((6 * 7))");
    terminal.press("Enter");
    terminal.until("it echoes and has lines", |lines| {
        has(lines, "echo $((6") && lines.iter().any(|line| line == "42")
    });
}

#[test]
fn wide_terminals_have_the_reason_in_each_line_and_a_new_size_another_frame() {
    let place = Place::new();
    let (vms, _balancer) = balanced(&place);
    let terminal = Terminal::start(&place, 120, 30, &["--sort", "assigned"]);
    let lines = terminal.until("a reason", |lines| {
        vms.iter().for_each(Monitor::report);
        lines.iter().any(|line| line.starts_with("db ") && line.contains(": to "))
    });
    let db = lines.iter().find(|line| line.starts_with("db ")).unwrap();
    assert!(db.chars().count() > 100 && db.contains("s: to "), "{lines:#?}");
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.until("it fits", |lines| {
        lines.len() == 24 && lines[23].starts_with("q quit") && has(lines, "db ")
    });
    terminal.press("C-c");
    terminal.until("the shell is back", |lines| has(lines, "done") && !has(lines, "q quit"));
}

#[test]
fn without_a_balancer_the_machines_are_asked_and_nothing_is_changed() {
    let place = Place::new();
    let vms = machines(&place);
    let terminal = Terminal::start(&place, 80, 24, &[]);
    let lines = terminal.until("all are shown", |lines| {
        vms.iter().for_each(Monitor::report);
        has(lines, "db ") && has(lines, "web ") && has(lines, " OK ")
    });
    assert!(lines[1].starts_with("no balancer runs: this is read from the monitors"), "{lines:#?}");
    terminal.press("m");
    terminal.until("why not", |lines| has(lines, "start hvb balance"));
    // However it ends, the terminal is as it was.
    terminal.signal(Signal::TERM);
    terminal.until("the shell is back", |lines| has(lines, "done") && !has(lines, "q quit"));
    assert_eq!(vms.map(|vm| vm.guest.target()), [256 * MIB, 128 * MIB, 192 * MIB]);
}

fn top(place: &Place, arguments: &[&str]) -> Command {
    let mut command = command(&[&["top"], arguments].concat());
    command.env("HVB_RUN_DIR", place.0.path()).stdin(Stdio::null());
    command
}

fn say(place: &Place, arguments: &[&str]) -> Result<String, String> {
    let output = top(place, arguments).output().unwrap();
    if output.status.success() { Ok(stdout(&output)) } else { Err(stderr(&output)) }
}

#[test]
fn figures_are_printed_once_as_text_json_and_csv() {
    let place = Place::new();
    let (vms, balancer) = balanced(&place);
    let text = say(&place, &["--once"]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("host ") && lines[1].starts_with("NAME "), "{text}");
    assert_eq!(lines.len(), 5, "{text}");
    let json = say(&place, &["--once", "--json", "--filter", "E", "--sort", "name"]).unwrap();
    assert!(json.starts_with("{\"dry-run\":false") && json.lines().count() == 1, "{json}");
    assert!(json.contains("\"name\":\"web\"") && !json.contains("\"name\":\"db\""), "{json}");
    let csv = say(&place, &["--once", "--csv"]).unwrap();
    let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert!(csv.starts_with("time,name,kind,") && fields == [fields[0]; 4], "{csv}");
    drop(balancer);
    // The same from the machines themselves.
    let mut child = top(&place, &["--once", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it has seen reports", || {
        vms.iter().for_each(Monitor::report);
        child.try_wait().unwrap().is_some()
    });
    let json = stdout(&child.wait_with_output().unwrap());
    assert!(json.starts_with("{\"dry-run\":true") && json.contains("\"name\":\"db\""), "{json}");
    assert!(json.contains("\"demand-kib\":") && json.contains("\"zone\":"), "{json}");
    let glob = place.path("m*.sock");
    let csv = say(&place, &["--once", "--csv", "--vms", glob.to_str().unwrap()]).unwrap();
    assert!(csv.lines().count() == 2 && csv.contains(",ail,"), "{csv}");
}

#[test]
fn lines_come_until_nobody_reads_them() {
    let place = Place::new();
    let (_vms, _balancer) = balanced(&place);
    let mut child: Child = top(&place, &["--csv"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let names = (0..7).map(|_| lines.next().unwrap().unwrap());
    let names: Vec<String> = names.map(|line| line.split(',').nth(1).unwrap().to_owned()).collect();
    assert_eq!(names, ["name", "db", "mail", "web", "db", "mail", "web"]);
    drop(lines);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_place_without_a_terminal_or_a_balancer_is_told_what_to_do() {
    let place = Place::new();
    let error = say(&place, &[]).unwrap_err();
    assert_eq!(error, "hvb: this is no terminal: use --once, --json or --csv\n");
    let missing = place.path("no.control");
    let error = say(&place, &["--once", "--control", missing.to_str().unwrap()]).unwrap_err();
    assert!(error.contains("no balancer runs here: start hvb balance"), "{error}");
    for (arguments, expected) in [
        (&["--sort", "color"][..], "invalid value 'color' for '--sort <COLUMN>'"),
        (&["--json", "--csv"], "cannot be used with"),
        (&["--vms", "/run/["], "'/run/[' is no pattern for sockets"),
        (&["--vms", "x", "--control", "y"], "cannot be used with"),
    ] {
        let error = say(&place, &[&["--once"], arguments].concat()).unwrap_err();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    assert!(!Path::new(&place.path("balance.control")).exists(), "it controls nothing");
    // Without machines there is an answer too.
    let text = say(&place, &["--once"]).unwrap();
    assert!(text.contains("no virtual machine was found"), "{text}");
}

/// Writes the frames of docs/top.md: `HVB_TOP_FRAMES=FILE cargo test -p hvb --test cli top:: -- --ignored`.
#[test]
#[ignore = "writes frames"]
fn frames() {
    let file = std::env::var("HVB_TOP_FRAMES").expect("HVB_TOP_FRAMES is the file to write");
    let place = Place::new();
    let vms = place.crowd();
    let wide = Terminal::start(&place, 120, 12, &["--sort", "pressure"]);
    wide.until("it waits", |lines| has(lines, "no balancer runs"));
    wide.press("q");
    let _balancer = place.balancer();
    eventually("they are told", || {
        vms.iter().for_each(Monitor::report);
        vms[0].guest.target() < 512 * MIB
    });
    wide.press("Up");
    wide.press("Enter");
    let many = wide.until("all are told", |lines| {
        vms.iter().for_each(Monitor::report);
        !has(lines, "no balancer runs") && has(lines, "9s: to")
    });
    drop(wide);
    let narrow = Terminal::start(&place, 80, 20, &[]);
    narrow.until("it is shown", |lines| has(lines, "db "));
    narrow.press("d");
    let mut seconds = 0;
    let one = narrow.until("it has a history", |lines| {
        vms.iter().for_each(Monitor::report);
        seconds += 1;
        seconds > 300 && has(lines, "assigned")
    });
    std::fs::write(file, [many.join("\n"), one.join("\n")].join("\n\n")).unwrap();
}
