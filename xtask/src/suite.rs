use anyhow::Result;
use std::process::ExitCode;
pub(crate) fn run_plan(_: &std::path::Path) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
