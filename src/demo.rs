use std::process::ExitCode;
pub async fn run(_: crate::cli::Demo) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::FAILURE)
}
