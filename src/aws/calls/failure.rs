//! What it means that a call to AWS failed, and what is to be done about it. AWS tells by codes that differ from service to
//! service, and for some of it in words alone.

use crate::{
    aws::status::UnknownStatus,
    runtime::{CallFailure, link::NotLeading},
};

/// A call to AWS failed.
#[derive(Debug, thiserror::Error)]
#[error("AWS: {}", format!("{action} {object}").trim_end())]
pub struct AwsError {
    /// The call, as policies name it: `cloudformation:CreateChangeSet`.
    pub action: &'static str,
    /// On which object; empty, if it is about none.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: Failure,
}

/// Why a call failed. What each says tells what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no answer of AWS's, it cannot serve, or this process does not lead.
    // Not transparent: whoever looks for the cause, as metrics do, must find it.
    #[error("{0}")]
    Call(#[source] CallFailure),
    /// AWS takes no more calls of this account for now.
    #[error("AWS throttles the calls of this account: {0}; it is tried again, more slowly")]
    Throttled(String),
    /// So many calls of ours wait for their turn that this one was not made.
    #[error("the calls of this account wait {} s for their turn; it is tried again", .0.as_secs())]
    Crowded(std::time::Duration),
    /// AWS does not know the credentials: its code.
    // Its words quote the request, session token and all.
    #[error(
        "AWS does not take the credentials ({0}): put the keys of a user that exists into the Secret, or correct the role"
    )]
    Credentials(String),
    /// The credentials were good once: its code.
    #[error("the credentials have expired ({0}): put new ones into the Secret")]
    Expired(String),
    /// The request was signed at another time than AWS's clock has.
    #[error("AWS refuses the time of the request ({0}): set this host's clock")]
    Clock(String),
    /// A right is missing.
    #[error("{action} is not allowed: give the user or role the rights in the chart's folder files/aws: {said}")]
    Denied {
        /// The right.
        action: String,
        /// AWS's words.
        said: String,
    },
    /// The account does not use the region.
    #[error("the account does not have this region ({0}): enable it, or choose another")]
    Region(String),
    /// There is no such thing.
    #[error("it is not there: {0}")]
    NotFound(String),
    /// There is such a thing already.
    #[error("it is there already: {0}")]
    Exists(String),
    /// Something else is being done to it, or it has gone on.
    #[error("it is in another state than was seen: {0}; it is looked at again")]
    Busy(String),
    /// The account has no more of something.
    #[error("a quota of the account is used up: {0}; have it raised, or remove what is not needed")]
    Quota(String),
    /// AWS does not take the request as it is.
    #[error("AWS does not take the request: {0}")]
    Invalid(String),
    /// AWS refuses for a reason that is not known: its code and words.
    #[error("AWS refuses: {code}: {said}")]
    Refused {
        /// Its code, or the status of HTTP.
        code: String,
        /// Its words.
        said: String,
    },
    /// The request could not be made.
    #[error("the request cannot be made: {0}")]
    Request(String),
    /// The answer lacks what AWS's documentation promises.
    #[error("the answer has no {0}")]
    Answer(&'static str),
    /// The answer says what is not known.
    #[error(transparent)]
    Unknown(#[from] UnknownStatus),
}

impl From<NotLeading> for Failure {
    fn from(error: NotLeading) -> Self {
        Self::Call(CallFailure::NotLeading(error))
    }
}

impl Failure {
    /// What metrics call it, in one word of a closed list ([`OUTCOMES`]).
    pub fn word(&self) -> &'static str {
        match self {
            Self::Call(CallFailure::TimedOut(_)) => "timeout",
            Self::Call(CallFailure::NotLeading(_)) => "not-leading",
            Self::Call(_) => "no-answer",
            Self::Throttled(_) => "throttled",
            Self::Crowded(_) => "crowded",
            Self::Credentials(_) | Self::Expired(_) | Self::Clock(_) => "credentials",
            Self::Denied { .. } | Self::Region(_) => "denied",
            Self::NotFound(_) => "not-found",
            Self::Exists(_) => "exists",
            Self::Busy(_) => "busy",
            Self::Quota(_) => "quota",
            Self::Invalid(_) | Self::Request(_) => "invalid",
            Self::Refused { .. } => "refused",
            Self::Answer(_) | Self::Unknown(_) => "strange",
        }
    }

    /// Whether it says something of those who ask, and nothing of what they asked for.
    pub fn is_of_identity(&self) -> bool {
        matches!(self, Self::Credentials(_) | Self::Expired(_) | Self::Denied { .. })
    }
}

