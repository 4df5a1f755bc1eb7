//! The calls that stacks need. What changes something has a token: a request that comes twice is done once.

use std::collections::BTreeMap;

use aws_sdk_cloudformation::{
    Client,
    types::{Capability, ChangeSetType, DeletionMode, OnStackFailure, StackResourceDriftStatus, Tag},
};

use super::{
    caller::{Caller, Operation},
    failure::{AwsError, Failure},
    identity::Keyring,
    pace::Family,
    read,
};
use crate::aws::{change_set::ChangeSet, driver::Stack, progress::Event, status::UnknownStatus, template::Body};

/// Most pages of an answer: AWS has accounts of thousands of stacks, and no answer without an end.
const MAX_PAGES: usize = 500;

/// Most pages of events that are read of one stack; a page has 100 events, and an operation on a guest about 300.
const MAX_PAGES_OF_EVENTS: usize = 10;

/// Declares operations by AWS's names.
macro_rules! operations {
    ($($constant:ident = $name:literal, $family:ident;)*) => {
        $(static $constant: Operation = Operation {
            service: "cloudformation",
            name: $name,
            action: concat!("cloudformation:", $name),
            family: Family::$family,
            writes: matches!(Family::$family, Family::Change),
        };)*
    };
}

operations! {
    DESCRIBE_STACKS = "DescribeStacks", Look;
    DESCRIBE_STACK_EVENTS = "DescribeStackEvents", Look;
    DESCRIBE_CHANGE_SET = "DescribeChangeSet", Look;
    LIST_CHANGE_SETS = "ListChangeSets", Look;
    DESCRIBE_STACK_RESOURCE_DRIFTS = "DescribeStackResourceDrifts", Look;
    DETECT_STACK_DRIFT = "DetectStackDrift", Change;
    CREATE_CHANGE_SET = "CreateChangeSet", Change;
    EXECUTE_CHANGE_SET = "ExecuteChangeSet", Change;
    DELETE_CHANGE_SET = "DeleteChangeSet", Change;
    UPDATE_TERMINATION_PROTECTION = "UpdateTerminationProtection", Change;
    ROLLBACK_STACK = "RollbackStack", Change;
    CONTINUE_UPDATE_ROLLBACK = "ContinueUpdateRollback", Change;
    DELETE_STACK = "DeleteStack", Change;
}

/// A stack, with what tells it from a namesake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its ARN. A stack that is made anew under its name has another.
    pub id: String,
    /// Why it is in its state, in AWS's words.
    pub reason: String,
    /// What the driver needs to know.
    pub stack: Result<Stack, UnknownStatus>,
    /// What it says of itself: ids of its network, for one.
    pub outputs: BTreeMap<String, String>,
    /// Whether somebody changed what it made.
    pub drift: Drift,
}

/// Whether somebody changed what a stack made, past it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Whether that was seen.
    pub is_drifted: bool,
    /// When it was last looked for, in seconds since 1970.
    pub checked: Option<i64>,
}

/// A change set, with whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its ARN.
    pub id: String,
    /// UID of the Cluster that it is tagged with.
    pub owner: Option<String>,
    /// What the driver needs to know.
    pub set: ChangeSet,
}

/// CloudFormation in a region, as whom it was asked to be.
#[derive(Debug)]
pub struct CloudFormation {
    client: Client,
    keys: std::sync::Arc<Keyring>,
    caller: Caller,
}

impl CloudFormation {
    pub(in crate::aws) fn new(keys: std::sync::Arc<Keyring>, caller: Caller) -> Self {
        Self { client: keys.cloudformation(), keys, caller }
    }

