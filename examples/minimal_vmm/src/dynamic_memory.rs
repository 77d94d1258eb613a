//! Dynamic Memory: everything this VMM needs so that its guest can grow and shrink.
//!
//! In this order: vCPU setup and exits, the memory backend, reports and notices, startup, and the
//! operator's commands.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, anyhow};
use guest_ram::BorrowedRam;
use kvm_bindings::{CpuId, KVM_CAP_HYPERV_SYNIC2, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_hyperv::cpuid::{self, SyntheticTimers};
use kvm_hyperv::exit::{HypervExit, complete_hypercall};
use kvm_hyperv::msr;
use kvm_hyperv::sint::SintLines;
use kvm_ioctls::VcpuFd;
use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};
use vmbus::ServerConfig;
use vmbus::protocol::VpIndex;
use vmbus_kvm::{
    BackendError, Config, DynamicMemoryHandle, Host, HostBuilder, HostFailure, HotAdd, KvmPlatform,
    Machine, MemoryBackend, Notice, Report, Supervisor,
};

use crate::End;
use crate::log::Log;
use crate::memory::{HIGH_RAM_START, Memory, Vm};

/// The smallest hot-add block: the unit in which Linux adds memory.
const LEAST_BLOCK: u64 = 128 << 20;

/// The most log lines that a guest may cause; without a limit it could cause any number.
const MOST_GUEST_LINES: u32 = 100;

type Platform = KvmPlatform<Memory, Arc<Vm>>;

/// Sets a vCPU's CPUID, with the Hyper-V leaves added, and then enables its SynIC. The order
/// matters, and both must precede [`DynamicMemory::start`].
pub(crate) fn prepare_vcpu(vcpu: &VcpuFd, mut leaves: Vec<kvm_cpuid_entry2>) -> Result<()> {
    let supported = cpuid::supported(vcpu).context("cannot read KVM's Hyper-V CPUID")?;
    cpuid::add_hyperv_leaves(&mut leaves, supported.as_slice(), SyntheticTimers::Withheld);
    // So that the guest can report memory that it frees, where KVM supports that.
    cpuid::offer_extended_hypercalls(&mut leaves, supported.as_slice());
    vcpu.set_cpuid2(&CpuId::from_entries(&leaves)?).context("cannot set a vCPU's CPUID")?;
    let synic = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
    vcpu.enable_cap(&synic).context("cannot enable a vCPU's SynIC")
}

/// The bus as a vCPU's thread sees it.
#[derive(Clone)]
pub(crate) struct Bus(Machine<Platform>);

impl Bus {
    /// Call this before each `KVM_RUN`.
    pub(crate) fn before_run(&self, vcpu: u32) -> Result<()> {
        self.0.before_run(VpIndex::new(vcpu)).context("cannot raise a synthetic interrupt")
    }

    /// Call this after a Hyper-V exit.
    pub(crate) fn on_exit(&self, vcpu: u32, fd: &mut VcpuFd) {
        let Some(exit) = HypervExit::read(fd) else { return };
        let os_id = || msr::guest_os_id(fd).ok();
        if let Some(result) = self.0.on_exit(VpIndex::new(vcpu), exit, os_id) {
            complete_hypercall(fd, result);
        }
    }
}

/// Changes guest memory. Memory is added and removed in blocks; each block is a region of guest
/// memory with its own memory slot.
struct Backend {
    vm: Arc<Vm>,
    memory: Memory,
    /// The regions of `memory`, for discards: vCPUs discard what the guest reports as free.
    ram: Arc<RwLock<BorrowedRam>>,
    blocks: Vec<PageRange>,
}

impl Backend {
    fn add_block(&mut self, block: PageRange) -> Result<(), BackendError> {
        let (start, size) = place(block);
        let region = Arc::new(GuestRegionMmap::from_range(start, usize::try_from(size)?, None)?);
        let memory = self.memory.memory().insert_region(Arc::clone(&region))?;
        self.ram_mut().insert(&region)?;
        if let Err(error) = self.vm.add(region) {
            self.ram_mut().remove(block);
            return Err(std::io::Error::from(error).into());
        }
        self.publish(memory);
        self.blocks.push(block);
        Ok(())
    }

