//! The whole stack of bus, rings and device, run by the embedding example.

#[path = "../examples/embed.rs"]
mod embed;

use guest_model::dynmem::Personality;
use page_range::PageCount;
use vmbus::protocol::Version;

const GROWN: PageCount = PageCount::new(3 << 17);

#[test]
fn a_guest_connects_shrinks_grows_and_leaves() {
    embed::main();
}

#[test]
fn every_version_of_the_bus_carries_the_whole_stack() {
    for version in Version::KNOWN {
        let personality = Personality { vmbus_versions: vec![version], ..Personality::linux_6_1() };
        assert_eq!(embed::resize(personality), Some((version, GROWN)));
    }
}

#[test]
fn a_guest_that_speaks_only_newer_versions_stays_off_the_bus() {
    let vmbus_versions = vec![Version::from_wire(0x0006_0000)];
    assert_eq!(embed::resize(Personality { vmbus_versions, ..Personality::linux_6_1() }), None);
}

/// Windows 7 supports no version of the bus that signals through the SynIC.
#[test]
fn every_named_guest_finds_a_version_that_the_host_has() {
    for guest in Personality::all() {
        let name = guest.name;
        let newest = guest.vmbus_versions.iter().copied().find(|version| version.is_known());
        let outcome = embed::resize(guest);
        assert_eq!(outcome.map(|(version, _)| version), newest, "{name}");
        assert_eq!(newest.is_none(), name == "Windows 7", "{name}");
    }
}

#[test]
fn every_windows_that_connects_grows_beyond_its_boot_size() {
    for windows in [
        Personality::windows_8(),
        Personality::windows_server_2012_r2(),
        Personality::windows_server_2016(),
        Personality::windows_server_2019(),
        Personality::windows_server_2022(),
        Personality::windows_server_2025(),
    ] {
        let name = windows.name;
        assert_eq!(embed::resize(windows).map(|(_, size)| size), Some(GROWN), "{name}");
    }
}
