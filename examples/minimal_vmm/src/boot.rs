//! Loading Linux by its 32-bit boot protocol (Linux `Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap};

use crate::acpi;
use crate::memory::Memory;

/// Addresses of the boot data, below the kernel.
pub(crate) const ZERO_PAGE: u32 = 0x7000;
const COMMAND_LINE: u32 = 0x2_0000;
/// The longest command line that x86 Linux accepts, including the terminating zero.
const COMMAND_LINE_MAX: usize = 2048;
/// End of conventional memory.
const LOW_MEMORY_END: u64 = 0x9_fc00;
const ACPI: u32 = 0xe_0000;
const KERNEL: u64 = 0x10_0000;

/// e820 type of RAM.
const RAM: u32 = 1;
/// `type_of_loader` of a boot loader without an assigned number.
const LOADER_OTHER: u8 = 0xff;
const PAGE: u64 = 4096;

/// Loads the kernel, initrd, command line and ACPI tables; returns the address of the first
/// instruction.
pub(crate) fn load(
    memory: &Memory,
    kernel: &Path,
    initrd: &Path,
    command_line: &str,
    vcpus: u8,
) -> Result<u64> {
    let memory = memory.memory();
    let mut file = File::open(kernel).with_context(|| kernel.display().to_string())?;
    let image = BzImage::load(&*memory, None, &mut file, Some(GuestAddress(KERNEL)))
        .with_context(|| format!("{} is not a bzImage for this machine", kernel.display()))?;
    let mut params =
        boot_params { hdr: image.setup_header.unwrap_or_default(), ..Default::default() };

    let end = memory.last_addr().0 + 1;
    // The kernel uses this much memory at its preferred address before it reads the memory map.
    let kernel_end = params.hdr.pref_address.max(KERNEL) + u64::from(params.hdr.init_size);
    let (start, size) = load_initrd(&memory, initrd, end.min(params.hdr.initrd_addr_max.into()))?;
    ensure!(u64::from(start) >= kernel_end, "the machine has too little memory for this kernel");

    ensure!(command_line.len() < COMMAND_LINE_MAX, "the kernel's command line is too long");
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE.into()))?;
    memory.write_slice(&acpi::tables(ACPI, vcpus), GuestAddress(ACPI.into()))?;

    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = COMMAND_LINE;
    (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (start, size);
    params.acpi_rsdp_addr = ACPI.into();
    let ram = |addr, end| boot_e820_entry { addr, size: end - addr, r#type: RAM };
    params.e820_table[0] = ram(0, LOW_MEMORY_END);
    params.e820_table[1] = ram(KERNEL, end);
    params.e820_entries = 2;
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE.into()));
    LinuxBootConfigurator::write_bootparams(&params, &*memory)?;
    Ok(image.kernel_load.0)
}

/// Loads the initrd as close below `end` as possible; returns its address and size.
fn load_initrd(memory: &GuestMemoryMmap, path: &Path, end: u64) -> Result<(u32, u32)> {
    let read = || {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let start = end.checked_sub(size).context("it does not fit into memory")? & !(PAGE - 1);
        memory.read_exact_volatile_from(GuestAddress(start), &mut file, usize::try_from(size)?)?;
        anyhow::Ok((u32::try_from(start)?, u32::try_from(size)?))
    };
    read().with_context(|| format!("cannot load {}", path.display()))
}
