//! What every call goes through: its turn, leadership for what changes something, a time limit, counting, and a bounded number of
//! tries while AWS throttles.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_cloudformation::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use tokio::time::Instant;

use super::{
    failure::{AwsError, Failure, Refusal, classify},
    metrics::{CALL_SECONDS, CALLS, HELD_BACK},
    pace::{Bucket, Family},
};
use crate::runtime::{CallFailure, call_timeout, chain, lease::Leadership, link::while_leading};

/// Tries of a call, as long as AWS throttles it. After them who wants it comes back by his own queue, more slowly each time.
const TRIES: u32 = 4;

/// Longest wait for one's turn. More would hold a worker up that others need.
const PATIENCE: Duration = Duration::from_secs(10);

/// A call of AWS's.
#[derive(Debug)]
pub(in crate::aws) struct Operation {
    /// The service, as policies and metrics name it.
    pub service: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The right that it needs.
    pub action: &'static str,
    /// What AWS counts it with.
    pub family: Family,
    /// Whether it changes something.
    pub writes: bool,
}

/// The token buckets of an account in a region. All who call it share them.
#[derive(Debug)]
pub(in crate::aws) struct Paces {
    began: Instant,
    buckets: [Mutex<Bucket>; Family::ALL.len()],
}

impl Default for Paces {
    fn default() -> Self {
        Self { began: Instant::now(), buckets: Family::ALL.map(|family| Mutex::new(Bucket::new(family))) }
    }
}

impl Paces {
    /// Looks at a family's bucket.
    fn of<T>(&self, family: Family, look: impl FnOnce(&mut Bucket, Duration) -> T) -> T {
        let mut bucket = self.buckets[family as usize].lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut bucket, self.began.elapsed())
    }

    async fn turn(&self, family: Family) -> Result<(), Failure> {
        let wait = self.of(family, |bucket, now| bucket.take(now, PATIENCE)).map_err(Failure::Crowded)?;
        if !wait.is_zero() {
            HELD_BACK.with_label_values(&[family.name()]).inc();
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    fn note(&self, family: Family, failure: Option<&Failure>) {
        self.of(family, |bucket, now| match failure {
            Some(Failure::Throttled(_)) => bucket.throttled(now),
            // Silence says nothing of how many calls AWS takes.
            Some(Failure::Call(_)) => {}
            _ => bucket.went_well(now),
        });
    }
}

/// Makes calls.
#[derive(Clone, Debug)]
pub(in crate::aws) struct Caller {
    paces: Arc<Paces>,
    leadership: Option<Leadership>,
}

impl Caller {
    /// One that takes its turn at `paces`, and without `leadership` asks nobody before it changes something.
    pub(in crate::aws) fn new(paces: Arc<Paces>, leadership: Option<Leadership>) -> Self {
        Self { paces, leadership }
    }

    /// Makes a call about `object`, by `send`, which begins it anew each time.
    pub(super) async fn call<T, E, F>(
        &self,
        operation: &'static Operation,
        object: &str,
        send: impl Fn() -> F,
    ) -> Result<T, AwsError>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut tries = 1;
        loop {
            // Those of the SDK have tens of kilobytes, and whoever waits for one would have them, too.
            match self.try_once(operation, Box::pin(send())).await {
                Err(Failure::Throttled(_)) if tries < TRIES => tries += 1,
                Err(source) => return Err(AwsError { action: operation.action, object: object.to_owned(), source }),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    async fn try_once<T, E>(
        &self,
        operation: &'static Operation,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let Operation { service, name, family, .. } = *operation;
        let told = match self.paces.turn(family).await {
            Err(failure) => Err(failure),
            Ok(()) => {
                let began = Instant::now();
                let told = self.send(operation, answer).await;
                CALL_SECONDS.with_label_values(&[service, name]).observe(began.elapsed().as_secs_f64());
                self.paces.note(family, told.as_ref().err());
                told
            }
        };
        CALLS.with_label_values(&[service, name, told.as_ref().err().map_or("ok", Failure::word)]).inc();
        told
    }

    async fn send<T, E>(
        &self,
        operation: &'static Operation,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let limit = call_timeout();
        let answer = async {
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer.map_err(|error| understand(operation.action, &error)),
                Err(_) => Err(Failure::Call(CallFailure::TimedOut(limit))),
            }
        };
        match &self.leadership {
            Some(leadership) if operation.writes => match leadership.begin_write() {
                Some(permit) => while_leading(leadership, permit, answer).await,
                None => Err(crate::runtime::link::NotLeading.into()),
            },
            _ => answer.await,
        }
    }
}

/// What it means that the SDK failed.
fn understand<E>(action: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            let status = error.raw_response().map_or(0, |answer| answer.status().as_u16());
            // An answer that was good and cut off, or is no answer of AWS's. It is not told: a role's keys could be in it.
            if status < 400 {
                let words = format!("an answer with status {status} cannot be read");
                return Failure::Call(CallFailure::NoAnswer(words));
            }
            let said = error.message().unwrap_or("no words");
            classify(action, Refusal { status, code: error.code(), said })
        }
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => Failure::Call(CallFailure::NoAnswer(chain(error))),
        _ => Failure::Request(chain(error)),
    }
}