    fn remove_block(&mut self, block: PageRange) -> Result<(), BackendError> {
        let (start, size) = place(block);
        // Remove the slot first: until then the guest could fill the block again.
        self.vm.remove(start).map_err(std::io::Error::from)?;
        // A snapshot of the memory may keep the block mapped, so give its pages back explicitly.
        let discarded = self.ram().discard(&[block]);
        self.ram_mut().remove(block);
        self.blocks.retain(|other| *other != block);
        let (memory, _) = self.memory.memory().remove_region(start, size)?;
        self.publish(memory);
        Ok(discarded?)
    }

    fn ram(&self) -> RwLockReadGuard<'_, BorrowedRam> {
        self.ram.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ram_mut(&self) -> RwLockWriteGuard<'_, BorrowedRam> {
        self.ram.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, memory: GuestMemoryMmap) {
        self.memory.lock().unwrap_or_else(|error| error.into_inner()).replace(memory);
    }
}

impl MemoryBackend for Backend {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(self.ram().discard_or_undo(ranges)?)
    }

    fn settle(&mut self, out: &PageRangeSet) {
        self.ram().settle(out);
    }

    fn add(
        &mut self,
        range: PageRange,
        _: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        let mut start = range.start();
        while start < range.end() {
            let block = PageRange::new(start, alignment)?;
            if let Err(error) = self.add_block(block) {
                // Return the first error, not one from the cleanup.
                let _ = self.remove(range);
                return Err(error);
            }
            start = block.end();
        }
        Ok(())
    }

    fn remove(&mut self, range: PageRange) -> Result<(), BackendError> {
        let mut result = Ok(());
        for block in self.blocks.clone() {
            if range.intersection(block).is_some() {
                result = result.and(self.remove_block(block));
            }
        }
        result
    }
}

/// A block's address and size in bytes.
fn place(block: PageRange) -> (GuestAddress, u64) {
    (GuestAddress(block.start().gpa().get()), block.count().bytes())
}

/// Handles host failures and reports of guest misbehaviour.
struct Watch {
    log: Log,
    ends: Sender<End>,
    lines: GuestLines,
}

impl Supervisor for Watch {
    fn failed(&self, failure: HostFailure) {
        // The receiver is gone if the machine is already ending.
        let _ = self.ends.send(End::Failed(failure.into()));
    }

    fn report(&self, report: Report) {
        self.lines.log(&self.log, || format!("{:#}", anyhow!(report)));
    }
}

/// How many more log lines the guest may cause.
#[derive(Clone)]
struct GuestLines(Arc<AtomicU32>);

impl GuestLines {
    fn log(&self, log: &Log, line: impl FnOnce() -> String) {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_ok() {
            log.line(line());
        }
    }
}

fn on_notice(notice: Notice, log: &Log, lines: &GuestLines) {
    match notice {
        Notice::Ready { version } => log.line(format!("ready for Dynamic Memory {version}")),
        Notice::SizeChanged { actual } => log.line(format!("actual {}", actual.bytes())),
        Notice::TargetReached { actual } => log.line(format!("reached {}", actual.bytes())),
        Notice::StoppedShort { target, actual, reason } => log.line(format!(
            "stopped at {} on the way to {}: {reason}",
            actual.bytes(),
            target.bytes()
        )),
        other => lines.log(log, || format!("{other:?}")),
    }
}

