//! Frames and keys, with ratatui's terminal for tests.

use super::*;
use crate::{Effect, Key};
use balance_host::{ActionStatus, HostStatus, ReservationStatus, SettingsStatus};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;

const GIB: u64 = 1 << 20;

fn vm(name: &str, assigned_kib: u64, demand_kib: u64, status: &str) -> VmStatus {
    let last_action = ActionStatus {
        number: 1,
        vm: name.to_owned(),
        from_kib: assigned_kib / 2,
        to_kib: assigned_kib,
        rule: "It gets what it needs and its buffer at once.".to_owned(),
        reason: "The guest uses 2.0 GiB. It gets what it needs and its buffer at once.".to_owned(),
        age_ms: 12_000,
    };
    VmStatus {
        name: name.to_owned(),
        socket: format!("/run/hvb/{name}.sock"),
        kind: "hvb".to_owned(),
        assigned_kib: Some(assigned_kib),
        demand_kib: Some(demand_kib),
        pressure_permille: Some(demand_kib * 1200 / assigned_kib),
        status: Some(status.to_owned()),
        settings: Some(SettingsStatus {
            startup_kib: 4 * GIB,
            minimum_kib: GIB / 2,
            maximum_kib: 8 * GIB,
            buffer_percent: 20,
            weight: 5000,
        }),
        resident_kib: Some(assigned_kib / 2),
        age_ms: Some(500),
        report_age_ms: Some(700),
        last_action: Some(last_action),
        reason: Some("The guest uses 2.0 GiB. It has what it wants.".to_owned()),
        ..VmStatus::default()
    }
}

fn status() -> Status {
    let host = HostStatus {
        zone: "tight".to_owned(),
        total_kib: 32 * GIB,
        available_kib: 5 * GIB,
        for_vms_kib: 30 * GIB,
        targets_kib: 12 * GIB,
        psi_some_permille: 12,
        ..HostStatus::default()
    };
    let vms = vec![
        vm("db", 6 * GIB, 4 * GIB, "OK"),
        vm("mail", 2 * GIB, 3 * GIB, "Warning"),
        vm("web", 4 * GIB, 4 * GIB, "Low"),
    ];
    Status { host, vms, decisions: 1, stale_after_ms: 10_000, ..Status::default() }
}

fn screen() -> Screen {
    let mut screen = Screen::new(Source::Balancer);
    screen.take(status(), 1000);
    screen
}

fn terminal(screen: &Screen, now_ms: u64, columns: u16, rows: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| screen.draw(now_ms, frame.area(), frame.buffer_mut())).unwrap();
    terminal
}

fn lines(screen: &Screen, now_ms: u64, columns: u16, rows: u16) -> Vec<String> {
    let text = terminal(screen, now_ms, columns, rows).backend().to_string();
    text.lines().map(|line| line.trim_matches('"').trim_end().to_owned()).collect()
}

fn press(screen: &mut Screen, keys: &str) -> Option<Effect> {
    keys.chars().fold(None, |_, key| screen.press(Key::Char(key)))
}

#[test]
fn eighty_columns_have_the_host_and_a_line_for_each_machine() {
    let lines = lines(&screen(), 1000, 80, 10);
    let expected = [
        "host tight  free 5G of 32G  VMs 12G of 30G  PSI some 1.2 full 0.0 %",
        "NAME       0 TO MAXIMUM  ASSIGN DEMAND PRESS STATUS     RSS  AGE LAST ACTION",
        "db         |██████▒▒▒···     6G     4G   80% OK          3G   0s +3G 12s: to 6G.",
        "mail       |██!!········     2G     3G  180% Warning     1G   0s +1G 12s: to 2G.",
        "web        |██████······     4G     4G  120% Low         2G   0s +2G 12s: to 4G.",
        "",
        "",
        "",
        "db +3G 12s: to 6G. It gets what it needs and its buffer at once.",
        "q quit  d details  s sort: name  / filter  m M w h set  ? help",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line, expected, "{lines:#?}");
    }
}

