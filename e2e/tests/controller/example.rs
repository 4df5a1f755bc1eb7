//! The kit is for others, too: the example operator, run as its first lines say.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    on_servers,
    support::processes::spawn,
    world::{SECOND, eventually},
};

#[test]
fn the_example_operator_does_what_it_says() {
    on_servers("example", async |servers, world| {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_lab")).with_file_name("examples").join("welcome");
        assert!(program.exists(), "{} is missing: `cargo build -p giantnetes --examples` makes it", program.display());
        let kubeconfig = servers.kubeconfig();
        let _operator =
            spawn(Command::new(program).env("KUBECONFIG", kubeconfig), &servers.folder().join("welcome.log")).unwrap();
        world.namespace("guests").await.unwrap();
        let label = json!({"metadata": {"labels": {"welcome": "Ada"}}});
        let namespaces = Api::<Namespace>::all(world.client.clone());
        namespaces.patch("guests", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        let greetings = Api::<ConfigMap>::namespaced(world.client.clone(), "guests");
        let greeted = async |limit: Duration| {
            eventually(limit, "the greeting", || async {
                let greeting = greetings.get("welcome").await?;
                let text = greeting.data.and_then(|data| data.get("text").cloned()).context("it says nothing")?;
                ensure!(text == "Welcome, Ada!", "{text}");
                Ok(())
            })
            .await
            .unwrap();
        };
        greeted(SECOND * 30).await;
        let edit = json!({"data": {"text": "Go away!"}});
        greetings.patch("welcome", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
        greeted(SECOND * 15).await;
        greetings.delete("welcome", &DeleteParams::default()).await.unwrap();
        greeted(SECOND * 15).await;
    });
}
