//! The subcommands.

mod check;
mod console;
mod describe;
mod device_plugin;
mod events;
mod help;
mod kubeconfig;
mod metrics;
mod named;
#[cfg(feature = "aws")]
mod node_agent;
mod pki;
mod plan;
mod progress;
mod reference;
mod roll;
mod rotate;
mod run;
mod support_bundle;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{FromArgMatches as _, Parser, Subcommand};

use self::progress::patiently;
use crate::{
    api::{self, Accelerator},
    runtime::telemetry::{self, LogFormat},
    supervisor::{
        self,
        accelerator::{self, Accel},
        qemu::NodeImage,
    },
};

/// Giantnetes: Kubernetes clusters out of a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// How log lines look.
    #[arg(long, global = true, env = "GIANTNETES_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged, as in RUST_LOG.
    #[arg(long, global = true, env = "GIANTNETES_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller manager.
    Run(run::RunArgs),
    /// Run a VM inside its pod.
    Supervise {
        /// The VM's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The pod's address.
        #[arg(long, env = "POD_IP")]
        pod_ip: IpAddr,
    },
    /// Run flanneld beside a VM, if the guest's overlay is Flannel's.
    Flannel {
        /// The VM's configuration.
        #[arg(long)]
        config: PathBuf,
        /// The pod's address.
        #[arg(long, env = "POD_IP")]
        pod_ip: IpAddr,
    },
    /// Offer KVM to VM pods on this host, if guests start on it.
    DevicePlugin(device_plugin::DevicePluginArgs),
    /// Get a node's certificates on AWS, and renew them.
    #[cfg(feature = "aws")]
    NodeAgent(node_agent::NodeAgentArgs),
    /// Print the CustomResourceDefinitions.
    Crds,
    /// Say whether a controller manager is ready and one of its replicas leads.
    #[command(hide = true)]
    Check(check::CheckArgs),
    /// Print docs/metrics.md.
    #[command(hide = true)]
    Metrics,
    /// Print a document with its tables as they follow from the code.
    #[command(hide = true)]
    Reference(reference::ReferenceArgs),
    /// Print what would be made or changed for a Cluster.
    Plan(plan::PlanArgs),
    /// Draw a Cluster with all that belongs to it, and what it waits for.
    Describe(describe::DescribeArgs),
    /// Print the kubeconfig of a guest cluster.
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Take the keys of a guest cluster out, sealed, and bring them back on another management cluster.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Replace all nodes of a guest cluster, one at a time.
    Roll(roll::RollArgs),
    /// Replace what a guest cluster is built on, while it runs.
    #[command(subcommand)]
    Rotate(rotate::Rotate),
    /// Tell what happened to a Cluster, the oldest first.
    Events(events::EventsArgs),
    /// Print what a node wrote to its serial console.
    Console(console::ConsoleArgs),
    /// Collect what is known of a Cluster in one file, without Secrets, for whoever is to say what is wrong.
    SupportBundle(support_bundle::SupportBundleArgs),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages into a folder.
    Man {
        /// The folder, which must be there.
        folder: PathBuf,
    },
    /// Boot a probe guest and say whether an accelerator can be trusted on this machine.
    Probe {
        /// Say instead what a VM with `accelerator: Auto` would run on here, and why.
        #[arg(long, conflicts_with_all = ["accelerator", "timeout"])]
        choose: bool,
        /// The accelerator.
        #[arg(long, value_enum, default_value = "kvm")]
        accelerator: Accel,
        /// Folder with the node image's vmlinuz and initrd.img.
        #[arg(long)]
        node: PathBuf,
        /// Seconds that the guest has to come up.
        #[arg(long, default_value_t = accelerator::PROBE_TIMEOUT.as_secs())]
        timeout: u64,
        /// User and group that QEMU runs as.
        #[arg(long, default_value_t = supervisor::QEMU_ID)]
        user: u32,
    },
}

impl Args {
    /// Reads the command line. Under the name of a plugin of kubectl, people are told that name.
    pub fn of_command_line() -> Self {
        let matches = help::command(std::env::args().next().as_deref()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Why a subcommand failed.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the subcommand.
///
/// # Errors
/// Whatever went wrong; its chain says which step failed on which object.
pub async fn main(args: Args) -> Result<(), Failure> {
    telemetry::init_logs(args.log_format, &args.log);
    match args.command {
        Command::Run(args) => run::run(args).await,
        Command::Supervise { config, pod_ip } => Ok(supervisor::vm::supervise(&config, pod_ip).await?),
        Command::Flannel { config, pod_ip } => Ok(supervisor::flannel::run(&config, pod_ip).await?),
        Command::DevicePlugin(args) => Ok(crate::device_plugin::run(args.options()).await?),
        #[cfg(feature = "aws")]
        Command::NodeAgent(args) => node_agent::run(args).await,
        Command::Crds => {
            print!("{}", api::crds_yaml()?);
            Ok(())
        }
        Command::Check(args) => check::check(&args).await,
        Command::Metrics => {
            print!("{}", metrics::page());
            Ok(())
        }
        Command::Reference(args) => reference::reference(&args),
        Command::Plan(args) => patiently("plan", plan::plan(&args)).await,
        Command::Describe(args) => patiently("describe", describe::describe(&args)).await,
        Command::Kubeconfig(args) => patiently("kubeconfig", kubeconfig::kubeconfig(&args)).await,
        Command::Pki(command) => pki::pki(&command).await,
        Command::Roll(args) => patiently("roll", roll::roll(&args)).await,
        Command::Rotate(what) => rotate::rotate(&what).await,
        Command::Events(args) => events::events(&args).await,
        Command::Console(args) => console::console(&args).await,
        Command::SupportBundle(args) => support_bundle::support_bundle(&args).await,
        Command::Completions { shell } => help::completions(shell),
        Command::Man { folder } => help::man(&folder),
        Command::Probe { choose: true, node, user, .. } => {
            let image = NodeImage::in_folder(&node);
            let choice = patiently("a probe guest", accelerator::choose(Accelerator::Auto, &image, user)).await?;
            println!("{}: {}", choice.accel, choice.reason);
            Ok(())
        }
        Command::Probe { accelerator, node, timeout, user, .. } => {
            let image = NodeImage::in_folder(&node);
            let timeout = Duration::from_secs(timeout);
            let took = patiently("a probe guest", accelerator::probe(accelerator, &image, user, timeout)).await?;
            println!("{accelerator} works: a probe guest came up in {:.1} s", took.as_secs_f64());
            Ok(())
        }
    }
}
