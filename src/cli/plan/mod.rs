//! `giantnetes plan -f cluster.yaml`: what would be made if nothing existed yet, in order. Needs no cluster.

mod document;

use std::{fmt::Write as _, path::PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use crate::{
    api::Cluster,
    cluster::{self, Valid},
    kvm::plan::{NodeObjects, Surroundings, control_plane_node},
    network::plan::{self as network, VniChoice},
    pki::plan::{self as pki, Step, World},
    settings::Settings,
};

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    /// File with a Cluster; `-` is standard input.
    #[arg(long, short)]
    file: PathBuf,
    /// The operator's settings: the chart's values as the controller manager gets them.
    #[arg(long, env = "GIANTNETES_SETTINGS")]
    settings: PathBuf,
}

pub(super) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let settings = Settings::read(&args.settings)?;
    let text = if args.file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        std::fs::read_to_string(&args.file).map_err(|error| format!("read {}: {error}", args.file.display()))?
    };
    let cluster: Cluster =
        serde_saphyr::from_str(&text).map_err(|error| format!("{} is not a Cluster: {error}", args.file.display()))?;
    print!("{}", describe(&cluster, &settings)?);
    Ok(())
}

/// The plan as a YAML stream. Keys are random, so of Secrets the wishes are shown and not the contents.
fn describe(cluster: &Cluster, settings: &Settings) -> Result<String, Failure> {
    let valid = Valid::new(cluster, settings).map_err(|violations| {
        let list: Vec<_> = violations.iter().map(ToString::to_string).collect();
        format!("the Cluster cannot be fulfilled:\n  {}", list.join("\n  "))
    })?;
    let mut out = String::new();
    let mut show = |title: &str, what: &dyn Fn() -> Result<String, Failure>| -> Result<(), Failure> {
        write!(out, "--- # {title}\n{}", what()?)?;
        Ok(())
    };
    let identity = &valid.identity;
    show("cluster: the guest's namespace", &|| yaml(&cluster::plan::namespace(identity)))?;
    let VniChoice::Claim(vni) = network::choose_vni(identity, valid.requested_vni, &Default::default()) else {
        return Err("no VNI can be claimed".into());
    };
    show("network: the VNI", &|| yaml(&network::claim(identity, vni)))?;
    show("network: the Service in front of the API", &|| yaml(&network::master_service(&valid)))?;
    for (title, steps) in pki_steps(&valid) {
        show(title, &|| yaml(&steps))?;
    }
    let around = Surroundings { vni, namespace_uid: "<uid of the namespace>", settings: &settings.kvm };
    let NodeObjects { claim, config, pod } = control_plane_node(&valid, 0, around)?;
    show("kvm: etcd's volume", &|| yaml(&claim))?;
    show("kvm: the node's configuration", &|| yaml(&config))?;
    show("kvm: the VM pod; waits for network and certificates", &|| yaml(&pod))?;
    let bindings = crate::guest::plan::bindings();
    show("guest: rights, inside the guest; waits for the control plane", &|| yaml(&bindings))?;
    Ok(out)
}

/// The steps of pki as if each were carried out at once.
fn pki_steps(valid: &Valid) -> [(&'static str, Vec<Step>); 2] {
    let mut world = World { namespace: true, ..World::default() };
    let roots = pki::plan(valid, &world, Timestamp::UNIX_EPOCH).steps;
    for root in pki::Root::ALL {
        world.records.insert(root.record(), "made".into());
        let secret = pki::SecretMeta { fingerprint: Some("made".into()), ..pki::SecretMeta::default() };
        world.secrets.insert(root.secret(), secret);
    }
    world.endpoint = Some("https://<address of Service master>:6443".into());
    let leaves = pki::plan(valid, &world, Timestamp::UNIX_EPOCH).steps;
    [("pki: roots, made once", roots), ("pki: certificates; waits for the Service's address", leaves)]
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_saphyr::to_string(value)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{cluster, settings};

    #[test]
    fn the_plan_of_an_empty_spec_is_golden() {
        insta::assert_snapshot!(describe(&cluster(json!({})), &settings()).unwrap());
    }

    #[test]
    fn the_plan_of_a_full_spec_is_golden() {
        let spec = json!({
            "kubernetes": {"version": "v1.36.3", "podCIDR": "10.128.0.0/14", "serviceCIDR": "10.64.0.0/20"},
            "provider": {"kvm": {"accelerator": "TCG"}},
            "controlPlane": {"machine": {"cpus": 4, "memory": "8Gi", "disk": "40Gi"}},
            "etcd": {"storage": {"size": "16Gi", "className": "fast"}},
            "network": {"overlay": {"cidr": "172.27.0.0/20", "vni": 4242}},
        });
        insta::assert_snapshot!(describe(&cluster(spec), &settings()).unwrap());
    }

    #[test]
    fn a_bad_spec_is_an_error_that_names_every_field() {
        let spec = json!({"network": {"overlay": {"vni": 1}}, "kubernetes": {"podCIDR": "x"}});
        let error = describe(&cluster(spec), &settings()).unwrap_err().to_string();
        assert!(error.contains("spec.network.overlay.vni") && error.contains("spec.kubernetes.podCIDR"), "{error}");
    }

    #[test]
    fn no_key_is_in_a_plan() {
        assert!(!describe(&cluster(json!({})), &settings()).unwrap().contains("PRIVATE"));
    }
}
