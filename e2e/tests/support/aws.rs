//! ministack, a stand-in for AWS, and a proxy in front of it that counts calls, and cuts a controller manager off.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::aws::calls::identity::{Keys, Role, Way};
use http_body_util::BodyExt as _;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::{Client, Config, client::Body};
use secrecy::SecretString;
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinSet};

/// A running ministack, with the overlay of `e2e/aws`. Dropping it ends it.
pub struct Peer {
    told: Told,
    process: Child,
    /// It ends when this is closed: also when the test is killed.
    input: Option<ChildStdin>,
}

#[derive(Deserialize)]
struct Told {
    address: String,
    region: String,
    account: String,
    manager: (String, String),
    nobody: (String, String),
    root: (String, String),
    role: String,
}

/// Whom the peer takes us for.
#[derive(Clone, Copy, Debug)]
pub enum User {
    /// With the rights that the chart ships.
    Manager,
    /// With the role that has them, assumed by whoever may do all.
    InRole,
    /// Without any right.
    Nobody,
    /// With all rights.
    Root,
    /// With keys that nobody has.
    Stranger,
}

impl Peer {
    /// Starts it.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start() -> Result<Self> {
        let script = super::root().join("e2e/aws/serve.py");
        let mut process = Command::new(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take();
        let output = process.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        // What it says while it installs itself comes first.
        let line = lines.find(|line| line.starts_with('{'));
        let told = serde_json::from_str(&line.with_context(|| format!("{} said nothing", script.display()))?)?;
        Ok(Self { told, process, input })
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.told.address
    }

    /// The account that it makes up.
    pub fn account(&self) -> &str {
        &self.told.account
    }

    /// The region that it is.
    pub fn region(&self) -> &str {
        &self.told.region
    }

    /// A way to it, by something in between.
    pub fn way(&self, user: User, endpoint: &str) -> Way {
        let (id, secret) = match user {
            User::Manager => self.told.manager.clone(),
            User::InRole | User::Root => self.told.root.clone(),
            User::Nobody => self.told.nobody.clone(),
            User::Stranger => (self.told.manager.0.clone(), "another".to_owned()),
        };
        let role =
            Role { arn: self.told.role.clone(), external_id: Some("of-a-guest".into()), session: "g8s-test".into() };
        Way {
            region: self.told.region.clone(),
            endpoint: Some(endpoint.to_owned()),
            keys: Keys { id, secret: SecretString::from(secret), session: None },
            role: matches!(user, User::InRole).then_some(role),
        }
    }

    fn client(&self) -> Result<Client> {
        let mut config = Config::new(self.told.address.parse()?);
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its server is a child of its own, which it ends when it hears no more of us.
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

/// A call that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// AWS's name for it.
    pub action: String,
    /// What it was answered with.
    pub status: u16,
}

/// On which side of the peer the line is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The call never reaches it.
    BeforeForwarding,
    /// It did what it was asked for, and the answer is lost.
    BeforeAnswering,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    /// Looks at all stacks.
    polls: usize,
    /// After so many calls, and where.
    cut: Option<(usize, Moment)>,
    is_cut: bool,
    throttles: bool,
    throttled: usize,
    seen: usize,
    /// Name of a call, a code and words.
    refuses: Option<[String; 3]>,
}

