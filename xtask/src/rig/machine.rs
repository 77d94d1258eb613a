//! The emulated machine: a QEMU process and the socket of its only virtio-serial port.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_agent::rig::{PORT, ROOT_TAG};
use tempfile::TempDir;

use super::emulator::Emulator;
use crate::workspace;

/// How QEMU emulates several processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Threads {
    /// Each in its own host thread.
    Multi,
    /// All in one host thread, in turn.
    Single,
}

/// The parts of the machine.
#[derive(Debug)]
pub(crate) struct Spec {
    /// The QEMU to run.
    pub(crate) emulator: Emulator,
    /// The Linux kernel to boot.
    pub(crate) kernel: PathBuf,
    /// The initramfs with the command to run.
    pub(crate) initramfs: Vec<u8>,
    /// The number of processors.
    pub(crate) cpus: u32,
    pub(crate) threads: Threads,
    /// Kernel parameters beside those that every machine gets.
    pub(crate) append: Vec<String>,
    /// The memory, in MiB.
    pub(crate) memory_mib: u64,
    /// Host directories the machine may write to, with their 9p mount tags.
    pub(crate) writable: Vec<(String, PathBuf)>,
}

/// A running machine; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    /// The frames of [`guest_agent::rig`].
    pub(crate) link: UnixStream,
    dir: TempDir,
}

impl Machine {
    /// Starts the machine.
    ///
    /// # Errors
    ///
    /// QEMU does not start; the error contains its output.
    pub(crate) fn start(spec: &Spec) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hv-balloon-rig-").tempdir()?;
        fs::write(dir.path().join("initramfs"), &spec.initramfs)?;
        let listener = UnixListener::bind(dir.path().join("link"))?;
        listener.set_nonblocking(true)?;
        let mut command = workspace::mortal("KILL", spec.emulator.program.as_os_str());
        command.envs(spec.emulator.environment()).args(spec.emulator.options());
        command.args(arguments(spec, dir.path()));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(dir.path().join("qemu.log"))?);
        // This process handles Ctrl-C.
        command.process_group(0);
        let mut qemu = command.spawn().context("cannot run setpriv (of util-linux)")?;
        match accept(&listener, &mut qemu) {
            Ok(link) => Ok(Self { qemu, link, dir }),
            Err(error) => {
                let _ = qemu.kill().and_then(|()| qemu.wait());
                let words = fs::read_to_string(dir.path().join("qemu.log")).unwrap_or_default();
                bail!("QEMU does not start: {error} {}", words.trim())
            }
        }
    }

    /// How QEMU ended, once its side of the link is closed.
    pub(crate) fn end(&mut self) -> String {
        // The kernel closes the link a moment before the process can be waited for.
        for _ in 0..50 {
            if let Ok(Some(status)) = self.qemu.try_wait() {
                return format!("ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        "is still running".to_owned()
    }

    /// The last lines of output of the machine's kernel and of QEMU.
    pub(crate) fn last_words(&self) -> String {
        let read = |name| fs::read(self.dir.path().join(name)).unwrap_or_default();
        let all = [read("qemu.log"), read("console.log")].concat();
        let text = String::from_utf8_lossy(&all).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((link, _)) => {
                link.set_nonblocking(false)?;
                return Ok(link);
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e.into()),
            Err(_) => {}
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("{status}.");
        }
        if Instant::now() > deadline {
            bail!("it did not open its port.");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn arguments(spec: &Spec, dir: &Path) -> Vec<String> {
    // Virtual GIF is off: with it, QEMU 10.0's emulation lets nested guests hang on two CPUs. The
    // kernel's check of its timer fails on a host so busy that ten ticks take too long. The timer
    // ticks at a fixed rate, since one that is set for each interrupt stays silent for good once an
    // interrupt is lost, as the emulation loses one now and then: docs/rig.md.
    const KERNEL: &str = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check \
                          kvm_amd.vgif=0 nohz=off highres=off";
    let mut arguments: Vec<String> = [
        "-nodefaults -no-user-config -no-reboot -display none",
        "-machine q35 -cpu max,+svm",
        "-device virtio-serial-pci -device virtserialport,chardev=link",
    ]
    .iter()
    .flat_map(|line| line.split(' ').map(str::to_owned))
    .collect();
    if let Some(port) = arguments.last_mut() {
        port.push_str(&format!(",name={PORT}"));
    }
    let file = |name: &str| quote(&dir.join(name));
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-chardev", format!("socket,id=link,path={}", file("link")));
    add("-serial", format!("file:{}", dir.join("console.log").display()));
    let threads = match spec.threads {
        Threads::Multi => "multi",
        Threads::Single => "single",
    };
    add("-accel", format!("tcg,thread={threads}"));
    add("-smp", spec.cpus.to_string());
    add("-m", format!("{}M", spec.memory_mib));
    add("-kernel", spec.kernel.display().to_string());
    add("-initrd", dir.join("initramfs").display().to_string());
    let parameters: Vec<&str> =
        std::iter::once(KERNEL).chain(spec.append.iter().map(String::as_str)).collect();
    add("-append", parameters.join(" "));
    let mut share = |tag: &str, path: &Path, options: &str| {
        let security = "security_model=none,multidevs=remap";
        add("-fsdev", format!("local,id={tag},path={},{security}{options}", quote(path)));
        add("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    };
    share(ROOT_TAG, Path::new("/"), ",readonly=on");
    for (tag, path) in &spec.writable {
        share(tag, path, "");
    }
    arguments
}

/// QEMU's options are lists with commas; a comma in a path is doubled.
fn quote(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
