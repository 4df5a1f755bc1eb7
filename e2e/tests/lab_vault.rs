//! The lab's Vault without the lab, on a port of the loopback device: what it stores lasts, whom it lets in, and that a crash
//! leaves nothing that cannot be opened. Needs Vault, kube-apiserver and etcd from e2e/tools.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use lab::paths::Paths;
use lab::tools::Tools;
use lab::vault::{LOGIN, MANAGER, SERVICE_ACCOUNT, Vault, reviewer};
use lab::wait_for;
use serde_json::{Value, json};
use support::apiserver::ApiServer;
use support::processes::{Process, free_port, spawn, tied};

/// How long Vault may take to answer, on a machine that builds something at the same time.
const START: Duration = Duration::from_secs(60);

/// Starts Vault and waits until it answers.
fn start(vault: &Vault<'_>) -> Process {
    let server = vault.server();
    let (program, words) = server.argv.split_first().unwrap();
    let process = spawn(tied(program).args(words), &vault.paths.state.join("vault.log")).unwrap();
    wait_for(START, "Vault to answer", || vault.seal_status()).unwrap();
    process
}

#[test]
fn vault_lets_the_controller_manager_in_and_loses_nothing_but_what_cannot_be_opened() {
    let api = ApiServer::start("lab-vault", &[]).unwrap();
    let paths = Paths { state: api.folder().into(), cache: api.folder().into() };
    let tools = Tools::locate().unwrap();
    let vault = Vault { paths: &paths, tools: &tools, address: (Ipv4Addr::LOCALHOST, free_port().unwrap()).into() };
    vault.configure().unwrap();

    let process = start(&vault);
    // As by a crash at the moment when the key is known.
    vault.ask(None, "PUT", "sys/init", &json!({"secret_shares": 1, "secret_threshold": 1})).unwrap();
    let error = format!("{:#}", vault.unseal().unwrap_err());
    assert!(error.contains("cannot read Vault's key"), "{error}");
    drop(process);
    vault.drop_data_without_key().unwrap();
    let process = start(&vault);
    assert!(!vault.seal_status().unwrap().initialized, "it has the data of before");

    // A second time everything is there and left as it is.
    for _ in 0..2 {
        vault.initialise().unwrap();
        vault.unseal().unwrap();
        vault.write_policy().unwrap();
        // A new API server takes a moment to have its namespaces.
        let reviewer = wait_for(START, "the reviewer of tokens", || reviewer(|words| api.kubectl(words))).unwrap();
        vault.admit_manager(&api.url(), &reviewer).unwrap();
    }
    let authority = "sys/mounts/giantnetes/2wxy7/etcd";
    let manager = the_manager_alone_is_let_in(&vault, &api);
    vault.ask(Some(&manager), "POST", authority, &json!({"type": "pki"})).unwrap();
    let there = || vault.request(Some(&manager), "GET", authority, &Value::Null).unwrap().status;

    vault.seal().unwrap();
    assert!(vault.seal_status().unwrap().sealed && there() == 503, "it is not sealed");
    vault.unseal().unwrap();
    assert_eq!(there(), 200);

    drop(process);
    vault.drop_data_without_key().unwrap();
    let _process = start(&vault);
    assert!(vault.seal_status().unwrap().sealed, "it is open after its start");
    vault.unseal().unwrap();
    assert_eq!(there(), 200);
}

/// Answers Vault's token for the controller manager, which may not do everything.
fn the_manager_alone_is_let_in(vault: &Vault<'_>, api: &ApiServer) -> String {
    let (namespace, name) = SERVICE_ACCOUNT;
    api.kubectl(&["create", "namespace", namespace]).output().unwrap();
    let log_in = |namespace: &str, name: &str| -> Result<Value> {
        api.kubectl(&["create", "serviceaccount", name, "--namespace", namespace]).output().unwrap();
        let token = api.kubectl(&["create", "token", name, "--namespace", namespace]).output().unwrap();
        vault.ask(None, "POST", &format!("auth/{LOGIN}/login"), &json!({"role": MANAGER, "jwt": token.trim()}))
    };
    for (namespace, name) in [("default", name), (namespace, "other")] {
        assert!(log_in(namespace, name).is_err(), "{namespace}/{name} is let in");
    }
    let answer = log_in(namespace, name).expect("the controller manager is let in");
    assert_eq!(answer["auth"]["policies"], json!(["default", MANAGER]));
    let token = answer["auth"]["client_token"].as_str().expect("a token").to_owned();
    assert_eq!(vault.request(Some(&token), "GET", "sys/mounts", &Value::Null).unwrap().status, 403);
    token
}
