//! `cargo xtask sanitize`: tests under AddressSanitizer and ThreadSanitizer.
//!
//! Sanitizers are unstable features of rustc, which a stable compiler accepts with `RUSTC_BOOTSTRAP`.
//! That is good enough for a test and is used for nothing else. ThreadSanitizer does not see the
//! synchronisation inside of the standard library, which is not instrumented, so it takes the test
//! harness's own messages for races; those reports are suppressed by the type they carry.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::debian::cache::write_whole;
use crate::workspace;

/// Sanitizers need a target that is named, or they would instrument build scripts as well.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Tests that let the kernel refuse memory or advice on it, which AddressSanitizer needs as well.
const REFUSALS: [&str; 6] = [
    "memory_that_cannot_be_mapped_is_told_with_its_size_and_leaves_nothing",
    "a_kernel_without_huge_pages_still_gives_memory",
    "pages_that_the_kernel_does_not_take_keep_their_content_and_go_later",
    "pages_go_where_the_kernel_takes_no_advice_on_the_rest_of_a_huge_page",
    "of_many_pages_only_those_refused_stay",
    "memory_is_added_without_a_system_call_that_could_fail",
];

/// `cargo xtask sanitize`.
#[derive(Debug, clap::Args)]
pub(crate) struct SanitizeArgs {
    /// One sanitizer only.
    #[arg(long, value_enum)]
    only: Option<Sanitizer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sanitizer {
    /// Out-of-bounds accesses, use after free, leaks.
    Address,
    /// Data races.
    Thread,
}

impl Sanitizer {
    const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    /// The packages whose tests run under it: all with unsafe code and those that read guest memory,
    /// or those with threads that share it.
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Address => &[
                "guest_ram",
                "kvm_hyperv",
                "confinement",
                "vmbus",
                "vmbus_kvm",
                "dynmem_vsp",
                "page_range",
                "fuzz_bodies",
            ],
            Self::Thread => &["races"],
        }
    }

    fn run(self) -> Result<()> {
        println!("sanitize: {}", self.name());
        let mut cargo = workspace::cargo();
        cargo.env("RUSTC_BOOTSTRAP", "1");
        let flags = format!(
            "-Zsanitizer={} -Cunsafe-allow-abi-mismatch=sanitizer -Zunstable-options",
            self.name()
        );
        cargo.env("RUSTFLAGS", flags);
        // The code under test replaces its own mappings; what it still holds at the end is no leak.
        cargo.env("ASAN_OPTIONS", "detect_leaks=0:detect_odr_violation=0");
        let suppressions = workspace::target().join("sanitize-suppressions");
        write_whole(&suppressions, b"race:CompletedTest\n")?;
        cargo.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
        cargo.arg("test").arg("--target").arg(TARGET).arg("--target-dir");
        cargo.arg(workspace::target().join("sanitize").join(self.name()));
        cargo.args(["--quiet", "--lib", "--tests", "--no-fail-fast"]);
        for package in self.packages() {
            cargo.args(["--package", package]);
        }
        if self == Self::Address {
            cargo.arg("--").args(REFUSALS.iter().flat_map(|test| ["--skip", *test]));
        }
        if !cargo.status()?.success() {
            bail!("tests failed under the {} sanitizer: see above", self.name());
        }
        Ok(())
    }
}

/// Runs the tests under each sanitizer.
pub(crate) fn main(args: &SanitizeArgs) -> Result<ExitCode> {
    let all = [Sanitizer::Address, Sanitizer::Thread];
    for sanitizer in all.into_iter().filter(|s| args.only.is_none_or(|only| only == *s)) {
        sanitizer.run()?;
    }
    Ok(ExitCode::SUCCESS)
}
