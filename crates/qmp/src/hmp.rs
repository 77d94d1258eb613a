//! The human monitor: one line in, text out. As in QEMU, failures are text too.

use crate::machine::{Machine, MonitorError};
use crate::memory_device::{HvBalloonDevice, MemoryDevice};
use qapi_qmp::RunState;
use qapi_spec::Enum;
use std::fmt::Write;

const MIB: u64 = 1 << 20;

/// Name, operands and description of each command. `info` subjects are listed by their full name.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("balloon", " target", "set the size the guest should have, in MiB"),
    ("cont", " ", "let a stopped machine go on"),
    ("help", " [command]", "list the commands, or explain one"),
    ("info", " [subject]", "show something about the machine"),
    ("info balloon", " ", "show the guest's present size in MiB"),
    ("info memory-devices", " ", "show the devices that can add memory to the guest"),
    ("info memory_size_summary", " ", "show the guest's memory at boot and added since, in bytes"),
    ("info status", " ", "show whether the machine runs"),
    ("quit", " ", "end the machine and its process"),
    ("stop", " ", "stop the machine until cont"),
    ("system_powerdown", " ", "ask the guest to shut down"),
    ("system_reset", " ", "reset the machine"),
];

/// Executes one line. The answer is empty, or lines that end in CR LF.
pub(crate) fn execute(machine: &dyn Machine, line: &str) -> String {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match *words {
        [] => String::new(),
        ["balloon", ref operands @ ..] => balloon(machine, operands),
        ["help" | "?"] => help(|name| !name.starts_with("info ")),
        ["info"] | ["help" | "?", "info"] => help(|name| name.starts_with("info ")),
        ["help" | "?", ref name @ ..] => help_on(&name.join(" ")),
        ["info", "balloon"] => info_balloon(machine),
        ["info", "memory-devices"] => {
            machine.memory_devices().iter().fold(String::new(), memory_device)
        }
        ["info", "memory_size_summary"] => info_memory_size_summary(machine),
        ["info", "status"] => info_status(machine.status()),
        ["info", subject, ..] => {
            let full = format!("info {subject}");
            if help(|name| name == full).is_empty() {
                unknown(&full)
            } else {
                extraneous(subject, &full)
            }
        }
        ["cont" | "c"] => unless_failed(machine.cont()),
        ["quit" | "q"] => silently(|| machine.quit()),
        ["stop" | "s"] => unless_failed(machine.stop()),
        ["system_powerdown"] => unless_failed(machine.system_powerdown()),
        ["system_reset"] => silently(|| machine.system_reset()),
        [
            name @ ("cont" | "c" | "quit" | "q" | "stop" | "s" | "system_powerdown"
            | "system_reset"),
            ..,
        ] => extraneous(name, name),
        [name, ..] => unknown(name),
    }
}

fn silently(action: impl FnOnce()) -> String {
    action();
    String::new()
}

/// The answer of a command that says nothing unless it fails.
fn unless_failed(result: Result<(), MonitorError>) -> String {
    result.map_or_else(|error| failure(&error.desc), |()| String::new())
}

fn balloon(machine: &dyn Machine, operands: &[&str]) -> String {
    let (size, more) = match *operands {
        [] => return usage("unexpected end of expression", "balloon"),
        [size, ref more @ ..] => (size, !more.is_empty()),
    };
    let (mib, rest) = match number(size) {
        Ok(found) => found,
        Err(problem) => return usage(&problem, "balloon"),
    };
    if more || !rest.is_empty() {
        return extraneous("balloon", "balloon");
    }
    // QEMU lets large numbers of MiB wrap around; here they are invalid.
    match mib.checked_mul(MIB).filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok()) {
        None => failure("Parameter 'value' expects a size"),
        Some(bytes) => unless_failed(machine.balloon(bytes)),
    }
}

/// The leading number in `text`, decimal or hexadecimal, and the rest of the text.
fn number(text: &str) -> Result<(u64, &str), String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text.strip_prefix('+').unwrap_or(text), 10),
    };
    if digits.starts_with('-') {
        return Err("enter a positive value".to_owned());
    }
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if digits.is_empty() {
        return Err(match rest.chars().next() {
            Some(c) => format!("invalid char '{c}' in expression"),
            None => "unexpected end of expression".to_owned(),
        });
    }
    let value = u64::from_str_radix(digits, radix).map_err(|_| "number too large".to_owned())?;
    Ok((value, rest))
}

