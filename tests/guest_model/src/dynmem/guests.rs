//! The known behaviour of real guests.
//!
//! Linux: `drivers/hv/hv_balloon.c` and `drivers/hv/connection.c` of 6.1 and 6.12, and the
//! behaviour of Debian's kernels. Windows: versions from the tables in those files and in OpenVMM
//! `vmbus_core/src/protocol.rs`; behaviour from the comments in QEMU `hw/hyperv/hv-balloon.c` and
//! its commit messages. This project has observed nothing about Windows itself, and what the
//! constructors below call assumed has no source at all.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use dynmem_protocol::{Capabilities, Version};
use page_range::{Gpfn, PageCount};
use vmbus::protocol::Version as Vmbus;

use super::balloon::MAX_BALLOON_REQUEST;
use super::{Ballooning, Ending, HotAdd, HotAddAnswer, Personality, Shape};

/// 64 TiB: the direct map of four-level paging.
const LINUX_ADDRESS_LIMIT: u64 = 1 << 34;
const LINUX_BLOCK_LOG2_MIB: u8 = 7;

impl Personality {
    /// Every named guest, once.
    #[must_use]
    pub fn all() -> Vec<Self> {
        vec![
            Self::linux_6_1(),
            Self::linux_6_1_with_large_blocks(),
            Self::linux_6_12(LINUX_BLOCK_LOG2_MIB),
            Self::linux_6_12(11),
            Self::linux_with_hibernation(),
            Self::linux_without_auto_online(),
            Self::windows_7(),
            Self::windows_8(),
            Self::windows_server_2012_r2(),
            Self::windows_server_2016(),
            Self::windows_server_2019(),
            Self::windows_server_2022(),
            Self::windows_server_2025(),
        ]
    }

    /// Linux 6.1 booted with `memhp_default_state=online`.
    ///
    /// Announces 128 MiB whatever its memory block size is, and adds that much at a time. Tries
    /// Dynamic Memory 2.0, 1.0, 0.3 and VMBus 5.3 down to 2.4. Gives runs of 512 pages first.
    /// Tolerates requests right after the handshake. The personality itself sets no limit on a
    /// balloon request, but the limit for all guests applies.
    #[must_use]
    pub fn linux_6_1() -> Self {
        let capabilities = Capabilities::BALLOON
            .union(Capabilities::HOT_ADD)
            .with_hot_add_alignment(LINUX_BLOCK_LOG2_MIB);
        Self {
            name: "Linux 6.1",
            guest_os_id: 0x8100_0006_0100_0000,
            vmbus_versions: vmbus_from(Vmbus::V5_3),
            versions: Version::KNOWN.to_vec(),
            capabilities,
            settle: Duration::ZERO,
            ignores_requests: false,
            ballooning: Ballooning {
                ending: Ending::WithPages,
                shape: Shape::LargeThenSingle,
                most_per_request: PageCount::new(u64::MAX),
                ranges_per_message: usize::MAX,
            },
            hot_add: HotAdd {
                answer: HotAddAnswer::TakesAll,
                block: capabilities.hot_add_alignment(),
                online_wait: Duration::ZERO,
                onlines: true,
                wants_region: false,
                address_limit: Gpfn::new(LINUX_ADDRESS_LIMIT).expect("below the last page"),
            },
        }
    }

    /// Linux 6.1 whose RAM reaches the 64 GiB address: its memory block is larger than the 128 MiB
    /// that it announces and adds at a time, so every request fails, and it reports that later ones
    /// may succeed.
    #[must_use]
    pub fn linux_6_1_with_large_blocks() -> Self {
        Self { name: "Linux 6.1 with large blocks", ..Self::linux_6_1() }
            .with_hot_add(HotAddAnswer::FailsAlways)
    }

    /// Linux 6.12, which Debian builds so that added memory is online at once.
    ///
    /// Announces its memory block size of 2^`block_log2_mib` MiB and adds that much at a time: 128
    /// MiB (7) up to 2 GiB (11), depending on the end address of boot RAM. Otherwise like
    /// [`Personality::linux_6_1`].
    #[must_use]
    pub fn linux_6_12(block_log2_mib: u8) -> Self {
        Self { name: "Linux 6.12", guest_os_id: 0x8100_0006_0c00_0000, ..Self::linux_6_1() }
            .with_alignment(block_log2_mib)
    }

    /// Linux on a machine whose ACPI offers S4, so that it could hibernate. It announces ballooning
    /// and hot-add, but answers no balloon or unballoon request and refuses hot-add for good.
    #[must_use]
    pub fn linux_with_hibernation() -> Self {
        Self {
            name: "Linux with hibernation",
            ignores_requests: true,
            ..Self::linux_6_12(LINUX_BLOCK_LOG2_MIB)
        }
        .with_hot_add(HotAddAnswer::Refuses)
    }

    /// Debian's 6.1 with its defaults: added memory stays offline until user space brings it
    /// online. It waits 5 s for that after each 128 MiB, continues, and answers that everything was
    /// added.
    #[must_use]
    pub fn linux_without_auto_online() -> Self {
        let mut linux = Self { name: "Linux without auto-online", ..Self::linux_6_1() };
        linux.hot_add.onlines = false;
        linux.hot_add.online_wait = Duration::from_secs(5);
        linux
    }

