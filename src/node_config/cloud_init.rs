//! A [`NodeConfig`] as the three files of cloud-init's NoCloud data source.

use serde::Serialize;
use serde_json::json;

use super::NodeConfig;

/// The files of a NoCloud seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// `user-data`: a `#cloud-config`.
    pub user_data: String,
    /// `meta-data`: instance id and host name.
    pub meta_data: String,
    /// `network-config`, version 2.
    pub network_config: String,
}

#[derive(Serialize)]
struct CloudConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    write_files: Vec<WriteFile<'a>>,
    bootcmd: Vec<Vec<&'a str>>,
}

#[derive(Serialize)]
struct WriteFile<'a> {
    path: &'a str,
    permissions: String,
    content: &'a str,
}

/// Renders a seed. `instance` changes whenever cloud-init should take the node for a new one.
///
/// # Errors
/// Only if the configuration cannot be written as YAML, which would be a defect of ours.
pub fn render(config: &NodeConfig, instance: &str) -> Result<Seed, serde_saphyr::ser::Error> {
    let cloud_config = CloudConfig {
        hostname: config.hostname.as_deref(),
        write_files: config
            .files
            .iter()
            .map(|file| WriteFile {
                path: &file.path,
                permissions: format!("{:04o}", file.mode),
                content: &file.content,
            })
            .collect(),
        bootcmd: vec![
            vec!["systemctl", "daemon-reload"],
            // Without waiting: cloud-init itself is part of the boot that the target would wait for.
            vec!["systemctl", "start", "--no-block", config.target],
        ],
    };
    let ethernets: serde_json::Map<_, _> = config
        .interfaces
        .iter()
        .map(|interface| {
            let mut settings = json!({
                "match": {"macaddress": interface.mac.to_string()},
                "set-name": interface.name,
                "addresses": [interface.address.to_string()],
            });
            if let Some(route) = interface.route {
                settings["routes"] = json!([{"to": route.to.to_string(), "via": route.via.to_string()}]);
            }
            (interface.name.to_owned(), settings)
        })
        .collect();
    Ok(Seed {
        user_data: format!("#cloud-config\n{}", serde_saphyr::to_string(&cloud_config)?),
        meta_data: serde_saphyr::to_string(&json!({
            "instance-id": instance, "local-hostname": config.hostname,
            // Applied before the network is up, in the first of cloud-init's stages: the others are off in our image.
            "dsmode": "local",
        }))?,
        network_config: serde_saphyr::to_string(&json!({"version": 2, "ethernets": ethernets}))?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        network::addresses::Fabric,
        node_config::{Blank, control_plane},
        testing::valid,
    };

    #[test]
    fn what_is_rendered_parses_back_to_the_same() {
        let config = control_plane(&valid(json!({})), 0, Blank::Forms);
        let seed = render(&config, "i-1").unwrap();
        let parsed: Value = serde_saphyr::from_str(&seed.user_data).unwrap();
        assert_eq!(parsed["hostname"], "master-0");
        let files = parsed["write_files"].as_array().unwrap();
        assert_eq!(files.len(), config.files.len());
        for (written, file) in files.iter().zip(&config.files) {
            assert_eq!(written["path"], file.path.as_str());
            assert_eq!(written["content"], file.content.as_str(), "{}", file.path);
            assert_eq!(written["permissions"], format!("{:04o}", file.mode).as_str());
        }
        let network: Value = serde_saphyr::from_str(&seed.network_config).unwrap();
        assert_eq!(network["ethernets"]["overlay"]["addresses"][0], "172.26.0.10/20");
        assert_eq!(network["ethernets"]["overlay"]["routes"], Value::Null);
        let out = json!([{"to": "0.0.0.0/0", "via": "10.0.2.2"}]);
        assert_eq!(network["ethernets"]["egress"]["routes"], out);
    }

    #[test]
    fn a_routed_node_reaches_the_others_by_its_own_router() {
        let mut valid = valid(json!({}));
        valid.ranges.overlay.fabric = Fabric::Routed;
        let seed = render(&control_plane(&valid, 0, Blank::Forms), "i-1").unwrap();
        let network: Value = serde_saphyr::from_str(&seed.network_config).unwrap();
        let overlay = &network["ethernets"]["overlay"];
        assert_eq!(overlay["addresses"], json!(["172.26.0.42/30"]));
        assert_eq!(overlay["routes"], json!([{"to": "172.26.0.0/20", "via": "172.26.0.41"}]));
        let out = json!([{"to": "0.0.0.0/0", "via": "10.0.2.2"}]);
        assert_eq!(network["ethernets"]["egress"]["routes"], out);
    }

    #[test]
    fn user_data_holds_no_secret() {
        let seed = render(&control_plane(&valid(json!({})), 0, Blank::Forms), "i-1").unwrap();
        for text in [&seed.user_data, &seed.meta_data, &seed.network_config] {
            for word in ["PRIVATE KEY", "BEGIN CERTIFICATE", "token:", "password", "client-key-data"] {
                assert!(!text.contains(word), "{word}");
            }
        }
    }
}
