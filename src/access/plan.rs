//! What a ClusterAccess asks for, checked; what there is to do for it, and the status that follows. Pure.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{
    cluster_of,
    rights::{Bound, Rights},
};
use crate::{
    api::{
        AccessRights, ClusterAccess, ClusterAccessStatus, ConditionType, Conditions, RESERVED, Reason, Status, names,
    },
    cluster::{
        ClusterKey, Violation,
        valid::{is_label, is_name_with, parse_lifetime},
    },
    pki::plan::{SecretMeta, is_due},
    runtime::apply::hash,
    settings::AccessSettings,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Lifetime of a certificate that none is asked for.
pub const DEFAULT_TTL: Duration = Duration::from_secs(8 * 3600);
/// Longest name of a user or group: what X.509 has room for (RFC 5280, ub-common-name and ub-organization-name).
const LONGEST_NAME: usize = 64;
/// More would make certificates that some clients refuse.
const MOST_GROUPS: usize = 16;
/// As the CRD has it.
const MOST_NAMESPACES: usize = 32;

/// What a ClusterAccess asks for, checked. Nothing after it reads the raw spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The guest.
    pub cluster: ClusterKey,
    /// Its user.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
    /// Lifetime of the certificate.
    pub ttl: Duration,
    /// The user's rights inside the guest.
    pub rights: Option<Rights>,
}

impl Wish {
    /// Checks a ClusterAccess: the rules of its CRD once more, and what the operator of the management cluster allows.
    ///
    /// # Errors
    /// Everything that is wrong with it, never empty.
    pub fn new(access: &ClusterAccess, settings: &AccessSettings) -> Result<Self, Vec<Violation>> {
        let spec = &access.spec;
        let mut violations = Vec::new();
        let mut fail = |field: &str, problem: String| violations.push(Violation::new(field, problem));
        if let Err(problem) = check_name(&spec.user) {
            fail("spec.user", problem);
        }
        if spec.groups.len() > MOST_GROUPS {
            fail("spec.groups", format!("has {} entries and may have {MOST_GROUPS}", spec.groups.len()));
        } else if let Some(group) =
            (1..).zip(&spec.groups).find_map(|(next, group)| spec.groups[next..].iter().find(|other| *other == group))
        {
            fail("spec.groups", format!("names {group} twice"));
        }
        for (place, group) in spec.groups.iter().take(MOST_GROUPS).enumerate() {
            if let Err(problem) = check_name(group) {
                fail(&format!("spec.groups[{place}]"), problem);
            }
        }
        let ttl = spec.ttl.as_deref().map_or(Some(DEFAULT_TTL.min(longest(settings))), parse_lifetime);
        match ttl {
            None => fail("spec.ttl", "must be hours or minutes such as 8h".into()),
            Some(ttl) if !(10 * MINUTE..=720 * HOUR).contains(&ttl) => {
                fail("spec.ttl", "must be between 10m and 720h".into());
            }
            Some(ttl) if ttl > longest(settings) => {
                let allowed = longest(settings).as_secs() / 60;
                fail("spec.ttl", format!("must be at most {allowed}m, which the operator of this installation allows"));
            }
            Some(_) => {}
        }
        let rights = match rights(&spec.user, spec.rights.as_ref()) {
            Ok(rights) => rights,
            Err((field, problem)) => {
                fail(&field, problem);
                None
            }
        };
        match ttl {
            Some(ttl) if violations.is_empty() => Ok(Self {
                cluster: cluster_of(access),
                user: spec.user.clone(),
                groups: spec.groups.clone(),
                ttl,
                rights,
            }),
            _ => Err(violations),
        }
    }

    /// Hash of what is issued for it, at this endpoint, by this authority.
    fn hash(&self, endpoint: &str, authority: &str) -> String {
        hash(&json!({
            "user": self.user, "groups": self.groups, "ttl": self.ttl.as_secs(),
            "endpoint": endpoint, "authority": authority,
        }))
    }
}

/// Less than the shortest that the CRD takes is as good as nothing.
fn longest(settings: &AccessSettings) -> Duration {
    Duration::try_from(settings.max_ttl).unwrap_or_default().max(10 * MINUTE)
}

/// What is wrong with the name of a user or group.
fn check_name(name: &str) -> Result<(), String> {
    if name.len() > LONGEST_NAME {
        return Err(format!("must have at most {LONGEST_NAME} characters"));
    }
    if !is_name_with(b"._:@/+-", name) {
        return Err("must be letters, digits and . _ : @ / + -, with a letter or digit at both ends".into());
    }
    match RESERVED.iter().find(|prefix| name.starts_with(**prefix)) {
        Some(prefix) => Err(format!("must not begin with {prefix}, which names Kubernetes' or our own")),
        None => Ok(()),
    }
}

