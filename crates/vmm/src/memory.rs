//! A machine's memory: its size at the start and after each reset.

use std::sync::Arc;

use guest_ram::{GuestRam, HIGH_RAM_START, HugePages, MemoryKind, RamConfig, RamError};
use kvm_hyperv::probe::Capabilities;
use kvm_ioctls::Kvm;
use page_range::{Gpa, Gpfn, PageCount};

use crate::HAS_BALLOON;
use crate::boot::cpu;
use crate::config::{Config, FreePageReporting, OnReset};
use crate::error::{NoReporting, VmmError};

/// The most memory slots for added memory. A machine that can add more has larger blocks.
const MAX_PIECES: u32 = 1024;

/// Memory slots for everything else.
const OTHER_SLOTS: u32 = 16;

/// The memory limits of a VM, for all its machines.
#[derive(Clone, Copy)]
pub(crate) struct MemoryPlan {
    boot: PageCount,
    pub(crate) maximum: PageCount,
    pub(crate) huge_pages: HugePages,
    on_reset: OnReset,
    /// The page after the last one that the guest can address.
    pub(crate) address_end: Gpfn,
    /// The most pieces in which memory can be added.
    pub(crate) max_pieces: u32,
    /// The guest can report free pages.
    pub(crate) takes_reports: bool,
}

/// The memory of one machine.
pub(crate) struct BootMemory {
    pub(crate) ram: Arc<GuestRam>,
    /// The size to bring the guest to once its driver is ready.
    #[cfg_attr(not(feature = "hv-balloon"), expect(dead_code, reason = "for the device"))]
    pub(crate) target: Option<PageCount>,
}

/// What a machine leaves behind for the next one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// The size the guest had.
    pub(crate) size: Option<PageCount>,
    /// The target it was moving towards.
    pub(crate) target: Option<PageCount>,
    /// The target set since the reset was requested.
    pub(crate) set_since: Option<PageCount>,
    /// In multiples of which the guest took memory beyond its boot memory, if it told.
    pub(crate) alignment: Option<PageCount>,
}

