//! What a node on AWS gets its certificates by. It makes keys on the node, proves to Vault whose instance it is, has
//! requests signed, and renews at two thirds of a certificate's life.
//!
//! ```text
//!  user data ─► config ─┐          ┌─ files: what there is
//!                       ├─► plan ◄─┘
//!                       ▼ due
//!   metadata service ─► keys of the instance's role ─► sign ─► Vault: auth/…/login ─► STS: who signed this?
//!   (token, one hop)                                            │ token
//!                       key, request ─────────────────────────► Vault: …/sign/ROLE
//!                       files ◄── compared with what was asked ─┘
//! ```
//!
//! - [`config`]: what user data hands over; nothing in it is secret
//! - [`plan`]: which certificate is asked for when; pure
//! - [`sign`]: the question to STS that Vault sends for the node; pure
//! - [`imds`]: the instance's metadata service
//! - [`issue`]: one certificate: what there is, and how another is had
//! - [`files`]: files that are there whole or not at all
//! - [`keys`]: keys that nobody signs
//! - [`machine`]: what a machine has to have and to know before all that
//! - [`ec2`]: a volume and an interface that a node attaches to itself
//! - [`state`]: what the agent says of itself, and what it has still to tell others

pub mod config;
pub mod ec2;
pub mod files;
pub mod imds;
pub mod issue;
pub mod keys;
pub mod machine;
pub mod plan;
pub mod sign;
pub mod state;

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::Path,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    config::{Config, Instance, Login, Problem, Wanted},
    imds::{Metadata, MetadataError},
    issue::IssueError,
    plan::{Found, Tries},
    state::{State, StateError},
};
use crate::{
    pki::{
        leaf::Leaf,
        vault::client::{self, Connection, Credentials, VaultError},
    },
    runtime::chain,
};

/// How long whoever is told of a new certificate may take.
const TELL: Duration = Duration::from_secs(60);

