//! Loads a kernel, its initrd and its command line (Linux `Documentation/arch/x86/boot.rst`).
//!
//! The kernel is a bzImage, which unpacks itself, or the unpacked kernel, an ELF file (`vmlinux`), which
//! begins to run sooner. Both are entered in 64-bit mode with the address of the zero page in RSI.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_ram::{GuestRam, HIGH_RAM_START, LOW_RAM_LIMIT};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::error::BootError;

/// Memory types of the e820 map.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A loader without an assigned number.
const LOADER_OTHER: u8 = 0xff;

/// `xloadflags` bit 0: the kernel has a 64-bit entry, at this offset from its start.
const HAS_64_BIT_ENTRY: u16 = 1;
const ENTRY_64: u64 = 0x200;

/// The magic in the header of every kernel with boot protocol 2.00 or later.
const MAGIC: [u8; 4] = *b"HdrS";
const MAGIC_OFFSET: u64 = 0x202;

/// `boot_flag` and `header`, which an ELF file has not and Linux checks.
const BOOT_FLAG: u16 = 0xaa55;

/// `initrd_addr_max` of an ELF file, which does not say it: the value that all 64-bit kernels have.
const INITRD_MAX: u32 = 0x7fff_ffff;

/// The beginning of a 64-bit ELF file for x86-64, and where `e_machine` is.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE: std::ops::Range<usize> = 18..20;
const ELF_X86_64: [u8; 2] = 62_u16.to_le_bytes();

const PAGE: u64 = 4096;

/// Loads a kernel (a bzImage or `vmlinux`), its initrd and its command line into unused memory, as
/// [`run`](crate::run) does, and returns the address of the first instruction.
///
/// # Errors
/// [`BootError`] if the files are not a kernel and initrd for this memory, or cannot be read. Part
/// of the memory may have been written by then.
pub fn load_linux(
    ram: &GuestRam,
    kernel: &Path,
    initrd: Option<&Path>,
    command_line: &str,
    vcpus: u8,
) -> Result<u64, BootError> {
    BootFiles::open(kernel, initrd, command_line)?.load(ram, vcpus, 0)
}

/// The kinds of kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KernelFormat {
    BzImage,
    Elf,
}

/// A kernel in memory.
struct Loaded {
    entry: u64,
    header: setup_header,
    /// The end of the memory that it uses before it reads the memory map.
    end: u64,
}

/// The files to boot. They stay open, so that a reset works even if their names are gone.
#[derive(Debug)]
pub(crate) struct BootFiles {
    kernel: NamedFile,
    format: KernelFormat,
    initrd: Option<NamedFile>,
    command_line: Vec<u8>,
}

#[derive(Debug)]
struct NamedFile {
    path: PathBuf,
    file: File,
}

impl NamedFile {
    fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let failed = |source| BootError::Open { what, path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(BootError::NotAFile { what, path: path.to_path_buf() });
        }
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Finds out early, long before the rest of the file is needed, what kind of kernel it is.
    fn kernel_format(&self) -> Result<KernelFormat, BootError> {
        if let Some(start) = self.read_at::<{ ELF_MACHINE.end }>(0)?
            && start.starts_with(&ELF_MAGIC)
        {
            let is_64_bit = start[ELF_MAGIC.len()] == ELF_CLASS_64;
            return match is_64_bit && start[ELF_MACHINE] == ELF_X86_64 {
                true => Ok(KernelFormat::Elf),
                false => Err(BootError::Not64Bit { path: self.path.clone() }),
            };
        }
        match self.read_at(MAGIC_OFFSET)? {
            Some(MAGIC) => Ok(KernelFormat::BzImage),
            _ => Err(BootError::NotAKernel { path: self.path.clone() }),
        }
    }

    /// Bytes from the middle of the file, unless it ends before.
    fn read_at<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, BootError> {
        let mut bytes = [0; N];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    fn len(&self) -> Result<u64, BootError> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|source| self.unreadable(source))
    }

    fn unreadable(&self, source: std::io::Error) -> BootError {
        BootError::Read { path: self.path.clone(), source }
    }
}

impl BootFiles {
    /// Opens the files and checks the command line.
    pub(crate) fn open(
        kernel: &Path,
        initrd: Option<&Path>,
        command_line: &str,
    ) -> Result<Self, BootError> {
        if command_line.contains('\0') || command_line.len() >= layout::COMMAND_LINE_MAX {
            return Err(BootError::CommandLine {
                length: command_line.len(),
                limit: layout::COMMAND_LINE_MAX - 1,
            });
        }
        let kernel = NamedFile::open("kernel", kernel)?;
        let format = kernel.kernel_format()?;
        Ok(Self {
            kernel,
            format,
            initrd: initrd.map(|path| NamedFile::open("initrd", path)).transpose()?,
            command_line: command_line.as_bytes().to_vec(),
        })
    }

    /// Loads everything into memory and returns the address of the first instruction.
    pub(crate) fn load(
        &mut self,
        ram: &GuestRam,
        vcpus: u8,
        devices: usize,
    ) -> Result<u64, BootError> {
        let Loaded { entry, mut header, end } = match self.format {
            KernelFormat::BzImage => self.load_bzimage(ram)?,
            KernelFormat::Elf => self.load_elf(ram)?,
        };
        self.load_initrd(ram, &mut header, end)?;

        let memory = ram.memory();
        memory
            .write_slice(&self.command_line, GuestAddress(layout::COMMAND_LINE))
            .map_err(BootError::Memory)?;
        let tables = super::acpi::tables(layout::ACPI, vcpus, devices);
        memory.write_slice(&tables, GuestAddress(layout::ACPI)).map_err(BootError::Memory)?;
        write_zero_page(ram, header)?;
        super::cpu::write_tables(ram)?;
        Ok(entry)
    }