#[test]
fn wide_terminals_have_the_reason_in_each_line() {
    let lines = lines(&screen(), 1000, 140, 10);
    assert!(lines[2].contains("+3G 12s: to 6G. It gets what it needs"), "{lines:#?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 140));
}

#[test]
fn stale_data_look_stale() {
    let mut screen = screen();
    screen.status.vms[0].stale = true;
    let terminal = terminal(&screen, 1000, 80, 10);
    let buffer = terminal.backend().buffer();
    let is_dim = |row| buffer[(40, row)].modifier.contains(Modifier::DIM);
    assert!(is_dim(2) && !is_dim(3));
    let text = lines(&screen, 1000, 80, 10);
    assert!(text[2].contains(" ? stale ") && !text[2].contains('%'), "{text:#?}");
    // A balancer that does not answer makes all of them old.
    screen.fail("it hangs".to_owned());
    let text = lines(&screen, 13_000, 80, 11);
    assert_eq!(text[1], "nothing new for 12s: it hangs");
    assert!(
        text[3..6].iter().all(|line| line.contains("stale") && line.contains(" 12s ")),
        "{text:#?}"
    );
}

#[test]
fn what_is_not_as_usual_is_said() {
    let mut screen = Screen::new(Source::Monitors);
    assert!(lines(&screen, 0, 80, 8).join("\n").contains("waiting for the first figures"));
    let mut status = status();
    status.host.overcommitted_kib = GIB;
    status.reservations.push(ReservationStatus {
        id: 1,
        size_kib: 2 * GIB,
        ready: true,
        impossible: false,
        state: String::new(),
        ends_in_ms: 1,
    });
    status.vms[1].problem = Some("nobody listens".to_owned());
    screen.take(status, 0);
    let text = lines(&screen, 0, 120, 20).join("\n");
    for part in [
        "no balancer runs",
        "overcommitted by 1G",
        "reserved for new machines: 2G",
        "nobody listens",
    ] {
        assert!(text.contains(part), "{text}");
    }
    screen.take(Status { vms: Vec::new(), ..self::status() }, 0);
    assert!(lines(&screen, 0, 80, 8).join("\n").contains("no virtual machine was found"));
    let unknown = HostStatus { zone: "unknown".to_owned(), ..HostStatus::default() };
    screen.take(Status { host: unknown, ..self::status() }, 0);
    assert!(lines(&screen, 0, 80, 8)[0].contains("figures are missing"));
}

#[test]
fn keys_choose_sort_and_filter() {
    let mut screen = screen();
    let names = |screen: &Screen| {
        screen.visible().iter().map(|vm| vm.name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(screen.chosen().unwrap().name, "db");
    press(&mut screen, "jjj");
    assert_eq!(screen.chosen().unwrap().name, "web");
    press(&mut screen, "s");
    assert_eq!((screen.sort, names(&screen)), (Sort::Status, "mail web db".to_owned()));
    assert_eq!(screen.chosen().unwrap().name, "web", "it stays chosen where it is now");
    press(&mut screen, "r");
    assert_eq!(names(&screen), "db web mail");
    screen.press(Key::Home);
    assert_eq!(screen.chosen().unwrap().name, "db");
    press(&mut screen, "/qQB");
    assert_eq!(names(&screen), "", "q is a letter here");
    screen.press(Key::Backspace);
    screen.press(Key::Backspace);
    screen.press(Key::Backspace);
    press(&mut screen, "B");
    assert_eq!(names(&screen), "db web");
    screen.press(Key::Enter);
    let text = lines(&screen, 1000, 100, 10);
    assert!(text[9].ends_with("filter 'B'"), "{text:#?}");
    screen.press(Key::Escape);
    assert_eq!(names(&screen), "db web mail");
    assert_eq!(press(&mut screen, "q"), Some(Effect::Quit));
    press(&mut screen, "/");
    assert_eq!(screen.press(Key::Interrupt), Some(Effect::Quit));
}

#[test]
fn keys_set_what_a_balancer_can_be_told() {
    let mut screen = screen();
    press(&mut screen, "jm2");
    assert_eq!(lines(&screen, 1000, 80, 10)[9], "minimum of mail: 2_");
    press(&mut screen, "G");
    let set =
        |setting: &str| Some(Effect::Set { vm: "mail".to_owned(), setting: setting.to_owned() });
    assert_eq!(screen.press(Key::Enter), set("minimum=2G"));
    screen.answer(Err("it cannot be".to_owned()));
    assert_eq!(lines(&screen, 1000, 80, 10)[9], "it cannot be");
    press(&mut screen, "M9T");
    assert_eq!(screen.press(Key::Escape), None);
    press(&mut screen, "w");
    assert_eq!(screen.press(Key::Enter), None, "nothing was typed");
    press(&mut screen, "w7");
    assert_eq!(screen.press(Key::Enter), set("weight=7"));
    assert_eq!(press(&mut screen, "h"), set("hold=true"));
    screen.status.vms[1].held = true;
    assert_eq!(press(&mut screen, "h"), set("hold=false"));
    screen.source = Source::Monitors;
    assert_eq!(press(&mut screen, "h"), None);
    assert!(lines(&screen, 1000, 80, 10)[9].contains("start hvb balance"));
}

#[test]
fn the_details_have_a_minute_of_history() {
    let mut screen = screen();
    for second in 0..70 {
        let mut status = status();
        status.vms[0].assigned_kib = Some((second % 8 + 1) * GIB);
        screen.take(status, 1000 + second * 1000);
    }
    screen.press(Key::Enter);
    let text = lines(&screen, 71_000, 80, 24).join("\n");
    for part in [
        " db: hvb, /run/hvb/db.sock ",
        "minimum 512M, maximum 8G, startup 4G, buffer 20 %, weight 5000",
        "▁▂▃▄▅▆▇█▁▂▃▄▅▆▇█",
        "max 8G",
        "pressure",
        "It has what it wants. Last action: +",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    screen.press(Key::Escape);
    assert!(!lines(&screen, 71_000, 80, 24).join("\n").contains("weight 5000"));
}

#[test]
fn help_lists_the_keys_until_the_next() {
    let mut screen = screen();
    press(&mut screen, "?");
    assert!(lines(&screen, 1000, 80, 24).join("\n").contains("hold the machine as it is"));
    assert_eq!(press(&mut screen, "q"), None);
    assert!(lines(&screen, 1000, 80, 24).join("\n").contains("mail"));
}

#[test]
fn a_terminal_of_any_size_is_drawn_on() {
    let mut screen = screen();
    press(&mut screen, "d");
    for keys in ["", "?", "?/", "\u{0}"] {
        press(&mut screen, keys);
        for columns in [0, 1, 2, 5, 10, 20, 40, 79, 80, 120] {
            for rows in [0, 1, 2, 3, 5, 8, 13, 24] {
                terminal(&screen, 1000, columns, rows);
            }
        }
    }
    assert!(screen.text(1000, 0).len() < 100);
}

#[test]
fn the_chosen_line_is_seen_in_a_long_table() {
    let mut screen = screen();
    let vms = (0..100).map(|n| vm(&format!("vm{n:02}"), GIB, GIB, "OK")).collect();
    screen.take(Status { vms, ..status() }, 1000);
    screen.press(Key::End);
    let text = lines(&screen, 1000, 80, 24).join("\n");
    assert!(text.contains("\nvm99 ") && !text.contains("\nvm00 "), "{text}");
    let all = screen.text(1000, 80);
    assert_eq!(all.lines().count(), 102, "{all}");
    assert!(all.contains("\nvm00 ") && all.contains("\nvm99 "));
}

#[test]
fn text_of_others_cannot_command_the_terminal() {
    let mut screen = screen();
    let bad = "\x1b[2J\x07\u{9b}31m";
    for vm in &mut screen.status.vms {
        (vm.kind, vm.socket, vm.reason) = (bad.into(), bad.into(), Some(bad.into()));
        vm.problem = Some(bad.into());
        vm.name += bad;
    }
    screen.status.host.zone = bad.to_owned();
    screen.fail(bad.to_owned());
    screen.answer(Err(bad.to_owned()));
    press(&mut screen, "d");
    let text = terminal(&screen, 1000, 120, 30).backend().to_string();
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    assert!(!screen.text(1000, 120).contains('\x1b'));
}
