//! Invalid configurations are refused, and the errors say what to do.

use hv_balloon::{Config, ConfigError, Device, HotAdd, ReplaceError};
use page_range::{PageRange, PageRangeSet};

use crate::driver::*;

const UNIT: u64 = 512;

/// 2 MiB pages: 8192 pages of RAM from page 0, and a window of the same size after a gap.
fn sound() -> (Config, HotAdd) {
    let hot_add = HotAdd {
        window: range(0x1_0000, 8192),
        capacity: pages(8192),
        least_alignment: pages(UNIT),
    };
    let config = Config {
        boot_ram: [range(0, 8192)].into_iter().collect(),
        discard_unit: pages(UNIT),
        ..Config::default()
    };
    (config, hot_add)
}

#[track_caller]
fn refused(boot_ram: impl IntoIterator<Item = PageRange>, hot_add: HotAdd, expected: ConfigError) {
    let boot_ram: PageRangeSet = boot_ram.into_iter().collect();
    let mut config = Config { boot_ram, hot_add: Some(hot_add), ..sound().0 };
    assert_eq!(Device::new(config.clone()).err(), Some(expected));
    // `replace_memory` refuses it as well.
    let (config_before, hot_add_before) = sound();
    let mut device =
        Device::new(Config { hot_add: Some(hot_add_before), ..config_before }).unwrap();
    let before = device.snapshot();
    let boot_ram = std::mem::take(&mut config.boot_ram);
    let replaced = device.replace_memory(Default::default(), boot_ram, config.hot_add);
    assert_eq!(replaced, Err(ReplaceError::Config(expected)));
    assert_eq!(device.snapshot(), before);
    assert!(expected.to_string().contains("; "), "says what to do: {expected}");
}

#[test]
fn what_fits_is_taken() {
    let (config, hot_add) = sound();
    let maximum =
        Device::new(Config { hot_add: Some(hot_add), ..config }).unwrap().snapshot().maximum;
    assert_eq!(maximum, pages(2 * 8192));
}

#[test]
fn without_huge_pages_the_guests_alignment_is_enough() {
    let (config, hot_add) = sound();
    let hot_add = HotAdd { least_alignment: pages(0), ..hot_add };
    let config = Config { discard_unit: pages(1), hot_add: Some(hot_add), ..config };
    assert!(Device::new(config).is_ok());
}

#[test]
fn a_machine_has_ram() {
    refused([], sound().1, ConfigError::NoBootRam);
}

#[test]
fn memory_is_added_beside_ram() {
    let (_, hot_add) = sound();
    let (window, ram) = (hot_add.window, range(0x1_0000 + 512, 512));
    let expected = ConfigError::WindowOverlapsRam { window, ram };
    refused([range(0, 8192), ram], hot_add, expected);
}

#[test]
fn no_more_can_be_added_than_the_window_holds() {
    let window = range(0x10_0000, 0x8000);
    let hot_add = HotAdd { window, capacity: pages(0x4_0000), least_alignment: pages(UNIT) };
    let capacity = hot_add.capacity;
    refused([range(0, 8192)], hot_add, ConfigError::CapacityTooLarge { capacity, window });
}

#[test]
fn huge_pages_are_whole() {
    let (unit, hot_add) = (pages(UNIT), sound().1);
    let ram = || [range(0, 8192)];
    let part = range(0x2_0000, 513);
    let expected = ConfigError::BootRamUnaligned { range: part, unit };
    refused([range(0, 8192), part], hot_add, expected);
    for window in [range(0x1_0001, 8703), range(0x1_0000, 8703)] {
        refused(ram(), HotAdd { window, ..hot_add }, ConfigError::WindowUnaligned { window, unit });
    }
    let capacity = pages(511);
    let expected = ConfigError::CapacityUnaligned { capacity, unit };
    refused(ram(), HotAdd { capacity, ..hot_add }, expected);
    // Without a least alignment, a guest may align to 1 MiB, half a unit.
    for alignment in [pages(256), pages(0)] {
        let expected = ConfigError::AlignmentUnaligned { alignment, unit };
        refused(ram(), HotAdd { least_alignment: alignment, ..hot_add }, expected);
    }
}
