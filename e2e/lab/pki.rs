//! Certificates of the management cluster: one CA, a certificate per component, a key for service accounts.
//!
//! All of it is made in one go in a folder that is then renamed into place: there is never half of a PKI.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::paths::{Paths, make_folder, write_whole};
use crate::topology::{API_SERVICE, CONTROL, HOSTS};

/// What one certificate says.
struct Leaf {
    file: String,
    name: String,
    group: Option<&'static str>,
    /// DNS names and addresses; a certificate that has some is a server's.
    sans: Vec<String>,
}

impl Leaf {
    fn client(file: &str, name: &str, group: Option<&'static str>) -> Self {
        Self { file: file.into(), name: name.into(), group, sans: Vec::new() }
    }

    fn server(file: &str, name: &str, sans: Vec<String>) -> Self {
        Self { file: file.into(), name: name.into(), group: None, sans }
    }
}

fn leaves() -> Vec<Leaf> {
    let service = "kubernetes.default.svc.cluster.local";
    // kubernetes, kubernetes.default, …: every prefix of the Service's name, as pods may shorten it.
    let names = service.match_indices('.').map(|(end, _)| service[..end].to_owned()).chain([service.to_owned()]);
    let api =
        names.chain([CONTROL.address.to_string(), API_SERVICE.to_string(), "127.0.0.1".into(), "localhost".into()]);
    let control = |name: &str| {
        Leaf::server(&format!("{name}-server"), name, vec![CONTROL.address.to_string(), "127.0.0.1".into()])
    };
    let mut leaves = vec![
        Leaf::server("apiserver", "kube-apiserver", api.collect()),
        Leaf::client("apiserver-kubelet", "kube-apiserver-kubelet-client", None),
        Leaf::client("front-proxy", "front-proxy-client", None),
        Leaf::client("admin", "lab-admin", Some("system:masters")),
        Leaf::client("controller-manager", "system:kube-controller-manager", None),
        Leaf::client("scheduler", "system:kube-scheduler", None),
        Leaf::client("proxy", "system:kube-proxy", None),
        control("controller-manager"),
        control("scheduler"),
        control("vault"),
    ];
    for host in HOSTS {
        let user = format!("system:node:{}", host.name());
        leaves.push(Leaf::client(&format!("{}-kubelet", host.name()), &user, Some("system:nodes")));
        let sans = vec![host.name().to_owned(), host.room.address.to_string()];
        leaves.push(Leaf::server(&format!("{}-kubelet-server", host.name()), &user, sans));
    }
    leaves
}

/// Makes the PKI unless it is there.
///
/// # Errors
/// If a file cannot be written.
pub fn ensure(paths: &Paths) -> Result<()> {
    let (folder, staging) = (paths.pki(), paths.state.join("pki.unfinished"));
    if folder.is_dir() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&staging);
    make_folder(&staging)?;
    issue_all(&staging)?;
    std::fs::rename(&staging, &folder).context("cannot rename the folder of certificates into place")
}

fn issue_all(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = subject("giantnetes-lab", None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).context("cannot sign the CA's certificate")?;
    write_pair(folder, "ca", &certificate.pem(), &key)?;
    let ca = Issuer::new(params, key);
    for leaf in leaves() {
        let key = KeyPair::generate()?;
        let mut params = subject(&leaf.name, leaf.group)?;
        let server = !leaf.sans.is_empty();
        params.subject_alt_names = CertificateParams::new(leaf.sans)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &ca).with_context(|| format!("cannot sign {}", leaf.file))?;
        write_pair(folder, &leaf.file, &certificate.pem(), &key)?;
    }
    let key = KeyPair::generate()?;
    write_whole(&folder.join("service-accounts.pub"), &key.public_key_pem(), 0o644)?;
    write_whole(&folder.join("service-accounts.key"), &key.serialize_pem(), 0o600)
}

fn subject(name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    // A lab lives for hours: its certificates never run out, whatever the machine's clock says.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    Ok(params)
}

fn write_pair(folder: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    write_whole(&folder.join(format!("{name}.crt")), certificate, 0o644)?;
    write_whole(&folder.join(format!("{name}.key")), &key.serialize_pem(), 0o600)
}

/// Writes a kubeconfig (as JSON, which is YAML too) for one of the client certificates.
///
/// # Errors
/// If the file cannot be written.
pub fn write_kubeconfig(paths: &Paths, certificate: &str, file: &Path) -> Result<()> {
    let pki = paths.pki();
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{}:6443", CONTROL.address),
            "certificate-authority": pki.join("ca.crt"),
        }}],
        "users": [{"name": certificate, "user": {
            "client-certificate": pki.join(format!("{certificate}.crt")),
            "client-key": pki.join(format!("{certificate}.key")),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": certificate}}],
        "current-context": "lab",
    });
    write_whole(file, &format!("{config:#}\n"), 0o600)
}

/// A file of the PKI, as an argument.
pub fn file(paths: &Paths, name: &str) -> String {
    paths.pki().join(name).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_servers_certificate_has_every_name_that_a_pod_may_use() {
        let sans = leaves().into_iter().find(|leaf| leaf.file == "apiserver").unwrap().sans;
        for name in
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        {
            assert!(sans.iter().any(|san| san == name), "{name} is missing in {sans:?}");
        }
        assert!(sans.contains(&"10.233.0.1".to_owned()) && sans.contains(&"10.231.0.2".to_owned()));
    }

    #[test]
    fn files_have_names_of_their_own() {
        let mut files: Vec<_> = leaves().into_iter().map(|leaf| leaf.file).collect();
        files.sort();
        files.dedup();
        assert_eq!(files.len(), leaves().len());
    }
}
