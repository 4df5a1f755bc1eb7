//! Sets Flannel's etcd up and keeps it so: its authorities, its own certificates, and that it asks for rights. The chart
//! brings the rest. What no guest accounts for is removed.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Namespace, Secret, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, ResourceExt as _, api::PostParams};
use prometheus::IntGaugeVec;
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{
    certificates::{self, secrets},
    etcd::{Client, EtcdError, Target, auth},
    server::{Access, FlannelEtcd, Obstacle},
};
use crate::{
    api::{
        Reason,
        names::{self, ETCD_PORT},
    },
    cluster::{ClusterKey, Identity},
    context::Context,
    pki::{
        embedded::{self, Pair, PkiError},
        plan::renew_at,
        secrets::{bytes, data_hash},
    },
    runtime::{
        CallError,
        apply::hash,
        call, chain,
        operator::Reconciler,
        queue::{Key, Outcome, Queue},
        telemetry::metric::{Declared, Kind, Metric},
    },
};

const MANAGER: &str = "giantnetes.flannel-etcd";
/// Pause between two looks, if all is well.
const PERIOD: Duration = Duration::from_secs(60);
/// Pause before what is not there yet is looked for again.
const SOON: Duration = Duration::from_secs(5);
/// How often it is looked for what no guest accounts for.
const SWEEP: Duration = Duration::from_secs(3600);
/// Lifetime of the authorities. Nobody replaces them: it is the longest that a certificate of ours has.
const AUTHORITY_TTL: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Lifetime of etcd's certificates, which it reads anew at each handshake.
const SERVER_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Lifetime of the controller manager's own certificate, which is kept in memory only.
const ROOT_TTL: Duration = Duration::from_secs(3600);

/// Whether it served at the last look.
static UP: Declared<IntGaugeVec> = Declared::gauges(Metric {
    name: "giantnetes_flannel_etcd_up",
    kind: Kind::Gauge,
    labels: &[("service", "its Service")],
    help: "1 if Flannel's etcd served at the last look of the replica that leads, else 0; nothing where there is none",
});

/// The metrics of Flannel's etcd.
pub fn metrics() -> Vec<&'static Metric> {
    vec![&UP.metric]
}

/// The one thing that there is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Installation;

impl Key for Installation {
    fn group(&self) -> &str {
        ""
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this installation")
    }
}

/// Why Flannel's etcd cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the API server.
    #[error("set up Flannel's etcd")]
    Call(#[from] CallError),
    /// A key or certificate.
    #[error("make the certificates of Flannel's etcd")]
    Pki(#[from] PkiError),
    /// The authorities cannot be read.
    #[error(
        "Secret {0} does not hold the authorities of Flannel's etcd: restore it; or delete it and Secret {1}-server, and then the Pods of {1}, which makes others"
    )]
    Authorities(String, String),
    /// The Service of the settings is not there.
    #[error("Service {0} is not there: settings.network.flannel.service must name that of Flannel's etcd")]
    NoService(String),
    /// etcd.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
}

impl Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Etcd(error) => of_etcd(error),
            Self::Call(_) | Self::Pki(_) | Self::Authorities(..) | Self::NoService(_) => Reason::FlannelUnavailable,
        }
    }
}

/// Of which sort an error of etcd's is.
pub(super) fn of_etcd(error: &EtcdError) -> Reason {
    if error.is_denied() { Reason::FlannelDenied } else { Reason::FlannelUnavailable }
}

/// The operator that sets Flannel's etcd up.
pub struct InstallOperator {
    context: Context,
    etcd: Arc<FlannelEtcd>,
    guests: Queue<ClusterKey>,
    /// The client in use, since when, and of which authority and address it is.
    client: Mutex<Option<(Client, Instant, String)>>,
    swept: Mutex<Option<Instant>>,
}

impl InstallOperator {
    /// An operator for this etcd. `guests` is the queue of who works on guests' leases there.
    pub fn new(context: Context, etcd: Arc<FlannelEtcd>, guests: Queue<ClusterKey>) -> Self {
        etcd.forget();
        Self { context, etcd, guests, client: Mutex::default(), swept: Mutex::default() }
    }

    async fn look(&self, now: Timestamp) -> Result<Access, Error> {
        let namespace = self.context.settings.network.manager_namespace.clone();
        let (service, members) = (self.etcd.settings.service.clone(), self.etcd.settings.members);
        let address = self.address(&namespace, &service).await?;
        let authorities = self.authorities(&namespace, &service, now).await?;
        let leaves = [
            certificates::server(&service, &namespace, members, address),
            certificates::peer(&service, &namespace, members),
        ];
        let wish = hash(&serde_json::json!([leaves, authorities.clients.certificate, authorities.peers.certificate]));
        self.issue(&namespace, &service, &wish, &authorities, &leaves, now).await?;
        let endpoint = match address {
            IpAddr::V4(address) => format!("https://{address}:{ETCD_PORT}"),
            IpAddr::V6(address) => format!("https://[{address}]:{ETCD_PORT}"),
        };
        let client = self.client(&endpoint, &authorities.clients, now).await?;
        if auth::enable(&client).await? {
            self.etcd.is_another();
        }
        if let Err(error) = self.sweep(&client).await {
            // It costs nobody anything but room, and is tried again.
            warn!(error = chain(&error), "cannot look for what no guest accounts for in Flannel's etcd");
        }
        Ok(Access { endpoint, authority: authorities.clients, client })
    }

