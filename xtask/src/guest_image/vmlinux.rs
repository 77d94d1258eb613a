//! Takes the kernel out of a bzImage. A guest that starts it need not unpack it, which takes an emulated
//! machine longer than most tests do.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::cache::write_whole;
use crate::debian::packages::{self, LZ4, Program, XZ, ZSTD};

/// Fields of the setup header, and the magic that says that there is one (Linux
/// `Documentation/arch/x86/boot.rst`).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The kernel's size, which its build appends to what it compressed; xz does not know it as its own.
const SIZE_AT_END: usize = 4;

/// The unpacked kernel beside a bzImage; made on the first call.
///
/// # Errors
///
/// The image has an unknown layout or compression, or the file cannot be written.
pub(super) fn beside(image: &Path) -> Result<PathBuf> {
    let name =
        image.file_name().and_then(|name| name.to_str()).context("a kernel without a name")?;
    let file = image.with_file_name(name.replace("vmlinuz", "vmlinux"));
    ensure!(file != image, "{} is no vmlinuz", image.display());
    if !file.exists() {
        let bytes = fs::read(image).with_context(|| image.display().to_string())?;
        let payload =
            payload(&bytes).with_context(|| format!("{} is no bzImage", image.display()))?;
        write_whole(&file, &unpack(payload)?)?;
    }
    Ok(file)
}

/// The compressed kernel in an image.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    image.get(MAGIC.0..)?.starts_with(MAGIC.1).then_some(())?;
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = setup.checked_add(number(PAYLOAD_OFFSET)?)?;
    let end = start.checked_add(number(PAYLOAD_LENGTH)?)?.checked_sub(SIZE_AT_END)?;
    image.get(start..end)
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>> {
    let tool = tool(payload).context("the kernel is compressed in an unknown way")?;
    packages::ensure_installed(&[tool])?;
    let mut child = Command::new(tool.file)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", tool.file))?;
    let mut input = child.stdin.take().context("no pipe")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output()
    })?;
    ensure!(output.status.success(), "{} cannot unpack the kernel", tool.file);
    if !output.stdout.starts_with(b"\x7fELF") {
        bail!("{} unpacked something else than a kernel", tool.file);
    }
    Ok(output.stdout)
}

/// What unpacks data that begins like this.
fn tool(payload: &[u8]) -> Option<Program> {
    const BEGINNINGS: [(&[u8], Program); 3] = [
        (&[0x02, 0x21, 0x4c, 0x18], LZ4),
        (&[0x28, 0xb5, 0x2f, 0xfd], ZSTD),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], XZ),
    ];
    BEGINNINGS.into_iter().find(|(start, _)| payload.starts_with(start)).map(|(_, tool)| tool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 1024 + 20];
        image[SETUP_SECTORS] = 1;
        image[MAGIC.0..][..4].copy_from_slice(MAGIC.1);
        image[PAYLOAD_OFFSET] = 6;
        image[PAYLOAD_LENGTH] = 12;
        image[1030..1038].copy_from_slice(b"a kernel");
        assert_eq!(payload(&image), Some(&b"a kernel"[..]));
        assert_eq!(payload(&image[..1037]), None);
        image[MAGIC.0] = 0;
        assert_eq!(payload(&image), None);
    }

    #[test]
    fn compressions_are_known_by_their_beginning() {
        let name = |bytes: &[u8]| tool(bytes).map(|tool| tool.file);
        assert_eq!(name(b"\x02\x21\x4c\x18\xb7"), Some("lz4"));
        assert_eq!(name(b"\x28\xb5\x2f\xfd\x04"), Some("zstd"));
        assert_eq!(name(b"\xfd7zXZ\0\0"), Some("xz"));
        assert_eq!(name(b"\x1f\x8b\x08"), None);
    }
}
