//! Keys out of the file that AWS's tools share.

use std::path::Path;

use crate::config::Secret;
use crate::repository::RepositoryError;

/// Keys as a profile gives them.
pub(super) struct Keys {
    pub id: String,
    pub secret: Secret,
    pub session_token: Option<Secret>,
}

/// Reads a profile's keys. The file is INI: `[profile]`, then `name = value` lines.
pub(super) fn read(path: &Path, profile: &str) -> Result<Keys, RepositoryError> {
    let wrong = |why: String| {
        RepositoryError::Invalid(format!(
            "AWS_SHARED_CREDENTIALS_FILE names {}, {why}",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        wrong(format!(
            "which cannot be read ({e}): mount it, or correct the path"
        ))
    })?;
    let mut found = false;
    let (mut id, mut secret, mut session_token) = (None, None, None);
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let name = section.trim();
            // AWS's configuration file, as against its credentials file, says "profile" before the name.
            inside = name.strip_prefix("profile ").unwrap_or(name).trim() == profile;
            found |= inside;
            continue;
        }
        let Some((name, value)) = line
            .split_once('=')
            .filter(|_| inside && !line.starts_with(['#', ';']))
        else {
            continue;
        };
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = Some(value.to_owned()),
            "aws_secret_access_key" => secret = Some(Secret::new(value)),
            "aws_session_token" => session_token = Some(Secret::new(value)),
            _ => {}
        }
    }
    if !found {
        return Err(wrong(format!(
            "which has no profile [{profile}]: correct AWS_PROFILE"
        )));
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(Keys {
            id,
            secret,
            session_token,
        }),
        _ => Err(wrong(format!(
            "whose profile [{profile}] lacks aws_access_key_id or aws_secret_access_key"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn from(text: &str, profile: &str) -> Result<Keys, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path(), profile).map_err(|e| e.to_string())
    }

    #[test]
    fn a_profile_gives_its_own_keys() {
        let text = "# aws_access_key_id = none\n[default]\naws_access_key_id=A\naws_secret_access_key = a=/+\n\n\
                    [ profile nightly ]\r\nAWS_ACCESS_KEY_ID = B\r\n;aws_session_token = no\r\naws_secret_access_key=b\r\n\
                    aws_session_token = t\r\nregion = eu\r\n";
        let keys = from(text, "default").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.reveal()), ("A", "a=/+"));
        assert!(keys.session_token.is_none());
        let keys = from(text, "nightly").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.reveal()), ("B", "b"));
        assert_eq!(keys.session_token.unwrap().reveal(), "t");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, fault) in [
            ("[other]\naws_access_key_id = A\n", "no profile [default]"),
            (
                "[default]\naws_access_key_id = A\n",
                "lacks aws_access_key_id or",
            ),
            ("", "no profile"),
        ] {
            let err = from(text, "default").err().unwrap();
            assert!(err.contains(fault), "{err}");
        }
        let err = read(Path::new("/nowhere/at/all"), "default").err().unwrap();
        assert!(err.to_string().contains("cannot be read"), "{err}");
    }
}
