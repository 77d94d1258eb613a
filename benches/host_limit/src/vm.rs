//! A VM on the memory, with a vCPU that dirties it.

use anyhow::{Context, Result, ensure};
use guest_ram::{GuestRam, RamConfig, RamRegion};
use kvm_bindings::kvm_segment;
use kvm_hyperv::vm::GuestVm;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use page_range::{Gpa, Gpfn, PageCount, PageRange};

/// The address of the guest's code.
const CODE: Gpa = Gpa::new(0x1000);

/// Writes to `ecx` pages from address `ebx` up, in 32-bit mode without paging.
const PROGRAM: [u8; 13] = [
    0xc6, 0x03, 0x01, // mov byte [ebx], 1
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00, // add ebx, 0x1000
    0x49, // dec ecx
    0x75, 0xf4, // jnz to the start
    0xf4, // hlt
];

/// The address of the TSS that some CPUs need (Linux `Documentation/virt/kvm/api.rst`,
/// `KVM_SET_TSS_ADDR`).
const TSS: usize = 0xfffb_d000;

/// CR0.PE: protected mode.
const PROTECTED_MODE: u64 = 1;

/// Checks that a VM can be created and runs; if not, returns the reason.
pub(crate) fn probe() -> Result<(), String> {
    let attempt = || {
        let ram = GuestRam::new(&RamConfig { size: PageCount::new(16), ..Default::default() })?;
        let page = PageRange::new(Gpfn::new(8).context("small")?, PageCount::new(1))?;
        Vm::new(&ram)?.dirty(&ram, page)
    };
    attempt().map_err(|error: anyhow::Error| format!("{error:#}"))
}

/// A VM with one vCPU, which runs only in [`Vm::dirty`].
pub(crate) struct Vm {
    // Dropped before the VM, which a vCPU keeps alive.
    vcpu: VcpuFd,
    _vm: GuestVm<RamRegion>,
}

impl Vm {
    pub(crate) fn new(ram: &GuestRam) -> Result<Self> {
        let fd = Kvm::new().context("cannot open /dev/kvm")?.create_vm()?;
        fd.set_tss_address(TSS)?;
        let vm = GuestVm::new(fd, ram.boot_regions())?;
        let vcpu = vm.fd().create_vcpu(0)?;
        let flat = |kind, selector| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_: kind,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        let mut special = vcpu.get_sregs()?;
        special.cr0 |= PROTECTED_MODE;
        // Readable code and writable data, both marked as accessed.
        special.cs = flat(0b1011, 8);
        let data = flat(0b0011, 16);
        (special.ds, special.es, special.ss, special.fs, special.gs) =
            (data, data, data, data, data);
        vcpu.set_sregs(&special)?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// Makes the guest write to each of the pages.
    pub(crate) fn dirty(&mut self, ram: &GuestRam, pages: PageRange) -> Result<()> {
        vmbus::GuestMemory::write(&crate::memory::bus_memory(ram), CODE, &PROGRAM)?;
        let mut registers = self.vcpu.get_regs()?;
        (registers.rip, registers.rflags) = (CODE.get(), 2);
        registers.rbx = pages.start().gpa().get();
        registers.rcx = pages.count().get();
        self.vcpu.set_regs(&registers)?;
        let exit = self.vcpu.run()?;
        ensure!(matches!(exit, VcpuExit::Hlt), "the guest stopped with {exit:?}");
        Ok(())
    }
}
