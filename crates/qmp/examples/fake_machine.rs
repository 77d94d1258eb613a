//! A monitor with no machine behind it: `cargo run -p qmp --example fake_machine /tmp/fake.sock`.
//!
//! Its guest moves towards the size asked for by 32 MiB ten times a second and stops at 256 MiB,
//! enough to try clients against.

use qmp::{DynamicMemoryInfo, Event, Machine, MonitorError, RunState, Server, ShutdownCause};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const FLOOR: u64 = 256 * MIB;
const BOOT: u64 = 1024 * MIB;
const STEP: u64 = 32 * MIB;
const TICK: Duration = Duration::from_millis(100);

struct Fake {
    target: AtomicU64,
    actual: AtomicU64,
    reset: AtomicBool,
    quit: mpsc::SyncSender<()>,
}

impl Machine for Fake {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        if bytes > BOOT {
            return Err(MonitorError::generic(format!("the guest has no more than {BOOT} bytes")));
        }
        self.target.store(bytes, SeqCst);
        Ok(())
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(self.actual.load(SeqCst))
    }

    fn system_reset(&self) {
        self.reset.store(true, SeqCst);
    }

    fn quit(&self) {
        // A second quit changes nothing.
        let _ = self.quit.try_send(());
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let (target, actual) = (self.target.load(SeqCst), self.actual.load(SeqCst));
        let stopped = actual == FLOOR && target < FLOOR;
        Ok(DynamicMemoryInfo {
            state: if stopped || target == actual { "idle" } else { "ballooning" }.to_owned(),
            actual,
            target: Some(target),
            ready_in_ms: None,
            stopped: stopped.then(|| "the guest has no more to give".to_owned()),
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give the path of the socket to make")?;
    let (quit, quits) = mpsc::sync_channel(1);
    let fake = Arc::new(Fake {
        target: AtomicU64::new(BOOT),
        actual: AtomicU64::new(BOOT),
        reset: AtomicBool::new(false),
        quit,
    });
    let server = Server::start(Path::new(&path), fake.clone())?;
    let events = server.events();
    while quits.recv_timeout(TICK).is_err() {
        if fake.reset.swap(false, SeqCst) {
            fake.target.store(BOOT, SeqCst);
            fake.actual.store(BOOT, SeqCst);
            events
                .emit(&Event::Reset { guest: false, reason: ShutdownCause::host_qmp_system_reset });
        }
        let (target, before) = (fake.target.load(SeqCst).max(FLOOR), fake.actual.load(SeqCst));
        let actual = target.clamp(before - STEP, before + STEP);
        if actual != before {
            fake.actual.store(actual, SeqCst);
            events.emit(&Event::BalloonChange { actual });
        }
    }
    events.emit(&Event::Shutdown { guest: false, reason: ShutdownCause::host_qmp_quit });
    Ok(())
}
