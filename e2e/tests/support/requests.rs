//! Requests for certificates, as users make them: by openssl.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use k8s_openapi::ByteString;
use lab::command::Run;
use serde_json::json;

/// The key that we would make.
pub const EC: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// Makes a key and a request for it in `folder`. Answers the request's file and the key's (PEM).
///
/// # Errors
/// If openssl fails.
pub fn request(
    folder: &Path,
    name: &str,
    key: &[&str],
    subject: &str,
    extension: Option<&str>,
) -> Result<(PathBuf, PathBuf)> {
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    let (csr, private) = (file("csr"), file("key"));
    let mut run = Run::new("openssl").args(["req", "-new", "-nodes", "-subj", subject]).args(key.iter().copied());
    run = run.args([format!("-out={}", csr.display()), format!("-keyout={}", private.display())]);
    if let Some(extension) = extension {
        run = run.args(["-addext", extension]);
    }
    run.output()?;
    Ok((csr, private))
}

/// A CertificateSigningRequest (JSON) with the request of this file.
///
/// # Errors
/// If the file cannot be read.
pub fn object(name: &str, csr: &Path, signer: &str, usages: &[&str], seconds: Option<u32>) -> Result<String> {
    let request = ByteString(fs::read(csr)?);
    let spec = json!({
        "signerName": format!("kubernetes.io/{signer}"), "request": request, "usages": usages,
        "expirationSeconds": seconds,
    });
    let kind = "CertificateSigningRequest";
    let object =
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    Ok(object.to_string())
}
