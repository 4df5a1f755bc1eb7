//! Signs the certificates that were asked for inside a guest and approved there. A guest's own controllers cannot: they do not
//! have its authority's key.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use tracing::{info, warn};

use crate::{
    pki::{
        self,
        request::{self, Signer, SigningRequest, Unfit},
    },
    runtime::{CallError, call, chain},
};

/// How many are answered at one look: whoever asks for more waits for the next, and other guests do not wait for him.
const AT_A_LOOK: usize = 20;
/// How many are looked at: an answer of the guest's has bounds, and whoever floods it with requests holds up his own alone.
const LISTED: u32 = 500;
/// Type and reason of the condition by which Kubernetes' own signers refuse.
const FAILED: (&str, &str) = ("Failed", "SignerValidationFailure");

/// What is done with a request.
#[derive(Debug)]
enum Verdict {
    /// It is signed, to live so long.
    Sign(Box<SigningRequest>, Duration),
    /// It is refused.
    Refuse(Unfit),
}

/// Answers the requests that wait for a signer of ours. What `sign` makes (PEM) lives for `longest` at most.
///
/// What cannot be signed now waits for the next look; of an authority that does not serve the pki operator tells.
///
/// # Errors
/// If the guest does not list them.
pub async fn answer<S, F>(client: &Client, longest: Duration, sign: S) -> Result<(), CallError>
where
    S: Fn(SigningRequest, Duration) -> F,
    F: Future<Output = Result<String, pki::reconcile::Error>>,
{
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let all =
        call("list", "the guest's CertificateSigningRequests", api.list(&ListParams::default().limit(LISTED))).await?;
    let due = all.items.into_iter().filter_map(|request| verdict(&request, longest).map(|verdict| (request, verdict)));
    for (mut request, verdict) in due.take(AT_A_LOOK) {
        let name = request.name_any();
        let status = request.status.get_or_insert_default();
        let refusal = match verdict {
            Verdict::Refuse(unfit) => Some(unfit),
            Verdict::Sign(asked, ttl) => {
                let user = asked.leaf.common_name.clone();
                match sign(*asked, ttl).await {
                    Ok(certificate) => {
                        status.certificate = Some(ByteString(certificate.into_bytes()));
                        info!(request = name, user, "signed");
                        None
                    }
                    Err(error) if error.is_refusal() => {
                        warn!(request = name, error = chain(&error), "the authority does not sign this");
                        Some(Unfit::Authority)
                    }
                    Err(error) => {
                        warn!(request = name, error = chain(&error), "not signed now");
                        return Ok(());
                    }
                }
            }
        };
        if let Some(unfit) = refusal {
            info!(request = name, why = %unfit, "not signed");
            refuse(status, &unfit, Timestamp::now());
        }
        let written = call("update", format!("the guest's CertificateSigningRequest {name}"), async {
            api.replace_status(&name, &PostParams::default(), &request).await
        });
        if let Err(error) = written.await {
            // Changed or deleted in the meantime, or the guest's own rules are against it. Others are not held up.
            warn!(request = name, error = chain(&error), "not answered now");
        }
    }
    Ok(())
}

/// None: it is not for us, not approved yet, or answered.
fn verdict(request: &CertificateSigningRequest, longest: Duration) -> Option<Verdict> {
    let signer = Signer::named(&request.spec.signer_name)?;
    let is_open = |status: &&CertificateSigningRequestStatus| {
        let has = |type_: &str| status.conditions.iter().flatten().any(|condition| condition.type_ == type_);
        let has_certificate = status.certificate.as_ref().is_some_and(|certificate| !certificate.0.is_empty());
        has("Approved") && !has("Denied") && !has(FAILED.0) && !has_certificate
    };
    request.status.as_ref().filter(is_open)?;
    if request.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    Some(match request::read(signer, &request.spec.request.0, usages) {
        Ok(asked) => Verdict::Sign(Box::new(asked), lifetime(request.spec.expiration_seconds, longest)),
        Err(unfit) => Verdict::Refuse(unfit),
    })
}

/// What was wished for, if it is not too long. The API takes no wish of less than ten minutes.
fn lifetime(wished: Option<i32>, longest: Duration) -> Duration {
    let wished = wished.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    wished.map_or(longest, |wished| wished.min(longest))
}

fn refuse(status: &mut CertificateSigningRequestStatus, unfit: &Unfit, now: Timestamp) {
    let (type_, reason) = FAILED;
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(unfit.to_string()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pki::{embedded, leaf};

    fn request(signer: &str, conditions: &[&str]) -> CertificateSigningRequest {
        let (pem, _) = embedded::request(&leaf::user("alice", &[])).unwrap();
        let mut request: CertificateSigningRequest = serde_json::from_value(json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "a"},
            "spec": {"signerName": signer, "request": ByteString(pem.into_bytes()), "usages": ["client auth"]},
        }))
        .unwrap();
        let conditions = conditions.iter().map(|type_| json!({"type": type_, "status": "True"})).collect::<Vec<_>>();
        request.status = serde_json::from_value(json!({"conditions": conditions})).unwrap();
        request
    }

    #[test]
    fn what_is_approved_for_a_signer_of_ours_and_not_answered_is_answered() {
        let client = "kubernetes.io/kube-apiserver-client";
        let longest = Duration::from_secs(3600);
        assert!(
            matches!(verdict(&request(client, &["Approved"]), longest), Some(Verdict::Sign(_, ttl)) if ttl == longest)
        );
        for (signer, conditions) in [
            (client, &[][..]),
            (client, &["Denied"]),
            (client, &["Approved", "Denied"]),
            (client, &["Approved", "Failed"]),
            ("kubernetes.io/legacy-unknown", &["Approved"]),
            ("example.com/own", &["Approved"]),
        ] {
            assert!(verdict(&request(signer, conditions), longest).is_none(), "{signer} {conditions:?}");
        }
        let mut answered = request(client, &["Approved"]);
        answered.status.as_mut().unwrap().certificate = Some(ByteString(b"x".to_vec()));
        assert!(verdict(&answered, longest).is_none());
        let mut bare = request(client, &["Approved"]);
        bare.status = None;
        assert!(verdict(&bare, longest).is_none());
    }

    #[test]
    fn what_is_unfit_is_refused_in_words() {
        let mut wrong = request("kubernetes.io/kubelet-serving", &["Approved"]);
        wrong.spec.usages = Some(vec!["server auth".into(), "digital signature".into()]);
        let Some(Verdict::Refuse(unfit)) = verdict(&wrong, Duration::from_secs(1)) else { panic!("it is signed") };
        let status = wrong.status.as_mut().unwrap();
        refuse(status, &unfit, Timestamp::UNIX_EPOCH);
        let last = status.conditions.as_ref().unwrap().last().unwrap();
        assert_eq!((last.type_.as_str(), last.reason.as_deref()), ("Failed", Some("SignerValidationFailure")));
        assert!(last.message.as_ref().unwrap().contains("system:node:"), "{last:?}");
        assert!(verdict(&wrong, Duration::from_secs(1)).is_none(), "it is answered");
    }

    #[test]
    fn nothing_lives_longer_than_a_certificate_of_the_guest() {
        let hour = Duration::from_secs(3600);
        assert_eq!(lifetime(None, hour), hour);
        assert_eq!(lifetime(Some(600), hour), Duration::from_secs(600));
        assert_eq!(lifetime(Some(86400), hour), hour);
        assert_eq!(lifetime(Some(-1), hour), hour);
    }
}