/// All of [`Failure::word`], and what a call that did not fail is called.
pub const OUTCOMES: &str = "ok, throttled, crowded (not made: too many wait), credentials, denied, not-found, exists, busy, quota, \
                            invalid, refused, strange, timeout, no-answer, not-leading";

/// An answer of AWS's that is an error.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// The status of HTTP.
    pub status: u16,
    /// AWS's code. None: the answer was cut off, or is somebody else's.
    pub code: Option<&'a str>,
    /// AWS's words.
    pub said: &'a str,
}

/// What an answer to `action` means.
pub fn classify(action: &str, refusal: Refusal<'_>) -> Failure {
    let Refusal { status, code, said } = refusal;
    let words = || said.to_owned();
    let code = code.unwrap_or_default();
    // Services call the same code with and without this at its end.
    match code.strip_suffix("Exception").unwrap_or(code) {
        "Throttling"
        | "Throttled"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "PriorRequestNotComplete" => Failure::Throttled(words()),
        _ if status == 429 => Failure::Throttled(words()),
        "ExpiredToken" => Failure::Expired(code.to_owned()),
        "RequestExpired" | "RequestTimeTooSkewed" => Failure::Clock(code.to_owned()),
        "SignatureDoesNotMatch" | "InvalidSignature" if is_of_time(said) => Failure::Clock(code.to_owned()),
        "InvalidClientTokenId"
        | "UnrecognizedClient"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "AuthFailure"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId" => Failure::Credentials(code.to_owned()),
        "AccessDenied" | "UnauthorizedOperation" | "NotAuthorized" => {
            Failure::Denied { action: denied(said).unwrap_or(action).to_owned(), said: words() }
        }
        "OptInRequired" | "RegionDisabled" => Failure::Region(code.to_owned()),
        "AlreadyExists" | "TokenAlreadyExists" => Failure::Exists(words()),
        "ChangeSetNotFound" | "StackNotFound" => Failure::NotFound(words()),
        "InvalidChangeSetStatus" | "OperationInProgress" | "OperationStatusCheckFailed" => Failure::Busy(words()),
        "LimitExceeded" => Failure::Quota(words()),
        // Those of EC2 and load balancers.
        "InvalidVolume.NotFound" | "LoadBalancerNotFound" => Failure::NotFound(words()),
        "VolumeInUse" | "IncorrectState" | "ResourceInUse" | "DependencyViolation" => Failure::Busy(words()),
        "ValidationError" | "Validation" => invalid(said),
        "InsufficientCapabilities" | "MalformedPolicyDocument" | "PackedPolicyTooLarge" => Failure::Invalid(words()),
        "" if status < 500 => Failure::Refused { code: format!("HTTP {status}"), said: words() },
        _ if status >= 500 => {
            Failure::Call(CallFailure::NoAnswer(format!("HTTP {status} {code}").trim_end().to_owned()))
        }
        _ => Failure::Refused { code: code.to_owned(), said: words() },
    }
}

/// CloudFormation has one code for all that is not as it should be.
fn invalid(said: &str) -> Failure {
    let words = said.to_owned();
    if said.ends_with("does not exist") || said.contains(" does not exist for stack") {
        Failure::NotFound(words)
    } else if said.contains("already exists") {
        Failure::Exists(words)
    } else if said.contains("_IN_PROGRESS state") || said.contains("TerminationProtection is enabled") {
        Failure::Busy(words)
    } else {
        Failure::Invalid(words)
    }
}

/// Whether a signature is refused because of the time in it.
fn is_of_time(said: &str) -> bool {
    ["Signature expired", "Signature not yet current"].iter().any(|words| said.starts_with(words))
}