/// The rights that a user is to have, checked; or the first field that is wrong, and what is wrong with it.
fn rights(user: &str, rights: Option<&AccessRights>) -> Result<Option<Rights>, (String, String)> {
    let Some(rights) = rights else { return Ok(None) };
    if !is_role_name(&rights.cluster_role) {
        let problem = "must be letters, digits and . _ : -, with a letter or digit at both ends, at most 128";
        return Err(("spec.rights.clusterRole".into(), problem.into()));
    }
    let named = rights.namespaces.as_deref().unwrap_or_default();
    let namespaces: BTreeSet<_> = named.iter().cloned().collect();
    if rights.namespaces.is_some() && !(1..=MOST_NAMESPACES).contains(&named.len()) {
        let problem = format!("has {} entries and must have 1 to {MOST_NAMESPACES}, if it is given", named.len());
        return Err(("spec.rights.namespaces".into(), problem));
    }
    if namespaces.len() < named.len() {
        return Err(("spec.rights.namespaces".into(), "names a namespace twice".into()));
    }
    if let Some(place) = named.iter().position(|name| name.len() > 63 || !is_label(name)) {
        return Err((format!("spec.rights.namespaces[{place}]"), "must be the name of a namespace".into()));
    }
    Ok(Some(Rights { user: user.to_owned(), cluster_role: rights.cluster_role.clone(), namespaces }))
}

/// The rights that a ClusterAccess asks for. What else may be wrong with it takes nothing from its user that is there already.
pub fn rights_of(access: &ClusterAccess) -> Option<Rights> {
    let spec = &access.spec;
    check_name(&spec.user).ok().and_then(|()| rights(&spec.user, spec.rights.as_ref()).ok().flatten())
}

/// As the CRD has it: what RBAC takes for a name, without what a shell or a URL would read otherwise.
fn is_role_name(name: &str) -> bool {
    name.len() <= 128 && is_name_with(b"._:-", name)
}

/// What was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// URL of the guest's API.
    pub endpoint: Option<String>,
    /// Recorded fingerprint of the guest's authority.
    pub authority: Option<String>,
    /// The Secret with the kubeconfig.
    pub secret: Option<SecretMeta>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until this is there.
    Wait(&'static str),
    /// Issue a certificate and store the kubeconfig.
    Issue {
        /// Where it leads to.
        endpoint: String,
        /// Hash of the wish.
        hash: String,
    },
    /// Nothing until then.
    Keep {
        /// When it is issued anew.
        renew_at: Timestamp,
    },
}

/// Decides what to do now.
pub fn decide(wish: &Wish, world: &World, now: Timestamp) -> Step {
    let Some(authority) = &world.authority else { return Step::Wait("the Cluster's certificate authority") };
    let Some(endpoint) = &world.endpoint else { return Step::Wait("the endpoint of the Cluster's API") };
    let hash = wish.hash(endpoint, authority);
    match world.secret.as_ref().and_then(|secret| secret.renew_at) {
        Some(renew_at) if !is_due(world.secret.as_ref(), &hash, now) => Step::Keep { renew_at },
        _ => Step::Issue { endpoint: endpoint.clone(), hash },
    }
}

/// What there is to say about a ClusterAccess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kubeconfig is there.
    Ready {
        /// When its certificate ends.
        ends_at: Option<String>,
    },
    /// It is not there, or not as it should be.
    Not {
        /// Why.
        reason: Reason,
        /// Why, for people.
        message: String,
    },
}

/// What stands against the user's rights. `bound` is what the guest operator has said of this ClusterAccess, if it has said
/// anything of the guest; until then a wish that `was_ready` is.
pub fn obstacle(wish: &Wish, bound: Option<Option<&Bound>>, was_ready: bool) -> Option<(Reason, String)> {
    let waits =
        |what: &str| Some((Reason::Waiting, format!("waits for the user's {what} Cluster {}", wish.cluster.name)));
    let Some(bound) = bound else {
        return if wish.rights.is_some() && !was_ready { waits("rights inside") } else { None };
    };
    match (&wish.rights, bound) {
        (None, None) => None,
        (None, Some(_)) => waits("former rights to end inside"),
        (Some(rights), Some(bound)) if bound.rights == *rights => bound.problem.clone(),
        (Some(_), _) => waits("rights inside"),
    }
}

