//! A machine that a file defines, with a name, and a service manager that is told when it is ready.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Output};

use anyhow::{Context, Result, ensure};
use e2e::{PATIENCE, Setup};

/// A process that does not outlive a failed test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended if the test passed.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_machine_in_a_file_is_ready_when_it_says_so_and_is_known_by_its_name() -> Result<()> {
    let setup = Setup::from_env()?;
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    let definition = format!(
        "kernel = '{}'\ninitrd = '{}'\nappend = 'console=ttyS0 panic=-1'\nmemory = '512M'\nserial = 'file:{}'\n",
        setup.kernel.display(),
        setup.initrd.display(),
        at("console").display()
    );
    fs::write(at("vm.toml"), definition)?;
    let manager = UnixDatagram::bind(at("notify"))?;
    manager.set_read_timeout(Some(PATIENCE))?;

    // Not there yet: hvb makes it.
    let sockets = at("sockets");
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&setup.hvb);
        command.args(arguments).env("HVB_RUN_DIR", &sockets);
        command
    };
    let output = |arguments: &[&str]| -> Result<(Output, String)> {
        let output = command(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output, text))
    };
    let mut machine = command(&["run", "--name", "first", "--config"]);
    machine.arg(at("vm.toml")).env("NOTIFY_SOCKET", at("notify"));
    let mut machine = Running(machine.spawn()?);

    let mut message = [0; 64];
    let received = manager.recv(&mut message).context("nothing was said of readiness")?;
    ensure!(message[..received].starts_with(b"READY=1\n"), "{:?}", &message[..received]);
    let (_, list) = output(&["list"])?;
    let row: Vec<&str> = list.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(row[..4] == ["first", "running", "512", "MiB"], "{list}");

    let (stopped, text) = output(&["stop", "first", "--timeout", "0"])?;
    ensure!(stopped.status.code() == Some(3), "{stopped:?}");
    ensure!(text.contains("was ended without asking its guest"), "{text}");
    ensure!(machine.0.wait()?.success(), "hvb failed");
    let (_, list) = output(&["list"])?;
    ensure!(list.contains("no machine runs"), "{list}");
    Ok(())
}