/// What the rest of the VMM provides.
pub(crate) struct Parts {
    pub(crate) vm: Arc<Vm>,
    /// The RAM that the guest boots with.
    pub(crate) memory: Memory,
    pub(crate) vcpus: u32,
    /// The width of a guest physical address, in bits.
    pub(crate) address_bits: u32,
    /// Bytes that can be hot-added.
    pub(crate) to_add: u64,
    /// Memory slots that are free for hot-added blocks.
    pub(crate) free_slots: u32,
    pub(crate) signals_in_kernel: bool,
    pub(crate) kick: Box<dyn Fn(usize) + Send + Sync>,
    pub(crate) ends: Sender<End>,
}

/// The running bus and its device; dropping this value stops both.
pub(crate) struct DynamicMemory {
    _host: Host<Platform>,
    control: Control,
}

impl DynamicMemory {
    /// Starts the bus for a machine whose vCPUs are about to run.
    pub(crate) fn start(parts: Parts) -> Result<(Self, Bus)> {
        let ram = BorrowedRam::new(parts.memory.memory().iter())?;
        let address_end = Gpa::new(1 << parts.address_bits).gpfn().context("no address space")?;
        let config = Config {
            boot_ram: ram.pages(),
            hot_add: hot_add(&parts, address_end)?,
            ..Config::default()
        };
        let backend = Backend {
            vm: Arc::clone(&parts.vm),
            memory: parts.memory.clone(),
            ram: Arc::new(RwLock::new(ram)),
            blocks: Vec::new(),
        };
        let free_pages = Arc::clone(&backend.ram);

        let (log, lines) = (Log::start()?, GuestLines(Arc::new(AtomicU32::new(MOST_GUEST_LINES))));
        let watch = Watch { log: log.clone(), ends: parts.ends, lines: lines.clone() };
        let server = ServerConfig {
            vp_count: parts.vcpus,
            page_limit: address_end,
            ..ServerConfig::default()
        };
        let mut builder = HostBuilder::new(server, watch)?;
        let notices = move |notice| on_notice(notice, &log, &lines);
        let handle = builder.dynamic_memory(config, backend, notices)?;
        handle.report_free_pages(Some(free_pages));
        let host = builder.start()?;

        let lines = SintLines::new(parts.vm.fd(), parts.vcpus)
            .context("cannot route the synthetic interrupts")?;
        let kick = parts.kick;
        let kick = move |vp: VpIndex| kick(usize::try_from(vp.get()).unwrap_or(usize::MAX));
        let platform =
            KvmPlatform::new(parts.vm, parts.memory, lines, parts.signals_in_kernel, kick);
        let machine = host.start_machine(platform)?;
        Ok((Self { _host: host, control: Control(handle) }, Bus(machine)))
    }

    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }
}

/// The hot-add window above 4 GiB, with blocks large enough for the free slots to suffice.
fn hot_add(parts: &Parts, address_end: Gpfn) -> Result<Option<HotAdd>> {
    let capacity = PageCount::from_bytes(parts.to_add);
    if capacity.is_zero() {
        return Ok(None);
    }
    let start = Gpa::new(HIGH_RAM_START).gpfn().context("no address space")?;
    let window = PageRange::between(start, address_end).context("no address space")?;
    let block = capacity.get().div_ceil(parts.free_slots.into()).next_power_of_two();
    let least_alignment = PageCount::new(block).max(PageCount::from_bytes(LEAST_BLOCK));
    Ok(Some(HotAdd { window, capacity, least_alignment }))
}

/// Resizes the guest, on any thread.
#[derive(Clone)]
pub(crate) struct Control(DynamicMemoryHandle<Platform>);

impl Control {
    /// Asks for a size in bytes.
    pub(crate) fn set_target(&self, bytes: u64) -> Result<String> {
        let target = self.0.set_target(PageCount::from_bytes(bytes))?;
        Ok(format!("target {}", target.bytes()))
    }

    /// The state in one line.
    pub(crate) fn status(&self) -> String {
        let device = self.0.snapshot().device;
        let (actual, hot_added) = (device.actual.bytes(), device.hot_added.bytes());
        format!("status {} actual {actual} hot-added {hot_added}", device.state.as_str())
    }
}
