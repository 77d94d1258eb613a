//! Tap interfaces of the host.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A tap interface that is up, while this exists.
#[derive(Debug)]
pub struct Interface(&'static str);

impl Interface {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// Only root may, and the kernel must have tap interfaces.
    pub fn new(name: &'static str) -> Result<Self> {
        ip(&["tuntap", "add", name, "mode", "tap"])?;
        let interface = Self(name);
        ip(&["link", "set", name, "up"])?;
        Ok(interface)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0
    }

    /// Its number in the kernel.
    ///
    /// # Errors
    ///
    /// It was removed.
    pub fn number(&self) -> Result<u32> {
        let number = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", self.0))?;
        Ok(number.trim().parse()?)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // It may have been removed already.
        let _ = ip(&["link", "delete", self.0]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(output.status.success(), "ip {arguments:?}: {output:?}");
    Ok(())
}
