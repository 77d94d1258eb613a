//! A whole Debian in a guest, as `cargo xtask image` makes it: a shell on its serial console.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder, Storage, StorageCreateOptions};

use crate::config::VmConfig;
use crate::setup::{self, Setup};
use crate::vm::Vm;

/// What the shell prints when a command has ended, before its status.
const DONE: &str = "@done ";

/// The files of an image.
#[derive(Debug, Clone)]
pub struct DebianImage {
    /// `hvb`, the kernel and the initial RAM disk.
    files: Setup,
    /// The disk, which is left as it is.
    disk: PathBuf,
}

impl DebianImage {
    /// Takes the paths from `HVB_BIN`, `HVB_IMAGE_KERNEL`, `HVB_IMAGE_INITRD` and `HVB_IMAGE_DISK`.
    ///
    /// # Errors
    ///
    /// The variables are not set, because this was not started by `cargo xtask`.
    pub fn from_env() -> Result<Self> {
        let initrd = setup::path("HVB_IMAGE_INITRD")?;
        let kernel = setup::path("HVB_IMAGE_KERNEL")?;
        let files = Setup {
            hvb: setup::path("HVB_BIN")?,
            kernel: kernel.clone(),
            vmlinux: kernel,
            initrd: initrd.clone(),
            kexec_initrd: initrd,
        };
        Ok(Self { files, disk: setup::path("HVB_IMAGE_DISK")? })
    }

    /// Starts a machine with this disk, a layer above the image's.
    ///
    /// # Errors
    ///
    /// The machine does not start.
    pub fn start(&self, layer: &Path, config: VmConfig) -> Result<Vm> {
        let disks = vec![layer.display().to_string()];
        let vm = Vm::start_with(&VmConfig { disks, ..config }, &self.files)?;
        Ok(vm)
    }

    /// Makes a qcow2 layer above the image's disk.
    ///
    /// # Errors
    ///
    /// There is no room for it, or the image is missing.
    pub fn layer(&self, path: &Path) -> Result<()> {
        let size = File::open(&self.disk).with_context(|| self.disk.display().to_string())?;
        let size = size.metadata()?.len();
        qcow2(path, size, Some(&self.disk))
    }
}

/// An empty qcow2 image of `bytes` above `backing`, a raw image, if there is one.
///
/// # Errors
///
/// The system's.
pub fn qcow2(path: &Path, bytes: u64, backing: Option<&Path>) -> Result<()> {
    let file = ImageFile::create_open(StorageCreateOptions::new().filename(path))?;
    let mut builder = Qcow2::<ImageFile>::create_builder(file).size(bytes);
    if let Some(backing) = backing {
        builder = builder.backing(backing.display().to_string(), "raw".to_owned());
    }
    builder.create()?;
    Ok(())
}

/// The disk in a qcow2 image.
///
/// # Errors
///
/// It is none, or its backing file is missing.
pub fn open_qcow2(path: &Path) -> Result<FormatAccess<ImageFile>> {
    let mut image = Qcow2::<ImageFile>::open_path(path, false)?;
    image.open_implicit_dependencies()?;
    Ok(FormatAccess::new(image))
}

/// Whether the ext4 on a disk was unmounted, and its next mount has nothing to recover.
///
/// # Errors
///
/// There is no ext4.
pub fn is_unmounted(layer: &Path) -> Result<bool> {
    const SUPER_BLOCK: u64 = 1024;
    let mut block = [0; 1024];
    open_qcow2(layer)?.read(&mut block[..], SUPER_BLOCK)?;
    let word = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    // `s_magic`, `s_state` and `s_feature_incompat` of ext4's super block.
    ensure!(word(0x38) == 0xef53, "no ext4 in {}", layer.display());
    let (is_clean, needs_recovery) = (word(0x3a) & 1 != 0, word(0x60) & 4 != 0);
    Ok(is_clean && !needs_recovery)
}

/// A root shell on the guest's console.
#[derive(Debug)]
pub struct Shell<'a>(&'a mut Vm);

impl<'a> Shell<'a> {
    /// Waits until the guest asks for a name, and logs in.
    ///
    /// # Errors
    ///
    /// The guest does not ask, or does not let root in without a password.
    pub fn log_in(vm: &'a mut Vm) -> Result<Self> {
        let console = &mut vm.agent.console;
        console.wait_for("login: ")?;
        console.send("root")?;
        // Without echo, prompts, colours and job messages, all lines are the commands' own.
        console.send("PS1= PS2= TERM=dumb; stty -echo -onlcr; set +m; echo @rea'dy'")?;
        console.wait_for("@ready")?;
        let mut shell = Self(vm);
        // What was typed before is echoed until here.
        shell.run("dmesg -n 1")?;
        Ok(shell)
    }

    /// The machine, while the shell waits.
    pub fn vm(&mut self) -> &mut Vm {
        self.0
    }

    /// Runs a command and returns what it prints.
    ///
    /// # Errors
    ///
    /// It fails, or does not end.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let console = &mut self.0.agent.console;
        console.send(&format!("{command}; echo \"{}$?\"", DONE.replace('@', "@\"\"")))?;
        let begin = Instant::now();
        let mut output = String::new();
        loop {
            let line = console.next_line(begin).with_context(|| format!("`{command}`"))?.text;
            match line.strip_prefix(DONE) {
                Some("0") => return Ok(output),
                Some(status) => bail!("`{command}` ended with {status}: {output}"),
                None => {
                    output.push_str(&line);
                    output.push('\n');
                }
            }
        }
    }
}