/// The right that is missing, which AWS names in words alone: "… is not authorized to perform: ec2:RunInstances on resource: …".
fn denied(said: &str) -> Option<&str> {
    let action = said.split_once("to perform: ")?.1.split_whitespace().next()?;
    let is_right = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    action.split_once(':').filter(|(service, name)| is_right(service) && is_right(name)).map(|_| action)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::chain;

    fn of(status: u16, code: &str, said: &str) -> Failure {
        classify("cloudformation:CreateChangeSet", Refusal { status, code: (!code.is_empty()).then_some(code), said })
    }

    #[test]
    fn an_answer_is_understood_by_its_code() {
        for (status, code, said, word) in [
            (400, "Throttling", "Rate exceeded", "throttled"),
            (503, "RequestLimitExceeded", "Request limit exceeded.", "throttled"),
            (429, "", "", "throttled"),
            (403, "ExpiredToken", "The security token included in the request is expired", "credentials"),
            (403, "InvalidClientTokenId", "The security token included in the request is invalid.", "credentials"),
            (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", "credentials"),
            (403, "AccessDenied", "User: a is not authorized to perform: ec2:RunInstances on resource: *", "denied"),
            (403, "RegionDisabledException", "STS is not activated in this region", "denied"),
            (400, "AlreadyExistsException", "ChangeSet [a] already exists", "exists"),
            (404, "ChangeSetNotFound", "ChangeSet [a] does not exist", "not-found"),
            (400, "InvalidChangeSetStatus", "ChangeSet [a] is in EXECUTE_COMPLETE status", "busy"),
            (400, "LimitExceededException", "Limit for stack has been exceeded", "quota"),
            (400, "InsufficientCapabilitiesException", "Requires capabilities : [CAPABILITY_IAM]", "invalid"),
            (400, "SomethingNewException", "no", "refused"),
            (418, "", "no", "refused"),
            (503, "ServiceUnavailable", "no", "no-answer"),
            (502, "", "<html>", "no-answer"),
        ] {
            assert_eq!(of(status, code, said).word(), word, "{status} {code} {said}");
        }
    }

    #[test]
    fn what_cloudformation_tells_in_words_alone_is_understood() {
        for (said, word) in [
            ("Stack with id g8s-a does not exist", "not-found"),
            ("Stack [g8s-a] does not exist", "not-found"),
            ("Stack [g8s-a] already exists and cannot be created with the changeSet", "exists"),
            ("Stack:arn:a is in UPDATE_IN_PROGRESS state and can not be updated.", "busy"),
            ("Stack [arn:a] cannot be deleted while TerminationProtection is enabled", "busy"),
            ("Template format error: unsupported structure.", "invalid"),
        ] {
            assert_eq!(of(400, "ValidationError", said).word(), word, "{said}");
        }
    }

    #[test]
    fn every_word_is_listed() {
        for word in
            ["throttled", "credentials", "denied", "exists", "not-found", "busy", "quota", "strange", "no-answer"]
        {
            assert!(OUTCOMES.contains(word), "{word}");
        }
    }

    #[test]
    fn people_are_told_what_to_do() {
        let said = "User: arn:aws:iam::111122223333:user/manager is not authorized to perform: cloudformation:ExecuteChangeSet \
                    on resource: arn:aws:cloudformation:eu-central-1:111122223333:stack/g8s-a/1";
        let failure = of(403, "AccessDenied", said);
        assert!(matches!(&failure, Failure::Denied { action, .. } if action == "cloudformation:ExecuteChangeSet"));
        assert!(failure.is_of_identity());
        // Where it names none it is the one that was asked for.
        for said in ["no", "it is not allowed to perform: *", "to perform: ", "to perform: :x"] {
            let failure = of(403, "AccessDenied", said);
            assert!(matches!(&failure, Failure::Denied { action, .. } if action == "cloudformation:CreateChangeSet"));
        }
        let error =
            AwsError { action: "sts:GetCallerIdentity", object: String::new(), source: of(403, "ExpiredToken", "") };
        assert_eq!(
            chain(&error),
            "AWS: sts:GetCallerIdentity: the credentials have expired (ExpiredToken): put new ones into the Secret"
        );
    }

    #[test]
    fn what_aws_says_of_credentials_is_not_repeated() {
        let said = "The request signature we calculated does not match. The Canonical String should have been \
                    'POST / x-amz-security-token:hush'";
        for code in ["SignatureDoesNotMatch", "IncompleteSignature", "ExpiredToken", "InvalidClientTokenId"] {
            assert!(!of(403, code, said).to_string().contains("hush"), "{code}");
        }
        let failure = of(403, "SignatureDoesNotMatch", "Signature expired: 20261128T080000Z is now earlier than …");
        assert!(failure.to_string().ends_with("set this host's clock"), "{failure}");
    }
}
