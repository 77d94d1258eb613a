//! What the loader takes, and what it refuses; no KVM is needed.

use std::fs;
use std::path::PathBuf;

use guest_ram::{GuestRam, HugePages, MemoryKind, RamConfig};
use page_range::PageCount;
use vmlinux::Vmlinux;
use vmm::{BootError, load_linux};

#[path = "images/vmlinux.rs"]
mod vmlinux;

const MIB: u64 = 1 << 20;

/// The smallest bzImage (Linux `Documentation/arch/x86/boot.rst`): two sectors of setup with the
/// header, and some code.
struct Kernel {
    load_address: u32,
    preferred_address: u64,
    init_size: u32,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { load_address: 0x10_0000, preferred_address: 0x10_0000, init_size: 0x1_0000 }
    }
}

impl Kernel {
    fn bytes(&self) -> Vec<u8> {
        let mut image = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x202, b"HdrS");
        put(0x206, &0x020f_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &self.load_address.to_le_bytes());
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(0x230, &4096_u32.to_le_bytes());
        put(0x236, &[1]);
        put(0x258, &self.preferred_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        image.extend([0x90; 4096]);
        image
    }
}

fn load(kernel: &Kernel, initrd_len: usize) -> Result<u64, BootError> {
    load_file(&kernel.bytes(), initrd_len)
}

fn load_file(kernel: &[u8], initrd_len: usize) -> Result<u64, BootError> {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let ram = GuestRam::new(&RamConfig {
        size: PageCount::from_bytes(8 * MIB),
        kind: MemoryKind::Anonymous,
        huge_pages: HugePages::Off,
        ..RamConfig::default()
    });
    let initrd = file("initrd", &vec![7; initrd_len]);
    load_linux(&ram.unwrap(), &file("kernel", kernel), Some(&initrd), "quiet", 1)
}

#[test]
fn the_entry_is_behind_the_kernels_start() {
    assert_eq!(load(&Kernel::default(), 5000).unwrap(), 0x10_0200);
    let kernel = Kernel { load_address: 0x20_0000, ..Kernel::default() };
    assert_eq!(load(&kernel, 0).unwrap(), 0x20_0200);
}

#[test]
fn a_kernel_where_the_boot_data_goes_is_refused() {
    for load_address in [0, 0x7000, 0xf_f000] {
        let kernel = Kernel { load_address, ..Kernel::default() };
        let error = load(&kernel, 0).unwrap_err();
        assert!(matches!(error, BootError::Kernel { .. }), "{load_address:#x}: {error}");
    }
}

#[test]
fn an_initrd_does_not_go_where_the_kernel_is() {
    assert!(load(&Kernel::default(), 6 << 20).is_ok());
    let kernel = Kernel { init_size: 3 << 20, ..Kernel::default() };
    assert!(matches!(load(&kernel, 6 << 20).unwrap_err(), BootError::InitrdTooBig { .. }));
}

#[test]
fn numbers_without_sense_are_refused() {
    let kernel = Kernel { preferred_address: u64::MAX, ..Kernel::default() };
    assert!(matches!(load(&kernel, 0).unwrap_err(), BootError::NotAKernel { .. }));
    let kernel = Kernel { preferred_address: 1 << 62, ..Kernel::default() };
    assert!(matches!(load(&kernel, 0).unwrap_err(), BootError::KernelTooBig { .. }));
    let kernel = Kernel { load_address: u32::MAX, ..Kernel::default() };
    assert!(load(&kernel, 0).is_err());
}

#[test]
fn an_unpacked_kernel_is_entered_where_it_says() {
    assert_eq!(load_file(&Vmlinux::default().bytes(), 5000).unwrap(), 0x10_0000);
    let kernel = Vmlinux { address: 0x20_0000, entry: 0x20_0070, ..Vmlinux::default() };
    assert_eq!(load_file(&kernel.bytes(), 0).unwrap(), 0x20_0070);
}

#[test]
fn memory_that_an_unpacked_kernel_clears_is_kept_free() {
    assert!(load_file(&Vmlinux::default().bytes(), 6 << 20).is_ok());
    let kernel = Vmlinux { memory_size: 3 << 20, ..Vmlinux::default() };
    let error = load_file(&kernel.bytes(), 6 << 20).unwrap_err();
    assert!(matches!(error, BootError::InitrdTooBig { .. }), "{error}");
}

#[test]
fn elf_files_that_are_no_kernel_for_this_machine_are_refused() {
    let usual = Vmlinux::default;
    let refusal = |kernel: Vmlinux| load_file(&kernel.bytes(), 0).unwrap_err();
    let error = refusal(Vmlinux { class: 1, ..usual() });
    assert!(matches!(error, BootError::Not64Bit { .. }), "{error}");
    let error = refusal(Vmlinux { machine: 183, ..usual() });
    assert!(matches!(error, BootError::Not64Bit { .. }), "{error}");
    let error = refusal(Vmlinux { entry: 0x4000_0000, ..usual() });
    assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
    let error = refusal(Vmlinux { memory_size: 1 << 40, ..usual() });
    assert!(matches!(error, BootError::KernelTooBig { .. }), "{error}");
    // Where the boot data goes, past the memory's end, and past all addresses.
    for address in [0, 8 * MIB, u64::MAX - 100] {
        let error = refusal(Vmlinux { address, entry: address, ..usual() });
        assert!(matches!(error, BootError::Kernel { .. }), "{address:#x}: {error}");
    }
    // Each length that a cut-off file may have.
    let whole = usual().bytes();
    for end in (0..whole.len()).step_by(7) {
        assert!(load_file(&whole[..end], 0).is_err(), "{end} bytes");
    }
}
