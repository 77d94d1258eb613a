//! What is recorded is decided again.

use std::fs;

use balance_host::{Replay, Setup, Wish};

use crate::world::{GIB, Host, eventually};

#[test]
fn a_recording_gives_the_same_decisions_and_another_configuration_others() {
    let host = Host::new();
    let file = host.path("recording");
    let right = host.configuration(8 * GIB);
    let (one, two) = (host.vm("one", 4 * GIB, GIB), host.vm("two", 4 * GIB, 4 * GIB));
    let record = |setup| Setup { record: Some(file.clone()), ..setup };
    let balance = host.balance_with(right.clone(), record);
    eventually("two grows", || two.guest.actual() > 5 * GIB && one.guest.actual() < 3 * GIB);
    let mut operator = balance.operator();
    operator.set("one", Wish { minimum_kib: Some(2 << 20), ..Wish::default() }).unwrap();
    let room = operator.reserve(1 << 20, 600).unwrap();
    two.guest.uses(GIB);
    eventually("there is room", || {
        operator.reservation(room).unwrap().is_some_and(|room| room.ready)
    });
    operator.withdraw(room).unwrap();
    balance.handle.reload();
    drop(one);
    eventually("one is gone", || balance.vm("one").is_none());
    balance.end();

    let mut replay = Replay::open(&file, None).unwrap();
    let steps: Vec<_> = replay.by_ref().map(Result::unwrap).collect();
    assert!(steps.iter().all(|step| step.is_same) && replay.is_complete());
    let status = replay.status();
    assert_eq!(status.vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["two"]);
    assert!(status.vms[0].assigned_kib >= Some(1 << 20) && status.host.zone != "unknown");
    let orders: Vec<_> = steps.iter().flat_map(|step| &step.orders).collect();
    let told: Vec<u64> = orders
        .iter()
        .filter(|order| order.name == "two")
        .map(|order| order.target_kib * 1024)
        .collect();
    assert_eq!(told, two.guest.commands());

    let mut other = right;
    other.defaults.maximum_kib = Some(4 << 20);
    let steps: Vec<_> = Replay::open(&file, Some(other)).unwrap().map(Result::unwrap).collect();
    assert!(steps.iter().any(|step| !step.is_same && step.orders != step.recorded));
    let orders = steps.iter().flat_map(|step| &step.orders);
    assert_eq!(orders.map(|order| order.target_kib).max(), Some(4 << 20));

    // Cut off anywhere, it is the same up to the cut.
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let mut replay = Replay::open(&file, None).unwrap();
    let half: Vec<_> = replay.by_ref().map(Result::unwrap).collect();
    assert!(half.len() < steps.len() && half.iter().all(|step| step.is_same));
    assert!(!replay.is_complete());
}
