//! `giantnetes pki`: keys of a guest, out of its management cluster and into another one.

mod export;
mod import;
mod officer;

use super::{Failure, progress::patiently};

#[derive(Debug, clap::Subcommand)]
pub(super) enum PkiCommand {
    /// Print what a guest cluster lives by, its authorities and keys, sealed for those who are to keep it.
    Export(export::ExportArgs),
    /// Make the Secret of such a bundle that a new Cluster is to live by.
    Import(import::ImportArgs),
}

pub(super) async fn pki(command: &PkiCommand) -> Result<(), Failure> {
    match command {
        PkiCommand::Export(args) => patiently("pki export", export::export(args)).await,
        PkiCommand::Import(args) => patiently("pki import", import::import(args)).await,
    }
}