/// The status that follows. What was issued before stays named until it is issued anew, or its Cluster goes.
pub fn status(access: &ClusterAccess, secret: Option<&str>, verdict: &Verdict, now: Timestamp) -> ClusterAccessStatus {
    let fresh = ClusterAccessStatus::default();
    let old = access.status.as_ref().unwrap_or(&fresh);
    let generation = access.metadata.generation.unwrap_or_default();
    let mut conditions = Conditions::new(&old.conditions, generation, now);
    let ends_at = match verdict {
        Verdict::Ready { ends_at } => {
            let name = access.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Secret {} has the kubeconfig", names::access_secret(name));
            conditions.set(ConditionType::Ready, Status::True, Reason::AsExpected, message);
            ends_at.clone()
        }
        Verdict::Not { reason, message } => {
            conditions.set(ConditionType::Ready, Status::False, *reason, message.clone());
            old.certificate_ends_at.clone().filter(|_| secret.is_some())
        }
    };
    ClusterAccessStatus {
        observed_generation: Some(generation),
        secret: secret.map(Into::into),
        certificate_ends_at: ends_at,
        conditions: conditions.finish(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use serde_json::Value;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn access(spec: &Value) -> ClusterAccess {
        let mut whole = json!({"clusterRef": {"name": "demo"}, "user": "alice"});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess",
            "metadata": {"name": "alice", "namespace": "team-a", "generation": 3}, "spec": whole,
        }))
        .unwrap()
    }

    fn wish(spec: &Value) -> Result<Wish, Vec<String>> {
        Wish::new(&access(spec), &AccessSettings::default())
            .map_err(|violations| violations.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_nobody_may_have_is_refused_and_named() {
        for (spec, field) in [
            (json!({"user": ""}), "spec.user"),
            (json!({"user": "system:kube-scheduler"}), "spec.user: must not begin with system:"),
            (json!({"user": "giantnetes:administrator"}), "spec.user: must not begin with giantnetes:"),
            (json!({"user": "al ice"}), "spec.user"),
            (json!({"user": "al\nice"}), "spec.user"),
            (json!({"user": "älice"}), "spec.user"),
            (json!({"user": "-alice"}), "spec.user"),
            (json!({"user": "a".repeat(65)}), "spec.user: must have at most 64"),
            (json!({"groups": ["system:masters"]}), "spec.groups[0]: must not begin with system:"),
            (json!({"groups": ["giantnetes:cluster-admins"]}), "spec.groups[0]"),
            (json!({"groups": vec!["dev"; 17]}), "spec.groups: has 17"),
            (json!({"groups": ["dev", "dev"]}), "spec.groups: names dev twice"),
            (json!({"ttl": "9m"}), "spec.ttl: must be between"),
            (json!({"ttl": "721h"}), "spec.ttl: must be between"),
            (json!({"ttl": "25h"}), "spec.ttl: must be at most 1440m"),
            (json!({"ttl": "soon"}), "spec.ttl: must be hours"),
            (json!({"rights": {"clusterRole": ""}}), "spec.rights.clusterRole"),
            (json!({"rights": {"clusterRole": "a/b"}}), "spec.rights.clusterRole"),
            (json!({"rights": {"clusterRole": "view", "namespaces": ["a", "A"]}}), "spec.rights.namespaces[1]"),
            (json!({"rights": {"clusterRole": "view", "namespaces": vec!["a"; 33]}}), "spec.rights.namespaces: has 33"),
            (json!({"rights": {"clusterRole": "view", "namespaces": []}}), "spec.rights.namespaces: has 0"),
            (json!({"rights": {"clusterRole": "view", "namespaces": ["a", "a"]}}), "spec.rights.namespaces: names"),
        ] {
            let problems = wish(&spec).expect_err(&spec.to_string());
            assert!(problems.len() == 1 && problems[0].starts_with(field), "{spec}: {problems:?}");
        }
        for name in ["a", "1e3", "alice@example.com", "oidc:alice", "team/a+b", &"a".repeat(64)] {
            assert_eq!(wish(&json!({"user": name, "groups": [name]})).unwrap().user, name);
        }
    }

    #[test]
    fn without_a_lifetime_it_is_eight_hours_or_what_is_allowed() {
        assert_eq!(wish(&json!({})).unwrap().ttl, 8 * HOUR);
        assert_eq!(wish(&json!({"ttl": "24h"})).unwrap().ttl, 24 * HOUR);
        let short = AccessSettings { max_ttl: SignedDuration::from_hours(1) };
        assert_eq!(Wish::new(&access(&json!({})), &short).unwrap().ttl, HOUR);
        assert!(Wish::new(&access(&json!({"ttl": "2h"})), &short).is_err());
    }

    #[test]
    fn it_is_issued_when_all_is_known_and_anew_when_anything_of_it_changed_or_its_time_has_come() {
        let wish = wish(&json!({"groups": ["dev"]})).unwrap();
        assert!(matches!(decide(&wish, &World::default(), NOW), Step::Wait(_)));
        let known = World { authority: Some("f1".into()), endpoint: Some("https://a:6443".into()), ..World::default() };
        let Step::Issue { hash, endpoint } = decide(&wish, &known, NOW) else { panic!("nothing is issued") };
        assert_eq!(endpoint, "https://a:6443");
        let renew_at = Timestamp::from_second(60).unwrap();
        let meta = SecretMeta { hash: Some(hash), renew_at: Some(renew_at), ..SecretMeta::default() };
        let issued = World { secret: Some(meta), ..known };
        assert_eq!(decide(&wish, &issued, NOW), Step::Keep { renew_at });
        assert!(matches!(decide(&wish, &issued, renew_at), Step::Issue { .. }));
        let others = [
            Wish { user: "bob".into(), ..wish.clone() },
            Wish { groups: vec![], ..wish.clone() },
            Wish { ttl: HOUR, ..wish.clone() },
        ];
        for other in others {
            assert!(matches!(decide(&other, &issued, NOW), Step::Issue { .. }), "{other:?}");
        }
        for other in [
            World { endpoint: Some("https://b:6443".into()), ..issued.clone() },
            World { authority: Some("f2".into()), ..issued.clone() },
        ] {
            assert!(matches!(decide(&wish, &other, NOW), Step::Issue { .. }), "{other:?}");
        }
    }

    #[test]
    fn a_lifetime_that_is_refused_takes_no_rights_away() {
        let mut access = access(&json!({"ttl": "600h", "rights": {"clusterRole": "view"}}));
        assert!(Wish::new(&access, &AccessSettings::default()).is_err());
        assert_eq!(rights_of(&access).unwrap().cluster_role, "view");
        access.spec.user = "system:admin".into();
        assert_eq!(rights_of(&access), None);
    }

    #[test]
    fn rights_are_waited_for_and_so_is_their_end() {
        let wish = wish(&json!({"rights": {"clusterRole": "view", "namespaces": ["x"]}})).unwrap();
        let (rights, none) = (wish.rights.clone().unwrap(), Wish { rights: None, ..wish.clone() });
        let message = |wish: &Wish, bound: Option<Option<&Bound>>, was_ready: bool| {
            obstacle(wish, bound, was_ready).map(|(_, message)| message)
        };
        let waits = Some("waits for the user's rights inside Cluster demo".to_owned());
        let bound = Bound { rights: rights.clone(), problem: None };
        assert_eq!(message(&wish, Some(None), false), waits);
        assert_eq!(message(&wish, Some(Some(&bound)), false), None);
        // What was bound before another wish says nothing about this one, and none is one, too.
        let older = Bound { rights: Rights { cluster_role: "edit".into(), ..rights.clone() }, problem: None };
        assert_eq!(message(&wish, Some(Some(&older)), false), waits);
        let ends = "waits for the user's former rights to end inside Cluster demo";
        assert_eq!(message(&none, Some(Some(&older)), false).unwrap(), ends);
        assert_eq!(message(&none, Some(None), false), None);
        let problem = Some((Reason::Waiting, "waits for namespace x of the guest".to_owned()));
        let said = message(&wish, Some(Some(&Bound { rights, problem })), false);
        assert_eq!(said.unwrap(), "waits for namespace x of the guest");
        // Before anything is known of the guest, as after a start.
        assert_eq!(message(&wish, None, true), None);
        assert_eq!(message(&wish, None, false), waits);
        assert_eq!(message(&none, None, false), None);
    }

    #[test]
    fn a_status_names_the_secret_for_as_long_as_it_is_there() {
        let mut access = access(&json!({}));
        let ready = Verdict::Ready { ends_at: Some("1970-01-01T08:00:00Z".into()) };
        let first = status(&access, Some("alice-access"), &ready, NOW);
        assert_eq!((first.observed_generation, first.secret.as_deref()), (Some(3), Some("alice-access")));
        assert_eq!(first.conditions[0].status, "True");
        access.status = Some(first.clone());
        assert_eq!(status(&access, Some("alice-access"), &ready, NOW), first);
        let not = Verdict::Not { reason: Reason::InvalidSpec, message: "spec.ttl: no".into() };
        let invalid = status(&access, Some("alice-access"), &not, NOW);
        assert_eq!((&invalid.secret, &invalid.certificate_ends_at), (&first.secret, &first.certificate_ends_at));
        assert_eq!(
            (invalid.conditions[0].status.as_str(), invalid.conditions[0].message.as_str()),
            ("False", "spec.ttl: no")
        );
        let gone = status(&access, None, &not, NOW);
        assert_eq!((gone.secret, gone.certificate_ends_at), (None, None));
    }
}