    /// All stacks that are not deleted, of everybody in the account.
    ///
    /// # Errors
    /// If a page of them cannot be got.
    pub async fn stacks(&self) -> Result<Vec<Seen>, AwsError> {
        let (mut stacks, mut next) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let send = || self.client.describe_stacks().set_next_token(next.clone()).send();
            let page = self.call(&DESCRIBE_STACKS, "", send).await?;
            stacks.extend(page.stacks.unwrap_or_default().into_iter().filter_map(read::stack));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(stacks);
            }
        }
        Err(failed(&DESCRIBE_STACKS, "", Failure::Answer("end")))
    }

    /// A stack, by name or ARN. One that was deleted is found by its ARN alone.
    ///
    /// # Errors
    /// If that cannot be told.
    pub async fn stack(&self, stack: &str) -> Result<Option<Seen>, AwsError> {
        let send = || self.client.describe_stacks().stack_name(stack).send();
        match self.call(&DESCRIBE_STACKS, stack, send).await {
            Ok(page) => Ok(page.stacks.unwrap_or_default().into_iter().find_map(read::stack)),
            Err(AwsError { source: Failure::NotFound(_), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The events of a stack's latest operation, the oldest first, and perhaps some from before it.
    ///
    /// # Errors
    /// If they cannot be got.
    pub async fn events(&self, stack: &str) -> Result<Vec<Event>, AwsError> {
        let (mut events, mut next) = (Vec::<Event>::new(), None);
        for _ in 0..MAX_PAGES_OF_EVENTS {
            let send = || self.client.describe_stack_events().stack_name(stack).set_next_token(next.clone()).send();
            let page = self.call(&DESCRIBE_STACK_EVENTS, stack, send).await?;
            events.extend(page.stack_events.unwrap_or_default().into_iter().map(read::event));
            next = page.next_token.filter(|token| !token.is_empty());
            let latest = events.iter().find(|event| event.of_stack).map(|event| &event.token);
            if next.is_none()
                || latest.is_some_and(|latest| events.last().is_some_and(|oldest| oldest.token != *latest))
            {
                break;
            }
        }
        events.reverse();
        Ok(events)
    }

    /// Asks for a change set called `token`: the ARN of the stack that it is for. With `creates` the stack comes into being by it,
    /// and is to be left as it is where it fails.
    ///
    /// # Errors
    /// If AWS refuses; [`Failure::Exists`] if there is such a change set, or such a stack and it is to be made.
    pub async fn create_change_set(&self, body: &Body, token: &str, creates: bool) -> Result<String, AwsError> {
        let tags: Vec<_> = body.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let send = || {
            self.client
                .create_change_set()
                .stack_name(&body.stack)
                .change_set_name(token)
                .client_token(token)
                .change_set_type(if creates { ChangeSetType::Create } else { ChangeSetType::Update })
                .set_on_stack_failure(creates.then_some(OnStackFailure::DoNothing))
                .template_body(&body.json)
                .set_tags(Some(tags.clone()))
                // Roles of nodes. Their names are CloudFormation's, so this is enough.
                .capabilities(Capability::CapabilityIam)
                .send()
        };
        let answer = self.call(&CREATE_CHANGE_SET, &body.stack, send).await?;
        answer.stack_id.ok_or_else(|| failed(&CREATE_CHANGE_SET, &body.stack, Failure::Answer("id of the stack")))
    }

    /// A change set, with all its changes, by its name. None: there is none.
    ///
    /// # Errors
    /// If that cannot be told.
    pub async fn change_set(&self, stack: &str, name: &str) -> Result<Option<Described>, AwsError> {
        let strange = |source| failed(&DESCRIBE_CHANGE_SET, stack, source);
        let (mut whole, mut next) = (None::<Described>, None);
        for _ in 0..MAX_PAGES {
            let send = || {
                let request = self.client.describe_change_set().stack_name(stack).change_set_name(name);
                request.include_property_values(true).set_next_token(next.clone()).send()
            };
            let mut page = match self.call(&DESCRIBE_CHANGE_SET, stack, send).await {
                Ok(page) => page,
                Err(AwsError { source: Failure::NotFound(_), .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            next = page.next_token.take().filter(|token| !token.is_empty());
            let mut described = read::change_set(page).map_err(strange)?;
            match &mut whole {
                // What was told first is older than the changes, which do not change any more.
                Some(whole) => whole.set.changes.append(&mut described.set.changes),
                None => whole = Some(described),
            }
            if next.is_none() {
                return Ok(whole);
            }
        }
        Err(strange(Failure::Answer("end")))
    }

    /// Names of a stack's change sets; the first hundred, of which one tells whose they are.
    ///
    /// # Errors
    /// If they cannot be got.
    pub async fn change_sets(&self, stack: &str) -> Result<Vec<String>, AwsError> {
        let send = || self.client.list_change_sets().stack_name(stack).send();
        let page = self.call(&LIST_CHANGE_SETS, stack, send).await?;
        Ok(page.summaries.unwrap_or_default().into_iter().filter_map(|set| set.change_set_name).collect())
    }

    /// Has CloudFormation look for what somebody changed of a stack's resources; what it finds is in later looks at the stack.
    ///
    /// # Errors
    /// If AWS refuses; [`Failure::Busy`] if it is at that already.
    pub async fn detect_drift(&self, stack: &str) -> Result<(), AwsError> {
        let send = || self.client.detect_stack_drift().stack_name(stack).send();
        self.call(&DETECT_STACK_DRIFT, stack, send).await.map(drop)
    }

    /// What was found to be changed or gone, for people: the first hundred.
    ///
    /// # Errors
    /// If it cannot be got.
    pub async fn drifts(&self, stack: &str) -> Result<Vec<String>, AwsError> {
        let send = || {
            let request = self.client.describe_stack_resource_drifts().stack_name(stack);
            request
                .stack_resource_drift_status_filters(StackResourceDriftStatus::Modified)
                .stack_resource_drift_status_filters(StackResourceDriftStatus::Deleted)
                .send()
        };
        let page = self.call(&DESCRIBE_STACK_RESOURCE_DRIFTS, stack, send).await?;
        Ok(page.stack_resource_drifts.unwrap_or_default().into_iter().map(read::drift).collect())
    }

    /// Executes the change set with this ARN.
    ///
    /// # Errors
    /// If AWS refuses; [`Failure::Busy`] if it was executed already.
    pub async fn execute_change_set(&self, stack: &str, set: &str, token: &str) -> Result<(), AwsError> {
        let send = || {
            let request = self.client.execute_change_set().stack_name(stack).change_set_name(set);
            request.client_request_token(token).send()
        };
        self.call(&EXECUTE_CHANGE_SET, stack, send).await.map(drop)
    }

    /// Deletes a change set. It is done, if there is none.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn delete_change_set(&self, stack: &str, name: &str) -> Result<(), AwsError> {
        let send = || self.client.delete_change_set().stack_name(stack).change_set_name(name).send();
        match self.call(&DELETE_CHANGE_SET, stack, send).await {
            Ok(_) | Err(AwsError { source: Failure::NotFound(_), .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Switches termination protection.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn protect(&self, stack: &str, on: bool) -> Result<(), AwsError> {
        let send =
            || self.client.update_termination_protection().stack_name(stack).enable_termination_protection(on).send();
        self.call(&UPDATE_TERMINATION_PROTECTION, stack, send).await.map(drop)
    }

    /// Undoes a change that was left half-way.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn roll_back(&self, stack: &str, token: &str) -> Result<(), AwsError> {
        let send = || self.client.rollback_stack().stack_name(stack).client_request_token(token).send();
        self.call(&ROLLBACK_STACK, stack, send).await.map(drop)
    }

    /// Tries again to undo a change.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn continue_rollback(&self, stack: &str, token: &str) -> Result<(), AwsError> {
        let send = || self.client.continue_update_rollback().stack_name(stack).client_request_token(token).send();
        self.call(&CONTINUE_UPDATE_ROLLBACK, stack, send).await.map(drop)
    }

    /// Deletes a stack; with `force`, what cannot be deleted is left behind.
    ///
    /// # Errors
    /// If AWS refuses.
    pub async fn delete(&self, stack: &str, token: &str, force: bool) -> Result<(), AwsError> {
        let send = || {
            let request = self.client.delete_stack().stack_name(stack).client_request_token(token);
            request.set_deletion_mode(force.then_some(DeletionMode::ForceDeleteStack)).send()
        };
        self.call(&DELETE_STACK, stack, send).await.map(drop)
    }

    /// A call, with credentials that are good. Of a role that AWS says has expired they are got anew, once.
    async fn call<T, E, F>(
        &self,
        operation: &'static Operation,
        object: &str,
        send: impl Fn() -> F,
    ) -> Result<T, AwsError>
    where
        E: std::error::Error + aws_sdk_cloudformation::error::ProvideErrorMetadata + Send + Sync + 'static,
        F: Future<
            Output = Result<
                T,
                aws_sdk_cloudformation::error::SdkError<E, aws_sdk_cloudformation::config::http::HttpResponse>,
            >,
        >,
    {
        self.keys.ready().await?;
        match self.caller.call(operation, object, &send).await {
            Err(AwsError { source: Failure::Expired(_), .. }) if self.keys.forget().await => {
                self.keys.ready().await?;
                self.caller.call(operation, object, send).await
            }
            answer => answer,
        }
    }
}

fn failed(operation: &Operation, object: &str, source: Failure) -> AwsError {
    AwsError { action: operation.action, object: object.to_owned(), source }
}
