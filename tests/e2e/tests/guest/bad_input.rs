//! Bad input ends `hvb` at once: one line that names the problem, and nothing left behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};
use e2e::{Setup, Vm, hvb};

/// `hvb run` with a guest that would boot if it were not for `args`.
fn run_with(kernel: &Path, initrd: &Path, args: &[&str]) -> Result<Output> {
    let mut line = vec!["run", "--serial", "none", "--kernel"];
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    line.extend([kernel.as_str(), "--initrd", &initrd]);
    line.extend(args);
    hvb(&line)
}

fn refuses(output: &Output, named: &[&str]) -> Result<()> {
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {words}", output.status);
    ensure!(output.stdout.is_empty(), "on standard output: {output:?}");
    ensure!(words.trim_end().lines().count() == 1, "not one line: {words}");
    ensure!(!words.contains("RUST_BACKTRACE") && !words.contains("panicked"), "{words}");
    for name in named {
        ensure!(words.contains(name), "does not say {name}: {words}");
    }
    Ok(())
}

#[test]
fn reports_of_free_pages_from_the_pool() -> Result<()> {
    let setup = Setup::from_env()?;
    let args = ["--memory", "64M", "--hugepages", "2M", "--free-page-reporting", "on"];
    let named = ["--free-page-reporting", "--hugepages thp", "leave the option out"];
    refuses(&run_with(&setup.kernel, &setup.initrd, &args)?, &named)
}

#[test]
fn missing_kernel_and_initrd() -> Result<()> {
    let setup = Setup::from_env()?;
    let nowhere = Path::new("/no/such/file");
    refuses(&run_with(nowhere, &setup.initrd, &[])?, &["/no/such/file"])?;
    refuses(&run_with(&setup.kernel, nowhere, &[])?, &["/no/such/file"])?;
    refuses(&run_with(Path::new("/"), &setup.initrd, &[])?, &["/"])
}

#[test]
fn kernel_that_is_none() -> Result<()> {
    let setup = Setup::from_env()?;
    let dir = tempfile::tempdir()?;
    let [empty, text, cut] = ["empty", "text", "cut"].map(|name| dir.path().join(name));
    fs::write(&empty, "")?;
    fs::write(&text, "not a kernel\n".repeat(10_000))?;
    fs::write(&cut, &fs::read(&setup.kernel)?[..5000])?;
    for kernel in [empty, text, cut] {
        let socket = dir.path().join("qmp").display().to_string();
        let output = run_with(&kernel, &setup.initrd, &["--qmp", &socket])?;
        refuses(&output, &[&kernel.display().to_string()])?;
        ensure!(!Path::new(&socket).exists(), "the socket was left behind");
    }
    Ok(())
}

#[test]
fn initrd_and_memory_that_do_not_fit() -> Result<()> {
    let setup = Setup::from_env()?;
    let big = tempfile::NamedTempFile::new()?;
    big.as_file().set_len(300 << 20)?;
    let output = run_with(&setup.kernel, big.path(), &["--memory", "256M"])?;
    refuses(&output, &[&big.path().display().to_string()])?;
    refuses(&run_with(&setup.kernel, &setup.initrd, &["--memory", "1M"])?, &[])
}

#[test]
fn sizes_and_counts_that_are_none() -> Result<()> {
    let setup = Setup::from_env()?;
    for (option, value) in [
        ("--memory", "12Q"),
        ("--memory", "0"),
        ("--memory", "-1G"),
        ("--memory", "99999999999G"),
        ("--memory", "1000000T"),
        ("--cpus", "0"),
        ("--cpus", "100000"),
        ("--serial", "nonsense"),
        ("--serial", "file:/no/such/dir/file"),
        ("--settle", "soon"),
        ("--hugepages", "3M"),
        ("--on-reset", "whatever"),
        // Less than at boot, not whole pages, and more than addresses have bits for.
        ("--max-memory", "512M"),
        ("--max-memory", "1073745921"),
        ("--max-memory", "16777216T"),
        ("--max-memory", "8192T"),
        ("--qmp", "/no/such/dir/qmp"),
    ] {
        let argument = format!("{option}={value}");
        let output = run_with(&setup.kernel, &setup.initrd, &[&argument])?;
        refuses(&output, &[]).map_err(|error| error.context(argument))?;
    }
    Ok(())
}

