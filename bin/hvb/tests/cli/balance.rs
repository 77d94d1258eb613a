//! `hvb balance`: the daemon as a process, and its commands.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::{Guest, Monitor, hvb, stdout};
use crate::place::{Balancer, MIB, Place, SETTINGS, eventually};

fn check(text: &str) -> Result<String, String> {
    let place = Place::new();
    place.write(text);
    let file = place.path("balance.toml");
    let answer = place.say(&["--check", "--config", file.to_str().unwrap()]);
    answer.map_err(|error| {
        assert_eq!(error.lines().count(), 1, "{error}");
        let place = format!("hvb: {}: ", file.display());
        error.strip_prefix(&place).unwrap_or_else(|| panic!("{error}")).to_owned()
    })
}

#[test]
fn a_check_prints_all_settings_as_a_file() {
    let printed = check(SETTINGS).unwrap();
    for part in ["reserve = \"1M\"", "surplus-lasts = 0", "stuck-after = 20", "minimum = \"32M\""] {
        assert!(printed.contains(part), "{printed}");
    }
    assert!(printed.contains("/*.sock\"]"), "{printed}");
    assert_eq!(check(&printed).unwrap(), printed);
}

#[test]
fn a_check_names_file_line_and_remedy() {
    for (text, expected) in [
        ("[defaults]\nminimun = \"1G\"", "line 2: unknown field `minimun`, expected one of"),
        (
            "[vm.db]\nminimum = \"2G\"\nmaximum = \"1G\"",
            "line 1: vm.db: the minimum of 2048 MiB is",
        ),
        ("[vm.db]\n\n[vm.db]", "line 3: duplicate key"),
        (
            "[vm.db]\nminimum = \"12Q\"",
            "line 2: invalid size '12Q': a size is a number with K, M, G",
        ),
    ] {
        let error = check(text).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let place = Place::new();
    let error = place.say(&["--config", "/does/not/exist"]).unwrap_err();
    assert!(error.starts_with("hvb: /does/not/exist: No such file"), "{error}");
    let error = place.say(&["--vms", "/run/["]).unwrap_err();
    assert!(error.contains("'/run/[' is no pattern for sockets"), "{error}");
    let error = place.say(&["--check", "--vms", "/run/["]).unwrap_err();
    assert!(error.contains("'/run/[' is no pattern for sockets"), "{error}");
}

#[test]
fn a_name_that_is_no_text_ends_nothing() {
    let place = Place::new();
    let vm = Monitor::start_at(&place.path("db.sock"), Guest::new(256 * MIB).that_uses(64 * MIB));
    fs::write(place.0.path().join(OsStr::from_bytes(b"\xff.sock")), "").unwrap();
    let balancer = place.balancer();
    eventually("it shrinks", || {
        vm.report();
        vm.guest.target() < 128 * MIB
    });
    assert_eq!(balancer.end(Signal::TERM), Some(0));
}

#[test]
fn an_interrupted_reserve_leaves_no_reservation() {
    let place = Place::new();
    // It uses what it has, so that nobody else can have it.
    let [vm] = place.machines([("db", 256, 250)]);
    place.write(&SETTINGS.replace("[host]", "[host]\nlimit = \"400M\""));
    let balancer = place.balancer();
    let reserved = || {
        vm.report();
        place.say(&["status"]).is_ok_and(|status| status.contains("reserved: "))
    };
    eventually("it is known", || place.say(&["explain", "db"]).is_ok());
    let reserve = place.command(&["reserve", "390M", "--timeout", "60"]).spawn().unwrap();
    eventually("it is reserved", reserved);
    let reserve = Balancer(reserve);
    assert_eq!(reserve.end(Signal::INT), Some(1));
    assert!(!reserved());
    assert_eq!(balancer.end(Signal::TERM), Some(0));
}

#[test]
fn commands_need_a_balancer_and_no_options_of_it() {
    let place = Place::new();
    let error = place.say(&["status"]).unwrap_err();
    assert!(error.contains("no balancer runs here: start hvb balance"), "{error}");
    assert!(place.say(&["--dry-run", "status"]).is_err());
    assert!(place.say(&["set", "db"]).is_err());
    let help = stdout(&hvb(&["balance", "--help"]));
    assert!(help.contains("--dry-run") && help.contains("reserve"), "{help}");
}

#[test]
fn the_operator_sees_and_changes_what_the_balancer_does() {
    let place = Place::new();
    let guest = Guest::new(256 * MIB).that_uses(64 * MIB);
    let vm = Monitor::start_at(&place.path("db.sock"), guest);
    let balancer = place.balancer();
    eventually("it shrinks", || {
        vm.report();
        vm.guest.target() < 128 * MIB
    });
    let status = place.say(&["status"]).unwrap();
    let head = status.lines().nth(1).unwrap();
    assert!(head.starts_with("NAME  ASSIGNED"), "{status}");
    assert!(status.starts_with("host: ") && status.contains("\ndb "), "{status}");
    let json = place.say(&["status", "--json"]).unwrap();
    assert!(json.contains(r#""name":"db""#), "{json}");
    let explanation = place.say(&["explain", "db"]).unwrap();
    assert!(explanation.starts_with("db: hvb, /"), "{explanation}");
    assert!(explanation.contains("The guest uses 64.0 MiB."), "{explanation}");

    place.say(&["set", "db", "minimum=256M", "weight=7"]).unwrap();
    eventually("it obeys", || {
        vm.report();
        vm.guest.target() == 256 * MIB
    });
    place.say(&["hold", "db"]).unwrap();
    eventually("it is held", || place.say(&["status"]).unwrap().contains("held"));
    place.say(&["release", "db"]).unwrap();
    eventually("it is free", || !place.say(&["status"]).unwrap().contains("held"));
    let free = place.say(&["reserve", "1M", "--for", "9"]).unwrap();
    assert!(free.starts_with("1 MiB are free, and kept free for"), "{free}");
    let error = place.say(&["reserve", "1000T"]).unwrap_err();
    assert!(error.contains("1000 TiB cannot be had: At most"), "{error}");
    for (arguments, expected) in [
        (&["set", "db", "minimum=12Q"][..], "invalid size '12Q'"),
        (&["set", "db", "maximum=1M"], "the minimum of 256 MiB is above the maximum of 1 MiB"),
        (&["set", "db", "color=red"], "unknown field `color`, expected one of"),
        (&["explain", "web"], "there is no VM 'web' here"),
        (&["hold", "web"], "there is no VM 'web' here"),
    ] {
        let error = place.say(arguments).unwrap_err();
        assert!(error.contains(expected) && error.lines().count() == 1, "{error}");
    }
    let second = place.say(&[]).unwrap_err();
    assert!(second.contains("is in use: another process answers on it"), "{second}");
    assert_eq!(balancer.end(Signal::TERM), Some(0));
    assert!(!place.path("balance.control").exists());
}

#[test]
fn a_balancer_that_is_killed_leaves_all_as_it_is_and_so_does_the_next() {
    let place = Place::new();
    let guest = Guest::new(256 * MIB).that_uses(64 * MIB);
    let vm = Monitor::start_at(&place.path("db.sock"), guest);
    let balancer = place.balancer();
    let is_right = || {
        vm.report();
        place.say(&["explain", "db"]).is_ok_and(|text| text.contains("It has what it wants."))
    };
    eventually("it is right", is_right);
    let target = vm.guest.target();
    assert!(target < 128 * MIB);
    assert_eq!(balancer.end(Signal::KILL), None);
    assert!(place.path("balance.control").exists());
    let next = place.balancer();
    eventually("it is known again", is_right);
    assert_eq!(vm.guest.target(), target);
    assert!(!place.log().contains(" to "), "{}", place.log());
    assert_eq!(next.end(Signal::INT), Some(0));
}

#[test]
fn a_signal_or_a_changed_file_has_it_read_and_a_wrong_one_is_refused() {
    let place = Place::new();
    let guest = Guest::new(256 * MIB).that_uses(64 * MIB);
    let vm = Monitor::start_at(&place.path("db.sock"), guest);
    let balancer = place.balancer();
    let reaches = |size: u64| {
        eventually("it obeys", || {
            vm.report();
            vm.guest.target() == size
        });
    };
    eventually("it shrinks", || {
        vm.report();
        vm.guest.target() < 128 * MIB
    });
    place.write(&format!("{SETTINGS}\n[vm.db]\nminimum = \"200M\"\n"));
    reaches(200 * MIB);
    place.write("[vm.db]\nminimum = \"12Q\"\n");
    eventually("it is refused", || place.log().contains("line 2: invalid size '12Q'"));
    assert!(place.log().contains("the configuration before it stays in force"));
    place.write("");
    eventually("it is refused", || place.log().contains("balance.toml: it has become empty;"));
    let config = place.path("balance.toml");
    fs::remove_file(&config).unwrap();
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    eventually("it is refused", || place.log().contains("balance.toml: no regular file, and read"));
    place.write(&format!("{SETTINGS}\n[vm.db]\nminimum = \"240M\"\n"));
    balancer.signal(Signal::HUP);
    reaches(240 * MIB);
    assert_eq!(balancer.end(Signal::TERM), Some(0));
}

/// What the service manager is told.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

/// A balancer that tells a service manager what it does, and the manager's socket.
fn managed(place: &Place, watchdog: Option<&str>) -> (UnixDatagram, Balancer) {
    let path: PathBuf = place.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let balancer = place.balancer_with(|command| {
        let notify: &Path = &path;
        command.env("NOTIFY_SOCKET", notify).env_remove("WATCHDOG_PID");
        match watchdog {
            Some(usec) => command.env("WATCHDOG_USEC", usec),
            None => command.env_remove("WATCHDOG_USEC"),
        };
    });
    (socket, balancer)
}

#[test]
fn the_service_manager_is_told() {
    let place = Place::new();
    // A monitor that never answers is no reason for the watchdog to bite.
    let hangs = UnixListener::bind(place.path("hangs.sock")).unwrap();
    let (socket, balancer) = managed(&place, Some("30000000"));
    let wait_for = |word: &str| while !told(&socket).contains(word) {};
    wait_for("READY=1");
    place.say(&["status"]).unwrap();
    let _client = hangs.accept().unwrap();
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    balancer.signal(Signal::HUP);
    wait_for("RELOADING=1");
    wait_for("READY=1");
    balancer.signal(Signal::TERM);
    wait_for("STOPPING=1");
}

#[test]
fn a_service_manager_without_a_watchdog_is_told_of_none() {
    let place = Place::new();
    let (socket, balancer) = managed(&place, None);
    eventually("it has looked at the host", || {
        place.say(&["status"]).is_ok_and(|text| text.contains(" for VMs, "))
    });
    balancer.signal(Signal::TERM);
    let mut all = String::new();
    while !all.contains("STOPPING=1") {
        all += &told(&socket);
    }
    assert!(all.starts_with("READY=1") && !all.contains("WATCHDOG"), "{all}");
}

#[test]
fn it_may_open_as_many_files_as_the_limit_can_be_raised_to() {
    let place = Place::new();
    let shell = "ulimit -Sn 64; exec \"$0\" \"$@\"";
    let direct = place.command(&[]);
    let mut command = Command::new("sh");
    command.args(["-c", shell]).arg(direct.get_program()).args(direct.get_args());
    command.env("HVB_RUN_DIR", place.0.path()).stdin(Stdio::null()).stderr(Stdio::null());
    let balancer = Balancer(command.spawn().unwrap());
    eventually("it runs", || place.say(&["status"]).is_ok());
    let limits = fs::read_to_string(format!("/proc/{}/limits", balancer.0.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut files = files.split_whitespace();
    assert_eq!(files.next(), files.next());
}

#[test]
fn a_recording_is_replayed_even_after_a_kill() {
    let place = Place::new();
    let guest = Guest::new(256 * MIB).that_uses(64 * MIB);
    let vm = Monitor::start_at(&place.path("db.sock"), guest);
    let file = place.path("recording");
    let balancer = place.balancer_with(|command| {
        command.arg("--record").arg(&file);
    });
    eventually("it shrinks", || {
        vm.report();
        vm.guest.target() < 128 * MIB
    });
    let path = file.to_str().unwrap();
    let second = place.path("second.control");
    let error = place.say(&["--record", path, "--control", second.to_str().unwrap()]).unwrap_err();
    assert!(error.ends_with("recording: another hvb balance records to it\n"), "{error}");
    balancer.end(Signal::KILL);
    let text = place.say(&["replay", path]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("recorded by hvb 0."), "{text}");
    assert!(lines[1].contains(" s db: 256 to "), "{text}");
    let sums = lines[lines.len() - 2];
    assert!(sums.ends_with("orders, all as they were") && !sums.contains(" 0 orders"), "{text}");
    assert!(lines[lines.len() - 1].starts_with("the recording has no end: "), "{text}");

    place.write(&format!("{SETTINGS}\n[vm.db]\nhold = true\n"));
    let config = place.path("balance.toml");
    let text = place.say(&["replay", path, "--config", config.to_str().unwrap()]).unwrap();
    assert!(text.contains(" s db: nothing\n") && text.contains(" then: 256 to "), "{text}");
    assert!(text.contains(" decisions, 0 orders; "), "{text}");
    assert!(text.contains(" different, and the first different decision is at "), "{text}");

    let picture = place.path("x.svg");
    let plot = ["plot", path, "-o", picture.to_str().unwrap()];
    place.say(&plot).unwrap();
    let svg = fs::read_to_string(&picture).unwrap();
    for text in ["host", "db", "assigned", "demand", "RSS", "pressure", "PSI, some", "<polyline"] {
        assert!(svg.contains(text), "{text}");
    }
    let error = place.say(&[&plot[..], &["--vm", "web"]].concat()).unwrap_err();
    assert!(error.ends_with("recording: there is no VM 'web' in it\n"), "{error}");

    // The next balancer goes on.
    place.write(SETTINGS);
    let balancer = place.balancer_with(|command| {
        command.arg("--record").arg(&file);
    });
    eventually("it runs", || {
        vm.report();
        place.say(&["explain", "db"]).is_ok_and(|text| text.contains("It has what it wants."))
    });
    balancer.end(Signal::TERM);
    let text = place.say(&["replay", path]).unwrap();
    assert!(text.ends_with("orders, all as they were\n"), "{text}");

    for command in
        [&["replay", config.to_str().unwrap()][..], &["plot", "/proc/self/exe", "-o", "x"]]
    {
        let error = place.say(command).unwrap_err();
        assert!(error.ends_with("no recording of hvb balance --record\n"), "{error}");
    }
    let mut bytes = fs::read(&file).unwrap();
    bytes[7] = 9;
    fs::write(&file, bytes).unwrap();
    let error = place.say(&["replay", path]).unwrap_err();
    assert!(
        error.contains("in format 9, and this hvb knows format 1: use the hvb that"),
        "{error}"
    );
}