fn info_balloon(machine: &dyn Machine) -> String {
    match machine.query_balloon() {
        Ok(bytes) => format!("balloon: actual={}\r\n", bytes / MIB),
        Err(error) => failure(&error.desc),
    }
}

/// Appends the device as QEMU prints it, and its `size`, which QEMU omits.
fn memory_device(mut text: String, device: &MemoryDevice) -> String {
    let MemoryDevice::HvBalloon(HvBalloonDevice { id, memaddr, max_size, memdev, size }) = device;
    // Writing to a string cannot fail.
    let id = id.as_deref().unwrap_or_default();
    let _ = write!(text, "Memory device [hv-balloon]: \"{id}\"\r\n");
    if let Some(memaddr) = memaddr {
        let _ = write!(text, "  memaddr: {memaddr:#x}\r\n");
    }
    let _ = write!(text, "  max-size: {max_size}\r\n");
    if let Some(memdev) = memdev {
        let _ = write!(text, "  memdev: {memdev}\r\n");
    }
    let _ = write!(text, "  size: {size}\r\n");
    text
}

fn info_memory_size_summary(machine: &dyn Machine) -> String {
    let sizes = match machine.memory_size_summary() {
        Ok(sizes) => sizes,
        Err(error) => return failure(&error.desc),
    };
    let mut text = format!("base memory: {}\r\n", sizes.base_memory);
    if let Some(plugged) = sizes.plugged_memory {
        let _ = write!(text, "plugged memory: {plugged}\r\n");
    }
    text
}

fn info_status(status: RunState) -> String {
    match status {
        RunState::running => "VM status: running\r\n".to_owned(),
        RunState::paused => "VM status: paused\r\n".to_owned(),
        other => format!("VM status: paused ({})\r\n", other.name()),
    }
}

fn help(wanted: impl Fn(&str) -> bool) -> String {
    COMMANDS.iter().filter(|(name, ..)| wanted(name)).fold(String::new(), |mut text, entry| {
        let (name, operands, description) = entry;
        // Writing to a string cannot fail.
        let _ = write!(text, "{name}{operands} -- {description}\r\n");
        text
    })
}

fn help_on(wanted: &str) -> String {
    let text = help(|name| name == wanted);
    if text.is_empty() { unknown(wanted) } else { text }
}

fn failure(desc: &str) -> String {
    format!("Error: {desc}\r\n")
}

fn unknown(name: &str) -> String {
    format!("unknown command: '{name}'\r\n")
}

fn extraneous(name: &str, help: &str) -> String {
    usage(&format!("{name}: extraneous characters at the end of line"), help)
}

