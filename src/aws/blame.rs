//! What people are told of what went wrong: of which sort it is, and what to do. Pure.

use super::{
    calls::{AwsError, Failure as CallFailure},
    deploy::AdvanceError,
    driver,
};
use crate::{
    api::{Reason, names},
    runtime::chain,
};

/// What is told of a stack that cannot be as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// Of which sort it is.
    pub reason: Reason,
    /// What failed, and what to do.
    pub message: String,
}

/// Of which sort it is that a call failed.
pub fn of_call(error: &AwsError) -> Reason {
    match &error.source {
        CallFailure::Credentials(_) | CallFailure::Expired(_) | CallFailure::Clock(_) => Reason::AWSCredentialsRefused,
        CallFailure::Denied { .. } | CallFailure::Region(_) => Reason::AWSDenied,
        CallFailure::Quota(_) => Reason::AWSQuotaExceeded,
        CallFailure::Call(_) | CallFailure::Throttled(_) | CallFailure::Crowded(_) => Reason::AWSUnavailable,
        CallFailure::NotFound(_)
        | CallFailure::Exists(_)
        | CallFailure::Busy(_)
        | CallFailure::Invalid(_)
        | CallFailure::Refused { .. }
        | CallFailure::Request(_)
        | CallFailure::Answer(_)
        | CallFailure::Unknown(_) => Reason::Error,
    }
}

/// Whether a call was one too many: it is made later, and nobody has to do anything.
pub fn is_of_pace(error: &AwsError) -> bool {
    matches!(&error.source, CallFailure::Throttled(_) | CallFailure::Crowded(_))
}

/// Whether a step came to nothing since a call was one too many.
pub fn waits_its_turn(error: &AdvanceError) -> bool {
    match error {
        AdvanceError::Look { source, .. } => is_of_pace(source),
        AdvanceError::Call { source, .. } => is_of_pace(source),
        AdvanceError::Record { .. } | AdvanceError::Unknown { .. } => false,
    }
}

/// Of which sort it is that a step came to nothing.
pub fn of_advance(error: &AdvanceError) -> Blame {
    let reason = match error {
        AdvanceError::Look { source, .. } => of_call(source),
        AdvanceError::Call { source, .. } => of_call(source),
        AdvanceError::Record { .. } | AdvanceError::Unknown { .. } => Reason::Error,
    };
    Blame { reason, message: chain(error) }
}

/// What is told of a stack that the driver gave up, with the event that it comes of.
pub fn of_failure(stack: &str, failure: &driver::Failure, cause: Option<&str>) -> Blame {
    use driver::Failure::{Blocked, ChangeSet, Creation, Foreign, Lost, Remains, Stuck, Undone};
    let by_cause = || of_words(cause.unwrap_or_default()).unwrap_or(Reason::StackFailed);
    let (reason, advice) = match failure {
        Foreign(_) => (Reason::ForeignObject, "; rename or delete that stack".to_owned()),
        Lost => (Reason::StackFailed, "; delete the Cluster, or restore its stack".to_owned()),
        Blocked(losses) => {
            let ids: Vec<_> = losses.iter().map(|loss| loss.id.as_str()).collect();
            let advice = format!(
                "; take the change back, or give them up by annotation {}: {}",
                names::AWS_GIVE_UP_ANNOTATION,
                ids.join(",")
            );
            (Reason::ChangeBlocked, advice)
        }
        ChangeSet(reason) => (of_words(reason).unwrap_or(Reason::StackFailed), String::new()),
        Creation(_) | Undone | Stuck(_) => (by_cause(), String::new()),
        Remains => (
            by_cause(),
            format!(
                "; it is tried again, what others made in its network having been removed; annotation {}: \"true\" leaves behind what cannot be deleted",
                names::AWS_FORCE_DELETE_ANNOTATION
            ),
        ),
    };
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    Blame { reason, message: format!("stack {stack}: {failure}{cause}{advice}") }
}

/// What is told of a stack of which somebody changed this.
pub fn of_drift(stack: &str, found: &[String]) -> Blame {
    let message = format!(
        "stack {stack}: somebody changed what it made: {}; change it back, since the next change of the stack may undo it or fail",
        found.join(", ")
    );
    Blame { reason: Reason::StackDrifted, message }
}

/// What AWS tells of a resource in words alone.
fn of_words(said: &str) -> Option<Reason> {
    let said = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["not authorized to perform", "accessdenied", "access denied", "unauthorizedoperation"]) {
        Some(Reason::AWSDenied)
    } else if has(&["limitexceeded", "quota", "maximum number of", "has reached its limit", "vcpulimitexceeded"]) {
        Some(Reason::AWSQuotaExceeded)
    } else if has(&["instance type"]) && has(&["not supported", "invalid", "does not exist", "not available"]) {
        Some(Reason::InstanceTypeUnavailable)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::{
        change_set::{How, Loss},
        status::StackStatus,
    };

    #[test]
    fn what_aws_tells_in_words_alone_is_known_by_its_sort() {
        for (cause, reason) in [
            ("NatA (…): The maximum number of addresses has been reached. (Service: Ec2)", Reason::AWSQuotaExceeded),
            ("Vpc (…): VpcLimitExceeded", Reason::AWSQuotaExceeded),
            ("Role (…): User: arn is not authorized to perform: iam:CreateRole on resource: x", Reason::AWSDenied),
            (
                "Group (…): Your requested instance type (m9x.large) is not supported in your requested Availability Zone",
                Reason::InstanceTypeUnavailable,
            ),
            ("Volume (…): KMS key is disabled", Reason::StackFailed),
        ] {
            let blame = of_failure("g8s-a", &driver::Failure::Creation(StackStatus::CreateFailed), Some(cause));
            assert_eq!(blame.reason, reason, "{cause}");
            assert!(blame.message.contains(cause) && blame.message.contains("g8s-a"), "{}", blame.message);
        }
    }

    #[test]
    fn who_has_to_decide_is_told_what_and_how() {
        let loss = Loss { id: "Vpc".into(), kind: "AWS::EC2::VPC".into(), how: How::Replaced };
        let blame = of_failure("g8s-a", &driver::Failure::Blocked(vec![loss]), None);
        assert_eq!(blame.reason, Reason::ChangeBlocked);
        assert!(blame.message.ends_with("giantnetes.io/aws-give-up: Vpc"), "{}", blame.message);
        let blame = of_failure("g8s-a", &driver::Failure::Foreign(None), None);
        assert_eq!(blame.reason, Reason::ForeignObject);
    }

    #[test]
    fn a_refusal_is_told_by_its_sort() {
        let of = |source| of_call(&AwsError { action: "sts:GetCallerIdentity", object: String::new(), source });
        assert_eq!(of(CallFailure::Expired("ExpiredToken".into())), Reason::AWSCredentialsRefused);
        assert_eq!(of(CallFailure::Denied { action: "a:b".into(), said: String::new() }), Reason::AWSDenied);
        assert_eq!(of(CallFailure::Quota(String::new())), Reason::AWSQuotaExceeded);
        assert_eq!(of(CallFailure::Throttled(String::new())), Reason::AWSUnavailable);
        let source = CallFailure::Crowded(std::time::Duration::from_secs(15));
        let call = AwsError { action: "a:b", object: String::new(), source };
        assert!(waits_its_turn(&AdvanceError::Call { stack: "g8s-a".into(), source: call }));
    }
}
