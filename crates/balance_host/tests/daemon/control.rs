//! The operator's side.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use balance_host::{Setup, Wish};

use crate::world::{GIB, Host, eventually};

fn hold(hold: bool) -> Wish {
    Wish { hold: Some(hold), ..Wish::default() }
}

#[test]
fn a_held_vm_stays_until_it_is_released() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, 3 * GIB);
    let balance = host.balance(host.configuration(64 * GIB));
    eventually("it is known", || balance.vm("db").is_some_and(|vm| vm.demand_kib.is_some()));
    balance.operator().set("db", hold(true)).unwrap();
    eventually("it is held", || balance.vm("db").is_some_and(|vm| vm.held));
    let before = vm.guest.actual();
    vm.guest.uses(6 * GIB);
    eventually("it asks for more", || {
        balance.vm("db").is_some_and(|vm| vm.pressure_permille.is_none() && vm.held)
    });
    assert_eq!(vm.guest.actual(), before);
    let explanation = balance.operator().explain("db").unwrap();
    assert_eq!(explanation.sentences[0], "It stays as it is: the operator holds it.");
    balance.operator().set("db", hold(false)).unwrap();
    eventually("it grows", || vm.guest.actual() > before);
}

#[test]
fn settings_change_live_and_contradictions_are_refused() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, 3 * GIB);
    let balance = host.balance(host.configuration(64 * GIB));
    eventually("it is known", || balance.vm("db").is_some());
    let maximum = |gib: u64| Wish { maximum_kib: Some(gib << 20), ..Wish::default() };
    balance.operator().set("db", maximum(2)).unwrap();
    eventually("it obeys", || vm.guest.actual() == 2 * GIB);
    let minimum = Wish { minimum_kib: Some(3 << 20), ..Wish::default() };
    let error = balance.operator().set("db", minimum).unwrap_err().to_string();
    assert!(error.contains("the minimum of 3072 MiB is above the maximum"), "{error}");
    let error = balance.operator().set("nobody", minimum).unwrap_err().to_string();
    assert!(error.contains("there is no VM 'nobody' here"), "{error}");
    assert!(balance.operator().explain("nobody").is_err());
}

#[test]
fn room_is_made_for_a_vm_that_is_about_to_start() {
    let host = Host::new();
    let mut configuration = host.configuration(8 * GIB);
    configuration.policy.surplus_lasts_ms = 1 << 40;
    let vm = host.vm("idle", 8 * GIB, GIB);
    let balance = host.balance(configuration);
    eventually("it is known", || balance.vm("idle").is_some_and(|vm| vm.demand_kib.is_some()));
    let mut operator = balance.operator();
    let room = operator.reserve(4 << 20, 600).unwrap();
    eventually("the room is there", || {
        operator.reservation(room).unwrap().is_some_and(|room| room.ready)
    });
    assert!(vm.guest.actual() <= 4 * GIB);
    let large = operator.reserve(64 << 20, 600).unwrap();
    eventually("it is refused", || {
        operator.reservation(large).unwrap().is_some_and(|room| room.impossible)
    });
    operator.withdraw(large).unwrap();
    assert!(operator.withdraw(large).is_err());
    let _new = host.vm("new", 4 * GIB, GIB);
    eventually("the new VM has it", || operator.reservation(room).unwrap().is_none());
    for (size_kib, seconds) in [(0, 1), (u64::MAX, 1), (1, 0), (1, u64::MAX)] {
        assert!(operator.reserve(size_kib, seconds).is_err());
    }
}

#[test]
fn a_configuration_that_is_wrong_is_refused_and_the_one_before_stays() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, 3 * GIB);
    let right = host.configuration(64 * GIB);
    let next = Arc::new(Mutex::new(Ok(right.clone())));
    let load = {
        let next = Arc::clone(&next);
        move || next.lock().unwrap().clone()
    };
    let file = host.path("file");
    fs::write(&file, "1").unwrap();
    let change = |setup| Setup { load: Box::new(load), file: Some(file.clone()), ..setup };
    let balance = host.balance_with(right.clone(), change);
    eventually("it is known", || balance.vm("db").is_some_and(|vm| vm.target_kib.is_some()));

    let maximum = |gib: u64| {
        let mut configuration = right.clone();
        let wish = Wish { maximum_kib: Some(gib << 20), ..Wish::default() };
        configuration.vms.insert("db".to_owned(), wish);
        Ok(configuration)
    };
    let in_force = || balance.vm("db").and_then(|vm| vm.settings).unwrap().maximum_kib;
    *next.lock().unwrap() = maximum(3);
    balance.handle.reload();
    eventually("it is in force", || in_force() == 3 << 20);
    *next.lock().unwrap() = Err("wrong".to_owned());
    balance.handle.reload();
    let mut bad_pattern = right.clone();
    bad_pattern.patterns = vec!["[".to_owned()];
    *next.lock().unwrap() = Ok(bad_pattern);
    balance.handle.reload();
    // Only the next change is seen.
    *next.lock().unwrap() = maximum(2);
    fs::write(&file, "22").unwrap();
    eventually("a changed file is read", || in_force() == 2 << 20);
    eventually("it obeys", || vm.guest.actual() == 2 * GIB);
}

#[test]
fn the_control_socket_is_private_and_knows_its_commands() {
    let host = Host::new();
    let balance = host.balance(host.configuration(GIB));
    let mode = fs::metadata(host.path("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let patience = std::time::Duration::from_secs(60);
    let mut client = qmp::Client::connect(&host.path("control"), patience).unwrap();
    for (command, arguments, text) in [
        ("balloon", r#"{"value": 1}"#, "The command balloon has not been found"),
        ("query-status", r#"{"x": 1}"#, "Parameter 'x' is unexpected"),
        ("explain", "{}", "missing field `vm`"),
        ("explain", r#"{"vm": 5}"#, "invalid type"),
        ("set", r#"{"vm": "x", "settings": {"color": 1}}"#, "unknown field `color`"),
        ("withdraw", r#"{"id": 1}"#, "there is no reservation 1"),
    ] {
        let arguments: qmp::Map<_, _> = serde_json::from_str(arguments).unwrap();
        let error = client.execute(command, arguments.into()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    balance.end();
    assert!(!host.path("control").exists());
}
