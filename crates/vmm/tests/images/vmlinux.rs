//! A kernel in an ELF file (`elf(5)`), for whoever has code of a few bytes to boot.

/// The smallest such file: the header, one program header, and the code.
pub(crate) struct Vmlinux {
    pub(crate) class: u8,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) address: u64,
    pub(crate) memory_size: u64,
    pub(crate) code: Vec<u8>,
}

impl Default for Vmlinux {
    /// A kernel for x86-64 at 1 MiB, of a page of `nop`.
    fn default() -> Self {
        let address = 0x10_0000;
        let code = vec![0x90; 4096];
        Self { class: 2, machine: 62, entry: address, address, memory_size: 0x1_0000, code }
    }
}

impl Vmlinux {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut image = vec![0; 64 + 56];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x7f, b'E', b'L', b'F', self.class, 1, 1]);
        put(18, &self.machine.to_le_bytes());
        put(24, &self.entry.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &1_u16.to_le_bytes());
        // The program header: a part to load, its offset, its address, and its sizes.
        put(64, &1_u32.to_le_bytes());
        put(64 + 8, &120_u64.to_le_bytes());
        put(64 + 24, &self.address.to_le_bytes());
        put(64 + 32, &self.code.len().to_le_bytes());
        put(64 + 40, &self.memory_size.to_le_bytes());
        image.extend(&self.code);
        image
    }
}
