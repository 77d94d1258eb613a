//! A running `hvb run` with the test guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qmp::{Client, ClientError, DynamicMemoryInfo, Value, XQueryDynamicMemory, qapi};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::config::VmConfig;
use crate::setup::Setup;
use crate::{MIB, PATIENCE, wait_for};

/// A guest that has come up.
///
/// A test ends it with [`Vm::power_off`] or another method that waits for the end. If it is dropped
/// before that, the test has failed, and the last output of guest and `hvb` is printed.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    /// The agent in the guest.
    pub agent: Agent,
    /// A client of the monitor.
    pub monitor: Client,
    dir: TempDir,
    /// How often the test has made the guest's kernel crash.
    crashes: usize,
    ended: bool,
}

impl Vm {
    /// Boots a guest with 1 GiB and waits until its balloon driver is ready.
    ///
    /// # Errors
    ///
    /// The guest does not come up.
    pub fn boot(cpus: u32) -> Result<Self> {
        let mut vm = Self::start(&VmConfig { cpus, ..VmConfig::default() })?;
        vm.wait_for_driver()?;
        Ok(vm)
    }

    /// Boots a guest and waits until its agent is up.
    ///
    /// # Errors
    ///
    /// The guest does not come up.
    pub fn start(config: &VmConfig) -> Result<Self> {
        let mut vm = Self::start_with(config, &Setup::from_env()?)?;
        vm.agent.wait_up()?;
        Ok(vm)
    }

    /// Starts a machine with other files than the usual ones, and waits for its monitor only.
    ///
    /// # Errors
    ///
    /// The machine does not start.
    pub fn start_with(config: &VmConfig, setup: &Setup) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hvb-test-").tempdir()?;
        let mut child = Command::new(&setup.hvb)
            .args(config.arguments(setup))
            .arg("--qmp")
            .arg(dir.path().join("qmp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| setup.hvb.display().to_string())?;
        let input = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let agent = Agent::new(input, output);
        let monitor = match connect_to_new(&dir.path().join("qmp"), &mut child) {
            Ok(monitor) => monitor,
            Err(error) => {
                let words = fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
                let _ = child.kill().and_then(|()| child.wait());
                return Err(error.context(words));
            }
        };
        Ok(Self { child, agent, monitor, dir, crashes: 0, ended: false })
    }

    /// The path of the monitor's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }

    /// Another client of the monitor.
    ///
    /// # Errors
    ///
    /// The monitor does not answer.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.socket(), PATIENCE)?)
    }

    /// Waits until the guest's balloon driver is ready and idle; returns the guest's size in bytes.
    ///
    /// # Errors
    ///
    /// The driver does not become ready.
    pub fn wait_for_driver(&mut self) -> Result<u64> {
        let what = "a guest's balloon driver that waits for requests";
        wait_for(what, || {
            let status = self.dynamic_memory()?;
            Ok((status.state == "idle").then_some(status.actual))
        })
        .with_context(|| format!("{:?}", self.dynamic_memory()))
    }

