//! The test guest's agent: line commands on the serial console.
//! Once the guest is up, the agent writes `@up UPTIME`, followed by the modules that did not load.
//! Then it reads commands, one per line. Each is answered by any number of lines that start with `|
//! ` and a last line, `@ok …` or `@err …`. Everything else on the console comes from the kernel.
//!
//! The kernel command line may name modules not to load at the start, `agent.skip=NAME,NAME`, and
//! another list of modules to load, `agent.modules=LIST`.
//!
//! | command | answer |
//! | --- | --- |
//! | `ping` | |
//! | `uptime` | seconds since boot |
//! | `meminfo` | `MemTotal`, `MemFree`, `MemAvailable`, `Committed_AS` in KiB, as `NAME=VALUE` |
//! | `wait-total least\|most KIB SECONDS` | `MemTotal` once it is at least or at most that; `@err` after so many seconds |
//! | `fill SEED MIB` | a process takes that much memory and fills it with a known pattern |
//! | `check SEED` | pages checked; `@err` with the first page that differs |
//! | `above SEED ADDRESS` | how many of that process's pages are at this guest-physical address or above |
//! | `free SEED` | that process gives its memory back |
//! | `dirty MIB` | memory was touched and freed, so the host had to provide it |
//! | `checker start SEED MIB` | a process keeps at most so much memory, and a file, for good under check |
//! | `checker size MIB` | the most memory it may have from now on |
//! | `checker verify` | it verifies all it has; what it did so far, as `NAME=VALUE`, and the first mismatch |
//! | `checker stop` | it ends |
//! | `online-all` | how many offline blocks of added memory came online |
//! | `clock` | the wall clock, in milliseconds since 1970 |
//! | `set-clock SECONDS` | the wall clock is set to that, in seconds since 1970 |
//! | `insmod NAME`, `rmmod NAME` | |
//! | `dmesg [FILTER]` | kernel messages that hold FILTER, as `\| ` lines, and their count |
//! | `debugfs-balloon` | what the guest's driver says of itself, as `\| ` lines |
//! | `load LIST` | loads another list of modules |
//! | `mount KIND DEVICE DIR`, `umount DIR` | |
//! | `store PATH SEED MIB` | known data is written there, and safe |
//! | `recall PATH SEED MIB` | the data is there, on the disk; `@err` if not |
//! | `append PATH SEED COUNT` | known records, each with a `\| NUMBER` line when it is safe |
//! | `cat PATH`, `ls PATH` | contents, as `\| ` lines |
//! | `write PATH VALUE` | |
//! | `run PROGRAM [ARGUMENT …]` | its output, as `\| ` lines; `@err` with its status and errors |
//! | `kexec` | `@ok`, then the kernel that `kexec` has loaded |
//! | `sysrq C` | |
//! | `reboot`, `poweroff` | `@ok`, then the machine goes |

pub mod checker;
mod kernel;
pub mod memory;
pub mod power;
pub mod storage;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::boot;
use checker::Checker;
use memory::Holders;

/// Brings the guest up and executes commands from the console until the machine goes down.
///
/// # Errors
///
/// The console is closed, or the guest could not be brought up.
pub fn serve_console() -> io::Result<()> {
    boot::mount_kernel_file_systems()?;
    let _ = boot::mount_fs("debugfs", "debugfs", "/sys/kernel/debug", "");
    let failed = boot::load_modules(&kernel::module_list()?, &kernel::modules_to_skip()?)?;
    kernel::prepare()?;

    let console = open_console()?;
    let mut agent = Agent {
        console: console.try_clone()?,
        holders: Holders::default(),
        checker: Checker::default(),
    };
    let failed: String = failed.iter().map(|(name, why)| format!(" ({name}: {why})")).collect();
    agent.line(&format!("@up {}{failed}", kernel::uptime()?))?;
    for line in BufReader::new(console).lines() {
        agent.answer(line?.trim())?;
    }
    Err(io::Error::other("the console was closed"))
}

