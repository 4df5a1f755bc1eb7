//! `lab`: sets up, shows and removes the lab (see the library's documentation).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
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
    /// Make a host fail, or bring it back
    Host {
        #[arg(value_enum)]
        action: HostAction,
        /// host1, host2, …
        name: String,
    },
    /// Make the API server fail, or bring it back
    Apiserver {
        #[arg(value_enum)]
        action: ApiserverAction,
    },
    /// Make Vault fail, or bring it back
    Vault {
        #[arg(value_enum)]
        action: VaultAction,
    },
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Check whether this machine can carry a lab, changing nothing
    Preflight {
        /// What has to be built first may be missing still
        #[arg(long)]
        before_build: bool,
    },
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

#[derive(Clone, Copy, ValueEnum)]
enum HostAction {
    /// Cut its power
    Stop,
    /// Give it power again, and wait until its node is Ready
    Start,
    /// Unplug it from the network
    Isolate,
    /// Plug it in again
    Heal,
}

#[derive(Clone, Copy, ValueEnum)]
enum ApiserverAction {
    /// End it
    Stop,
    /// Start it or let it go on, and wait until it answers
    Start,
    /// Hold it where it is: it accepts connections and does not answer
    Freeze,
}

#[derive(Clone, Copy, ValueEnum)]
enum VaultAction {
    /// Seal it: it answers nothing but that it is sealed
    Seal,
    /// Unseal it
    Unseal,
    /// End it; what it stored stays
    Stop,
    /// Start it, unseal it, and wait until it serves
    Start,
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
            // By its path: it is on nobody's search path.
            println!("  {} down", std::env::current_exe().context("cannot tell where `lab` is")?.display());
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
        Command::Host { action, name } => {
            let (lab, host) = (Lab::existing()?, topology::host(&name)?);
            match action {
                HostAction::Stop => lab.stop_host(host)?,
                HostAction::Start => up::start_host(host)?,
                HostAction::Isolate => lab.isolate_host(host)?,
                HostAction::Heal => lab.heal_host(host)?,
            }
        }
        Command::Apiserver { action } => match action {
            ApiserverAction::Stop => Lab::existing()?.stop_apiserver()?,
            ApiserverAction::Start => up::start_apiserver()?,
            ApiserverAction::Freeze => Lab::existing()?.freeze_apiserver()?,
        },
        Command::Vault { action } => match action {
            VaultAction::Seal => Lab::existing()?.seal_vault()?,
            VaultAction::Unseal => Lab::existing()?.unseal_vault()?,
            VaultAction::Stop => Lab::existing()?.stop_vault()?,
            VaultAction::Start => up::start_vault()?,
        },
        Command::Kubeconfig => {
            println!("{}", Lab::existing()?.kubeconfig().display());
        }
        Command::Preflight { before_build } => {
            let paths = Paths::of_machine()?;
            if before_build {
                preflight::check_before_build(&paths)?
            } else {
                preflight::check(&paths)?
            }
            println!("this machine can carry a lab");
        }
        Command::ExecRecorded { name, fingerprint, room, argv } => {
            let mut rooms = topology::rooms().chain([topology::MACHINE]);
            let room = rooms.find(|known| known.name == room).context("there is no such room")?;
            process::exec_recorded(&Paths::of_machine()?, &name, &fingerprint, &room, &argv)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
