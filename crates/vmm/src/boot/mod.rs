//! From files to a machine that is ready to run its first instruction.

pub(crate) mod acpi;
pub(crate) mod cpu;
pub(crate) mod linux;

/// Where boot data goes in guest memory. All of it lies below 1 MiB, where Linux expects firmware
/// data; the kernel goes above.
pub(crate) mod layout {
    /// Global descriptor table.
    pub(crate) const GDT: u64 = 0x500;
    /// The zero page: `boot_params` of the Linux boot protocol.
    pub(crate) const ZERO_PAGE: u64 = 0x7000;
    /// First of the page tables that the 64-bit entry needs.
    pub(crate) const PAGE_TABLES: u64 = 0x9000;
    /// Kernel command line, at most [`COMMAND_LINE_MAX`] bytes with its terminator.
    pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
    /// Room for the command line: the most that x86 Linux accepts (`COMMAND_LINE_SIZE`).
    pub(crate) const COMMAND_LINE_MAX: usize = 2048;
    /// End of conventional memory; firmware data follows.
    pub(crate) const CONVENTIONAL_END: u64 = 0x9_fc00;
    /// ACPI tables, beginning with the RSDP, in the BIOS area, which Linux searches as well.
    pub(crate) const ACPI: u64 = 0xe_0000;
    /// End of the BIOS area, and load address of a bzImage.
    pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
}