fn open_console() -> io::Result<File> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/ttyS0")?;
    let mut settings = tcgetattr(console.as_fd())?;
    cfmakeraw(&mut settings);
    tcsetattr(console.as_fd(), SetArg::TCSANOW, &settings)?;
    Ok(console)
}

struct Agent {
    console: File,
    holders: Holders,
    checker: Checker,
}

impl Agent {
    fn answer(&mut self, line: &str) -> io::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        match self.obey(line) {
            Ok(text) => self.line(format!("@ok {text}").trim_end()),
            Err(error) => self.line(&format!("@err {error}")),
        }
    }

    fn obey(&mut self, line: &str) -> io::Result<String> {
        if let Some(wait) = line.strip_prefix("wait-total ") {
            return kernel::wait_for_total(wait);
        }
        if let Some(command) = line.strip_prefix("run ") {
            return self.quote(&kernel::run(command)?);
        }
        if let Some((command, arguments)) = line.split_once(' ') {
            match command {
                "mount" => return storage::mount(arguments),
                "store" => return storage::store(arguments),
                "recall" => return storage::recall(arguments),
                "append" => {
                    return storage::append(arguments, |it| self.line(&format!("| {it}")));
                }
                _ => {}
            }
        }
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        match *words.as_slice() {
            ["ping"] => Ok(String::new()),
            ["uptime"] => kernel::uptime(),
            ["clock"] => kernel::clock(),
            ["set-clock", seconds] => kernel::set_clock(number(seconds)?),
            ["meminfo"] => kernel::meminfo(),
            ["fill", seed, mib] => self.holders.fill(number(seed)?, number(mib)?),
            ["check", seed] => self.holders.check(number(seed)?),
            ["above", seed, address] => self.holders.above(number(seed)?, number(address)?),
            ["free", seed] => self.holders.free(number(seed)?),
            ["dirty", mib] => memory::dirty_in_child(number(mib)?),
            ["checker", what] => self.checker.obey(what),
            ["checker", what, rest] => self.checker.obey(&format!("{what} {rest}")),
            ["online-all"] => kernel::online_all(),
            ["insmod", name] => boot::load_module(name).map(|()| String::new()),
            ["load", list] => load(list),
            ["umount", dir] => storage::unmount(dir),
            ["rmmod", name] => kernel::remove_module(name),
            ["dmesg"] => self.quote(&kernel::messages("")?),
            ["dmesg", filter] => self.quote(&kernel::messages(filter)?),
            ["dmesg", first, rest] => self.quote(&kernel::messages(&format!("{first} {rest}"))?),
            ["debugfs-balloon"] => self.quote_file("/sys/kernel/debug/hv-balloon"),
            ["cat", path] => self.quote_file(path),
            ["ls", path] => self.quote(&kernel::list(path)?),
            ["write", path, value] => std::fs::write(path, value).map(|()| String::new()),
            ["sysrq", key] => std::fs::write("/proc/sysrq-trigger", key).map(|()| String::new()),
            ["reboot"] => self.leave(RebootMode::RB_AUTOBOOT),
            ["kexec"] => self.leave(RebootMode::RB_KEXEC),
            ["poweroff"] => self.leave(RebootMode::RB_POWER_OFF),
            _ => Err(io::Error::other(format!("no such command: {line}"))),
        }
    }

    fn leave(&mut self, how: RebootMode) -> io::Result<String> {
        self.line("@ok")?;
        nix::sys::termios::tcdrain(self.console.as_fd())?;
        match reboot(how)? {}
    }

    fn quote_file(&mut self, path: &str) -> io::Result<String> {
        self.quote(&std::fs::read_to_string(path)?)
    }

    fn quote(&mut self, text: &str) -> io::Result<String> {
        for line in text.lines() {
            self.line(&format!("| {line}"))?;
        }
        Ok(text.lines().count().to_string())
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.console.write_all(format!("{text}\n").as_bytes())
    }
}

fn load(list: &str) -> io::Result<String> {
    let failed = boot::load_modules(list, &[])?;
    if failed.is_empty() { Ok(String::new()) } else { Err(io::Error::other(format!("{failed:?}"))) }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::Error::other(format!("not a number: {text}")))
}