    /// The address of the Service, which stays the same as long as the Service does.
    async fn address(&self, namespace: &str, service: &str) -> Result<IpAddr, Error> {
        let api = Api::<Service>::namespaced(self.context.client.clone(), namespace);
        let found = call("get", format!("Service {namespace}/{service}"), api.get_opt(service)).await?;
        let address = found.and_then(|service| service.spec?.cluster_ip?.parse().ok());
        address.ok_or_else(|| Error::NoService(format!("{namespace}/{service}")))
    }

    /// The authorities: made once, and read from then on.
    async fn authorities(&self, namespace: &str, service: &str, now: Timestamp) -> Result<Authorities, Error> {
        let (api, name) = (self.secrets(namespace), secrets::authorities(service));
        let object = || format!("Secret {namespace}/{name}");
        let unreadable = || Error::Authorities(format!("{namespace}/{name}"), service.to_owned());
        if let Some(secret) = call("get", object(), api.get_opt(&name)).await? {
            return Authorities::of(&secret).ok_or_else(unreadable);
        }
        let root = |what| embedded::root(what, service, now, AUTHORITY_TTL);
        let made = Authorities { clients: root("clients")?, peers: root("peers")? };
        let secret = self.secret(namespace, &name, BTreeMap::new(), made.data());
        // One that was made a moment ago refuses this, and is read at the next look.
        call("create", object(), api.create(&post(), &secret)).await?;
        info!(secret = name, "made the authorities of Flannel's etcd");
        Ok(made)
    }

    /// Has the Secret that members mount hold certificates for what `wish` stands for.
    async fn issue(
        &self,
        namespace: &str,
        service: &str,
        wish: &str,
        authorities: &Authorities,
        [server, peer]: &[crate::pki::leaf::Leaf; 2],
        now: Timestamp,
    ) -> Result<(), Error> {
        let (api, name) = (self.secrets(namespace), secrets::server(service));
        let object = || format!("Secret {namespace}/{name}");
        let former = call("get", object(), api.get_opt(&name)).await?;
        if former.as_ref().is_some_and(|secret| is_good(secret, wish, now)) {
            return Ok(());
        }
        let served = embedded::sign(&authorities.clients, server, now, SERVER_TTL)?;
        let shown = embedded::sign(&authorities.peers, peer, now, SERVER_TTL)?;
        let data = [
            ("ca.crt", authorities.clients.certificate.as_str()),
            ("tls.crt", &served.certificate),
            ("tls.key", served.key.expose_secret()),
            ("peer-ca.crt", &authorities.peers.certificate),
            ("peer.crt", &shown.certificate),
            ("peer.key", shown.key.expose_secret()),
        ];
        let data = data.map(|(name, text)| (name.to_owned(), bytes(text))).into();
        let ends =
            [embedded::expires(&authorities.clients.certificate)?, embedded::expires(&authorities.peers.certificate)?];
        let renew_at = renew_at(now, SERVER_TTL, ends[0].min(ends[1]));
        let annotations = [
            (names::HASH_ANNOTATION.to_owned(), wish.to_owned()),
            (names::RENEW_AT_ANNOTATION.to_owned(), renew_at.to_string()),
        ];
        let mut secret = self.secret(namespace, &name, annotations.into(), data);
        match former {
            None => drop(call("create", object(), api.create(&post(), &secret)).await?),
            Some(former) => {
                secret.metadata.uid = former.uid();
                secret.metadata.resource_version = former.resource_version();
                call("replace", object(), api.replace(&name, &post(), &secret)).await?;
            }
        }
        info!(secret = name, %renew_at, "issued the certificates of Flannel's etcd");
        Ok(())
    }

    /// A client that may do everything: another whenever half of its certificate's life is over.
    async fn client(&self, endpoint: &str, authority: &Pair, now: Timestamp) -> Result<Client, Error> {
        let way = format!("{endpoint} {}", authority.certificate);
        let mut known = self.client.lock().await;
        if let Some((client, since, of)) = &*known
            && since.elapsed() < ROOT_TTL / 2
            && *of == way
        {
            return Ok(client.clone());
        }
        let identity = embedded::sign(authority, &certificates::root(), now, ROOT_TTL)?;
        let target = Target { endpoint, authority: &authority.certificate, identity: &identity };
        let client = Client::new(&target, Some(self.context.leadership.clone()))?;
        *known = Some((client.clone(), Instant::now(), way));
        Ok(client)
    }