    /// The guest's size in bytes, according to the monitor.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn actual(&mut self) -> Result<u64> {
        Ok(self.monitor.run(&qapi::query_balloon {})?.actual.unsigned_abs())
    }

    /// The balloon's state in detail.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn dynamic_memory(&mut self) -> Result<DynamicMemoryInfo> {
        Ok(self.monitor.run(&XQueryDynamicMemory {})?)
    }

    /// Sets a target of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`Client::execute`].
    pub fn set_target(&mut self, bytes: u64) -> Result<(), ClientError> {
        self.monitor.execute("balloon", json!({ "value": bytes })).map(drop)
    }

    /// Sets a target of `bytes` and waits until the guest has that size.
    ///
    /// # Errors
    ///
    /// The guest does not get there, or stops short of it.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        self.set_target(bytes)?;
        self.wait_for_size(bytes)
    }

    /// Waits until the guest has `bytes` and has taken back all returned pages.
    ///
    /// # Errors
    ///
    /// The guest does not get there, or stops short of it.
    pub fn wait_for_size(&mut self, bytes: u64) -> Result<()> {
        wait_for(&format!("a guest of {} MiB", bytes / MIB), || {
            let status = self.dynamic_memory()?;
            let stopped = has_stopped(&status) && status.actual != bytes;
            ensure!(!stopped, "the guest stopped short of {bytes}: {status:?}");
            Ok(has_size(&status, bytes).then_some(()))
        })
        .with_context(|| format!("{:?}", self.dynamic_memory()))
    }

    /// Sets a target of `bytes` and waits until the guest has that size or stops; returns the
    /// state.
    ///
    /// # Errors
    ///
    /// Neither happens.
    pub fn approach(&mut self, bytes: u64) -> Result<DynamicMemoryInfo> {
        self.set_target(bytes)?;
        let what = format!("a guest of {} MiB, or a reason why not", bytes / MIB);
        wait_for(&what, || {
            let status = self.dynamic_memory()?;
            let ended = has_stopped(&status) || has_size(&status, bytes);
            Ok(ended.then_some(status))
        })
        .with_context(|| format!("{:?}", self.dynamic_memory()))
    }

    /// Executes a command of the human monitor and returns what it prints.
    ///
    /// # Errors
    ///
    /// As [`Client::execute`].
    pub fn human(&mut self, line: &str) -> Result<String> {
        let arguments = json!({ "command-line": line });
        let answer = self.monitor.execute("human-monitor-command", arguments)?;
        Ok(answer.as_str().with_context(|| answer.to_string())?.to_owned())
    }

    /// Unbinds the guest's balloon device from its driver and binds it again. Debian's `hv_balloon`
    /// cannot be unloaded, as it has no exit function; this closes and opens the channel in the
    /// same way.
    ///
    /// # Errors
    ///
    /// The guest refuses, or the driver does not come back.
    pub fn rebind_driver(&mut self) -> Result<()> {
        let device = self.unbind_driver()?;
        self.bind_driver(&device)?;
        self.wait_for_driver().map(drop)
    }

    /// Binds the guest's balloon device to its driver.
    ///
    /// # Errors
    ///
    /// The driver does not accept it.
    pub fn bind_driver(&mut self, device: &str) -> Result<()> {
        self.agent.ask(&format!("write {DRIVER}/bind {device}")).map(drop)
    }

    /// Unbinds the guest's balloon device from its driver; returns the device's name.
    ///
    /// # Errors
    ///
    /// The guest refuses.
    pub fn unbind_driver(&mut self) -> Result<String> {
        let device = self.balloon_device()?;
        self.agent.ask(&format!("write {DRIVER}/unbind {device}"))?;
        Ok(device)
    }

    /// The name of the guest's balloon device, to which its driver is bound.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn balloon_device(&mut self) -> Result<String> {
        let links = self.agent.ask(&format!("ls {DRIVER}"))?.lines;
        // The others are the driver's own files. A device is named by its GUID.
        let devices: Vec<_> = links.iter().filter(|name| name.len() == 36).collect();
        let [device] = devices.as_slice() else { anyhow::bail!("of the driver: {links:?}") };
        Ok((*device).clone())
    }

    /// Waits for an event with this name and returns its data.
    ///
    /// # Errors
    ///
    /// The event does not come.
    pub fn wait_event(&mut self, name: &str) -> Result<Value> {
        let monitor = &mut self.monitor;
        wait_for(&format!("the event {name}"), || {
            let event = monitor.next_event(Duration::from_secs(1))?;
            Ok(event.filter(|event| event.name == name).map(|event| event.data))
        })
    }

    /// The `hvb` process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the `hvb` process, in bytes.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn resident(&self) -> Result<u64> {
        resident(self.child.id())
    }

    /// The process of `hvb`.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What `hvb` complains of in its log so far, without the crashes that the test has caused.
    ///
    /// # Errors
    ///
    /// The log cannot be read, or tells of other crashes.
    pub fn complaints(&self) -> Result<String> {
        let log = self.log()?;
        let (crashes, rest): (Vec<_>, Vec<_>) =
            log.split_inclusive('\n').partition(|line| line.contains(CRASHED));
        ensure!(crashes.len() <= self.crashes, "crashes that nobody caused: {crashes:?}");
        Ok(rest.concat())
    }

    /// Makes the guest's kernel crash. With `panic=-1` and without a crash kernel, the guest then resets
    /// its machine.
    ///
    /// # Errors
    ///
    /// The console is closed.
    pub fn crash(&mut self) -> Result<()> {
        self.crashes += 1;
        self.agent.tell("sysrq c")
    }

    /// Makes the guest power itself off and checks that everything ends well.
    ///
    /// # Errors
    ///
    /// The end is not clean.
    pub fn power_off(mut self) -> Result<()> {
        self.agent.ask("poweroff")?;
        self.end()
    }

    /// Sends `hvb` a signal.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Sets a resource limit of `hvb` and returns the previous one, for setting it again.
    ///
    /// # Errors
    ///
    /// The process is gone, or its hard limit was lower.
    pub fn set_limit(&self, resource: Resource, most: Option<u64>) -> Result<Option<u64>> {
        // `hvb` has the same hard limit as this process.
        let maximum = rustix::process::getrlimit(resource).maximum;
        let limit = Rlimit { current: most, maximum };
        Ok(prlimit(Some(self.pid()?), resource, limit)?.current)
    }

    /// The highest descriptor number in `hvb`.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn highest_descriptor(&self) -> Result<u64> {
        let names = fs::read_dir(format!("/proc/{}/fd", self.child.id()))?;
        let numbers = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.max().context("no descriptors")
    }

    /// The address space of `hvb`, in bytes.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn address_space(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = text.split(' ').next().context("empty")?.parse()?;
        Ok(pages * 4096)
    }

    /// What `hvb` has written to stderr.
    ///
    /// # Errors
    ///
    /// The file is gone.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("stderr"))?)
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().try_into()?).context("no process")
    }

    /// As [`Vm::power_off`], for a test in which `hvb` had problems to log: each line must contain
    /// `word`.
    ///
    /// # Errors
    ///
    /// The end is not clean, or there was another log line, or none.
    pub fn power_off_after_complaints(mut self, word: &str) -> Result<()> {
        self.agent.ask("poweroff")?;
        self.end_after_complaints(word)
    }

    /// As [`Vm::end`], if `hvb` had problems to log: each line must contain `word`.
    ///
    /// # Errors
    ///
    /// The end is not clean, or there was another log line, or none.
    pub fn end_after_complaints(mut self, word: &str) -> Result<()> {
        let words = self.last_words()?;
        ensure!(!words.is_empty(), "hvb did not complain");
        ensure!(words.lines().all(|line| line.contains(word)), "hvb complained: {words}");
        self.ended = true;
        Ok(())
    }

    /// Sends the agent a command that tells of more and more records, and kills `hvb` when it has
    /// told of so many. Returns all that it told of.
    ///
    /// # Errors
    ///
    /// The agent tells of an error first.
    pub fn cut_power(mut self, command: &str, least: u64) -> Result<Vec<u64>> {
        self.agent.tell(command)?;
        let mut told = Vec::new();
        let begin = Instant::now();
        while (told.len() as u64) < least {
            told.extend(self.agent.next_record(begin)?);
        }
        self.child.kill()?;
        self.child.wait()?;
        // What it had told before it was killed.
        while let Ok(record) = self.agent.next_record(begin) {
            told.extend(record);
        }
        self.ended = true;
        Ok(told)
    }

    /// Waits for an end that was requested: status 0, no socket left, nothing logged.
    ///
    /// # Errors
    ///
    /// The end is not clean, or does not come.
    pub fn end(mut self) -> Result<()> {
        let words = self.last_words()?;
        ensure!(words.is_empty(), "hvb complained: {words}");
        self.ended = true;
        Ok(())
    }

    /// Waits for the end and returns the log.
    fn last_words(&mut self) -> Result<String> {
        let status = self.wait()?;
        let log = self.log()?;
        ensure!(status.success(), "hvb ended with {status}: {log}");
        ensure!(!self.socket().exists(), "hvb left its socket behind");
        ensure!(
            log.matches(CRASHED).count() == self.crashes,
            "not {} crashes: {log}",
            self.crashes
        );
        self.complaints()
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the end of hvb", || Ok(self.child.try_wait()?))
    }
}

