//! Control groups that limit the memory of several machines together (Linux
//! `Documentation/admin-guide/cgroup-v2.rst`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// A group with a limit, whose children are the groups of single machines; it is removed when dropped.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes a group whose members may take so many bytes together. Mounts cgroups where they are not.
    ///
    /// # Errors
    ///
    /// The kernel does not limit memory, or the caller is not root.
    pub fn new(name: &str, limit: u64) -> Result<Self> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists() {
            let status = Command::new("mount").args(["-t", "cgroup2", "none", ROOT]).status()?;
            ensure!(status.success(), "cannot mount cgroups at {ROOT}");
        }
        with_memory(root)?;
        let group = Self(make(root.join(name))?);
        with_memory(&group.0)?;
        fs::write(group.0.join("memory.max"), limit.to_string()).context("a limit of memory")?;
        Ok(group)
    }

    /// The group of one machine.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        make(self.0.join(name))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for child in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(&self.0);
    }
}

fn make(directory: PathBuf) -> Result<PathBuf> {
    if !directory.exists() {
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
    }
    Ok(directory)
}

/// Lets the children of a group have limits of memory.
fn with_memory(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.subtree_control"), "+memory")
        .with_context(|| format!("no limits of memory in {}", group.display()))
}
