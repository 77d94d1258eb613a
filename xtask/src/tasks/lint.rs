//! `cargo xtask lint`: the project's rules that the compiler cannot check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use super::links;
use crate::workspace;

/// Each crate and the crates of this workspace it may know: the layers of `ARCHITECTURE.md`.
const LAYERS: [(&str, &[&str]); 24] = [
    ("balancer", &[]),
    ("doctor", &[]),
    ("timeline", &[]),
    ("page_range", &[]),
    ("confinement", &[]),
    ("saved_state", &["page_range"]),
    ("dynmem_protocol", &["page_range"]),
    ("hv_balloon", &["dynmem_protocol", "page_range", "saved_state"]),
    ("vmbus", &["page_range", "saved_state"]),
    ("dynmem_vsp", &["hv_balloon", "page_range", "saved_state", "vmbus"]),
    ("integration_services", &["saved_state", "vmbus"]),
    ("bus_recording", &["dynmem_vsp", "integration_services", "page_range", "vmbus"]),
    ("guest_ram", &["page_range"]),
    ("kvm_hyperv", &["page_range", "vmbus"]),
    (
        "vmbus_kvm",
        &[
            "bus_recording",
            "dynmem_protocol",
            "dynmem_vsp",
            "guest_ram",
            "integration_services",
            "kvm_hyperv",
            "page_range",
            "saved_state",
            "vmbus",
        ],
    ),
    ("qmp", &[]),
    ("balance_host", &["balancer", "qmp"]),
    ("balance_sim", &["balancer"]),
    ("balance_top", &["balance_host"]),
    ("balance_web", &["balance_host"]),
    ("virtio_devices", &["guest_ram"]),
    (
        "vmm",
        &[
            "confinement",
            "dynmem_protocol",
            "dynmem_vsp",
            "guest_ram",
            "hv_balloon",
            "kvm_hyperv",
            "page_range",
            "qmp",
            "virtio_devices",
            "vmbus",
            "vmbus_kvm",
        ],
    ),
    (
        "hvb",
        &[
            "balance_host",
            "balance_sim",
            "balance_top",
            "balance_web",
            "confinement",
            "doctor",
            "kvm_hyperv",
            "qmp",
            "timeline",
            "vmm",
        ],
    ),
    ("minimal_vmm", &["guest_ram", "kvm_hyperv", "page_range", "vmbus", "vmbus_kvm"]),
];

/// Where the packages are that have a layer: what ships, and the examples that others start from.
const SHIPPED: [&str; 3] = ["crates", "bin", "examples"];

/// Crates without input, output, clock or unsafe code.
const PURE: [&str; 10] = [
    "balancer",
    "balance_sim",
    "page_range",
    "saved_state",
    "dynmem_protocol",
    "hv_balloon",
    "vmbus",
    "dynmem_vsp",
    "integration_services",
    "guest_model",
];

/// Crates that may contain unsafe code: memory, KVM and a signal handler, and the benches that call what has no safe
/// form (a counting allocator, other allocators and sets written in C, the bare `madvise`).
const UNSAFE: [&str; 6] =
    ["confinement", "guest_ram", "kvm_hyperv", "page_sets", "host_limit", "messages"];

/// Ways to guest memory that bypass `VolatileSlice`: an address, or a reference, which claims that
/// nothing else writes there.
const RAW_MEMORY: [&str; 5] =
    ["get_host_address", "host_address", "ptr_guard", "from_raw_parts", "copy_nonoverlapping"];

/// Files that need the address: they map the memory, export it, or give it to the kernel.
const MAY_HAVE_ADDRESSES: [&str; 4] = [
    "guest_ram/src/mapping.rs",
    "guest_ram/src/region.rs",
    "kvm_hyperv/src/vm.rs",
    "virtio_devices/src/net/vhost/table.rs",
];

/// The directory of the benches. They are above all layers: they may use every crate, and no crate
/// may use them.
const BENCHES: &str = "benches";

/// The most lines of a file, so that a reader can keep it in mind.
const MAX_LINES: usize = 600;

/// Checks the workspace; prints each finding on a line.
pub(crate) fn main() -> Result<ExitCode> {
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let mut findings = check(&metadata)?;
    findings.extend(links::check()?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(metadata: &Metadata) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let benches = benches(metadata);
    for package in metadata.workspace_packages() {
        let dir = package.manifest_path.parent().context("no directory")?;
        findings.extend(check_benches(package, &benches));
        if SHIPPED.iter().any(|room| dir.starts_with(metadata.workspace_root.join(room))) {
            findings.extend(check_layers(package, metadata));
            for file in rust_files(dir.join("src").as_std_path())? {
                findings.extend(check_memory_access(&file)?);
            }
        }
        if PURE.contains(&package.name.as_str()) {
            findings.extend(check_purity(dir.as_std_path())?);
        }
        let manifest = fs::read_to_string(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            findings
                .push(format!("{}: does not inherit the workspace's lints", package.manifest_path));
        }
        for file in rust_files(dir.as_std_path())? {
            findings.extend(check_file(&file, UNSAFE.contains(&package.name.as_str()))?);
        }
    }
    Ok(findings)
}

fn check_layers(package: &Package, metadata: &Metadata) -> Vec<String> {
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == package.name.as_str()) else {
        return vec![format!("{}: has no layer: give it one in xtask's lint", package.name)];
    };
    let ours = metadata.workspace_packages();
    package
        .dependencies
        .iter()
        // Tests may depend on layers above: they do not ship.
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.as_str())
        .filter(|name| ours.iter().any(|package| package.name.as_str() == *name))
        .filter(|name| !allowed.contains(name))
        .map(|name| format!("{}: may not depend on {name}: it is not below it", package.name))
        .collect()
}