/// How many events of each thread a failed test shows.
const EVENTS_SHOWN: usize = 60;

impl Vm {
    /// What `hvb` and its vCPUs did last: by the monitor where it answers, otherwise in what `hvb`
    /// has on stderr.
    fn flight_recorder(&mut self) -> String {
        let dump = self.connect().and_then(|mut client| {
            Ok(client.execute("x-dump-flight-recorder", serde_json::Value::Null)?)
        });
        match dump {
            Ok(mut dump) => {
                shorten(&mut dump);
                format!("{dump:#}")
            }
            Err(error) => match self.dump_to_log() {
                Ok(()) => format!("{error:#}; it is in the log"),
                Err(nor_there) => format!("{error:#}; nor is it in the log: {nor_there:#}"),
            },
        }
    }

    /// Makes `hvb` write its flight recorder to its log, by a signal.
    fn dump_to_log(&mut self) -> Result<()> {
        let before = self.log()?.len();
        // The process's number may be another's after its end.
        ensure!(self.child.try_wait()?.is_none(), "hvb has ended");
        self.signal(Signal::USR1)?;
        wait_for("the flight recorder in the log", || {
            ensure!(self.child.try_wait()?.is_none(), "hvb has ended");
            let log = self.log()?;
            let mut whole = log.get(before..).unwrap_or_default().split_inclusive('\n');
            let dump = |line: &str| line.contains("flight recorder: ") && line.ends_with('\n');
            Ok(whole.any(dump).then_some(()))
        })
    }
}

