//! `giantnetes plan -f cluster.yaml`: what would be made or changed for a Cluster, in order, what each step waits for, and
//! which nodes roll.
//!
//! - [`document`]: reading a file more strictly than the watch does, and judging a change
//! - [`steps`]: the objects of a guest in the order in which they are made, from the same plans that the reconcilers use
//! - [`compare`]: what of them is new, changed, gone or as it should be
//! - [`disruption`]: what of it users of the guest notice
//! - [`live`]: what the management cluster has
//! - [`show`]: YAML or one line per step
//! - `stacks`: the stacks of a guest on AWS

mod compare;
mod disruption;
mod document;
mod live;
mod show;
#[cfg(feature = "aws")]
mod stacks;
mod steps;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;

use self::{
    compare::{Change, State},
    steps::{Known, Step},
};
use super::Failure;
use crate::{
    api::Cluster,
    cluster::{
        Valid,
        valid::{self, Violation},
    },
    settings::Settings,
};

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// File with a Cluster; `-` is standard input.
    #[arg(long, short)]
    file: PathBuf,
    /// The operator's settings: the chart's values as the controller manager gets them. Without: as the chart has them if
    /// nobody changes them.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: Option<PathBuf>,
    /// Compare with what the cluster of the current kubeconfig has.
    #[arg(long, conflicts_with = "against")]
    live: bool,
    /// File with the Cluster as it was before: judge the change from it.
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
    /// Every object, or one line per step.
    #[arg(long, value_enum, default_value = "yaml")]
    format: Format,
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Every object.
    Yaml,
    /// One line per step.
    Summary,
}

pub(super) async fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let settings = args.settings.as_deref().map_or_else(Settings::of_chart, Settings::read)?;
    let mut cluster = read(&args.file)?;
    let (outcome, forbidden) = if args.live {
        (live::plan(&mut cluster, &settings, Timestamp::now()).await?, Vec::new())
    } else if let Some(old) = &args.against {
        against(&read(old)?, &mut cluster, &settings)?
    } else {
        cluster.metadata.namespace.get_or_insert_with(|| "default".into());
        (fresh(&cluster, &settings)?, Vec::new())
    };
    print!("{}", outcome.show(args.format)?);
    if forbidden.is_empty() { Ok(()) } else { Err(listed("this change is refused", &forbidden)) }
}

/// The nodes that are not as a Cluster now asks for, by the cluster of the current kubeconfig.
pub(super) async fn outdated(cluster: &Cluster, settings: &Settings) -> Result<BTreeSet<String>, Failure> {
    let outcome = live::plan(&mut cluster.clone(), settings, Timestamp::now()).await?;
    let changed = outcome.changes.into_iter().filter(|change| change.state == State::Changed);
    Ok(changed.filter_map(|change| change.step.rolls).collect())
}

fn read(file: &Path) -> Result<Cluster, Failure> {
    let (name, text) = if file.as_os_str() == "-" {
        ("standard input".into(), std::io::read_to_string(std::io::stdin()))
    } else {
        (file.display().to_string(), std::fs::read_to_string(file))
    };
    let text = text.map_err(|error| format!("read {name}: {error}"))?;
    document::parse(&text).map_err(|problems| listed(&format!("{name} cannot be used"), &problems))
}

fn listed<T: ToString>(what: &str, problems: &[T]) -> Failure {
    let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
    format!("{what}:\n  {}", list.join("\n  ")).into()
}

/// What a plan comes to.
#[derive(Debug)]
struct Outcome {
    valid: Valid,
    changes: Vec<Change>,
    /// Whether the Cluster has the UID that the API server gave it.
    has_uid: bool,
}

impl Outcome {
    fn show(&self, format: Format) -> Result<String, Failure> {
        match format {
            Format::Yaml => show::yaml(self),
            Format::Summary => Ok(show::summary(self)),
        }
    }
}

