//! `giantnetes check`: whether a controller manager is ready, and one of its replicas leads. `helm test` runs it.

use std::time::{Duration, Instant};

use http::{Request, Uri};
use kube::Config;

use super::{Failure, run::duration};
use crate::runtime::{
    call_within,
    link::{self, Server},
};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest time of a call.
const CALL: Duration = Duration::from_secs(5);
/// Metrics of ten thousand Clusters are shorter than that.
const SERVER: Server = Server { name: "manager", connecting: CALL, answer: 16 << 20 };

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// URL of the controller manager's Service.
    #[arg(long)]
    url: Uri,
    /// How long it may take to be well.
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

pub(super) async fn check(args: &CheckArgs) -> Result<(), Failure> {
    let (begun, mut told) = (Instant::now(), String::new());
    loop {
        let Err(missing) = look(&args.url).await else {
            println!("{}: ready, and a replica leads", args.url);
            return Ok(());
        };
        let missing = crate::runtime::chain(missing.as_ref());
        if begun.elapsed() >= args.timeout {
            return Err(format!("{} is not well after {} s: {missing}", args.url, args.timeout.as_secs()).into());
        }
        if missing != told {
            eprintln!("waiting: {missing}");
            told = missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks once, by a connection of its own: a Service leads each to any replica, and one of them leads.
async fn look(url: &Uri) -> Result<(), Failure> {
    let client = link::connect_to(SERVER, Config::new(url.clone()), None)?;
    let get = async |path: &'static str| {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError);
        call_within(CALL, "get", path, async { client.request_text(request?).await }).await
    };
    get("/readyz").await?;
    if get("/metrics").await?.lines().any(|line| line == "giantnetes_leading 1") {
        return Ok(());
    }
    Err("the replica that answered does not lead".into())
}
