//! The execution of each step.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use qmp::{ClientError, Value};
use serde_json::json;

use super::*;
use crate::soak::steps::Visit;

/// The most clients that stay.
const MOST_CLIENTS: usize = 4;

impl Session {
    pub(super) fn act(&mut self, step: &Step, number: u64, tally: &mut Tally) -> Result<()> {
        match step {
            Step::Resize { target, watched: false } => self.approach(*target, tally),
            Step::Resize { target, watched: true } => self.watch(*target, tally),
            Step::ChangeOfMind { targets, last } => {
                for (target, pause) in targets {
                    self.vm.set_target(*target)?;
                    self.pause(*pause, tally)?;
                }
                self.approach(*last, tally)
            }
            Step::Touch(bytes) => self.touch(*bytes),
            Step::CheckerSize(bytes) => self.vm.agent.size_checker(*bytes),
            Step::Queries => self.queries(),
            Step::Report => self.report(tally),
            Step::BadTargets => self.bad_targets(),
            Step::Clients(visit) => self.visit(*visit, tally),
            Step::Reload { midway } => self.reload(*midway, tally),
            Step::Reset { how, midway } => {
                // The kernel's log is long, so every other time is enough.
                if number.is_multiple_of(2) && midway.is_none() {
                    self.read_kernel_log()?;
                }
                self.reset(*how, *midway, tally)
            }
            Step::Devices { seed, mib, midway } => {
                if let Some(target) = midway {
                    self.vm.set_target(*target)?;
                    self.pause(LOOK, tally)?;
                }
                let devices = self.devices.as_mut().context("a step for devices")?;
                devices.store(&mut self.vm, *seed, *mib)
            }
        }
    }

    /// Prepares a guest that has just started, and records what later checks need to know.
    pub(super) fn settle_in(&mut self, tally: &mut Tally) -> Result<()> {
        self.seen = DynamicMemoryInfo::default();
        self.settle(tally)?;
        if let Some(devices) = &self.devices {
            devices.set_up(&mut self.vm)?;
        }
        tally.checks.begin_anew();
        self.lost = 0;
        let total = self.vm.agent.meminfo()?.total;
        self.own = i128::from(total) - i128::from(self.seen.actual);
        self.vm.agent.start_checker(self.seed, CHECKED)?;
        // Linux suppresses its first 45 reports; the parameter is the number still to suppress.
        let parameter = "/sys/module/hv_balloon/parameters/pressure_report_delay";
        self.vm.agent.ask(&format!("write {parameter} 0")).map(drop)
    }

    fn pause(&mut self, pause: Duration, tally: &mut Tally) -> Result<()> {
        std::thread::sleep(pause);
        self.look(tally).map(drop)
    }

    fn touch(&mut self, bytes: u64) -> Result<()> {
        let available = self.vm.agent.meminfo()?.available;
        let mib = available.saturating_sub(UNTOUCHED).min(bytes) / MIB;
        self.vm.agent.ask(&format!("dirty {mib}")).map(drop)
    }

    /// A resize with a client that waits for the event that reports it.
    fn watch(&mut self, target: u64, tally: &mut Tally) -> Result<()> {
        let mut watcher = self.vm.connect()?;
        let before = self.seen.actual;
        self.approach(target, tally)?;
        let actual = self.seen.actual;
        if actual == before {
            return Ok(());
        }
        wait_for(&format!("BALLOON_CHANGE to {actual}"), || {
            let event = watcher.next_event(Duration::from_secs(1))?;
            let told = |event: &qmp::ReceivedEvent| {
                event.name == "BALLOON_CHANGE" && event.data["actual"] == json!(actual)
            };
            Ok(event.filter(told).map(drop))
        })
    }

    fn queries(&mut self) -> Result<()> {
        let status = &self.seen;
        let (actual, added) = (status.actual, status.hot_added);
        ensure!(self.vm.actual()? == actual, "{:?}", self.seen);
        let monitor = &mut self.vm.monitor;
        let devices = monitor.execute("query-memory-devices", Value::Null)?;
        ensure!(devices[0]["data"]["size"] == json!(added), "{devices}, {:?}", self.seen);
        let summary = monitor.execute("query-memory-size-summary", Value::Null)?;
        ensure!(
            summary == json!({ "base-memory": BOOT, "plugged-memory": added }) || self.keep_size,
            "{summary}, {:?}",
            self.seen
        );
        let status = monitor.execute("query-status", Value::Null)?;
        ensure!(status["status"] == json!("running"), "{status}");
        for (line, expected) in [
            ("info balloon", format!("balloon: actual={}\r\n", actual / MIB)),
            ("info status", "VM status: running\r\n".to_owned()),
        ] {
            let said = self.vm.human(line)?;
            ensure!(said == expected, "{line}: {said:?}, not {expected:?}");
        }
        let said = self.vm.human("info memory-devices")?;
        ensure!(said.contains(&format!("size: {added}\r\n")), "{said:?}");
        let said = self.vm.human("info nonsense")?;
        ensure!(said.contains("nonsense"), "{said:?}");
        Ok(())
    }