/// Why the agent cannot do its work at all.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is of no use.
    #[error("the agent's configuration")]
    Config(#[from] Problem),
    /// No client of the metadata service.
    #[error("{0}")]
    Metadata(#[from] MetadataError),
    /// No client of Vault.
    #[error("{0}")]
    Vault(#[from] VaultError),
    /// What it says of itself.
    #[error("{0}")]
    State(#[from] StateError),
}

/// How the node logs in: by its instance's role.
struct OfInstance {
    metadata: Arc<Metadata>,
    login: Login,
}

impl client::Login for OfInstance {
    fn credentials(&self) -> client::Asked<'_> {
        Box::pin(async move {
            let now = Timestamp::now();
            let keys = self.metadata.keys(now).await.map_err(|error| VaultError::Login(error.into()))?;
            let body = sign::login(&keys, &self.login, now).map_err(|error| VaultError::Login(error.into()))?;
            Ok(Credentials { mount: self.login.mount.clone(), body })
        })
    }
}

/// Gets certificates and renews them until `stop`; with `once`, until all of them are there.
///
/// # Errors
/// What no later try would mend: [`AgentError`]. Everything else is tried again, and is in the log.
pub async fn run(config: Config, once: bool, stop: CancellationToken) -> Result<(), AgentError> {
    let mut agent = Agent::new(config)?;
    loop {
        // Cut off wherever it waits: files are whole at any time.
        let round = tokio::select! {
            () = stop.cancelled() => break,
            round = agent.round() => round?,
        };
        if once && round.complete {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(round.pause) => {}
        }
    }
    info!("stopping");
    Ok(())
}

/// Has what is the machine's own, and writes down what it is, in place of `facts`; tries until that went well, or `stop`.
///
/// # Errors
/// What no later try would mend: [`AgentError`].
pub async fn ready(config: Config, facts: &Path, stop: CancellationToken) -> Result<(), AgentError> {
    config.check()?;
    let metadata = Metadata::new(&config.metadata)?;
    let (mut tries, chance) = (Tries::default(), RandomState::new());
    loop {
        let ready = tokio::select! {
            () = stop.cancelled() => break,
            ready = machine::ready(&config.machine, &metadata, facts) => ready,
        };
        let Err(error) = ready else { break };
        let now = Timestamp::now();
        tries.failed(now, chance.build_hasher().finish());
        warn!("the machine is not ready: {}", chain(&error));
        let pause = tries.waits_until(now).map_or(Duration::ZERO, |until| plan::pause(until, now));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    Ok(())
}

struct Agent {
    config: Config,
    vault: Connection,
    metadata: Arc<Metadata>,
    /// Who the instance is, as soon as it was told.
    instance: Option<Instance>,
    /// What came of asking for each certificate.
    tries: Vec<Tries>,
    /// What came of asking who the instance is.
    asked: Tries,
    /// What came of telling others.
    told: Tries,
    /// What came of asking for keys that nobody signs.
    kept: Tries,
    state: State,
    chance: RandomState,
}

/// What a round came to.
struct Round {
    complete: bool,
    pause: Duration,
}

impl Agent {
    fn new(config: Config) -> Result<Self, AgentError> {
        config.check()?;
        let metadata = Arc::new(Metadata::new(&config.metadata)?);
        let login = OfInstance { metadata: metadata.clone(), login: config.login.clone() };
        let vault = Connection::new(config.vault.clone(), Box::new(login), None)?;
        let state = State::read(&config.state)?;
        let tries = vec![Tries::default(); config.certificates.len()];
        let (asked, told, kept, chance) = (Tries::default(), Tries::default(), Tries::default(), RandomState::new());
        Ok(Self { config, vault, metadata, instance: None, tries, asked, told, kept, state, chance })
    }

    /// Does what is due, and says how long nothing is.
    async fn round(&mut self) -> Result<Round, AgentError> {
        let now = Timestamp::now();
        let Some(instance) = self.instance(now).await else {
            self.state.age(now);
            self.state.write(&self.config.state)?;
            let pause = self.asked.waits_until(now).map_or(Duration::ZERO, |until| plan::pause(until, now));
            return Ok(Round { complete: false, pause });
        };
        let leaves: Vec<Leaf> =
            self.config.certificates.iter().map(|wanted| wanted.leaf(&instance)).collect::<Result<_, _>>()?;
        let due = plan::plan(self.look(&leaves).iter().zip(&self.tries), now).ask;
        for (index, why) in due {
            self.renew(index, &leaves[index], why).await?;
        }
        self.fetch_keys(now).await;
        self.tell().await?;
        let (found, lacks_keys, now) = (self.look(&leaves), self.lacks_keys(), Timestamp::now());
        let names = self.config.certificates.iter().map(|wanted| wanted.name.as_str());
        self.state.note(names.zip(&found), lacks_keys, now);
        self.state.write(&self.config.state)?;
        let plan::Plan { mut complete, mut pause, .. } = plan::plan(found.iter().zip(&self.tries), now);
        if lacks_keys {
            complete = false;
            pause = pause.min(self.kept.waits_until(now).map_or(Duration::ZERO, |until| plan::pause(until, now)));
        }
        if let Some(until) = self.told.waits_until(now).filter(|_| !self.state.untold.is_empty()) {
            pause = pause.min(plan::pause(until, now));
        }
        Ok(Round { complete, pause })
    }

    async fn instance(&mut self, now: Timestamp) -> Option<Instance> {
        if self.instance.is_none() {
            match self.metadata.instance().await {
                Ok(instance) => {
                    info!(instance = instance.instance_id, address = %instance.private_ip, "this is the node");
                    self.instance = Some(instance);
                }
                Err(error) => {
                    self.asked.failed(now, self.chance.build_hasher().finish());
                    warn!("who this instance is: {}", chain(&error));
                }
            }
        }
        self.instance.clone()
    }

    /// What there is of each certificate.
    fn look(&self, leaves: &[Leaf]) -> Vec<Found> {
        let look = |(wanted, leaf): (&Wanted, &Leaf)| {
            let Some(authority) = self.config.authority(wanted.authority) else {
                return Found::Unfit("is of an authority that is not listed");
            };
            issue::found(authority, wanted, leaf).unwrap_or_else(|error| {
                warn!(certificate = wanted.name, "{}", chain(&error));
                Found::Unfit("cannot be read")
            })
        };
        self.config.certificates.iter().zip(leaves).map(look).collect()
    }

    fn lacks_keys(&self) -> bool {
        let there = |keys| {
            keys::are_there(keys).unwrap_or_else(|error| {
                warn!("keys that nobody signs: {}", chain(&error));
                false
            })
        };
        !self.config.keys.as_ref().is_none_or(there)
    }

    /// Gets the keys that nobody signs, if they are not there and it is time.
    async fn fetch_keys(&mut self, now: Timestamp) {
        if !self.lacks_keys() || self.kept.waits_until(now).is_some() {
            return;
        }
        let Some(keys) = &self.config.keys else { return };
        match keys::fetch(&self.vault, keys).await {
            Ok(()) => {
                info!(path = keys.path, "fetched keys that nobody signs");
                self.kept.went_well(Timestamp::now());
            }
            Err(error) => {
                self.kept.failed(Timestamp::now(), self.chance.build_hasher().finish());
                warn!("keys that nobody signs: {}", chain(&error));
            }
        }
    }

    /// Has another certificate signed and puts it in its place.
    async fn renew(&mut self, index: usize, leaf: &Leaf, why: &str) -> Result<(), AgentError> {
        let wanted = &self.config.certificates[index];
        match self.issue(wanted, leaf).await {
            Ok(pair) => {
                // Before the files: whoever uses them is told, even if this process dies in between.
                self.state.owe(&wanted.reload);
                self.state.write(&self.config.state)?;
                match issue::put(wanted, &pair) {
                    Ok(()) => {
                        info!(certificate = wanted.name, "signed: what was there {why}");
                        self.tries[index].went_well(Timestamp::now());
                    }
                    Err(error) => self.failed(index, &error),
                }
            }
            Err(error) => self.failed(index, &error),
        }
        Ok(())
    }

    async fn issue(&self, wanted: &Wanted, leaf: &Leaf) -> Result<crate::pki::embedded::Pair, IssueError> {
        // The configuration was checked: there is one.
        let authority = self.config.authority(wanted.authority);
        let authority = authority.ok_or_else(|| IssueError::Unlisted(wanted.name.clone()))?;
        issue::ask(&self.vault, authority, wanted, leaf, Timestamp::now()).await
    }

    fn failed(&mut self, index: usize, error: &IssueError) {
        let name = &self.config.certificates[index].name;
        self.tries[index].failed(Timestamp::now(), self.chance.build_hasher().finish());
        warn!(certificate = name, "{}", chain(error));
    }

    /// Tells whoever uses a certificate that it is another.
    async fn tell(&mut self) -> Result<(), AgentError> {
        let now = Timestamp::now();
        if self.told.waits_until(now).is_some() {
            return Ok(());
        }
        for command in self.state.untold.clone() {
            match tell(&command).await {
                Ok(()) => {
                    info!(command = command.join(" "), "told of a new certificate");
                    self.state.told(&command);
                    self.told = Tries::default();
                }
                Err(error) => {
                    self.told.failed(now, self.chance.build_hasher().finish());
                    warn!(command = command.join(" "), "could not be told of a new certificate: {error}");
                }
            }
        }
        self.state.write(&self.config.state)?;
        Ok(())
    }
}

/// Runs a command, which has to succeed.
async fn tell(command: &[String]) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let mut child = Command::new(program);
    child.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(TELL, child.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it took more than {} s", TELL.as_secs())),
    }
}
