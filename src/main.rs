//! Parses arguments and starts the named subcommand.

use std::process::ExitCode;

use giantnetes::{cli, runtime::chain};

#[tokio::main]
async fn main() -> ExitCode {
    let args = cli::Args::of_command_line();
    // Fails only if a provider is set already, and nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::main(args).await {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has read enough.
        Err(error) if is_closed_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("giantnetes: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
