//! The first steps of an init program: mounts and kernel modules.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// The directory of the image's kernel modules, as `NAME.ko`.
pub const MODULES: &str = "/modules";

/// The start of the names of files in [`MODULES`] that list module names, one per line, in the
/// order to load them; the name of the list follows.
pub const MODULE_ORDER: &str = "order-";

/// The list of modules that these images load by default.
pub const USUAL_MODULES: &str = "usual";

/// The list of modules with the integration services as well.
pub const SERVICES_MODULES: &str = "services";

/// Mounts `proc`, `sysfs` and `devtmpfs` at their usual places.
///
/// # Errors
///
/// A mount point cannot be created or mounted.
pub fn mount_kernel_file_systems() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_fs(kind, kind, target, "")?;
    }
    Ok(())
}

/// Mounts a file system of `kind` at `target`, which is created if missing.
///
/// # Errors
///
/// The mount point cannot be created or mounted; the text names both.
pub fn mount_fs(kind: &str, source: &str, target: &str, options: &str) -> io::Result<()> {
    fs::create_dir_all(target)?;
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .map_err(|e| io::Error::other(format!("mount {kind} {source} on {target}: {e}")))
}

/// Loads the modules of one of the image's lists in order, except those in `skip`; returns the
/// names that failed, with the reason.
///
/// # Errors
///
/// The list of modules cannot be read. A module that the kernel refuses is not an error here:
/// `hv_vmbus` is refused on every machine without Hyper-V.
pub fn load_modules(list: &str, skip: &[String]) -> io::Result<Vec<(String, String)>> {
    let file = Path::new(MODULES).join(format!("{MODULE_ORDER}{list}"));
    let no_list = |e| io::Error::other(format!("{}: {e}", file.display()));
    let order = fs::read_to_string(&file).map_err(no_list)?;
    let failed = |name: &str| load_module(name).err().map(|e| (name.to_owned(), e.to_string()));
    Ok(order.lines().filter(|name| !skip.iter().any(|s| s == name)).filter_map(failed).collect())
}

/// Loads one module of the image by name; a module that is already loaded is no error.
///
/// # Errors
///
/// There is no such file in the image, or the kernel refuses the module.
pub fn load_module(name: &str) -> io::Result<()> {
    let file = File::open(Path::new(MODULES).join(format!("{name}.ko")))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Powers the machine off; returns only if the kernel refuses.
pub fn power_off() -> io::Error {
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(e) => e.into(),
    }
}
