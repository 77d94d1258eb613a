//! Kernels and initrds of any content and length: loaded if there is room, or an error.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};
use guest_ram::{GuestRam, HugePages, MemoryKind, RamConfig};
use page_range::PageCount;
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

/// The address of the boot parameters, followed by offsets within them (Linux
/// `Documentation/arch/x86/zero-page.rst` and `boot.rst`).
const ZERO_PAGE: u64 = 0x7000;
const E820_COUNT: u64 = ZERO_PAGE + 0x1e8;
const RAMDISK: u64 = ZERO_PAGE + 0x218;
const RAMDISK_SIZE: u64 = ZERO_PAGE + 0x21c;
const COMMAND_LINE: u64 = ZERO_PAGE + 0x228;
const E820: u64 = ZERO_PAGE + 0x2d0;
/// The zero page, tables and the command line lie below.
const HIGH_MEMORY: u64 = 1 << 20;

/// The first bytes of the files; the rest is zeros.
const MARK: &[u8] = b"the first bytes of the initrd";

#[derive(Arbitrary, Debug)]
struct Input {
    /// MiB of guest memory.
    memory: u8,
    /// Zeros after the kernel: pages, and bytes.
    kernel_tail: (u16, u8),
    /// The initrd's length: pages, and bytes.
    initrd: Option<(u16, u8)>,
    command_line: u16,
}

/// The first bytes encode the sizes; the others are the kernel.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(sizes) = Input::arbitrary(&mut input) else { return };
    let kernel_head = input.take_rest();

    let ram = GuestRam::new(&RamConfig {
        size: PageCount::from_bytes((1 + u64::from(sizes.memory % 24)) << 20),
        kind: MemoryKind::Anonymous,
        huge_pages: HugePages::Off,
        ..RamConfig::default()
    });
    let ram = ram.unwrap();
    let kernel = file(kernel_head, kernel_head.len() as u64 + len(sizes.kernel_tail));
    let initrd_len = sizes.initrd.map(len);
    let initrd = initrd_len.map(|len| file(&MARK[..MARK.len().min(at_most(len))], len));
    let command_line = "x".repeat(usize::from(sizes.command_line));
    let initrd_path = initrd.as_ref().map(path);
    let entry = vmm::load_linux(&ram, &path(&kernel), initrd_path.as_deref(), &command_line, 2);
    match entry {
        Ok(entry) => check(&ram, entry, initrd_len, &command_line),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn at_most(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn len((pages, bytes): (u16, u8)) -> u64 {
    u64::from(pages % 0x2000) * 4096 + u64::from(bytes)
}

/// A file in memory that begins with these bytes.
fn file(head: &[u8], len: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(head, 0).unwrap();
    file.set_len(len).unwrap();
    file
}

fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn check(ram: &GuestRam, entry: u64, initrd: Option<u64>, command_line: &str) {
    let memory = ram.memory();
    let end = ram.end().get();
    let word = |address: u64| u64::from(memory.read_obj::<u32>(GuestAddress(address)).unwrap());
    assert!((HIGH_MEMORY..end).contains(&entry), "entry {entry:#x} with {end:#x} bytes");

    let (start, size) = (word(RAMDISK), word(RAMDISK_SIZE));
    if let Some(len) = initrd {
        assert_eq!(size, len);
        assert!(start >= HIGH_MEMORY && start + size <= end, "initrd at {start:#x}");
        let mut head = vec![0; MARK.len().min(at_most(len))];
        memory.read_slice(&mut head, GuestAddress(start)).unwrap();
        assert_eq!(head, MARK[..head.len()], "not the initrd");
        assert!(entry < start || size == 0, "the kernel begins in the initrd");
    }

    let mut text = vec![0; command_line.len() + 1];
    memory.read_slice(&mut text, GuestAddress(word(COMMAND_LINE))).unwrap();
    assert_eq!(text.pop(), Some(0), "the command line does not end");
    assert_eq!(text, command_line.as_bytes());

    let entries: u8 = memory.read_obj(GuestAddress(E820_COUNT)).unwrap();
    let mut below = 0;
    for at in (0..u64::from(entries)).map(|n| E820 + n * 20) {
        let start: u64 = memory.read_obj(GuestAddress(at)).unwrap();
        let size: u64 = memory.read_obj(GuestAddress(at + 8)).unwrap();
        assert!(start >= below && size > 0, "the memory map is not in order");
        below = start + size;
    }
    assert!(below <= end, "the memory map exceeds memory");
}
