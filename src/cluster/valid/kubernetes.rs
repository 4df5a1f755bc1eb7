//! Version, feature gates, flags and what else Kubernetes' components are told.

use std::collections::BTreeMap;

use x509_parser::pem::Pem;

use super::{Check, text};
use crate::{
    api::{ApiServerSpec, AuditPolicy, Cluster, ClusterStatus, KubernetesSpec, OidcSpec, flags, names},
    settings::Settings,
};

/// A Kubernetes version of the catalogue, with the VM image that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Such as `v1.36.3`.
    pub name: String,
    /// Image of the VM pod.
    pub image: String,
    /// Entry of the catalogue that the image was taken from.
    pub entry: String,
    /// When the user last asked to replace all nodes, as that was written.
    pub roll: Option<String>,
}

/// Flags of a component by name, without dashes; none of them is one that Giantnetes sets.
pub type Flags = BTreeMap<String, String>;

/// What Kubernetes' components are told beside what every guest's are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// Feature gates of every component.
    pub feature_gates: BTreeMap<String, bool>,
    /// kube-apiserver.
    pub api_server: ApiServer,
    /// kube-controller-manager.
    pub controller_manager: Flags,
    /// kube-scheduler.
    pub scheduler: Flags,
    /// kubelet.
    pub kubelet: Flags,
    /// kube-proxy.
    pub proxy: Flags,
}

/// What kube-apiserver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiServer {
    /// Flags.
    pub flags: Flags,
    /// An OpenID Connect issuer whose users are accepted.
    pub oidc: Option<Oidc>,
    /// What is logged.
    pub audit: AuditPolicy,
}

/// An OpenID Connect issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oidc {
    /// URL, https.
    pub issuer_url: String,
    /// Audience.
    pub client_id: String,
    /// Claim that names the user.
    pub username_claim: String,
    /// What is put before the user's name.
    pub username_prefix: String,
    /// Claim that names the groups.
    pub groups_claim: Option<String>,
    /// What is put before a group's name.
    pub groups_prefix: String,
    /// Certificates (PEM) that the issuer's own is checked with.
    pub ca_bundle: Option<String>,
}

impl Check {
    /// A pinned version keeps its image, even one that the catalogue has dropped: its guest must be cared for. Another
    /// version, another entry of the catalogue or a roll takes what the catalogue has now.
    pub(super) fn version(
        &mut self,
        cluster: &Cluster,
        entry: Option<&str>,
        pinned: &ClusterStatus,
        settings: &Settings,
    ) -> Version {
        let catalogue = &settings.kubernetes;
        let wanted = cluster.spec.kubernetes.version.as_deref();
        let name = wanted.or(pinned.version.as_deref()).unwrap_or(&catalogue.default_version).to_owned();
        if let Some(entry) = entry {
            self.text("spec.provider.kvm.image", entry, is_entry(entry), "must be a name such as v1.36.3-debug");
        }
        let entry = entry.unwrap_or(&name).to_owned();
        // One that was taken away, as a file that is applied anew may do, asks for nothing.
        let roll = roll(cluster).or_else(|| pinned.rolled_at.clone());
        if let (Some(version), Some(image)) = (&pinned.version, &pinned.image)
            && (version, pinned.image_entry.as_ref().unwrap_or(version)) == (&name, &entry)
        {
            let anew = catalogue.images.get(&entry).filter(|_| pinned.rolled_at != roll);
            return Version { name, image: anew.unwrap_or(image).clone(), entry, roll };
        }
        let form = name.len() <= 16 && numbers(&name).is_some();
        self.text("spec.kubernetes.version", &name, form, "must be a version such as v1.36.3");
        let known = || catalogue.images.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        if !catalogue.images.contains_key(&name) {
            self.fail(
                "spec.kubernetes.version",
                format!("{} is not supported; there are {}", text::shown(&name), known()),
            );
        }
        let image = catalogue.images.get(&entry).cloned().unwrap_or_default();
        if image.is_empty() && entry != name {
            let problem = format!("{} is not in the catalogue; there are {}", text::shown(&entry), known());
            self.fail("spec.provider.kvm.image", problem);
        }
        Version { name, image, entry, roll }
    }

    pub(super) fn kubernetes(&mut self, spec: &KubernetesSpec) -> Kubernetes {
        let field = "spec.kubernetes.featureGates";
        self.count(field, spec.feature_gates.len(), 64);
        for gate in spec.feature_gates.keys() {
            self.text(field, gate, text::is_feature_gate(gate), "must be a name such as InPlacePodVerticalScaling");
        }
        let api_server = self.api_server(&spec.api_server);
        let mut flags =
            |component: &str, args, owned| self.flags(&format!("spec.kubernetes.{component}.extraArgs"), args, owned);
        Kubernetes {
            feature_gates: spec.feature_gates.clone(),
            api_server,
            controller_manager: flags(
                "controllerManager",
                &spec.controller_manager.extra_args,
                flags::CONTROLLER_MANAGER,
            ),
            scheduler: flags("scheduler", &spec.scheduler.extra_args, flags::SCHEDULER),
            kubelet: flags("kubelet", &spec.kubelet.extra_args, flags::KUBELET),
            proxy: flags("proxy", &spec.proxy.extra_args, flags::PROXY),
        }
    }