    /// Removes what is there of guests that nobody knows: their Cluster is gone, and so is their namespace, as the server
    /// itself says. A leader that was frozen may have written it at its last moment.
    async fn sweep(&self, client: &Client) -> Result<(), Error> {
        let mut swept = self.swept.lock().await;
        if swept.is_some_and(|at| at.elapsed() < SWEEP) {
            return Ok(());
        }
        let namespaces = Api::<Namespace>::all(self.context.client.clone());
        for id in auth::guests(client).await? {
            let known = || self.context.cache.clusters.state().iter().any(|cluster| Identity::of(cluster).id == id);
            let namespace = names::guest_namespace(&id);
            if known()
                || call("get", format!("Namespace {namespace}"), namespaces.get_metadata_opt(&namespace))
                    .await?
                    .is_some()
            {
                continue;
            }
            info!(guest = id, "nobody accounts for what is in Flannel's etcd of this guest; it is removed");
            auth::remove_guest(client, &id).await?;
        }
        *swept = Some(Instant::now());
        Ok(())
    }

    /// What guests had there is gone, and what looks after it sleeps.
    fn wake_guests(&self) {
        let clusters = self.context.cache.clusters.state();
        clusters.iter().for_each(|cluster| self.guests.add(ClusterKey::of(cluster)));
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.context.client.clone(), namespace)
    }

    fn secret(
        &self,
        namespace: &str,
        name: &str,
        mut annotations: BTreeMap<String, String>,
        data: BTreeMap<String, k8s_openapi::ByteString>,
    ) -> Secret {
        annotations.insert(names::DATA_HASH_ANNOTATION.into(), data_hash(&data));
        Secret {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some(namespace.into()),
                labels: Some([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGER.to_owned())].into()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..Secret::default()
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

/// Whether a Secret holds what was issued for what `wish` stands for, and long enough.
fn is_good(secret: &Secret, wish: &str, now: Timestamp) -> bool {
    let meta = crate::pki::secrets::secret_meta(&secret.metadata);
    !crate::pki::plan::is_due(Some(&meta), wish, now) && crate::pki::secrets::is_intact(secret)
}

/// Who signs: with one authority for both, every client could join as a member.
struct Authorities {
    clients: Pair,
    peers: Pair,
}

impl Authorities {
    fn of(secret: &Secret) -> Option<Self> {
        let read = |name: &str| String::from_utf8(secret.data.as_ref()?.get(name)?.0.clone()).ok();
        let pair = |name: &str| {
            let certificate = read(&format!("{name}.crt"))?;
            embedded::expires(&certificate).ok()?;
            Some(Pair { certificate, key: read(&format!("{name}.key"))?.into() })
        };
        Some(Self { clients: pair("clients")?, peers: pair("peers")? })
    }

    fn data(&self) -> BTreeMap<String, k8s_openapi::ByteString> {
        let of = |name: &str, pair: &Pair| {
            [
                (format!("{name}.crt"), bytes(&pair.certificate)),
                (format!("{name}.key"), bytes(pair.key.expose_secret())),
            ]
        };
        of("clients", &self.clients).into_iter().chain(of("peers", &self.peers)).collect()
    }
}

impl Reconciler for InstallOperator {
    const NAME: &'static str = "flannel-etcd";
    type Key = Installation;
    type Error = Error;

    async fn reconcile(&self, _: &Installation) -> Result<Outcome, Error> {
        let generation = self.etcd.generation();
        match self.look(Timestamp::now()).await {
            Ok(access) => {
                UP.with_label_values(&[&self.etcd.settings.service]).set(1);
                self.etcd.note(Ok(access));
                if self.etcd.generation() != generation {
                    self.wake_guests();
                }
                Ok(Outcome::After(PERIOD))
            }
            Err(error) => {
                UP.with_label_values(&[&self.etcd.settings.service]).set(0);
                self.etcd.note(Err(Obstacle { reason: Some(error.reason()), what: chain(&error) }));
                // Its Pods start only after their certificates are there, which takes them a while.
                match &error {
                    Error::Etcd(of) if of.is_unavailable() => Ok(Outcome::After(SOON)),
                    _ => Err(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_read_as_they_were_written_and_nothing_less() {
        let now = Timestamp::now();
        let root = |what| embedded::root(what, "x", now, AUTHORITY_TTL).unwrap();
        let made = Authorities { clients: root("clients"), peers: root("peers") };
        let secret = Secret { data: Some(made.data()), ..Secret::default() };
        let read = Authorities::of(&secret).unwrap();
        assert_eq!(read.clients.certificate, made.clients.certificate);
        assert_eq!(read.peers.key.expose_secret(), made.peers.key.expose_secret());
        for missing in ["clients.crt", "clients.key", "peers.crt", "peers.key"] {
            let mut less = secret.clone();
            less.data.as_mut().unwrap().remove(missing);
            assert!(Authorities::of(&less).is_none(), "{missing}");
        }
    }
}
