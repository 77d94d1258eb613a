//! One line a VM, for spreadsheets.

use balance_host::{Status, VmStatus};

/// The names of the columns.
pub const CSV_HEAD: &str = "time,name,kind,status,stale,held,minimum_kib,assigned_kib,target_kib,\
demand_kib,wanted_kib,maximum_kib,weight,pressure_permille,resident_kib,psi_some_permille,age_ms,\
report_age_ms,zone,host_available_kib,action_number,action_from_kib,action_to_kib";

/// The lines for all VMs, at this many seconds of Unix time. What is not known is empty.
pub fn csv(status: &Status, time_s: u64) -> impl Iterator<Item = String> + '_ {
    status.vms.iter().map(move |vm| line(status, vm, time_s))
}

fn line(status: &Status, vm: &VmStatus, time_s: u64) -> String {
    let number = |figure: Option<u64>| figure.map(|figure| figure.to_string()).unwrap_or_default();
    let (settings, action) = (vm.settings, vm.last_action.as_ref());
    let fields = [
        time_s.to_string(),
        quoted(&vm.name),
        quoted(&vm.kind),
        vm.status.clone().unwrap_or_default(),
        vm.stale.to_string(),
        vm.held.to_string(),
        number(settings.map(|settings| settings.minimum_kib)),
        number(vm.assigned_kib),
        number(vm.target_kib),
        number(vm.demand_kib),
        number(vm.wanted_kib),
        number(settings.map(|settings| settings.maximum_kib)),
        number(settings.map(|settings| settings.weight.into())),
        number(vm.pressure_permille),
        number(vm.resident_kib),
        number(vm.psi_some_permille.map(Into::into)),
        number(vm.age_ms),
        number(vm.report_age_ms),
        status.host.zone.clone(),
        status.host.available_kib.to_string(),
        number(action.map(|action| action.number)),
        number(action.map(|action| action.from_kib)),
        number(action.map(|action| action.to_kib)),
    ];
    fields.join(",")
}

/// A field as RFC 4180 has it. A text that a spreadsheet would take for a formula gets a mark.
fn quoted(text: &str) -> String {
    let text = crate::size::clean(text);
    let mark = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    match text.contains([',', '"']) {
        true => format!("\"{mark}{}\"", text.replace('"', "\"\"")),
        false => format!("{mark}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_field_for_each_column() {
        let name = |name: &str| VmStatus { name: name.to_owned(), ..VmStatus::default() };
        let vms = vec![name("db"), name("a,\"b\"\n"), name("=x")];
        let status = Status { vms, ..Status::default() };
        let lines: Vec<String> = csv(&status, 7).collect();
        assert_eq!(lines[0].split(',').count(), CSV_HEAD.split(',').count());
        assert!(lines[0].starts_with("7,db,,,false,false,,,"), "{lines:?}");
        assert!(lines[1].starts_with("7,\"a,\"\"b\"\" \",,"), "{lines:?}");
        assert!(lines[2].starts_with("7,'=x,"), "{lines:?}");
    }
}
