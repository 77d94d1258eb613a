//! A process's resource usage so far: CPU time by thread, VM exits, memory.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use e2e::peer::Peer;

/// The name used here for the first thread of a process, whatever its real name.
const MAIN_THREAD: &str = "main";

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// The time of all threads except the monitor's, including the guest's own work.
    pub(crate) process: f64,
    /// The time of the vCPU threads.
    pub(crate) vcpu: f64,
    /// The time of the threads that run the balloon device.
    pub(crate) device: f64,
}

impl Cpu {
    /// The time of all threads but the vCPUs: the host's work.
    pub(crate) fn beside(self) -> f64 {
        (self.process - self.vcpu).max(0.0)
    }

    /// Subtracts the CPU time, in seconds, that monitor queries took on the device's threads.
    pub(crate) fn without(self, questions: f64) -> Self {
        let device = (self.device - questions).max(0.0);
        Self { process: self.process - (self.device - device), device, ..self }
    }
}

/// A process's usage up to a point in time, or between two points.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Usage {
    threads: BTreeMap<u32, Thread>,
    /// VM exits, if KVM shows them.
    pub(crate) exits: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Thread {
    name: String,
    nanoseconds: u64,
}

impl Usage {
    /// The usage of a process since it started.
    ///
    /// # Errors
    ///
    /// The process is gone, or its kernel does not keep these counters.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let id = entry?.file_name().to_string_lossy().parse()?;
            // A thread may end while it is being read.
            if let Ok(thread) = Thread::read(process, id) {
                threads.insert(id, thread);
            }
        }
        let exits = exits(&threads);
        Ok(Self { threads, exits })
    }

    /// CPU seconds by thread name.
    pub(crate) fn by_name(&self) -> BTreeMap<String, f64> {
        let mut names = BTreeMap::new();
        for thread in self.threads.values() {
            *names.entry(thread.name.clone()).or_default() += seconds(thread.nanoseconds);
        }
        names
    }

    /// The sums by the threads' roles in this peer.
    pub(crate) fn cpu(&self, peer: Peer) -> Cpu {
        let mut cpu = Cpu::default();
        for thread in self.threads.values() {
            let used = seconds(thread.nanoseconds);
            if is_monitor(&thread.name) {
                continue;
            }
            cpu.process += used;
            if is_vcpu(&thread.name) {
                cpu.vcpu += used;
            }
            if is_device_thread(peer, &thread.name) {
                cpu.device += used;
            }
        }
        cpu
    }
}

impl Sub<&Self> for Usage {
    type Output = Self;

    fn sub(mut self, before: &Self) -> Self {
        for (id, thread) in &mut self.threads {
            if let Some(before) = before.threads.get(id) {
                thread.nanoseconds = thread.nanoseconds.saturating_sub(before.nanoseconds);
            }
        }
        self.exits = self.exits.zip(before.exits).map(|(now, then)| now.saturating_sub(then));
        self
    }
}

impl Thread {
    fn read(process: u32, id: u32) -> Result<Self> {
        let read = |file| fs::read_to_string(format!("/proc/{process}/task/{id}/{file}"));
        let mut thread = Self::parse(&read("comm")?, &read("schedstat")?).context("no counters")?;
        if id == process {
            MAIN_THREAD.clone_into(&mut thread.name);
        }
        Ok(thread)
    }