    fn load_bzimage(&mut self, ram: &GuestRam) -> Result<Loaded, BootError> {
        let image = self.load_kernel::<BzImage>(ram)?;
        let header = image.setup_header.unwrap_or_default();
        if { header.xloadflags } & HAS_64_BIT_ENTRY == 0 {
            return Err(BootError::Not64Bit { path: self.kernel.path.clone() });
        }
        let end = self.unpacked_end(&header, image.kernel_load.0)?.max(image.kernel_end);
        self.check_room(ram, end)?;
        Ok(Loaded { entry: image.kernel_load.0 + ENTRY_64, header, end })
    }

    fn load_elf(&mut self, ram: &GuestRam) -> Result<Loaded, BootError> {
        let image = self.load_kernel::<Elf>(ram)?;
        let end = image.kernel_end;
        self.check_room(ram, end)?;
        let entry = image.kernel_load.0;
        if entry >= end {
            return Err(BootError::NotAKernel { path: self.kernel.path.clone() });
        }
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: u32::from_le_bytes(MAGIC),
            initrd_addr_max: INITRD_MAX,
            ..setup_header::default()
        };
        Ok(Loaded { entry, header, end })
    }

    fn load_kernel<L: KernelLoader>(
        &mut self,
        ram: &GuestRam,
    ) -> Result<KernelLoaderResult, BootError> {
        // The boot data lies below.
        let lowest = Some(GuestAddress(layout::HIGH_MEMORY));
        L::load(&*ram.memory(), None, &mut self.kernel.file, lowest)
            .map_err(|source| BootError::Kernel { path: self.kernel.path.clone(), source })
    }

    /// Where a bzImage has unpacked itself to. If its preferred address is above its load address, it
    /// moves there first.
    fn unpacked_end(&self, header: &setup_header, loaded: u64) -> Result<u64, BootError> {
        let alignment = u64::from(header.kernel_alignment).max(1);
        loaded
            .max(header.pref_address)
            .checked_next_multiple_of(alignment)
            .and_then(|start| start.checked_add(header.init_size.into()))
            .ok_or_else(|| BootError::NotAKernel { path: self.kernel.path.clone() })
    }

    fn check_room(&self, ram: &GuestRam, end: u64) -> Result<(), BootError> {
        let room = ram.end().get().min(LOW_RAM_LIMIT.get());
        if end > room {
            let path = self.kernel.path.clone();
            let (need_mib, room_mib) = (end.div_ceil(1 << 20), room >> 20);
            return Err(BootError::KernelTooBig { path, need_mib, room_mib });
        }
        Ok(())
    }

    fn load_initrd(
        &mut self,
        ram: &GuestRam,
        header: &mut setup_header,
        kernel_end: u64,
    ) -> Result<(), BootError> {
        let Some(initrd) = &mut self.initrd else {
            return Ok(());
        };
        let size = initrd.len()?;
        let end = ram
            .end()
            .get()
            .min(LOW_RAM_LIMIT.get())
            .min(u64::from(header.initrd_addr_max).saturating_add(1));
        let too_big = || BootError::InitrdTooBig {
            path: initrd.path.clone(),
            size_mib: size.div_ceil(1 << 20),
            room_mib: end.saturating_sub(kernel_end) >> 20,
        };
        let start = end.checked_sub(size).map(|start| start & !(PAGE - 1));
        let start = start.filter(|start| *start >= kernel_end).ok_or_else(too_big)?;
        let length = usize::try_from(size).map_err(|_| too_big())?;
        rewind(&mut initrd.file).map_err(|source| initrd.unreadable(source))?;
        ram.memory()
            .read_exact_volatile_from(GuestAddress(start), &mut initrd.file, length)
            .map_err(BootError::Memory)?;
        // Both fit: the end is below `LOW_RAM_LIMIT`.
        header.ramdisk_image = u32::try_from(start).map_err(|_| too_big())?;
        header.ramdisk_size = u32::try_from(size).map_err(|_| too_big())?;
        Ok(())
    }
}

fn rewind(file: &mut File) -> std::io::Result<()> {
    std::io::Seek::rewind(file)
}

fn write_zero_page(ram: &GuestRam, header: setup_header) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = u32::try_from(layout::COMMAND_LINE).unwrap_or_default();
    params.acpi_rsdp_addr = layout::ACPI;
    let mut count = 0_u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(memory_map(ram)) {
        *slot = entry;
        count = count.saturating_add(1);
    }
    params.e820_entries = count;
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, &*ram.memory()).map_err(BootError::ZeroPage)
}

/// The e820 map: conventional memory, the BIOS area, and RAM around the hole below 4 GiB.
fn memory_map(ram: &GuestRam) -> Vec<boot_e820_entry> {
    let end = ram.end().get();
    let low_end = end.min(LOW_RAM_LIMIT.get());
    [
        (0, layout::CONVENTIONAL_END, RAM),
        (layout::CONVENTIONAL_END, layout::HIGH_MEMORY, RESERVED),
        (layout::HIGH_MEMORY, low_end, RAM),
        (HIGH_RAM_START.get(), end, RAM),
    ]
    .into_iter()
    .filter(|(start, end, _)| start < end)
    .map(|(start, end, r#type)| boot_e820_entry { addr: start, size: end - start, r#type })
    .collect()
}
