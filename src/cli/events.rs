//! `giantnetes events NAME`: what happened to a Cluster, and in its namespace, the oldest first.

use std::{collections::HashSet, io::Write as _, time::Duration};

use k8s_openapi::{
    api::events::v1::Event,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use super::{Failure, named::Named, progress::patiently};
use crate::{
    cluster::Identity,
    runtime::{CallError, call, chain},
};

/// Pause between two looks for new ones.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    cluster: Named,
    /// Go on with those that come.
    #[arg(long, short)]
    watch: bool,
}

pub(super) async fn events(args: &EventsArgs) -> Result<(), Failure> {
    let (client, cluster) = patiently("events", args.cluster.get()).await?;
    let identity = Identity::of(&cluster);
    let (mut shown, mut told) = (HashSet::new(), false);
    loop {
        let (mut all, refused) = patiently("events", of_cluster(&client, &identity)).await?;
        if let Some(error) = refused.filter(|_| !told) {
            eprintln!("what happened to its VM pods is left out: {}", chain(&error));
            told = true;
        }
        all.retain(|event| shown.insert((event.uid(), event.resource_version())));
        for event in &all {
            writeln!(std::io::stdout(), "{}", line(event, Timestamp::now()))?;
        }
        if !args.watch {
            if shown.is_empty() {
                eprintln!("nothing happened to {} within the time that events are kept", identity.key);
            }
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Events about a Cluster and those of the guest's namespace, the oldest first; and why the latter could not be had.
pub(super) async fn of_cluster(
    client: &Client,
    identity: &Identity,
) -> Result<(Vec<Event>, Option<CallError>), CallError> {
    let about = ListParams::default().fields(&format!("regarding.uid={}", identity.uid));
    let listed = async |namespace: &str, params: &ListParams| {
        let api = Api::<Event>::namespaced(client.clone(), namespace);
        call("list", format!("Events of {namespace}"), api.list(params)).await
    };
    let mut all = listed(&identity.key.namespace, &about).await?.items;
    let refused = match listed(&identity.namespace, &ListParams::default()).await {
        Ok(inside) => {
            all.extend(inside.items);
            None
        }
        Err(error) => Some(error),
    };
    all.sort_by_key(last_seen);
    Ok((all, refused))
}

/// When an event was seen last.
pub(super) fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let once = event.event_time.as_ref().map(|at| at.0);
    let of_old = event.deprecated_last_timestamp.as_ref().map(|at| at.0);
    series.or(once).or(of_old).or_else(|| event.metadata.creation_timestamp.as_ref().map(|at| at.0))
}

/// How long ago that was, and how often it was seen since it began.
pub(super) fn ago(event: &Event, now: Timestamp) -> String {
    let ago =
        last_seen(event).map_or_else(|| "at some time".into(), |at| format!("{} ago", age(now.duration_since(at))));
    let times = event.series.as_ref().map(|series| format!(" ({} times)", series.count)).unwrap_or_default();
    ago + &times
}

/// The largest unit alone.
fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A text that others wrote, without what moves cursors and changes colours.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// An event as a line. What others wrote into it stays one: a note may have line breaks.
pub(super) fn line(event: &Event, now: Timestamp) -> String {
    let text = |text: Option<&String>| printable(&text.map(String::as_str).unwrap_or_default().replace('\n', " "));
    let regarding = event.regarding.as_ref();
    let kind = text(regarding.and_then(|object| object.kind.as_ref()));
    let name = text(regarding.and_then(|object| object.name.as_ref()));
    let (type_, reason) = (text(event.type_.as_ref()), text(event.reason.as_ref()));
    format!("{:<16} {type_:<8} {reason:<22} {kind}/{name}: {}", ago(event, now), text(event.note.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_says_when_what_and_of_whom() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut event: Event = serde_json::from_value(json!({
            "metadata": {"name": "a", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "type": "Warning", "reason": "NodeLost", "note": "host h1 is dead:\nnode a-0 is given up",
            "regarding": {"kind": "Cluster", "name": "demo"},
        }))
        .unwrap();
        let now = at("2030-01-01T02:00:10Z");
        let said =
            "2 h ago          Warning  NodeLost               Cluster/demo: host h1 is dead: node a-0 is given up";
        assert_eq!(line(&event, now), said);
        // What kubelets still write.
        event.deprecated_last_timestamp = serde_json::from_value(json!("2030-01-01T02:00:00Z")).unwrap();
        assert!(line(&event, now).starts_with("10 s ago "));
    }
}