#[cfg(test)]
#[allow(clippy::result_large_err, reason = "so are those of the SDK")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_sdk_cloudformation::{error::ErrorMetadata, operation::describe_stacks::DescribeStacksError};
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::runtime::{is_not_leading, reason};

    static LOOK: Operation = Operation {
        service: "cloudformation",
        name: "DescribeStacks",
        action: "cloudformation:DescribeStacks",
        family: Family::Look,
        writes: false,
    };
    static CHANGE: Operation = Operation { family: Family::Change, writes: true, ..LOOK };

    type Answer = Result<(), SdkError<DescribeStacksError, HttpResponse>>;

    fn refusal(status: u16, code: &str) -> Answer {
        let said = ErrorMetadata::builder().code(code).message("Rate exceeded").build();
        let raw = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
        Err(SdkError::service_error(DescribeStacksError::generic(said), raw))
    }

    fn caller(leadership: Option<Leadership>) -> Caller {
        Caller::new(Arc::default(), leadership)
    }

    async fn asked(
        caller: &Caller,
        operation: &'static Operation,
        answer: impl Fn(usize) -> Answer,
    ) -> (usize, Option<AwsError>) {
        let count = AtomicUsize::new(0);
        let send = async || answer(count.fetch_add(1, Ordering::SeqCst));
        let told = caller.call(operation, "g8s-a", send).await;
        (count.load(Ordering::SeqCst), told.err())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_throttled_is_tried_a_few_times_and_more_slowly() {
        let caller = caller(None);
        let (calls, error) =
            asked(&caller, &LOOK, |call| if call < 2 { refusal(400, "Throttling") } else { Ok(()) }).await;
        assert!(calls == 3 && error.is_none(), "{calls} {error:?}");
        let began = Instant::now();
        let (calls, error) = asked(&caller, &LOOK, |_| refusal(400, "Throttling")).await;
        assert_eq!(calls, 4);
        assert!(matches!(error.unwrap().source, Failure::Throttled(_)));
        assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
        // Nothing else is repeated.
        for (status, code) in [(403, "AccessDenied"), (503, "ServiceUnavailable"), (400, "ValidationError")] {
            assert_eq!(asked(&caller, &LOOK, |_| refusal(status, code)).await.0, 1, "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_all_calls_throttled_make_progress_and_no_storm() {
        let caller = caller(None);
        let (began, sent) = (Instant::now(), AtomicUsize::new(0));
        let one = async || {
            let answer = |_| match sent.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => refusal(400, "Throttling"),
                _ => Ok(()),
            };
            while asked(&caller, &LOOK, answer).await.1.is_some() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        futures::future::join_all((0..100).map(|_| one())).await;
        let (sent, took) = (sent.load(Ordering::SeqCst), began.elapsed());
        assert!(sent <= 220, "{sent} calls for 100");
        assert!(took < Duration::from_secs(1800), "{took:?}");
        // No second had more calls in it than a full bucket holds.
        assert!(took > Duration::from_secs(20), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_told_and_calls_nobody() {
        let caller = caller(None);
        for _ in 0..6 {
            caller.paces.note(Family::Look, Some(&Failure::Throttled(String::new())));
            tokio::time::advance(Duration::from_secs(9)).await;
        }
        let waiting = futures::future::join_all((0..5).map(|_| asked(&caller, &LOOK, |_| Ok(())))).await;
        let crowded: Vec<_> = waiting.iter().filter(|(calls, error)| *calls == 0 || error.is_some()).collect();
        assert!(!crowded.is_empty() && crowded.len() < 5, "{crowded:?}");
        assert!(crowded.iter().all(|(_, error)| matches!(error.as_ref().unwrap().source, Failure::Crowded(_))));
        // Each family has its own turn.
        assert_eq!(asked(&caller, &CHANGE, |_| Ok(())).await.0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_given_up() {
        let answer = std::future::pending::<Answer>;
        let error = caller(None).call(&LOOK, "g8s-a", answer).await.unwrap_err();
        assert_eq!(reason(&error), "timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_leader_changes_something() {
        let caller = caller(Some(Leadership::default()));
        assert_eq!(asked(&caller, &LOOK, |_| Ok(())).await.0, 1);
        let send = async || -> Answer { unreachable!("it was sent") };
        let error = caller.call(&CHANGE, "g8s-a", send).await.unwrap_err();
        assert!(is_not_leading(&error));
    }

    #[test]
    fn what_is_no_answer_is_known_as_such() {
        let raw = |status: u16| HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
        let of = |error: SdkError<DescribeStacksError, HttpResponse>| understand(LOOK.action, &error).word();
        assert_eq!(of(SdkError::response_error("cut off", raw(200))), "no-answer");
        assert_eq!(of(SdkError::response_error("cut off", raw(502))), "no-answer");
        let keys = HttpResponse::new(StatusCode::try_from(200).unwrap(), SdkBody::from("<SecretAccessKey>k</"));
        let unread: SdkError<DescribeStacksError, HttpResponse> = SdkError::response_error("cut off", keys);
        let told = format!("{:?}", understand(LOOK.action, &unread));
        assert!(told.contains("status 200") && !told.contains("SecretAccessKey"), "{told}");
        assert_eq!(of(SdkError::timeout_error("late")), "no-answer");
        assert_eq!(of(SdkError::construction_failure("no region")), "invalid");
        assert_eq!(of(refusal(400, "Throttling").unwrap_err()), "throttled");
    }
}
