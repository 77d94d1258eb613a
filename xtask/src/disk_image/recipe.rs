//! What is in the image.

use serde::Serialize;

/// All that decides what is in the image, except for the versions that Debian has today.
#[derive(Debug, Serialize)]
pub(crate) struct Recipe {
    /// The release of Debian.
    pub(super) suite: String,
    /// The size of the file system, in MiB.
    pub(super) size_mib: u64,
    /// The packages, beside those that every Debian has.
    pub(super) packages: Vec<String>,
    /// Files beside those of the packages, by their path without the first `/`.
    pub(super) files: Vec<(&'static str, String)>,
    /// What is done when all packages are installed: a shell script whose `$1` is the root of the
    /// image.
    pub(super) last_steps: &'static str,
    /// The modules without which the guest does not find its disk: they must be in the initrd.
    pub(super) disk_modules: [&'static str; 3],
}

/// A system with systemd that gets its addresses from DHCP, runs PostgreSQL and `sshd`, and can make
/// its own initramfs.
const PACKAGES: [&str; 16] = [
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "login",
    "openssh-server",
    "passwd",
    "postgresql",
    "procps",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// Disks on virtio over MMIO, and over PCI for other VMMs.
const DISK_MODULES: [&str; 3] = ["virtio_mmio", "virtio_pci", "virtio_blk"];

const FILES: [(&str, &str); 9] = [
    ("etc/hostname", "debian\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n"),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    ("etc/fstab", "LABEL=debian / ext4 errors=remount-ro 0 1\n"),
    ("etc/systemd/network/50-dhcp.network", "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"),
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/no-password.conf",
        "# Whoever has this console owns the machine.\n[Service]\nExecStart=\n\
         ExecStart=-/sbin/agetty -o '-p -f -- \\\\u' --keep-baud 115200,57600,38400,9600 - $TERM\n",
    ),
    ("etc/ssh/sshd_config.d/keys-only.conf", "PasswordAuthentication no\n"),
    (
        "etc/udev/rules.d/80-memory-online.rules",
        "SUBSYSTEM==\"memory\", ACTION==\"add\", ATTR{state}==\"offline\", ATTR{state}=\"online\"\n",
    ),
    // A small initramfs boots sooner than one for every machine.
    ("etc/initramfs-tools/conf.d/small", "MODULES=list\n"),
];

/// The directories for modules in the initramfs, since `/etc/initramfs-tools/modules` belongs to a
/// package.
const INITRAMFS_MODULES: &str = "usr/share/initramfs-tools/modules.d/hv-balloon";

const LAST_STEPS: &str = r#"set -e
chroot "$1" systemctl --quiet enable systemd-networkd serial-getty@ttyS0
ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
# The crash kernel's initramfs, which the first boot would have to make.
kdump=/etc/kernel/postinst.d/kdump-tools
if [ -x "$1$kdump" ]; then
    for kernel in "$1"/usr/lib/modules/*; do
        chroot "$1" "$kdump" "${kernel##*/}"
        # Without this mark of what it was made with, the first boot makes it again.
        cp "$1/etc/kdump/sysctl.conf" "$1/var/lib/kdump/latest_sysctls-${kernel##*/}"
    done
fi
# These are the settings of the machine that makes the image.
rm -f "$1/etc/.resolv.conf.systemd-resolved.bak"
rm "$1/etc/apt/apt.conf.d/99mmdebstrap"
"#;

impl Recipe {
    /// The recipe for a release and a size, with more packages, and a public key with which root
    /// may log in by ssh.
    pub(crate) fn new(suite: String, size_mib: u64, with: &[String], key: Option<String>) -> Self {
        let mut packages: Vec<String> = PACKAGES.map(str::to_owned).to_vec();
        packages.extend_from_slice(with);
        packages.sort_unstable();
        packages.dedup();
        let mut files: Vec<_> = FILES.map(|(path, text)| (path, text.to_owned())).to_vec();
        files.push((INITRAMFS_MODULES, DISK_MODULES.join("\n") + "\n"));
        files.extend(key.map(|key| ("root/.ssh/authorized_keys", key)));
        let (last_steps, disk_modules) = (LAST_STEPS, DISK_MODULES);
        Self { suite, size_mib, packages, files, last_steps, disk_modules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(with: &[&str]) -> Vec<String> {
        let with: Vec<String> = with.iter().map(|&name| name.to_owned()).collect();
        Recipe::new("bookworm".to_owned(), 2048, &with, None).packages
    }

    #[test]
    fn a_package_that_is_in_every_image_counts_once() {
        let plain = packages(&[]);
        assert_eq!(packages(&["udev"]), plain);
        assert_eq!(packages(&["kdump-tools"]).len(), plain.len() + 1);
    }
}