impl MemoryPlan {
    /// Checks the requested sizes against what the guest can address.
    pub(crate) fn new(
        config: &Config,
        kvm: &Kvm,
        capabilities: Capabilities,
    ) -> Result<Self, VmmError> {
        let bits = cpu::address_bits(kvm)?;
        let address_end = Gpa::new(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
        let plan = Self {
            boot: PageCount::from_bytes(config.memory_bytes),
            maximum: PageCount::from_bytes(config.max_memory_bytes.max(config.memory_bytes)),
            huge_pages: config.huge_pages,
            on_reset: config.on_reset,
            address_end: address_end.gpfn().unwrap_or(Gpfn::MAX),
            max_pieces: kvm_hyperv::vm::slot_limit(kvm).saturating_sub(OTHER_SLOTS).min(MAX_PIECES),
            takes_reports: takes_reports(config, capabilities)?,
        };
        // The hole below 4 GiB takes part of the address space.
        let room = Gpfn::distance_from(plan.address_end, Gpfn::default());
        let hole = HIGH_RAM_START.get().saturating_sub(guest_ram::LOW_RAM_LIMIT.get());
        let most = room.saturating_sub(PageCount::from_bytes(hole));
        if plan.maximum > most {
            let option = if plan.boot > most { "--memory" } else { "--max-memory" };
            return Err(VmmError::AddressWidth { option, bits, most: most.bytes() });
        }
        Ok(plan)
    }

    /// The memory of the first machine.
    pub(crate) fn first(&self) -> Result<BootMemory, VmmError> {
        Ok(self.provide(self.boot, None)?)
    }

    /// The memory after a reset of a machine that left `kept`.
    ///
    /// With `boot-size`, only a target set since the reset was requested counts. With `keep-size`,
    /// a guest larger than its boot size boots with the size it had. A smaller one boots with its
    /// boot size, since a kernel may not start in less, and is shrunk once its driver is there;
    /// until then the host provides only what the guest touches.
    ///
    /// A larger one boots with whole steps of its alignment above its boot size, and gives the rest up
    /// likewise. Otherwise what is left to add would no longer be made of such steps, and the maximum
    /// would be out of reach.
    pub(crate) fn after_reset(&self, kept: Kept) -> Result<BootMemory, VmmError> {
        if self.on_reset == OnReset::BootSize {
            return Ok(self.provide(self.boot, kept.set_since)?);
        }
        let size = kept.size.unwrap_or(self.boot);
        let unit = self.huge_pages.page_size();
        let size = size.align_up(unit).unwrap_or(size).min(self.maximum);
        let target = kept.set_since.or(kept.target);
        if size > self.boot {
            let steps = size.saturating_sub(self.boot).align_up(kept.alignment.unwrap_or(unit));
            let boots_with = steps.map_or(size, |steps| self.boot.saturating_add(steps));
            let boots_with = boots_with.min(self.maximum);
            let target = target.or((size < boots_with).then_some(size));
            match self.provide(boots_with, target) {
                Ok(memory) => return Ok(memory),
                Err(error) => tracing::warn!(
                    "the guest cannot keep its size and boots with its boot size: {}",
                    crate::error::chain(&error)
                ),
            }
        }
        Ok(self.provide(self.boot, target.or((size < self.boot).then_some(size)))?)
    }

    fn provide(&self, boot: PageCount, target: Option<PageCount>) -> Result<BootMemory, RamError> {
        let capacity = self.maximum.saturating_sub(boot);
        let ram = GuestRam::new(&RamConfig {
            size: boot,
            kind: MemoryKind::Anonymous,
            huge_pages: self.huge_pages,
            hot_add: capacity,
            max_pieces: self.max_pieces,
        })?;
        Ok(BootMemory { ram: Arc::new(ram), target })
    }
}

/// Whether the guest can report free pages. Where it was left open and the host cannot take reports,
/// the log says so.
fn takes_reports(config: &Config, capabilities: Capabilities) -> Result<bool, VmmError> {
    let obstacle = match config {
        _ if config.huge_pages.from_pool() => Some(NoReporting::Pool),
        _ if !capabilities.extended_hypercalls => Some(NoReporting::Kvm),
        _ => None,
    };
    match (config.free_page_reporting, obstacle) {
        (FreePageReporting::Off, _) => Ok(false),
        (FreePageReporting::On, Some(obstacle)) => Err(VmmError::NoReporting(obstacle)),
        (FreePageReporting::Auto, Some(obstacle)) => {
            tracing::info!("the guest cannot report free pages, for {obstacle}");
            Ok(false)
        }
        (_, None) => Ok(HAS_BALLOON),
    }
}

#[cfg(test)]
impl MemoryPlan {
    /// The plan of a machine that boots with this much and cannot grow.
    pub(crate) fn fixed(boot: PageCount) -> Self {
        Self {
            boot,
            maximum: boot,
            huge_pages: HugePages::Off,
            on_reset: OnReset::BootSize,
            address_end: Gpfn::MAX,
            max_pieces: 1,
            takes_reports: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::small;

    #[test]
    fn a_guest_that_keeps_its_size_can_still_reach_its_maximum() {
        let mib = |mib: u64| PageCount::from_bytes(mib << 20);
        let plan = MemoryPlan {
            maximum: mib(1536),
            on_reset: OnReset::KeepSize,
            ..MemoryPlan::fixed(mib(512))
        };
        let after = |kept: Kept| {
            let memory = plan.after_reset(kept).unwrap();
            (memory.ram.pages().len(), memory.target)
        };
        let alignment = Some(mib(128));
        let grown = |size| Kept { size: Some(mib(size)), alignment, ..Kept::default() };
        assert_eq!(after(grown(765)), (mib(768), Some(mib(765))));
        assert_eq!(after(grown(768)), (mib(768), None));
        assert_eq!(after(grown(1535)), (mib(1536), Some(mib(1535))));
        // It had another target.
        let pursued = Kept { target: Some(mib(1536)), ..grown(765) };
        assert_eq!(after(pursued), (mib(768), Some(mib(1536))));
        // An alignment of 2 GiB leads beyond the maximum.
        let coarse = Kept { alignment: Some(mib(2048)), ..grown(765) };
        assert_eq!(after(coarse), (mib(1536), Some(mib(765))));
        // A driver that came, and went without a word of its alignment.
        assert_eq!(after(Kept { alignment: None, ..grown(765) }), (mib(765), None));
        assert_eq!(after(grown(300)), (mib(512), Some(mib(300))));
    }

    #[test]
    fn a_guest_can_report_where_the_host_can_take_reports_unless_that_is_off() {
        use FreePageReporting::{Auto, Off, On};
        let plan = |free_page_reporting, huge_pages, extended_hypercalls| {
            let config = Config { free_page_reporting, huge_pages, ..small() };
            let capabilities = Capabilities { eventfd: true, resample: true, extended_hypercalls };
            match takes_reports(&config, capabilities) {
                Ok(takes) => Ok(takes),
                Err(VmmError::NoReporting(why)) => Err(why),
                Err(other) => panic!("{other}"),
            }
        };
        let (thp, pool) = (HugePages::Transparent, HugePages::Pool2M);
        assert_eq!(plan(Auto, thp, true), Ok(HAS_BALLOON));
        assert_eq!(plan(On, thp, true), Ok(HAS_BALLOON));
        for (pages, extended, why) in
            [(thp, false, NoReporting::Kvm), (pool, true, NoReporting::Pool)]
        {
            assert_eq!(plan(Auto, pages, extended), Ok(false));
            assert_eq!(plan(On, pages, extended), Err(why));
        }
        for (pages, extended) in [(thp, true), (thp, false), (pool, true)] {
            assert_eq!(plan(Off, pages, extended), Ok(false));
        }
        let text = VmmError::NoReporting(NoReporting::Kvm).to_string();
        assert!(text.contains("Linux 6.3") && text.ends_with("leave the option out"), "{text}");
    }
}
