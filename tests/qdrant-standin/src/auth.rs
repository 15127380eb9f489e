//! API keys: one for everything, one for reading.

use crate::error::{Error, Result};
use crate::options::Options;

/// What a request's key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Manage,
    Read,
}

impl Access {
    pub fn require_manage(self) -> Result<()> {
        match self {
            Self::Manage => Ok(()),
            Self::Read => Err(Error::Forbidden("Global manage access is required".into())),
        }
    }
}

/// Checks the `api-key` header, or else the bearer token. The error is the
/// text of the 401 answer.
pub fn check(
    options: &Options,
    api_key: Option<&str>,
    authorization: Option<&str>,
) -> std::result::Result<Access, &'static str> {
    let (full, read) = (&options.api_key, &options.read_only_api_key);
    if full.is_none() && read.is_none() {
        return Ok(Access::Manage);
    }
    let bearer = authorization.and_then(|value| value.strip_prefix("Bearer "));
    match api_key.or(bearer) {
        None => Err("Must provide an API key or an Authorization bearer token"),
        Some(key) if full.as_deref() == Some(key) => Ok(Access::Manage),
        Some(key) if read.as_deref() == Some(key) => Ok(Access::Read),
        Some(_) => Err("Invalid API key or JWT"),
    }
}
