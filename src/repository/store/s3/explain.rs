//! Faults as sentences: what failed, why, and what to do.

use super::Place;
use super::retry::Fault;
use crate::repository::RepositoryError;

/// The error that a fault of `doing` something with `key` is.
pub(super) fn explain(place: &Place, doing: &str, key: &str, fault: &Fault) -> RepositoryError {
    if fault.is_missing() {
        return RepositoryError::Missing(key.to_owned());
    }
    let mut why = fault.to_string();
    if let Some(advice) = advice(place, fault) {
        why.push_str(": ");
        why.push_str(&advice);
    }
    RepositoryError::Remote {
        what: format!("{doing} {key} in {place}").replace("  ", " "),
        why,
        transient: fault.is_transient(),
    }
}

/// Whether a deletion was refused, as against failed: a right or a lock, not a wrong key.
pub(super) fn is_refusal(fault: &Fault) -> bool {
    let Some(answer) = fault.answer() else {
        return false;
    };
    match (answer.status, answer.code.as_str()) {
        (405, _) | (403, "" | "AccessDenied") => true,
        // Object lock is told in several ways.
        (_, code) => {
            let text = format!("{code} {}", answer.message).to_ascii_lowercase();
            (400..500).contains(&answer.status)
                && [
                    "worm",
                    "object lock",
                    "objectlock",
                    "retention",
                    "legal hold",
                ]
                .iter()
                .any(|word| text.contains(word))
        }
    }
}

fn advice(place: &Place, fault: &Fault) -> Option<String> {
    if let Some(broken) = fault.broken() {
        return Some(if broken.is_machine_role() {
            "no credentials were given and this machine has no role: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                .to_owned()
        } else if broken.for_keys {
            "it was asked for the keys to the store: check the AWS_* settings of the role"
                .to_owned()
        } else if broken.is_untrusted() {
            "its certificate is not trusted: name the authority's with AWS_CA_BUNDLE".to_owned()
        } else {
            format!(
                "is {} the right address, and can this machine reach it?",
                place.server
            )
        });
    }
    let answer = fault.answer()?;
    let elsewhere = || {
        answer.region.as_ref().map_or_else(
            || "the bucket is in another region: correct AWS_REGION".to_owned(),
            |region| format!("the bucket is in another region: set AWS_REGION={region}"),
        )
    };
    Some(match (answer.status, answer.code.as_str()) {
        (_, "NoSuchBucket") => format!(
            "create the bucket {}, or correct LIFEBOAT_REPOSITORY",
            place.bucket
        ),
        (_, "InvalidAccessKeyId") => "check AWS_ACCESS_KEY_ID".to_owned(),
        (_, "SignatureDoesNotMatch") => "check AWS_SECRET_ACCESS_KEY".to_owned(),
        (
            _,
            "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "InvalidTokenId"
            | "InvalidClientTokenId" | "TokenRefreshRequired",
        ) => {
            "get new temporary keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
                .to_owned()
        }
        (_, "RequestTimeTooSkewed") => {
            "this machine's clock is wrong by more than the server takes: set it".to_owned()
        }
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")
        | (301 | 307, _) => elsewhere(),
        (_, "QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded") | (507, _) => {
            "it is full: free some space, or lower BACKUP_KEEP_*; nothing was committed".to_owned()
        }
        (501, _) => {
            "the server does not know this request; conditional writes (If-None-Match) and multipart uploads are needed"
                .to_owned()
        }
        (403, "" | "AccessDenied" | "AllAccessDisabled") => format!(
            "the keys are known and lack a right: allow s3:GetObject, s3:PutObject and s3:AbortMultipartUpload on \
             {0}/*, and s3:ListBucket on {0}",
            place.bucket
        ),
        (401 | 403, _) => {
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN".to_owned()
        }
        (_, _) if fault.is_transient() => "the server is out of order or busy: try again later".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use object_store::client::{HttpError, HttpErrorKind};

    use super::super::http::Broken;
    use super::*;

    #[test]
    fn a_machine_without_a_role_is_told_to_give_keys() {
        let place = Place {
            bucket: "bucket".to_owned(),
            prefix: String::new(),
            server: "AWS".to_owned(),
        };
        let broken = Broken {
            why: "the server answered 404".to_owned(),
            host: "169.254.169.254".to_owned(),
            sent: false,
            lasting: true,
            for_keys: true,
        };
        let fault = Fault::of(&object_store::Error::Generic {
            store: "S3",
            source: Box::new(HttpError::new(HttpErrorKind::Unknown, broken)),
        });
        let err = explain(&place, "read", "config.json", &fault);
        assert!(!err.is_transient());
        let text = err.to_string();
        assert!(
            text.starts_with(
                "read config.json in s3://bucket: 169.254.169.254: the server answered 404"
            ) && text.contains("set AWS_ACCESS_KEY_ID"),
            "{text}"
        );
    }
}
