//! The page of `hvb balance --listen` in a real browser: Debian's Chromium without a window.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Guest, Monitor};
use crate::place::{MIB, Place, eventually};
use crate::web::serving;

/// A browser with one page. It is told what to do over two pipes.
struct Browser {
    child: Child,
    commands: File,
    answers: BufReader<File>,
    last_id: u64,
    session: Option<String>,
}

impl Browser {
    fn start(place: &Place) -> Self {
        let (commands, answers) = (place.path("commands"), place.path("answers"));
        for pipe in [&commands, &answers] {
            assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        }
        let profile = format!("--user-data-dir={}", place.path("profile").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
            &profile,
            "about:blank",
        ];
        // It reads commands from descriptor 3 and writes answers to 4.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec chromium \"$@\" 3<\"$COMMANDS\" 4>\"$ANSWERS\"", "sh"]).args(flags);
        shell.env("COMMANDS", &commands).env("ANSWERS", &answers).env("HOME", place.0.path());
        let log = File::create(place.path("browser.log")).unwrap();
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = shell.spawn().unwrap();
        // Each open waits for the other side, in the shell's order.
        let commands = fs::OpenOptions::new().write(true).open(commands).unwrap();
        let answers = BufReader::new(File::open(answers).unwrap());
        let mut browser = Self { child, commands, answers, last_id: 0, session: None };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser
    }

    /// Has a command carried out and returns its result.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let mut message = Vec::new();
            self.answers.read_until(0, &mut message).unwrap();
            assert_eq!(message.pop(), Some(0), "the browser ended: is chromium installed?");
            let mut message: Value = serde_json::from_slice(&message).unwrap();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let question = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.ask("Runtime.evaluate", question);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    fn until(&mut self, what: &str, expression: &str) {
        eventually(what, || self.value(expression) == true);
    }

    fn text(&mut self) -> String {
        self.value("document.body.innerText").as_str().unwrap().to_owned()
    }

    fn set_size(&mut self, width: u32, height: u32, is_phone: bool) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone
        });
        self.ask("Emulation.setDeviceMetricsOverride", size);
    }

    fn set_scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// Saves what is seen.
    fn picture(&mut self, file: &Path) {
        let answer = self.ask("Page.captureScreenshot", json!({ "format": "png" }));
        let text = answer["data"].as_str().unwrap();
        let mut decode = Command::new("base64");
        decode.arg("-d").stdin(Stdio::piped()).stdout(File::create(file).unwrap());
        let mut decode = decode.spawn().unwrap();
        decode.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const CARDS: &str = "document.querySelectorAll('#vms article').length";

#[test]
fn the_page_shows_all_machines_and_changes_by_itself() {
    let place = Place::new();
    let db = Guest::new(256 * MIB).that_uses(64 * MIB);
    let db = Monitor::start_at(&place.path("db.sock"), db);
    // A name is a text, whatever is in it.
    let evil = Guest::new(192 * MIB).that_uses(100 * MIB);
    let evil = Monitor::start_at(&place.path("<img src=x onerror=alert(1)>.sock"), evil);
    let (balancer, address) = serving(&place, &[]);
    let mut browser = Browser::start(&place);
    browser.ask("Page.enable", json!({}));
    browser.ask("Page.navigate", json!({ "url": format!("http://{address}/") }));
    browser.until("two machines are shown", &format!("{CARDS} == 2"));
    let text = browser.text();
    assert!(text.contains("\ndb") && text.contains("<img src=x onerror=alert(1)>"), "{text}");
    assert_eq!(browser.value("document.images.length"), 0);
    // What the balancer does is seen without a key being pressed.
    eventually("it is told and shown", || {
        [&db, &evil].into_iter().for_each(Monitor::report);
        browser.text().contains(" MiB → ")
    });
    assert_eq!(browser.value("document.body.classList.contains('stale')"), false);
    let web = Guest::new(128 * MIB).that_uses(40 * MIB);
    let web = Monitor::start_at(&place.path("web.sock"), web);
    browser.until("a new machine is shown", &format!("{CARDS} == 3"));
    drop(evil);
    fs::remove_file(place.path("<img src=x onerror=alert(1)>.sock")).unwrap_or_default();
    browser.until("a machine that has gone is not", &format!("{CARDS} == 2"));
    drop(web);
    browser.until(
        "a machine that does not answer looks stale",
        "document.querySelector('article.stale h2')?.textContent == 'web' || \
         document.querySelectorAll('#vms article').length == 1",
    );

    // It fits a phone, and is dark if the user's other programs are.
    browser.set_size(360, 740, true);
    let fits = "document.documentElement.scrollWidth <= innerWidth";
    assert_eq!(browser.value(fits), true);
    let mut background = |scheme| {
        browser.set_scheme(scheme);
        browser.value("getComputedStyle(document.body).backgroundColor")
    };
    assert_ne!(background("light"), background("dark"));

    drop(balancer);
    browser.until(
        "the page says that the balancer is gone",
        "document.body.classList.contains('stale')",
    );
    assert!(browser.text().contains("The balancer has told nothing for "));
    let _balancer = place.balancer_with(|command| {
        command.args(["--listen", &address]);
    });
    browser.until("it goes on by itself", "!document.body.classList.contains('stale')");
}

/// Draws the picture of docs/metrics.md: `HVB_PAGE_PICTURE=FILE cargo test -p hvb --test cli page:: -- --ignored`.
#[test]
#[ignore = "draws a picture"]
fn picture() {
    let file = std::env::var("HVB_PAGE_PICTURE").expect("HVB_PAGE_PICTURE is the file to write");
    let place = Place::new();
    let vms = place.crowd();
    let (_balancer, address) = serving(&place, &[]);
    let mut browser = Browser::start(&place);
    browser.set_size(1000, 640, false);
    browser.ask("Page.navigate", json!({ "url": format!("http://{address}/") }));
    eventually("all are told", || {
        vms.iter().for_each(Monitor::report);
        browser.text().matches("ago: ").count() >= 3
    });
    browser.picture(Path::new(&file));
}