/// Leaves the newest strings of each list of strings.
fn shorten(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(items) => {
            if items.iter().all(serde_json::Value::is_string) {
                let surplus = items.len().saturating_sub(EVENTS_SHOWN);
                items.drain(..surplus);
            }
            items.iter_mut().for_each(shorten);
        }
        serde_json::Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

/// What `hvb` logs when a guest's kernel crashes.
const CRASHED: &str = "the guest's kernel crashed";

const DRIVER: &str = "/sys/bus/vmbus/drivers/hv_balloon";

impl Drop for Vm {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        println!("-- threads of hvb:\n{}", threads(self.child.id()));
        println!("-- flight recorder:\n{}", self.flight_recorder());
        let _ = self.child.kill();
        let status = self.child.wait();
        println!("-- guest's console:\n{}", self.agent.console.tail());
        let words = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        println!("-- hvb ({status:?}):\n{words}");
    }
}

/// Resident memory of a process, in bytes.
///
/// # Errors
///
/// The process is gone.
pub fn resident(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Whether a guest has this many bytes and has confirmed it.
#[must_use]
pub fn has_size(status: &DynamicMemoryInfo, bytes: u64) -> bool {
    status.actual == bytes && status.state != "unballooning"
}

/// Whether a guest has stopped short of its target and none of its pages is on its way: the reason
/// is given while the last pages are still being discarded.
fn has_stopped(status: &DynamicMemoryInfo) -> bool {
    status.stopped.is_some() && status.in_flight == 0
}

/// The state of each thread of a process: its name, its state, the clock ticks it used in a second,
/// and where in the kernel it is. Distinguishes a guest that spins from one that waits for ever.
fn threads(pid: u32) -> String {
    let before = thread_times(pid);
    std::thread::sleep(Duration::from_secs(1));
    let lines = thread_times(pid).into_iter().zip(before).map(|(now, before)| {
        let stack = fs::read_to_string(format!("/proc/{pid}/task/{}/stack", now.id));
        let stack = stack.unwrap_or_default().replace('\n', " ");
        let used = now.ticks.saturating_sub(before.ticks);
        format!("{} {}: {used} ticks, at {stack}", now.name, now.state)
    });
    lines.collect::<Vec<_>>().join("\n")
}

struct ThreadTime {
    id: String,
    name: String,
    state: String,
    ticks: u64,
}

fn thread_times(pid: u32) -> Vec<ThreadTime> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let time = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (id, rest) = stat.split_once(" (")?;
        let (name, fields) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        // Fields 3, 14 and 15 of proc(5): state, and time in user and kernel mode.
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let state = (*fields.first()?).to_owned();
        Some(ThreadTime { id: id.to_owned(), name: name.to_owned(), state, ticks })
    };
    tasks.filter_map(|entry| time(entry.ok()?)).collect()
}

/// Connects to a socket that appears shortly after its process has started.
fn connect_to_new(socket: &Path, child: &mut Child) -> Result<Client> {
    wait_for("hvb's monitor", || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("hvb ended at once ({status})");
        }
        match Client::connect(socket, PATIENCE) {
            Ok(client) => Ok(Some(client)),
            Err(ClientError::NoSocket { .. } | ClientError::NobodyListens { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}