#[test]
fn disks_and_networks_that_are_none() -> Result<()> {
    let setup = Setup::from_env()?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let [empty, text, named] = ["empty", "text", "disk.qcow2"].map(file);
    fs::write(&empty, "")?;
    fs::write(&text, "not a disk\n".repeat(1000))?;
    fs::write(&named, "not a disk\n".repeat(1000))?;
    let begins = file("begins");
    fs::write(&begins, b"QFI\xfb\0\0\0\x03".repeat(512))?;
    for (option, named) in [
        (format!("--disk={}", file("none")), "none"),
        (format!("--disk={}", dir.path().display()), "no disk image"),
        (format!("--disk={empty}"), "truncate -s"),
        (format!("--disk={text}"), "truncate -s"),
        (format!("--disk={named}"), "format=raw"),
        (format!("--disk={begins}"), "format=qcow2"),
        (format!("--disk={begins},format=qcow2"), "cut off or damaged"),
        (format!("--disk={text},format=vmdk"), "raw or qcow2"),
        ("--net=passt,mac=zz".to_owned(), "mac=zz"),
        ("--net=tap".to_owned(), "passt"),
        ("--net=passt,vhost=on".to_owned(), "takes a tap interface"),
        (format!("--net=passt={}", file("none")), "passt --socket"),
    ] {
        let output = run_with(&setup.kernel, &setup.initrd, &[&option])?;
        refuses(&output, &[named]).map_err(|error| error.context(option))?;
    }
    Ok(())
}

#[test]
fn socket_path_in_use() -> Result<()> {
    let setup = Setup::from_env()?;
    let vm = Vm::boot(1)?;
    let socket = vm.socket().display().to_string();
    let output = run_with(&setup.kernel, &setup.initrd, &["--qmp", &socket])?;
    refuses(&output, &[&socket])?;
    vm.connect()?;
    vm.power_off()?;

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "precious")?;
    let name = file.display().to_string();
    refuses(&run_with(&setup.kernel, &setup.initrd, &["--qmp", &name])?, &[&name])?;
    ensure!(fs::read_to_string(&file)? == "precious", "another's file was touched");

    let listening = dir.path().join("listening");
    let _listener = UnixListener::bind(&listening)?;
    let name = listening.display().to_string();
    refuses(&run_with(&setup.kernel, &setup.initrd, &["--qmp", &name])?, &[&name])?;
    ensure!(listening.exists(), "another's socket was removed");
    Ok(())
}

/// Needs root, which tests in the rig have: only root can become a user without access.
#[test]
fn dev_kvm_that_cannot_be_used() -> Result<()> {
    let setup = Setup::from_env()?;
    // In a place where another user can read them.
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let [hvb, kernel] = ["hvb", "kernel"].map(|name| dir.path().join(name));
    fs::copy(&setup.hvb, &hvb)?;
    fs::copy(&setup.kernel, &kernel)?;
    fs::set_permissions(&kernel, Permissions::from_mode(0o644))?;

    let run = format!("{} run --serial none --kernel {}", hvb.display(), kernel.display());
    let unprivileged = format!("exec setpriv --reuid 65534 --regid 65534 --clear-groups {run}");
    let not_kvm = format!("mount --bind /dev/null /dev/kvm && exec {run}");
    let missing = format!("mount -t tmpfs none /dev && exec {run}");
    for script in [unprivileged, not_kvm, missing] {
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null());
        let output = shell.output()?;
        refuses(&output, &["/dev/kvm"]).map_err(|error| error.context(script))?;
    }
    Ok(())
}
