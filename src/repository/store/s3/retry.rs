//! What a failed request means, and whether it is worth another attempt.

use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::http::{Answer, Broken};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long the store is given.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For new attempts of one request, as long as nothing has worked yet: a wrong address is told soon.
    pub first_contact: Duration,
    /// The same, once something has.
    pub deadline: Duration,
    /// For the next bytes of an answer.
    pub stall: Duration,
    /// For one attempt; no request moves more than a few MiB.
    pub attempt: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_contact: Duration::from_secs(20),
            deadline: Duration::from_mins(5),
            stall: Duration::from_secs(30),
            attempt: Duration::from_mins(15),
        }
    }
}

/// Why a request failed for good.
#[derive(Debug)]
pub(super) struct Fault {
    cause: Cause,
    pub attempts: u32,
    /// An attempt before the last one may have been carried out, although no answer said so.
    pub doubtful: bool,
}

#[derive(Debug)]
enum Cause {
    Answer(Answer),
    Broken(Broken),
    Slow(Duration),
    Other(String),
}

impl Fault {
    pub fn of(error: &object_store::Error) -> Self {
        let cause = if let Some(answer) = find::<Answer>(error) {
            Cause::Answer(answer.clone())
        } else if let Some(broken) = find::<Broken>(error) {
            Cause::Broken(broken.clone())
        } else {
            Cause::Other(error.to_string())
        };
        cause.into()
    }

    pub fn answer(&self) -> Option<&Answer> {
        match &self.cause {
            Cause::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    pub fn broken(&self) -> Option<&Broken> {
        match &self.cause {
            Cause::Broken(broken) => Some(broken),
            _ => None,
        }
    }

    pub fn is_missing(&self) -> bool {
        self.answer()
            .is_some_and(|a| a.status == 404 && a.code != "NoSuchBucket")
    }

    /// The key was taken (or, while an upload is closed, the upload is gone: it was closed before).
    pub fn is_taken(&self) -> bool {
        self.answer().is_some_and(|a| a.status == 412)
    }

    pub fn is_transient(&self) -> bool {
        match &self.cause {
            // 409: another request for the same key is under way.
            Cause::Answer(answer) => {
                matches!(answer.status, 408 | 409 | 429 | 500 | 502..=506 | 508..)
                    || matches!(
                        answer.code.as_str(),
                        "RequestTimeout"
                            | "SlowDown"
                            | "InternalError"
                            | "IncompleteBody"
                            | "BadDigest"
                            | "XAmzContentChecksumMismatch"
                            | "XAmzContentSHA256Mismatch"
                    )
            }
            Cause::Broken(broken) => !broken.lasting,
            Cause::Slow(_) => true,
            Cause::Other(_) => false,
        }
    }

    /// Whether the last attempt may have done what it was to do.
    pub fn may_have_worked(&self) -> bool {
        match &self.cause {
            Cause::Answer(answer) => answer.status >= 500 && self.is_transient(),
            Cause::Broken(broken) => broken.sent,
            Cause::Slow(_) => true,
            Cause::Other(_) => false,
        }
    }
}

impl From<Cause> for Fault {
    fn from(cause: Cause) -> Self {
        Self {
            cause,
            attempts: 1,
            doubtful: false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Answer(answer) => answer.fmt(f),
            Cause::Broken(broken) => broken.fmt(f),
            Cause::Slow(limit) => write!(f, "it took longer than {limit:?}"),
            Cause::Other(said) => f.write_str(said),
        }?;
        if self.attempts > 1 {
            write!(f, " (the last of {} attempts)", self.attempts)?;
        }
        Ok(())
    }
}

/// Makes a request until it works, fails for good, or patience ends.
pub(super) async fn persist<T, Attempt>(
    patience: &Patience,
    has_worked: &AtomicBool,
    mut request: impl FnMut() -> Attempt,
) -> Result<T, Fault>
where
    Attempt: Future<Output = object_store::Result<T>>,
{
    let begun = Instant::now();
    let mut attempts = 0;
    let mut doubtful = false;
    loop {
        attempts += 1;
        let mut fault = match tokio::time::timeout(patience.attempt, request()).await {
            Ok(Ok(value)) => {
                has_worked.store(true, Ordering::Relaxed);
                return Ok(value);
            }
            Ok(Err(error)) => Fault::of(&error),
            Err(_) => Cause::Slow(patience.attempt).into(),
        };
        let limit = if has_worked.load(Ordering::Relaxed) {
            patience.deadline
        } else {
            patience.first_contact
        };
        let pause = pause_after(attempts);
        if !fault.is_transient() || begun.elapsed() + pause > limit {
            fault.attempts = attempts;
            fault.doubtful = doubtful;
            return Err(fault);
        }
        doubtful |= fault.may_have_worked();
        tracing::debug!("S3: {fault}; trying again in {pause:?}");
        tokio::time::sleep(pause).await;
    }
}

/// Doubles each time; the half of it is chance, so that many clients don't come back at once.
fn pause_after(attempts: u32) -> Duration {
    let whole = FIRST_PAUSE
        .saturating_mul(1 << (attempts - 1).min(16))
        .min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// The first error of a type among an error's causes.
fn find<T: StdError + 'static>(error: &object_store::Error) -> Option<&T> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        for (attempts, least, most) in [(1, 100, 200), (2, 200, 400), (5, 1600, 3200)] {
            let pause = pause_after(attempts).as_millis();
            assert!((least..=most).contains(&pause), "{attempts}: {pause}");
        }
        assert!(pause_after(u32::MAX) <= LONGEST_PAUSE);
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
        let answer = |status: u16, code: &str| {
            Fault::from(Cause::Answer(Answer {
                status,
                code: code.to_owned(),
                ..Answer::default()
            }))
        };
        for (status, code) in [
            (500, "InternalError"),
            (503, "SlowDown"),
            (429, ""),
            (409, "ConditionalRequestConflict"),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
        ] {
            assert!(answer(status, code).is_transient(), "{status} {code}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (404, "NoSuchBucket"),
            (412, "PreconditionFailed"),
            (501, "NotImplemented"),
            (507, "XMinioStorageFull"),
            (301, "PermanentRedirect"),
        ] {
            assert!(!answer(status, code).is_transient(), "{status} {code}");
        }
    }
}
