//! Memory moves where it is needed, and nowhere else.

use std::fs;

use balance_host::{OnExit, Setup};

use crate::world::{GIB, Host, Vm, eventually};

#[test]
fn memory_moves_from_the_idle_vm_to_the_busy_one_and_back() {
    let host = Host::new();
    let (one, two) = (host.vm("one", 4 * GIB, GIB), host.vm("two", 4 * GIB, 4 * GIB));
    let _balance = host.balance(host.configuration(8 * GIB));
    eventually("two grows", || two.guest.actual() > 5 * GIB && one.guest.actual() < 3 * GIB);
    one.guest.uses(4 * GIB);
    two.guest.uses(GIB);
    eventually("one grows", || one.guest.actual() > 9 * GIB / 2 && two.guest.actual() < 3 * GIB);
    assert!(host.ledger.peak() <= 8 * GIB, "{}", host.ledger.peak());
}

#[test]
fn vms_that_come_later_are_found_and_those_that_go_free_their_memory() {
    let host = Host::new();
    let first = host.vm("first", 4 * GIB, 4 * GIB);
    let balance = host.balance(host.configuration(8 * GIB));
    let second = host.vm("second", 4 * GIB, 4 * GIB);
    eventually("both are found", || balance.vm("second").is_some_and(|vm| vm.target_kib.is_some()));
    drop(second);
    eventually("first has its memory", || first.guest.actual() > 9 * GIB / 2);
    eventually("it is forgotten", || balance.vm("second").is_none());
}

#[test]
fn a_vm_that_starts_again_at_its_socket_is_balanced_again() {
    let host = Host::new();
    let path = host.path("db.sock");
    let vm = host.vm("db", 4 * GIB, GIB);
    let balance = host.balance(host.configuration(64 * GIB));
    eventually("it shrinks", || vm.guest.actual() < 2 * GIB);
    drop(vm);
    // One that was killed leaves its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    eventually("it is gone", || balance.problem("db").contains("nobody listens"));
    fs::remove_file(&path).unwrap();
    let vm = host.vm("db", 4 * GIB, GIB);
    eventually("it shrinks again", || vm.guest.actual() < 2 * GIB);
    eventually("all is well", || balance.problem("db").is_empty());
}

#[test]
fn a_guest_that_resets_begins_anew() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, GIB);
    let _balance = host.balance(host.configuration(64 * GIB));
    eventually("it shrinks", || vm.guest.actual() < 2 * GIB);
    vm.reset();
    eventually("it shrinks again", || vm.guest.actual() < 2 * GIB);
}

#[test]
fn another_balancer_moves_nobody_who_has_what_it_needs() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, GIB);
    let balance = host.balance(host.configuration(64 * GIB));
    let is_right = |balance: &crate::world::Balance| {
        let reason = balance.vm("db").and_then(|vm| vm.reason).unwrap_or_default();
        reason.contains("It has what it wants")
    };
    eventually("it has shrunk", || vm.guest.actual() < 2 * GIB && is_right(&balance));
    balance.end();
    let commands = vm.guest.commands();
    let balance = host.balance(host.configuration(64 * GIB));
    eventually("it is known again", || is_right(&balance));
    assert_eq!(vm.guest.commands(), commands);
}

#[test]
fn who_has_less_than_it_booted_with_gets_it_back_if_that_is_wanted() {
    let host = Host::new();
    let vm = host.vm("db", 4 * GIB, GIB);
    let give_back = |setup| Setup { on_exit: OnExit::GiveBack, ..setup };
    let balance = host.balance_with(host.configuration(64 * GIB), give_back);
    eventually("it shrinks", || vm.guest.actual() < 2 * GIB);
    balance.end();
    assert_eq!(vm.guest.actual(), 4 * GIB);
}

#[test]
fn a_dry_run_changes_nothing() {
    let host = Host::new();
    let vms: Vec<Vm> = ["a", "b"].iter().map(|name| host.vm(name, 4 * GIB, GIB)).collect();
    let dry = |setup| Setup { dry_run: true, on_exit: OnExit::GiveBack, ..setup };
    let balance = host.balance_with(host.configuration(64 * GIB), dry);
    eventually("it would shrink", || {
        balance.vm("a").is_some_and(|vm| vm.target_kib < vm.assigned_kib)
    });
    assert!(balance.operator().status().unwrap().dry_run);
    balance.end();
    assert!(vms.iter().all(|vm| vm.guest.commands().is_empty()));
}