/// The names of the bench packages.
fn benches(metadata: &Metadata) -> Vec<&str> {
    let dir = metadata.workspace_root.join(BENCHES);
    let packages = metadata.workspace_packages().into_iter();
    let benches = packages.filter(|package| package.manifest_path.starts_with(&dir));
    benches.map(|package| package.name.as_str()).collect()
}

/// Not even a test may depend on a bench, or that would have to be built and maintained for the
/// test.
fn check_benches(package: &Package, benches: &[&str]) -> Vec<String> {
    let names = package.dependencies.iter().map(|dependency| dependency.name.as_str());
    let needed = names.filter(|name| benches.contains(name));
    needed.map(|name| format!("{}: may not depend on the bench {name}", package.name)).collect()
}

fn check_purity(dir: &Path) -> Result<Vec<String>> {
    let file = dir.join("src/lib.rs");
    let text = fs::read_to_string(&file)?;
    let missing = ["#![no_std]", "#![forbid(unsafe_code)]"]
        .into_iter()
        .filter(|attribute| !text.lines().any(|line| line == *attribute));
    Ok(missing.map(|a| format!("{}: a pure crate without {a}", file.display())).collect())
}

fn check_file(file: &Path, may_be_unsafe: bool) -> Result<Vec<String>> {
    let text = fs::read_to_string(file)?;
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        findings
            .push(format!("{}: {lines} lines: split it, {MAX_LINES} is the most", file.display()));
    }
    // The workspace denies unsafe code, so only such a line can allow it.
    let opens_door = |line: &str| {
        let line = line.trim_start();
        line.starts_with('#')
            && line.contains("unsafe_code")
            && (line.contains("allow(") || line.contains("expect(") || line.contains("warn("))
    };
    if !may_be_unsafe && text.lines().any(opens_door) {
        findings.push(format!("{}: unsafe code: only {UNSAFE:?} may contain any", file.display()));
    }
    Ok(findings)
}

/// Memory that guest and host share is read and written by volatile or atomic accesses.
fn check_memory_access(file: &Path) -> Result<Vec<String>> {
    if MAY_HAVE_ADDRESSES.iter().any(|allowed| file.ends_with(allowed)) {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file)?;
    let code = || text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let has = |name: &str| code().any(|line| line.split(|c| !is_word(c)).any(|word| word == name));
    let found = RAW_MEMORY.into_iter().filter(|name| has(name));
    Ok(found.map(|name| format!("{}: {name}: use VolatileSlice instead", file.display())).collect())
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings_in(text: &str, may_be_unsafe: bool) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        check_file(file.path(), may_be_unsafe).unwrap()
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(findings_in(&"\n".repeat(MAX_LINES), false), Vec::<String>::new());
        assert_eq!(findings_in(&"\n".repeat(MAX_LINES + 1), false).len(), 1);
    }

    #[test]
    fn unsafe_code_is_found_where_it_is_let_in() {
        let text = "#![cfg_attr(test, expect(unsafe_code, reason = \"x\"))]\nfn f() {}\n";
        assert_eq!(findings_in(text, false).len(), 1);
        assert_eq!(findings_in(text, true), Vec::<String>::new());
        assert_eq!(findings_in("#![forbid(unsafe_code)]\n", false), Vec::<String>::new());
    }

    #[test]
    fn ways_past_volatile_accesses_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let findings = |name: &str, text: &str| {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            check_memory_access(&file).unwrap().len()
        };
        let text = "// get_host_address\nlet a = region.get_host_address(b);\n";
        assert_eq!(findings("vmbus/src/memory.rs", text), 1);
        assert_eq!(findings("kvm_hyperv/src/vm.rs", text), 0);
        assert_eq!(findings("vmbus/src/memory.rs", "// ptr_guard\nmy_ptr_guard();\n"), 0);
    }

    #[test]
    fn layers_only_name_crates_below() {
        for (n, (_, below)) in LAYERS.iter().enumerate() {
            let earlier: Vec<&str> = LAYERS[..n].iter().map(|(name, _)| *name).collect();
            assert!(below.iter().all(|name| earlier.contains(name)), "{below:?}");
        }
    }
}
