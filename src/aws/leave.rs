//! Effects of the aws operator on a guest that goes: its stacks, and what it made itself.

use super::{
    blame::{self, Blame},
    deploy::{Goal, Order},
    ledger::Book,
    memory::Guest,
    plan,
    reconcile::{AwsOperator, Error, SECRET, SECRET_REFUSED, Said, annotation},
    stacks::{Is, Stacks, Stand},
    sweep,
    tags::Owner,
};
use crate::{
    api::names,
    context::Target,
    runtime::{chain, queue::Outcome},
};

impl AwsOperator {
    /// Removes the guest's stacks: those of pools first, then the one whose network they are in.
    pub(super) async fn leave(&self, target: &Target, guest: &mut Guest, book: &Book) -> Result<Said, Error> {
        // An attempt is written down before anything is tried: nothing was ever made.
        if book.stacks().is_empty() {
            return Ok(Said::gone());
        }
        let owner = plan::owner(&target.identity);
        let Some((region, credentials)) = target.aws_account() else { return Ok(Said::gone()) };
        let session = match self.enter(target, (&region, &credentials), guest).await? {
            Ok(session) => session,
            Err(blame) => return Ok(self.blamed(target, &blame, self.poll * SECRET_REFUSED)),
        };
        let force = annotation(target, names::AWS_FORCE_DELETE_ANNOTATION) == Some("true");
        let mut stacks =
            Stacks { session: &session, book, guest, poll: self.poll, drift_interval: self.drift_interval };
        let (mut again, mut left) = (session.account.intervals().idle, Vec::new());
        let mut failed = None;
        let pools = self.pools_of(&owner, book);
        let stages = [pools, vec![owner.cluster_stack()]];
        for (number, stage) in stages.into_iter().enumerate() {
            // What is in its network keeps the network from going.
            if number == 1 && !stacks.guest.swept[0] {
                match self.sweep(&owner, &mut stacks, 0).await {
                    Ok(None) => {}
                    Ok(Some(what)) => {
                        left.push(what);
                        again = self.poll;
                        break;
                    }
                    Err(blame) => return Ok(self.blamed(target, &blame, self.poll * SECRET)),
                }
            }
            for name in stage {
                if stacks.guest.gone.contains(&name) {
                    continue;
                }
                let stand = remove(&owner, &mut stacks, &name, force).await?;
                again = again.min(stand.again);
                match stand.is {
                    Is::Done => drop(stacks.guest.gone.insert(name)),
                    Is::Waits(what) => left.push(what),
                    Is::Failed(blame) => {
                        // Before it is tried again.
                        stacks.guest.swept[0] = false;
                        left.push(name);
                        failed = failed.or(Some(blame));
                    }
                }
            }
            if !left.is_empty() {
                break;
            }
        }
        if left.is_empty() && !stacks.guest.swept[1] {
            // Volumes that nodes of the control plane had.
            match self.sweep(&owner, &mut stacks, 1).await {
                Ok(None) => {}
                Ok(Some(what)) => {
                    left.push(what);
                    again = self.poll;
                }
                Err(blame) => return Ok(self.blamed(target, &blame, self.poll * SECRET)),
            }
        }
        if left.is_empty() {
            return Ok(Said::gone());
        }
        if let Some(blame) = failed {
            return Ok(self.blamed(target, &blame, again));
        }
        Ok(Said { outcome: Outcome::After(again), ..Said::waiting(&left.join(", ")) })
    }

    /// Removes what the guest made itself: before its network goes what is in the way of that, and then the rest. Answers what it waits
    /// for.
    async fn sweep(&self, owner: &Owner, stacks: &mut Stacks<'_>, turn: usize) -> Result<Option<String>, Blame> {
        let swept = sweep::sweep(stacks.session, owner).await;
        let left = swept.map_err(|error| Blame { reason: blame::of_call(&error), message: chain(&error) })?;
        let waits: Vec<_> = match turn {
            0 => sweep::in_the_way(&left).map(ToString::to_string).collect(),
            _ => left.iter().map(ToString::to_string).collect(),
        };
        if waits.is_empty() {
            stacks.guest.swept[turn] = true;
            return Ok(None);
        }
        Ok(Some(format!("{} to go, which the guest made", waits.join(", "))))
    }

    /// Names of the stacks of pools that are recorded.
    pub(super) fn pools_of(&self, owner: &Owner, book: &Book) -> Vec<String> {
        let cluster = owner.cluster_stack();
        book.stacks().into_iter().filter(|name| *name != cluster).collect()
    }
}

/// Removes a stack.
pub(super) async fn remove(owner: &Owner, stacks: &mut Stacks<'_>, name: &str, force: bool) -> Result<Stand, Error> {
    let order = Order { uid: &owner.uid, stack: name, goal: Goal::Absent { force }, again: false };
    Ok(stacks.step(order, 0).await?)
}