/// A proxy in front of the peer. Dropping it ends it.
pub struct Proxy {
    pub address: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one.
    ///
    /// # Errors
    /// If there is no port for it.
    pub async fn start(peer: &Peer) -> Result<Self> {
        let (upstream, state) = (peer.client()?, Arc::<Mutex<State>>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, upstream, state.clone()));
        Ok(Self { address, state, _tasks: tasks })
    }

    /// Calls since the last time, but for looks at all stacks and those of STS.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// Looks at all stacks since the last time.
    pub fn polls(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().polls)
    }

    /// Cuts the line at the call of this number, counted from 1; the peer hears nothing any more until [`Self::mend`].
    pub fn cut(&self, at: usize, moment: Moment) {
        let mut state = self.state.lock().unwrap();
        state.calls.clear();
        state.cut = Some((at, moment));
    }

    /// Whether the line is cut.
    pub fn is_cut(&self) -> bool {
        self.state.lock().unwrap().is_cut
    }

    /// Answers every second call, or so, as AWS does when there are too many of them.
    pub fn throttle(&self, on: bool) {
        self.state.lock().unwrap().throttles = on;
    }

    /// Calls that were throttled so far.
    pub fn throttled(&self) -> usize {
        self.state.lock().unwrap().throttled
    }

    /// Answers calls of this name with an error of this code and these words, until another is named.
    pub fn refuse(&self, refusal: Option<(&str, &str, &str)>) {
        let owned = refusal.map(|(action, code, said)| [action, code, said].map(str::to_owned));
        self.state.lock().unwrap().refuses = owned;
    }

    /// Mends the line, if it was cut: whether it was.
    pub fn mend(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.is_cut {
            (state.cut, state.is_cut) = (None, false);
            return true;
        }
        false
    }
}

async fn listen(listener: TcpListener, upstream: Client, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (upstream, state) = (upstream.clone(), state.clone());
        let service = service_fn(move |request| answer(upstream.clone(), state.clone(), request));
        connections.spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What the peer does not know: every zone has every instance type, but for those of a family that there is not.
fn offerings(form: &str) -> Response<Body> {
    let values = |filter: &str| {
        let head = format!("Filter.{filter}.Value.");
        let of = form.split('&').filter_map(|pair| pair.strip_prefix(head.as_str())?.split_once('='));
        of.map(|(_, value)| value.to_owned()).collect::<Vec<_>>()
    };
    let (types, zones) = (values("1"), values("2"));
    let items: String = types
        .iter()
        .filter(|name| !name.starts_with("m99"))
        .flat_map(|name| {
            zones
                .iter()
                .map(move |zone| format!("<item><instanceType>{name}</instanceType><location>{zone}</location></item>"))
        })
        .collect();
    let body = format!(
        "<DescribeInstanceTypeOfferingsResponse><instanceTypeOfferingSet>{items}</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    );
    Response::new(Body::from(body.into_bytes()))
}

fn refusal(status: u16, code: &str, said: &str) -> Response<Body> {
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{said}</Message></Error></ErrorResponse>"
    );
    Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap()
}

/// An error ends the connection without an answer.
async fn answer(upstream: Client, state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let field = |name: &str| text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let action = field("Action").context("a call without a name")?.to_owned();
    let is_poll = action == "DescribeStacks" && field("StackName").is_none();
    let counts = !is_poll && !["AssumeRole", "GetCallerIdentity"].contains(&action.as_str());
    let moment = {
        let mut state = state.lock().unwrap();
        ensure!(!state.is_cut, "the line is cut");
        state.polls += usize::from(is_poll);
        state.seen += 1;
        let is_throttled = state.throttles && state.seen.is_multiple_of(2);
        if is_throttled {
            state.throttled += 1;
            return Ok(refusal(400, "Throttling", "Rate exceeded"));
        }
        if let Some([_, code, said]) = state.refuses.as_ref().filter(|[name, ..]| *name == action) {
            return Ok(refusal(400, code, said));
        }
        let number = state.calls.len() + 1;
        state.cut.filter(|(at, _)| counts && number == *at).map(|(_, moment)| moment)
    };
    let cut = || {
        state.lock().unwrap().is_cut = true;
        anyhow::anyhow!("the line is cut")
    };
    if moment == Some(Moment::BeforeForwarding) {
        return Err(cut());
    }
    let answer = match action.as_str() {
        "DescribeInstanceTypeOfferings" => offerings(&text),
        // With its Host: that is signed.
        _ => upstream.send(Request::from_parts(head, Body::from(body.to_vec()))).await?,
    };
    if counts {
        state.lock().unwrap().calls.push(Call { action, status: answer.status().as_u16() });
    }
    if moment.is_some() { Err(cut()) } else { Ok(answer) }
}