fn checked(cluster: &Cluster, settings: &Settings) -> Result<Valid, Failure> {
    Valid::new(cluster, settings).map_err(|violations| listed("the Cluster cannot be fulfilled", &violations))
}

/// The plan as if nothing existed.
fn fresh(cluster: &Cluster, settings: &Settings) -> Result<Outcome, Failure> {
    let valid = checked(cluster, settings)?;
    let steps = steps::of(&valid, settings, &Known::nothing(&valid)?)?;
    let changes = steps.into_iter().map(|step| Change { step, state: State::Created }).collect();
    Ok(Outcome { valid, changes, has_uid: cluster.metadata.uid.is_some() })
}

/// What a change makes of the objects, and what forbids it.
fn against(old: &Cluster, new: &mut Cluster, settings: &Settings) -> Result<(Outcome, Vec<Violation>), Failure> {
    if old.metadata.name != new.metadata.name {
        return Err("the Cluster as it was has another name: a name cannot change".into());
    }
    document::succeed(old, new);
    new.metadata.namespace.get_or_insert_with(|| "default".into());
    let mut old = old.clone();
    old.metadata.namespace.clone_from(&new.metadata.namespace);
    let old = &old;
    let forbidden = valid::update(old, new);
    let valid = Valid::new(new, settings).map_err(|mut violations| {
        violations.extend(forbidden.clone());
        listed("the Cluster cannot be fulfilled", &violations)
    })?;
    let old_valid = Valid::new(old, settings)
        .map_err(|violations| listed("the Cluster as it was cannot be compared with", &violations))?;
    let known = Known::nothing(&old_valid)?;
    let before = steps::of(&old_valid, settings, &known)?;
    let changes = compare::plans(before, steps::of(&valid, settings, &known)?);
    Ok((Outcome { valid, changes, has_uid: new.metadata.uid.is_some() }, forbidden))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{cluster, settings};

    fn example(name: &str) -> Cluster {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
        let mut cluster = read(&root.join(name)).unwrap();
        cluster.metadata.namespace = Some("team-a".into());
        cluster.metadata.uid = Some("9f2c6a50-6f3e-4a39-9e0b-0d9f4c1f7a11".into());
        cluster
    }

    fn shown(cluster: &Cluster, format: Format) -> String {
        fresh(cluster, &settings()).unwrap().show(format).unwrap()
    }

    /// Those of an installation with a Vault.
    fn with_vault() -> Settings {
        let vault = json!({
            "address": "https://vault.example.com:8200",
            "caCertificate": crate::testing::certificate(),
            "auth": {"kubernetes": {"role": "giantnetes"}},
        });
        Settings { vault: serde_json::from_value(vault).unwrap(), ..settings() }
    }

    #[test]
    fn a_guest_on_aws_is_its_stacks() {
        let outcome = fresh(&example("aws.yaml"), &with_vault()).unwrap();
        let text = outcome.show(Format::Summary).unwrap();
        let stacks: Vec<_> = text.lines().filter(|line| line.contains("Stack ")).collect();
        assert_eq!(stacks.len(), 3, "{text}");
        assert!(!text.contains("Pod") && !text.contains("NetworkClaim"), "{text}");
        let yaml = outcome.show(Format::Yaml).unwrap();
        assert!(yaml.contains("AWS::EC2::VPC") && !yaml.contains("PRIVATE"));
    }

    #[test]
    fn the_plans_of_the_examples_are_golden() {
        for name in ["minimal", "typical", "maximal"] {
            let cluster = example(&format!("{name}.yaml"));
            insta::assert_snapshot!(format!("{name}-summary"), shown(&cluster, Format::Summary));
            insta::assert_snapshot!(format!("{name}-yaml"), shown(&cluster, Format::Yaml));
        }
    }

    #[test]
    fn every_example_can_be_fulfilled() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/examples");
        let examples: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(examples.len() >= 5);
        for name in examples {
            fresh(&example(name.to_str().unwrap()), &with_vault()).unwrap();
        }
    }

    #[test]
    fn a_bad_spec_is_an_error_that_names_every_field() {
        let spec = json!({"network": {"overlay": {"vni": 1}}, "kubernetes": {"podCIDR": "x"}});
        let error = fresh(&cluster(spec), &settings()).unwrap_err().to_string();
        assert!(error.contains("spec.network.overlay.vni") && error.contains("spec.kubernetes.podCIDR"), "{error}");
    }

    #[test]
    fn no_key_is_in_a_plan() {
        assert!(!shown(&example("maximal.yaml"), Format::Yaml).contains("PRIVATE"));
    }

    #[test]
    fn a_change_says_what_it_changes_which_nodes_roll_and_why_it_is_refused() {
        let old = cluster(json!({}));
        let mut new = cluster(json!({
            "controlPlane": {"machine": {"memory": "8Gi"}, "replicas": 3}, "etcd": {"storage": {"size": "9Gi"}},
        }));
        let (outcome, forbidden) = against(&old, &mut new, &settings()).unwrap();
        assert_eq!(forbidden.len(), 1, "{forbidden:?}");
        insta::assert_snapshot!(outcome.show(Format::Summary).unwrap());
        let mut renamed = old.clone();
        renamed.metadata.name = Some("other".into());
        assert!(against(&old, &mut renamed, &settings()).is_err());
        let (outcome, forbidden) = against(&old, &mut old.clone(), &settings()).unwrap();
        assert_eq!(forbidden, []);
        assert!(outcome.changes.iter().all(|change| change.state == State::Unchanged));
    }

    #[test]
    fn a_change_says_whom_it_disturbs() {
        let workers = |replicas, cpus| json!([{"name": "a", "replicas": replicas, "machine": {"cpus": cpus}}]);
        let one = |pools| json!({"nodePools": pools});
        let of = |masters, version| json!({"controlPlane": {"replicas": masters}, "kubernetes": {"apiServer": {"extraArgs": {"v": version}}}});
        let by = |host| json!({"exposure": {"type": "Ingress", "host": host}});
        let versions =
            |version| json!({"kubernetes": {"kubelet": {"extraArgs": {"v": version}}}, "nodePools": workers(1, 2)});
        let (away, moves) = (
            "the API is away while the only control-plane node is replaced",
            "the way to the API from outside changes",
        );
        let (masters, pods) = ("control-plane nodes are replaced one at a time", "workers go one at a time");
        for (before, after, effects) in [
            (one(workers(2, 2)), one(workers(2, 2)), &["none"][..]),
            (one(workers(2, 2)), one(workers(3, 2)), &["none"]),
            (one(workers(2, 2)), one(workers(1, 2)), &[pods]),
            (one(workers(2, 2)), one(workers(2, 3)), &[pods]),
            (of(1, "1"), of(1, "2"), &[away]),
            (of(3, "1"), of(3, "2"), &[masters]),
            // The one that is there rolls before others come.
            (of(1, "1"), of(3, "1"), &[away]),
            (by("a.example.com"), by("b.example.com"), &[moves]),
            (versions("1"), versions("2"), &[away, pods]),
            (
                json!({"ingressController": {"enabled": true}}),
                json!({"ingressController": {"enabled": false}}),
                &["the way to the guest's ingress controller changes"],
            ),
        ] {
            let (outcome, _) = against(&cluster(before.clone()), &mut cluster(after.clone()), &settings()).unwrap();
            let said = outcome.show(Format::Summary).unwrap();
            let last = said.lines().last().unwrap().strip_prefix("disruption: ").unwrap();
            let told: Vec<_> = last.split("; ").collect();
            let all =
                told.len() == effects.len() && told.iter().zip(effects).all(|(told, effect)| told.contains(effect));
            assert!(all, "{before} → {after}: {last}");
        }
    }
}