    /// The first field of `schedstat` is the CPU time in nanoseconds (Linux
    /// `Documentation/scheduler/sched-stats.rst`); `stat` only counts clock ticks.
    fn parse(comm: &str, schedstat: &str) -> Option<Self> {
        let nanoseconds = schedstat.split(' ').next()?.parse().ok()?;
        Some(Self { name: comm.trim_end_matches('\n').to_owned(), nanoseconds })
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// `vcpu0` is a thread of `hvb`, `CPU 0/KVM` one of QEMU.
fn is_vcpu(name: &str) -> bool {
    name.starts_with("vcpu") || name.starts_with("CPU ")
}

/// Whether this is a thread of `hvb` or QEMU that reads or writes the monitor's socket.
fn is_monitor(name: &str) -> bool {
    name.starts_with("qmp-") || name == "IO mon_iothread"
}

/// The exits of all VMs that one of these threads created. KVM has a directory for each, with the
/// thread's number in its name, if debugfs is mounted and readable.
fn exits(threads: &BTreeMap<u32, Thread>) -> Option<u64> {
    let mut total = None;
    for entry in fs::read_dir("/sys/kernel/debug/kvm").ok()?.flatten() {
        let name = entry.file_name();
        let maker = name.to_string_lossy().split_once('-').and_then(|(id, _)| id.parse().ok());
        if maker.is_some_and(|id: u32| threads.contains_key(&id)) {
            let count: u64 =
                fs::read_to_string(entry.path().join("exits")).ok()?.trim().parse().ok()?;
            *total.get_or_insert(0) += count;
        }
    }
    total
}

/// A field of a process's `smaps_rollup`, in bytes: `Rss` is all its resident memory,
/// `AnonHugePages` the part of it in huge pages.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn memory(process: u32, field: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: u64 =
        value.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// Whether the device runs on the thread of this name; QEMU's devices run in its main loop.
fn is_device_thread(peer: Peer, name: &str) -> bool {
    match peer {
        Peer::Hvb => ["vmbus", "memory"].contains(&name),
        Peer::HvBalloon | Peer::VirtioBalloon | Peer::Microvm => name == MAIN_THREAD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(name: &str, milliseconds: u64) -> Thread {
        Thread { name: name.to_owned(), nanoseconds: milliseconds * 1_000_000 }
    }

    fn usage<const N: usize>(threads: [(u32, Thread); N], exits: Option<u64>) -> Usage {
        Usage { threads: threads.into(), exits }
    }

    #[test]
    fn a_thread_is_its_name_and_its_time_on_a_processor() {
        let read = |schedstat| Thread::parse("CPU 0/KVM\n", schedstat);
        assert_eq!(read("1500000000 20 30\n"), Some(thread("CPU 0/KVM", 1500)));
        assert_eq!(read(""), None);
    }

    #[test]
    fn this_process_has_used_some_time_on_its_main_thread() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.by_name().contains_key(MAIN_THREAD), "{usage:?}");
        assert!(usage.cpu(Peer::Hvb).process > 0.0);
        assert!(memory(std::process::id(), "Rss").unwrap() > 0);
    }

    #[test]
    fn time_is_counted_from_the_moment_before_and_by_what_a_thread_does() {
        let before = usage([(1, thread("main", 10)), (2, thread("vcpu0", 500))], Some(7));
        let after = usage(
            [
                (1, thread("main", 30)),
                (2, thread("vcpu0", 1500)),
                (3, thread("memory", 250)),
                (4, thread("qmp-read", 7000)),
            ],
            Some(27),
        );
        let used = after - &before;
        assert_eq!(used.exits, Some(20));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let ours = used.cpu(Peer::Hvb);
        assert!(close(ours.process, 1.27) && close(ours.vcpu, 1.0), "{ours:?}");
        assert!(close(ours.beside(), 0.27) && close(ours.device, 0.25), "{ours:?}");
        assert!(close(used.cpu(Peer::HvBalloon).device, 0.02));
    }

    #[test]
    fn what_the_monitor_was_asked_is_not_the_device_s_work() {
        let cpu = Cpu { process: 2.0, vcpu: 1.0, device: 0.25 };
        let left = cpu.without(0.05);
        assert!((left.process - 1.95).abs() < 1e-9 && (left.device - 0.2).abs() < 1e-9, "{left:?}");
        let left = cpu.without(10.0);
        assert!((left.process - 1.75).abs() < 1e-9 && left.device == 0.0, "{left:?}");
    }
}
