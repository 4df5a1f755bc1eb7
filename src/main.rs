//! Parses arguments and starts the named subcommand.

use std::process::ExitCode;

use clap::Parser as _;
use giantnetes::{cli, runtime::chain};

#[tokio::main]
async fn main() -> ExitCode {
    let args = cli::Args::parse();
    // Fails only if a provider is set already, and nobody else sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::main(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("giantnetes: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