fn usage(problem: &str, command: &str) -> String {
    format!("{problem}\r\nTry \"help {command}\" for more information\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi_qmp::MemoryInfo;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn note(&self, what: impl Into<String>) {
            self.0.lock().unwrap().push(what.into());
        }
    }

    impl Machine for Recorder {
        fn status(&self) -> RunState {
            RunState::running
        }
        fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
            self.note(format!("balloon {bytes}"));
            if bytes > 1 << 40 { Err(MonitorError::generic("too much")) } else { Ok(()) }
        }
        fn query_balloon(&self) -> Result<u64, MonitorError> {
            Ok(1024 * MIB + 5)
        }
        fn stop(&self) -> Result<(), MonitorError> {
            self.note("stop");
            Ok(())
        }
        fn cont(&self) -> Result<(), MonitorError> {
            Err(MonitorError::generic("nothing to continue"))
        }
        fn system_powerdown(&self) -> Result<(), MonitorError> {
            self.note("powerdown");
            Ok(())
        }
        fn system_reset(&self) {
            self.note("reset");
        }
        fn quit(&self) {
            self.note("quit");
        }
        fn memory_devices(&self) -> Vec<MemoryDevice> {
            let full = HvBalloonDevice {
                id: Some("b0".to_owned()),
                memaddr: Some(1 << 32),
                max_size: 1 << 33,
                memdev: Some("/objects/m".to_owned()),
                size: 1 << 27,
            };
            [full, HvBalloonDevice::default()].map(MemoryDevice::HvBalloon).to_vec()
        }
        fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
            Ok(MemoryInfo { base_memory: 1 << 30, plugged_memory: Some(1 << 27) })
        }
    }

    fn say(line: &str) -> String {
        execute(&Recorder::default(), line)
    }

    fn effects(line: &str) -> Vec<String> {
        let machine = Recorder::default();
        assert_eq!(execute(&machine, line), "");
        machine.0.into_inner().unwrap()
    }

    #[test]
    fn commands_reach_the_machine() {
        assert_eq!(effects("balloon 64"), ["balloon 67108864"]);
        assert_eq!(effects(" balloon\t0x40\n"), ["balloon 67108864"]);
        assert_eq!(effects("balloon +5"), ["balloon 5242880"]);
        assert_eq!(effects("system_powerdown"), ["powerdown"]);
        assert_eq!(effects("system_reset"), ["reset"]);
        assert_eq!(effects("quit"), ["quit"]);
        assert_eq!(effects("q"), ["quit"]);
        assert_eq!(effects("stop"), ["stop"]);
        assert_eq!(effects("s"), ["stop"]);
        assert_eq!(say("cont"), "Error: nothing to continue\r\n");
        assert_eq!(say("c"), say("cont"));
        assert_eq!(effects("  "), [""; 0]);
    }

    #[test]
    fn questions_are_answered_as_qemu_does() {
        assert_eq!(say("info balloon"), "balloon: actual=1024\r\n");
        assert_eq!(say("  info   status  "), "VM status: running\r\n");
        assert_eq!(info_status(RunState::prelaunch), "VM status: paused (prelaunch)\r\n");
        assert_eq!(info_status(RunState::paused), "VM status: paused\r\n");
    }

    #[test]
    fn memory_is_told_as_qemu_does_and_with_the_size() {
        assert_eq!(
            say("info memory-devices"),
            concat!(
                "Memory device [hv-balloon]: \"b0\"\r\n",
                "  memaddr: 0x100000000\r\n",
                "  max-size: 8589934592\r\n",
                "  memdev: /objects/m\r\n",
                "  size: 134217728\r\n",
                "Memory device [hv-balloon]: \"\"\r\n",
                "  max-size: 0\r\n",
                "  size: 0\r\n",
            )
        );
        assert_eq!(
            say("info memory_size_summary"),
            "base memory: 1073741824\r\nplugged memory: 134217728\r\n"
        );
    }

    #[test]
    fn mistakes_are_worded_as_qemu_does() {
        let hint = |problem: &str, command: &str| {
            format!("{problem}\r\nTry \"help {command}\" for more information\r\n")
        };
        let extra = ": extraneous characters at the end of line";
        assert_eq!(say("xyz"), "unknown command: 'xyz'\r\n");
        assert_eq!(say("info xyz"), "unknown command: 'info xyz'\r\n");
        assert_eq!(say("help xyz"), "unknown command: 'xyz'\r\n");
        assert_eq!(say("balloon"), hint("unexpected end of expression", "balloon"));
        assert_eq!(say("balloon x"), hint("invalid char 'x' in expression", "balloon"));
        assert_eq!(say("balloon 0x"), hint("unexpected end of expression", "balloon"));
        assert_eq!(say("balloon -5"), hint("enter a positive value", "balloon"));
        assert_eq!(say("balloon 99999999999999999999"), hint("number too large", "balloon"));
        assert_eq!(say("balloon 64M"), hint(&format!("balloon{extra}"), "balloon"));
        assert_eq!(say("balloon 1 2"), hint(&format!("balloon{extra}"), "balloon"));
        assert_eq!(say("info status x"), hint(&format!("status{extra}"), "info status"));
        let devices = hint(&format!("memory-devices{extra}"), "info memory-devices");
        assert_eq!(say("info memory-devices 1"), devices);
        assert_eq!(say("system_reset 1"), hint(&format!("system_reset{extra}"), "system_reset"));
        assert_eq!(say("cont 1"), hint(&format!("cont{extra}"), "cont"));
        assert_eq!(say("balloon 0"), "Error: Parameter 'value' expects a size\r\n");
        assert_eq!(say("balloon 17592186044415"), "Error: Parameter 'value' expects a size\r\n");
        assert_eq!(say("balloon 8796093022207"), "Error: too much\r\n");
    }

    #[test]
    fn help_lists_and_explains() {
        assert!(say("help").lines().any(|line| line.starts_with("balloon target -- ")));
        assert!(!say("?").contains("info status"));
        assert!(say("info").lines().all(|line| line.starts_with("info ")));
        assert!(say("info").contains("info memory-devices "));
        assert!(say("help info").contains("info memory_size_summary "));
        assert_eq!(say("help info status"), "info status  -- show whether the machine runs\r\n");
    }
}
