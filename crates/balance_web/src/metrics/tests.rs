use super::*;
use crate::server::tests::status;

/// The names in the documentation's tables.
fn documented() -> Vec<String> {
    let text = include_str!("../../../../docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `hvb_dynamic_memory_"));
    rows.filter_map(|row| Some(format!("hvb_dynamic_memory_{}", row.split_once('`')?.0))).collect()
}

/// The names of the samples in a text.
fn names(text: &str) -> Vec<&str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    names.dedup();
    names
}

#[test]
fn every_name_is_documented_and_every_documented_name_is_there() {
    let text = metrics(&status());
    let mut written: Vec<String> = names(&text).into_iter().map(str::to_owned).collect();
    let mut documented = documented();
    written.sort();
    documented.sort();
    assert_eq!(written, documented);
}

#[test]
fn figures_are_in_bytes_seconds_and_ratios() {
    let text = metrics(&status());
    for line in [
        r#"hvb_dynamic_memory_vm_physical_bytes{vm="db"} 2147483648.0"#,
        r#"hvb_dynamic_memory_vm_pressure_current_ratio{vm="db"} 0.75"#,
        r#"hvb_dynamic_memory_vm_added_bytes_total{vm="db"} 1073741824"#,
        r#"hvb_dynamic_memory_vm_report_age_seconds{vm="db"} 1.5"#,
        r#"hvb_dynamic_memory_vm_status{vm="db",status="Low"} 1.0"#,
        r#"hvb_dynamic_memory_vm_status{vm="db",status="OK"} 0.0"#,
        r#"hvb_dynamic_memory_balancer_zone{zone="tight"} 1.0"#,
        "hvb_dynamic_memory_balancer_add_operations_total 3",
        "hvb_dynamic_memory_balancer_average_pressure_ratio 0.75",
        "hvb_dynamic_memory_balancer_available_memory_for_balancing_bytes 1073741824.0",
        "# TYPE hvb_dynamic_memory_vm_added_bytes counter",
        "# UNIT hvb_dynamic_memory_vm_added_bytes bytes",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_not_known_or_old_is_absent() {
    let mut status = status();
    status.vms[0].stale = true;
    status.host.zone = "unknown".to_owned();
    let text = metrics(&status);
    assert!(!text.contains("pressure_current_ratio{") && !text.contains("vm_status{"), "{text}");
    assert!(!text.contains("available_memory_bytes "), "{text}");
    assert!(text.contains(r#"balancer_zone{zone="unknown"} 1.0"#));
    assert!(text.contains(r#"vm_stale{vm="db"} 1.0"#));
    let nothing = metrics(&Status::default());
    assert!(nothing.contains("balancer_machines 0.0") && !nothing.contains("NaN"), "{nothing}");
}

#[test]
fn names_and_figures_of_hostile_machines_keep_the_form() {
    let mut status = status();
    let vm = &mut status.vms[0];
    vm.name = "a\"} 1\nx{y=\"\\".to_owned();
    vm.assigned_kib = Some(u64::MAX);
    vm.moved.added_kib = u64::MAX;
    let text = metrics(&status);
    assert!(text.contains(r#"{vm="a\"} 1\nx{y=\"\\"}"#), "{text}");
    assert!(text.lines().all(|line| line.starts_with('#') || line.starts_with("hvb_")), "{text}");
}
