//! An account in a region. One task looks at its stacks for all guests in it, often while something is being done to one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Intervals, locked};
use crate::{
    api::names,
    aws::calls::{
        AwsError,
        caller::Paces,
        cloudformation::{CloudFormation, Seen},
    },
    runtime::chain,
};

/// For how many looks it is looked at often after somebody last waited for something: a minute, as it is usually.
const HURRY: u32 = 12;

/// What is older than so many looks at an account that is idle, since the later ones failed, is not served any more.
const LOOKS_MISSED: u32 = 3;

/// What is known of a stack.
#[derive(Clone, Debug)]
pub enum View {
    /// Nothing that is newer than what was last done to it.
    Stale,
    /// There is none of that name.
    Absent,
    /// It is there.
    There(Arc<Seen>),
}

/// The stacks of one look.
#[derive(Debug)]
struct Look {
    /// When it began. What was done before that is seen in it.
    began: Instant,
    stacks: HashMap<String, Arc<Seen>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    look: Option<Arc<Look>>,
    /// Why the latest look failed.
    trouble: Option<Arc<AwsError>>,
    /// Looks so far.
    count: u64,
}

/// An account in a region.
#[derive(Debug)]
pub struct Account {
    paces: Arc<Paces>,
    intervals: Intervals,
    /// Ways to ask. Any of them shows all stacks, so one is asked, and the next when AWS does not take it.
    clients: Mutex<Vec<Weak<CloudFormation>>>,
    known: watch::Sender<Known>,
    /// When something was last done to a stack, by its name.
    done: Mutex<HashMap<String, Instant>>,
    hurry: Mutex<Option<Instant>>,
    stir: Arc<Notify>,
}

impl Account {
    pub(super) fn new(intervals: Intervals) -> Self {
        Self {
            paces: Arc::default(),
            intervals,
            clients: Mutex::default(),
            known: watch::Sender::default(),
            done: Mutex::default(),
            hurry: Mutex::default(),
            stir: Arc::default(),
        }
    }

    pub(super) fn paces(&self) -> Arc<Paces> {
        self.paces.clone()
    }

    /// Adds a way to ask.
    pub(super) fn join(&self, client: &Arc<CloudFormation>) {
        locked(&self.clients).push(Arc::downgrade(client));
        self.hurry();
    }

    /// How often is looked.
    pub fn intervals(&self) -> Intervals {
        self.intervals
    }

    /// What is known of a stack. What is not known yet is looked for.
    ///
    /// # Errors
    /// If the stacks cannot be looked at: since a while, or since something was done to this one.
    pub fn view(&self, stack: &str) -> Result<View, Arc<AwsError>> {
        let known = self.known.borrow().clone();
        let done = self.done(stack);
        let is_served = |look: &Look| {
            let is_old = known.trouble.is_some() && look.began.elapsed() > self.intervals.idle * LOOKS_MISSED;
            !is_old && done.is_none_or(|done| look.began > done)
        };
        if let Some(look) = known.look.as_ref().filter(|look| is_served(look)) {
            return Ok(look.stacks.get(stack).map_or(View::Absent, |seen| View::There(seen.clone())));
        }
        self.hurry();
        known.trouble.map_or(Ok(View::Stale), Err)
    }

    /// When something was last done to a stack by this process.
    pub(in crate::aws) fn done(&self, stack: &str) -> Option<Instant> {
        locked(&self.done).get(stack).copied()
    }

    /// Something was done to a stack, or perhaps was: what was seen before says nothing of it any more.
    pub(in crate::aws) fn touch(&self, stack: &str) {
        locked(&self.done).insert(stack.to_owned(), Instant::now());
        self.hurry();
    }

    /// A stack is gone, or as it should be.
    pub(in crate::aws) fn settle(&self, stack: &str) {
        locked(&self.done).remove(stack);
    }

    /// Somebody waits for something: it is looked at often for a while.
    pub fn hurry(&self) {
        *locked(&self.hurry) = Some(Instant::now() + self.intervals.busy * HURRY);
        self.stir.notify_one();
    }

    /// Waits until a look that begins from now on has ended, well or not.
    pub async fn looked(&self) {
        let mut known = self.known.subscribe();
        // The one under way may have begun before.
        let enough = known.borrow_and_update().count + 2;
        self.hurry();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = known.wait_for(|known| known.count >= enough).await;
    }

    fn is_busy(&self) -> bool {
        locked(&self.hurry).is_some_and(|until| Instant::now() < until)
    }

    /// Looks at all stacks. One whose keys are not taken any more is asked last from then on.
    async fn look(&self) {
        let clients: Vec<_> = {
            let mut clients = locked(&self.clients);
            clients.retain(|client| client.strong_count() > 0);
            clients.iter().filter_map(Weak::upgrade).collect()
        };
        let began = Instant::now();
        let mut trouble = None;
        for client in &clients {
            match client.stacks().await {
                Ok(stacks) => return self.tell(began, stacks),
                Err(error) => {
                    let is_of_identity = error.source.is_of_identity();
                    trouble = Some(error);
                    if !is_of_identity {
                        break;
                    }
                    let mut clients = locked(&self.clients);
                    if !clients.is_empty() {
                        clients.rotate_left(1);
                    }
                }
            }
        }
        let Some(trouble) = trouble else { return };
        tracing::debug!("stacks were not seen: {}", chain(&trouble));
        self.known.send_modify(|known| {
            known.trouble = Some(Arc::new(trouble));
            known.count += 1;
        });
    }

    fn tell(&self, began: Instant, stacks: Vec<Seen>) {
        // Those that have names as ours: the others are nobody's business.
        let ours = stacks.into_iter().filter(|seen| seen.name.starts_with(names::NAMESPACE_PREFIX));
        let stacks = ours.map(|seen| (seen.name.clone(), Arc::new(seen))).collect();
        self.known.send_modify(|known| {
            known.look = Some(Arc::new(Look { began, stacks }));
            known.trouble = None;
            known.count += 1;
        });
    }
}

/// Looks at an account's stacks for as long as somebody has it.
pub(super) async fn follow(account: Weak<Account>) {
    loop {
        let Some(here) = account.upgrade() else { return };
        let began = Instant::now();
        here.look().await;
        let (stir, Intervals { busy, idle, .. }) = (here.stir.clone(), here.intervals);
        let pause = if here.is_busy() { busy } else { idle };
        drop(here);
        tokio::select! {
            () = tokio::time::sleep_until(began + pause) => {}
            () = stir.notified() => tokio::time::sleep_until(began + busy).await,
        }
    }
}
