//! `hvb` behind its monitor: its machine always has what VMBus needs, so what counts is the guest and
//! the options.

use crate::finding::{Finding, Level, Section};

/// What `hvb` answers to `x-query-dynamic-memory`, and a few other things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// The machine's name, or its socket.
    pub name: String,
    /// The protocol version agreed with the guest's driver; `None` without a driver.
    pub protocol: Option<String>,
    /// Bytes that the guest boots with.
    pub boot: u64,
    /// Bytes that it can have at most.
    pub maximum: u64,
    /// Whether the guest can add memory: its driver named an alignment.
    pub can_add: bool,
    /// Why it stopped short of its target, as one word.
    pub stopped: Option<String>,
    /// Why nothing can happen now.
    pub waiting: Option<String>,
    /// Bytes that the guest gave up and that share a huge page with others.
    pub held: u64,
    /// Bytes that the guest gave up and the host failed to free.
    pub undiscarded: u64,
    /// Whether the guest reports its need.
    pub reports: bool,
}

/// Examines an `hvb`.
#[must_use]
pub fn examine(own: &Own) -> Section {
    let mut findings = Vec::new();
    match &own.protocol {
        None => {
            let what = "no driver of the guest has connected to the Dynamic Memory device";
            let why = "The guest is still booting, or its kernel lacks hv_vmbus or hv_balloon, or has \
                       not loaded them.";
            let finding = Finding::new("driver", Level::Stops, what).because(why);
            let text = "modprobe hv_balloon; dmesg | grep -e hv_vmbus -e hv_balloon";
            findings.push(finding.remedy("run in the guest, as root", text));
        }
        Some(version) => {
            let what = format!("the guest's driver speaks Dynamic Memory {version}");
            findings.push(Finding::new("driver", Level::Fine, what));
        }
    }
    match own.stopped.as_deref() {
        Some("not-onlined") => {
            let what = "the guest leaves added memory offline";
            let why = "It cannot use such memory, so no more is offered to it.";
            let finding = Finding::new("online", Level::Stops, what).because(why);
            let now = "echo online > /sys/devices/system/memory/auto_online_blocks";
            let finding = finding.remedy("run in the guest, as root", now);
            let text = "memhp_default_state=online";
            findings.push(finding.remedy("or add to the kernel's command line (--append)", text));
        }
        Some(word) => {
            let what = format!("the guest stopped short of its target: {word}");
            findings.push(Finding::new("stopped", Level::Limits, what));
        }
        None => {}
    }
    if let Some(waiting) = &own.waiting {
        let what = format!("the target waits: {waiting}");
        findings.push(Finding::new("waiting", Level::Note, what));
    }
    if own.maximum <= own.boot {
        let finding =
            Finding::new("max-memory", Level::Limits, "the guest cannot grow past its boot memory");
        let finding = finding.because("Its maximum is what it boots with.");
        findings.push(finding.remedy("start hvb run with", "--max-memory SIZE"));
    } else if own.protocol.is_some() && !own.can_add {
        let what = "the guest's driver does not take memory that is added";
        findings.push(Finding::new("hot-add", Level::Limits, what));
    }
    if !own.reports {
        let finding =
            Finding::new("status-report", Level::Limits, "the guest does not report its need");
        let why = "Without reports nobody on the host knows what it could do without.";
        findings.push(finding.because(why).remedy("start hvb run with", "--status-report"));
    }
    if own.held > 0 {
        let what = format!(
            "{} that the guest gave up are still the host's to provide",
            crate::size::words(own.held)
        );
        let why = "They share a huge page of the host's pool with memory in use.";
        let finding = Finding::new("held", Level::Limits, what).because(why);
        findings.push(finding.remedy("start hvb run with", "--hugepages thp"));
    }
    if own.undiscarded > 0 {
        let what = format!(
            "the host failed to free {} that the guest gave up",
            crate::size::words(own.undiscarded)
        );
        findings
            .push(Finding::new("undiscarded", Level::Limits, what).because("Its log says why."));
    }
    Section { title: format!("VM {} (hvb)", own.name), findings, together: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(own: &Own) -> Vec<(&'static str, Level)> {
        examine(own).findings.iter().map(|it| (it.id, it.level)).collect()
    }

    fn good() -> Own {
        let protocol = Some("2.0".to_owned());
        Own { protocol, boot: 1, maximum: 2, can_add: true, reports: true, ..Own::default() }
    }

    #[test]
    fn a_guest_that_can_do_all_has_only_its_driver() {
        assert_eq!(levels(&good()), [("driver", Level::Fine)]);
    }

    #[test]
    fn each_fault_is_found() {
        let own = Own { protocol: None, ..good() };
        assert_eq!(levels(&own), [("driver", Level::Stops)]);
        let own = Own { stopped: Some("not-onlined".to_owned()), ..good() };
        assert_eq!(levels(&own)[1], ("online", Level::Stops));
        let own = Own { maximum: 1, reports: false, held: 1, undiscarded: 1, ..good() };
        let found: Vec<&str> = levels(&own).iter().map(|(id, _)| *id).collect();
        assert_eq!(found, ["driver", "max-memory", "status-report", "held", "undiscarded"]);
    }
}
