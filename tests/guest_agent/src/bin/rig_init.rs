//! Process 1 of the rig: gives the host's file system a temporary writable layer, runs one command
//! in it, and transfers input, output and exit status over the link of [`guest_agent::rig`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::boot::{self, mount_fs};
use guest_agent::rig::{JOB_FILE, Job, Kind, PORT, ROOT_TAG, read_frame, write_frame};
use nix::mount::{MsFlags, mount};
use nix::pty::{Winsize, openpty};

/// How long output may still arrive after the command ended: a process that it left behind may hold
/// the pipes open for good.
const DRAIN: Duration = Duration::from_secs(2);

const NEW_ROOT: &str = "/root";

fn main() {
    if let Err(error) = boot_and_run() {
        eprintln!("rig: {error}");
    }
    eprintln!("rig: {}", boot::power_off());
}

fn boot_and_run() -> io::Result<()> {
    boot::mount_kernel_file_systems()?;
    let failed = boot::load_modules(boot::USUAL_MODULES, &[])?;
    let link = Link::open(open_port().map_err(|e| io::Error::other(format!("{e} {failed:?}")))?)?;
    let outcome = run(&link);
    nix::unistd::sync();
    match outcome {
        Ok(status) => link.send(Kind::Exited, &status.to_le_bytes())?,
        Err(error) => link.send(Kind::Failed, error.to_string().as_bytes())?,
    }
    // The host ends this machine once it has read that. Without a host, power off.
    thread::sleep(Duration::from_secs(10));
    Ok(())
}

fn run(link: &Link) -> io::Result<i32> {
    let job: Job = serde_json::from_reader(File::open(JOB_FILE)?)?;
    lay_root(&job)?;
    nix::unistd::chroot(NEW_ROOT)?;
    std::env::set_current_dir(&job.cwd)
        .map_err(|e| io::Error::other(format!("{}: {e}", job.cwd.display())))?;
    link.send(Kind::Started, &[])?;
    let status = match job.terminal {
        None => run_with_pipes(link, &job)?,
        Some(size) => run_with_terminal(link, &job, size)?,
    };
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Sets up the root: the host's, read-only, with a writable layer in memory over it, and this
/// machine's own devices.
fn lay_root(job: &Job) -> io::Result<()> {
    const HOST: &str = "trans=virtio,version=9p2000.L,msize=1048576,ro,cache=loose";
    // Not cached: what the command wrote must have reached the host when the command ends.
    const SHARE: &str = "trans=virtio,version=9p2000.L,msize=1048576,cache=none";
    mount_fs("9p", ROOT_TAG, "/lower", HOST)?;
    mount_fs("tmpfs", "tmpfs", "/layer", "size=75%")?;
    fs::create_dir("/layer/upper")?;
    fs::create_dir("/layer/work")?;
    let layers = "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work";
    mount_fs("overlay", "overlay", NEW_ROOT, layers)?;
    for dir in ["dev", "proc", "sys"] {
        let target = format!("{NEW_ROOT}/{dir}");
        mount(
            Some(format!("/{dir}").as_str()),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        symlink(format!("/proc/self/{target}"), format!("/dev/{link}"))?;
    }
    mount_fs("devpts", "devpts", &format!("{NEW_ROOT}/dev/pts"), "ptmxmode=666")?;
    mount_fs("tmpfs", "tmpfs", &format!("{NEW_ROOT}/dev/shm"), "")?;
    mount_fs("tmpfs", "tmpfs", &format!("{NEW_ROOT}/run"), "")?;
    // The directory of KVM's statistics. Only measurements need it.
    let _ = mount_fs("debugfs", "debugfs", &format!("{NEW_ROOT}/sys/kernel/debug"), "");
    for (tag, path) in &job.writable {
        mount_fs("9p", tag, &format!("{NEW_ROOT}{}", path.display()), SHARE)?;
    }
    Ok(())
}

fn run_with_pipes(link: &Link, job: &Job) -> io::Result<ExitStatus> {
    let mut child = command(job, &job.command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::other(format!("{}: {e}", job.command[0])))?;
    let input = child.stdin.take();
    let (done, ended) = channel();
    if let Some(output) = child.stdout.take() {
        link.pump(output, Kind::Stdout, done.clone());
    }
    if let Some(output) = child.stderr.take() {
        link.pump(output, Kind::Stderr, done);
    }
    link.feed(input);
    wait_and_drain(&mut child, &ended)
}

fn run_with_terminal(
    link: &Link,
    job: &Job,
    (rows, columns): (u16, u16),
) -> io::Result<ExitStatus> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    // A terminal needs a session of its own to deliver ctrl-C; setsid(1) makes one.
    let mut line = vec!["setsid".to_owned(), "--ctty".to_owned(), "--wait".to_owned()];
    line.extend(job.command.iter().cloned());
    let mut child = command(job, &line)
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave)
        .spawn()
        .map_err(|e| io::Error::other(format!("setsid: {e}")))?;
    let master = File::from(pty.master);
    let (done, ended) = channel();
    link.pump(master.try_clone()?, Kind::Stdout, done);
    link.feed(Some(master));
    wait_and_drain(&mut child, &ended)
}

fn command(job: &Job, line: &[String]) -> Command {
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).env_clear().envs(job.env.iter().cloned());
    command
}

/// Waits for the command and then for its output: `ended` closes when all of it has been sent.
fn wait_and_drain(child: &mut Child, ended: &Receiver<()>) -> io::Result<ExitStatus> {
    let status = child.wait()?;
    let deadline = Instant::now() + DRAIN;
    while ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    Ok(status)
}

/// The framed connection to the host, shared by the threads that carry output.
#[derive(Clone)]
struct Link {
    out: Arc<Mutex<File>>,
    port: Arc<File>,
}

impl Link {
    fn open(port: File) -> io::Result<Self> {
        Ok(Self { out: Arc::new(Mutex::new(port.try_clone()?)), port: Arc::new(port) })
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut out = self.out.lock().map_err(|_| io::Error::other("a thread died"))?;
        write_frame(&mut *out, kind, payload)
    }

    /// Sends what `from` yields until it ends, then drops `done`.
    fn pump(&self, mut from: impl Read + Send + 'static, kind: Kind, done: Sender<()>) {
        let link = self.clone();
        thread::spawn(move || {
            let _done = done;
            let mut buffer = vec![0; 1 << 15];
            // A terminal whose command has ended reads as an error, not as an end.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if link.send(kind, &buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }

    /// Passes the host's input to the command; powers off when the host is gone.
    fn feed<W: Write + Send + 'static>(&self, mut to: Option<W>) {
        let port = Arc::clone(&self.port);
        thread::spawn(move || {
            while let Ok(Some((kind, payload))) = read_frame(&mut &*port) {
                if kind != Kind::Stdin || payload.is_empty() {
                    to = None;
                }
                // A command that no longer reads is not the host's concern.
                if let Some(pipe) = to.as_mut()
                    && pipe.write_all(&payload).and_then(|()| pipe.flush()).is_err()
                {
                    to = None;
                }
            }
            eprintln!("rig: the host is gone: {}", boot::power_off());
        });
    }
}

/// Opens the port by name; it appears a moment after its driver is loaded.
fn open_port() -> io::Result<File> {
    for _ in 0..500 {
        if let Some(device) = find_port("/sys/class/virtio-ports")? {
            return OpenOptions::new().read(true).write(true).open(device);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other(format!("no virtio port named {PORT}")))
}

fn find_port(class: &str) -> io::Result<Option<PathBuf>> {
    if !Path::new(class).exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}