    fn api_server(&mut self, spec: &ApiServerSpec) -> ApiServer {
        ApiServer {
            flags: self.flags("spec.kubernetes.apiServer.extraArgs", &spec.extra_args, flags::API_SERVER),
            oidc: spec.oidc.as_ref().map(|oidc| self.oidc(oidc)),
            audit: spec.audit.policy,
        }
    }

    fn flags(&mut self, field: &str, args: &BTreeMap<String, String>, owned: &[&str]) -> Flags {
        self.count(field, args.len(), 32);
        for (name, value) in args {
            self.text(field, name, text::is_flag(name), "must be a name of a flag, without leading dashes");
            if owned.contains(&name.as_str()) {
                self.fail(field, format!("Giantnetes sets this itself: {name}"));
            }
            let place = format!("{field}[{}]", text::shown(name));
            self.text(
                place,
                value,
                text::is_printable(value) && value.len() <= 1024,
                "must be at most 1024 printable characters",
            );
        }
        args.clone()
    }

    fn oidc(&mut self, spec: &OidcSpec) -> Oidc {
        let field = |name: &str| format!("spec.kubernetes.apiServer.oidc.{name}");
        let path = spec.issuer_url.strip_prefix("https://").unwrap_or_default();
        let is_url = spec.issuer_url.len() <= 512
            && !path.is_empty()
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~:/-".contains(&byte));
        self.text(field("issuerURL"), &spec.issuer_url, is_url, "must be a URL such as https://login.example.com");
        let words = [
            ("clientID", Some(&spec.client_id), 256),
            ("usernameClaim", spec.username_claim.as_ref(), 128),
            ("groupsClaim", spec.groups_claim.as_ref(), 128),
        ];
        for (name, word, most) in words {
            let word = word.map_or("-", String::as_str);
            let holds = text::is_word(word) && word.len() <= most;
            self.text(field(name), word, holds, &format!("must be a word of at most {most} characters"));
        }
        for (name, prefix) in [("usernamePrefix", &spec.username_prefix), ("groupsPrefix", &spec.groups_prefix)] {
            let prefix = prefix.as_deref().unwrap_or_default();
            let holds = text::is_printable(prefix) && prefix.len() <= 128;
            self.text(field(name), prefix, holds, "must be at most 128 printable characters");
        }
        if let Some(bundle) = &spec.ca_bundle {
            let holds = bundle.starts_with("-----BEGIN CERTIFICATE-----\n")
                && bundle.chars().count() <= 32768
                && are_certificates(bundle);
            self.text(field("caBundle"), bundle, holds, "must be certificates in PEM, at most 32768 characters");
        }
        Oidc {
            username_prefix: spec.username_prefix.clone().unwrap_or_else(|| format!("{}#", spec.issuer_url)),
            issuer_url: spec.issuer_url.clone(),
            client_id: spec.client_id.clone(),
            username_claim: spec.username_claim.clone().unwrap_or_else(|| "sub".into()),
            groups_claim: spec.groups_claim.clone(),
            groups_prefix: spec.groups_prefix.clone().unwrap_or_default(),
            ca_bundle: spec.ca_bundle.clone(),
        }
    }
}

/// Whether a text is a name of an entry of the catalogue.
fn is_entry(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && text.chars().all(|c| is_end(c) || c == '.' || c == '-')
}

/// When the user last asked to replace all nodes. Whatever else was written there asks for it too, but is not copied at length.
fn roll(cluster: &Cluster) -> Option<String> {
    let asked = cluster.metadata.annotations.as_ref()?.get(names::ROLL_ANNOTATION)?;
    Some(asked.chars().take(64).collect())
}

/// Whether a text holds certificates and nothing else. (The API server does not start with a bundle that it cannot read.)
fn are_certificates(text: &str) -> bool {
    Pem::iter_from_buffer(text.as_bytes())
        .all(|pem| pem.is_ok_and(|pem| pem.label == "CERTIFICATE" && pem.parse_x509().is_ok()))
}

/// The numbers of a version such as `v1.36.3`.
pub(super) fn numbers(version: &str) -> Option<[u32; 3]> {
    let parts: Vec<_> = version.strip_prefix('v')?.split('.').collect();
    let number = |part: &&str| {
        ((1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())).then(|| part.parse().ok())?
    };
    parts.iter().map(number).collect::<Option<Vec<_>>>()?.try_into().ok()
}
