//! Process 1 of the test guest, and the processes that it and the kernel start from the same file.

use std::process::ExitCode;

use guest_agent::{agent, boot};

fn main() -> ExitCode {
    let mut args = std::env::args();
    if args.next().is_some_and(|name| name.ends_with("/poweroff")) {
        return agent::power::called_by_kernel();
    }
    let outcome = match args.next().as_deref() {
        Some("hold") => agent::memory::hold(args),
        Some("check") => agent::checker::work(args),
        Some("dirty") => agent::memory::dirty(args),
        _ => agent::serve_console(),
    };
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    eprintln!("@err {error}");
    if std::process::id() == 1 {
        eprintln!("@err {}", boot::power_off());
    }
    ExitCode::FAILURE
}
