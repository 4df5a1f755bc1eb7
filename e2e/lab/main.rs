//! `lab`: sets up, shows and removes the lab (see the library's documentation).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lab::paths::Paths;
use lab::{Lab, down, preflight, process, status, topology, up};

/// A real Kubernetes management cluster on this machine.
#[derive(Parser)]
#[command(name = "lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set the lab up, or what is missing of it
    Up,
    /// Remove the lab; only caches stay
    Down,
    /// Show what runs
    Status,
    /// Import docker or OCI archives into every host, unless they are there
    Load {
        /// Archives
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Check whether this machine can carry a lab, changing nothing
    Preflight,
    /// Become a server that is on record (used by `up`)
    #[command(hide = true)]
    ExecRecorded {
        #[arg(long)]
        name: String,
        #[arg(long)]
        fingerprint: String,
        #[arg(long)]
        room: String,
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up => {
            let lab = up::up()?;
            let kubeconfig = lab.kubeconfig();
            println!("{}", kubeconfig.display());
            println!("  {} --kubeconfig {} get pods -A", lab.kubectl_binary().display(), kubeconfig.display());
            println!("  lab down");
        }
        Command::Down => down::down()?,
        Command::Status => {
            if !status::status()? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Load { archives } => {
            let Some(lab) = Lab::running() else { bail!("no lab is running; `lab up` starts one") };
            for archive in archives {
                let imported = lab.load(&archive)?;
                println!("{}: {}", archive.display(), if imported { "loaded" } else { "was there already" });
            }
        }
        Command::Kubeconfig => {
            let lab = Lab::found().context("no lab is set up; `lab up` sets one up")?;
            println!("{}", lab.kubeconfig().display());
        }
        Command::Preflight => {
            preflight::check(&Paths::of_machine()?)?;
            println!("this machine can carry a lab");
        }
        Command::ExecRecorded { name, fingerprint, room, argv } => {
            let room = topology::rooms().find(|known| known.name == room).context("there is no such room")?;
            process::exec_recorded(&Paths::of_machine()?, &name, &fingerprint, &room, &argv)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