    /// Windows 7 and Server 2008 R2: Dynamic Memory 0.3, so no info message; VMBus 1.1 and 0.13.
    /// Assumed, in addition to the assumptions of [`Personality::windows_server_2016`]: they handle
    /// requests as later versions do.
    #[must_use]
    pub fn windows_7() -> Self {
        Self {
            name: "Windows 7",
            guest_os_id: 0x0001_0406_0100_1db1,
            vmbus_versions: [0x0001_0001, 0x0000_000d].map(Vmbus::from_wire).to_vec(),
            versions: vec![Version::V0_3],
            ..Self::windows_server_2016()
        }
    }

    /// Windows 8 and Server 2012: Dynamic Memory 1.0 and VMBus 2.4, then older ones. Assumed as for
    /// [`Personality::windows_7`].
    #[must_use]
    pub fn windows_8() -> Self {
        let mut vmbus_versions = vmbus_from(Vmbus::V2_4);
        vmbus_versions.extend(Self::windows_7().vmbus_versions);
        Self {
            name: "Windows 8",
            guest_os_id: 0x0001_0406_0200_23f0,
            vmbus_versions,
            versions: vec![Version::V1_0, Version::V0_3],
            ..Self::windows_server_2016()
        }
    }

    /// Windows 8.1 and Server 2012 R2: VMBus 3.0. Assumed, in addition to the assumptions of
    /// [`Personality::windows_7`]: they request Dynamic Memory 1.0 first.
    #[must_use]
    pub fn windows_server_2012_r2() -> Self {
        Self {
            name: "Windows Server 2012 R2",
            guest_os_id: 0x0001_0406_0300_2580,
            vmbus_versions: vmbus_from(Vmbus::V3_0),
            ..Self::windows_8()
        }
    }

    /// Windows 10 and Server 2016: Dynamic Memory 2.0, VMBus 4.0.
    ///
    /// Second hand (QEMU): it gives at most 585,728 pages for a request; hot-add works with regions
    /// that equal their ranges, ascending and contiguous, of at most 2 GiB. Hyper-V makes no
    /// request in the first 50 s; that the guest would tolerate one is assumed.
    ///
    /// Assumed: it requests older versions in descending order; 2 MiB alignment; long ranges, 64 to
    /// a message, with a separate ending; the floor and address limit of Linux; added memory usable
    /// at once.
    #[must_use]
    pub fn windows_server_2016() -> Self {
        let mut windows = Self {
            name: "Windows Server 2016",
            guest_os_id: 0x0001_040a_0000_3839,
            vmbus_versions: vmbus_from(Vmbus::V4_0),
            ballooning: Ballooning {
                ending: Ending::Separate,
                shape: Shape::Runs,
                most_per_request: MAX_BALLOON_REQUEST,
                ranges_per_message: 64,
            },
            ..Self::linux_6_1()
        }
        .with_alignment(1);
        windows.hot_add.wants_region = true;
        windows
    }

    /// Windows Server 2019: VMBus 5.2. Second hand (QEMU): it crashes if it gets a request right
    /// after boot, which is taken here to mean within the 50 s that Hyper-V waits. Assumed as for
    /// [`Personality::windows_server_2016`].
    #[must_use]
    pub fn windows_server_2019() -> Self {
        Self {
            name: "Windows Server 2019",
            guest_os_id: 0x0001_040a_0000_4563,
            vmbus_versions: vmbus_from(Vmbus::V5_2),
            settle: Duration::from_secs(50),
            ..Self::windows_server_2016()
        }
    }

    /// Windows 11 and Server 2022: VMBus 5.3. Assumed: they crash like
    /// [`Personality::windows_server_2019`].
    #[must_use]
    pub fn windows_server_2022() -> Self {
        Self {
            name: "Windows Server 2022",
            guest_os_id: 0x0001_040a_0000_4f7c,
            vmbus_versions: vmbus_from(Vmbus::V5_3),
            ..Self::windows_server_2019()
        }
    }

    /// Windows Server 2025. Assumed: it tries VMBus 6.0 first and is otherwise like
    /// [`Personality::windows_server_2022`].
    #[must_use]
    pub fn windows_server_2025() -> Self {
        let mut vmbus_versions = vec![Vmbus::from_wire(0x0006_0000)];
        vmbus_versions.extend(vmbus_from(Vmbus::V5_3));
        Self {
            name: "Windows Server 2025",
            guest_os_id: 0x0001_040a_0000_65f4,
            vmbus_versions,
            ..Self::windows_server_2022()
        }
    }
}

/// The versions from `newest` down to 2.4.
fn vmbus_from(newest: Vmbus) -> Vec<Vmbus> {
    Vmbus::KNOWN.into_iter().rev().filter(|version| *version <= newest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_are_tried_first() {
        for guest in Personality::all() {
            assert!(guest.versions.is_sorted_by(|a, b| a > b), "{}", guest.name);
            assert!(guest.vmbus_versions.is_sorted_by(|a, b| a > b), "{}", guest.name);
            assert!(guest.versions.iter().all(|version| version.is_known()), "{}", guest.name);
        }
    }

    #[test]
    fn memory_is_added_in_the_blocks_announced() {
        for guest in Personality::all() {
            assert_eq!(guest.hot_add.block, guest.capabilities.hot_add_alignment());
        }
        let large = Personality::linux_6_12(11);
        assert_eq!(large.hot_add.block, PageCount::from_bytes(2 << 30));
    }
}