    /// A report of the guest makes sense. A guest that has just booted may not have sent one.
    fn report(&mut self, tally: &mut Tally) -> Result<()> {
        let answer = self.vm.monitor.execute("query-hv-balloon-status-report", Value::Null);
        let report = match answer {
            Err(ClientError::Command { desc, .. }) if desc.contains("received yet") => {
                return Ok(());
            }
            answer => answer?,
        };
        let field = |name| report[name].as_u64().with_context(|| report.to_string());
        let (committed, available) = (field("committed")?, field("available")?);
        ensure!(committed > 0 && (MIB..=MOST).contains(&available), "{report}");
        tally.reports += 1;
        Ok(())
    }

    fn bad_targets(&mut self) -> Result<()> {
        for bytes in [0, MOST + MIB, 1 << 50] {
            let Err(error) = self.vm.set_target(bytes) else { bail!("{bytes} was taken") };
            ensure!(matches!(error, ClientError::Command { .. }), "{bytes}: {error}");
        }
        let said = self.vm.human("balloon nonsense")?;
        ensure!(!said.is_empty(), "a target that is not a number was accepted");
        Ok(())
    }

    fn visit(&mut self, visit: Visit, tally: &mut Tally) -> Result<()> {
        match visit {
            Visit::Leave => self.clients.clear(),
            Visit::Stay => {
                let client = self.vm.connect()?;
                self.clients.push(client);
                let too_many = self.clients.len().saturating_sub(MOST_CLIENTS);
                self.clients.drain(..too_many);
                tally.clients += 1;
            }
            Visit::Garbage => {
                let mut client = self.raw_client()?;
                client.write_all(b"\x00\xff{]\"\n{\"execute\": 5}\n{{{{[[[[\n\"\n")?;
                client.write_all(&[b'['; 1 << 14]).context("a monitor that takes garbage")?;
                tally.clients += 1;
            }
            Visit::HangUp => {
                let mut client = self.raw_client()?;
                client.write_all(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"ballo")?;
                client.shutdown(Shutdown::Both)?;
                tally.clients += 1;
            }
        }
        Ok(())
    }

    /// A connection that has read the greeting.
    fn raw_client(&self) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.vm.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).context("the monitor's greeting")?;
        }
        Ok(stream)
    }

    /// The driver leaves and comes back. Linux never frees the pages it had given up.
    fn reload(&mut self, midway: Option<u64>, tally: &mut Tally) -> Result<()> {
        if let Some(target) = midway {
            self.vm.set_target(target)?;
            self.pause(LOOK, tally)?;
        }
        let device = self.vm.unbind_driver()?;
        let closed = wait_for("a device without a driver", || {
            let status = self.vm.dynamic_memory()?;
            Ok((status.state == "closed").then_some(status))
        })?;
        ensure!(closed.actual == closed.assigned, "{closed:?}");
        // By the books the ballooned memory is the guest's again, but the guest has lost it.
        let given = self.seen.ballooned;
        self.vm.bind_driver(&device)?;
        self.seen = closed;
        self.settle(tally)?;
        tally.reloads += 1;
        match midway {
            None => self.lost += given,
            Some(_) => {
                tally.reloads_midway += 1;
                self.find_what_was_lost()?;
            }
        }
        Ok(())
    }

    /// A driver that leaves in the middle of a request has lost an amount that only it knows.
    fn find_what_was_lost(&mut self) -> Result<()> {
        let total = i128::from(self.vm.agent.meminfo()?.total);
        let lost = self.own + i128::from(self.seen.actual) - total;
        ensure!(
            lost + i128::from(TOLERANCE) >= i128::from(self.lost),
            "the guest has more than it was given: MemTotal {total}, lost {} before, {:?}",
            self.lost,
            self.seen
        );
        self.lost = u64::try_from(lost).unwrap_or(0);
        Ok(())
    }

    fn reset(&mut self, how: ResetBy, midway: Option<u64>, tally: &mut Tally) -> Result<()> {
        if let Some(target) = midway {
            self.vm.set_target(target)?;
            self.pause(LOOK, tally)?;
            tally.resets_midway += 1;
        }
        self.read_events(tally)?;
        let kept = self.seen.actual;
        match how {
            ResetBy::Monitor => drop(self.vm.monitor.execute("system_reset", Value::Null)?),
            ResetBy::Reboot => drop(self.vm.agent.ask("reboot")?),
            ResetBy::Crash => self.vm.crash()?,
        }
        let event = self.vm.wait_event("RESET")?;
        let by_guest = how != ResetBy::Monitor;
        ensure!(event["guest"] == json!(by_guest), "{event}");
        self.vm.agent.wait_up()?;
        *tally.resets.entry(how).or_default() += 1;
        self.settle_in(tally)?;
        let actual = self.seen.actual;
        match self.keep_size {
            false => ensure!(actual == BOOT, "back with {actual}: {:?}", self.seen),
            true if midway.is_none() => ensure!(
                actual == kept || self.seen.stopped.is_some(),
                "back with {actual} instead of {kept}: {:?}",
                self.seen
            ),
            true => {}
        }
        Ok(())
    }

    /// The guest's kernel has reported no problem.
    fn read_kernel_log(&mut self) -> Result<()> {
        for words in ["WARNING: CPU", "BUG: "] {
            let lines = self.vm.agent.ask(&format!("dmesg {words}"))?.lines;
            // Lockup warnings are expected: an emulated processor may be late.
            let bad: Vec<_> = lines.iter().filter(|line| !line.contains("lockup")).collect();
            ensure!(bad.is_empty(), "the guest's kernel says: {bad:?}");
        }
        Ok(())
    }
}
