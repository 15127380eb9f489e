//! One error type for both protocols, with the texts and statuses recorded
//! from the real server.

use axum::http::StatusCode;
use tonic::{Code, Status};

pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in the server's own words: clients match on these texts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Wrong input: {0}")]
    BadInput(String),
    #[error("Bad request: {0}")]
    BadRequest(String),
    #[error("Wrong input: {0}")]
    AlreadyExists(String),
    #[error("Not found: {0}")]
    NotFound(String),
    #[error("Forbidden: {0}")]
    Forbidden(String),
    #[error("Service internal error: {0}")]
    Internal(String),
    /// The server names the file's own checksum "expected"; kept as recorded.
    #[error("Checksum mismatch: expected {file}, actual {given}")]
    Checksum { file: String, given: String },
}

impl Error {
    pub fn no_collection(name: &str) -> Self {
        Self::NotFound(format!("Collection `{name}` doesn't exist!"))
    }

    pub fn no_snapshot(name: &str) -> Self {
        Self::NotFound(format!("Snapshot {name} not found"))
    }

    pub fn http_status(&self) -> StatusCode {
        match self {
            Self::BadInput(_) | Self::BadRequest(_) | Self::Checksum { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::AlreadyExists(_) => StatusCode::CONFLICT,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Internal(format!("File IO error: {error}"))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(format!("Json error: {error}"))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::BadInput(_) | Error::BadRequest(_) => Code::InvalidArgument,
            Error::AlreadyExists(_) => Code::AlreadyExists,
            Error::NotFound(_) => Code::NotFound,
            Error::Forbidden(_) => Code::PermissionDenied,
            Error::Internal(_) => Code::Internal,
            Error::Checksum { .. } => Code::DataLoss,
        };
        Status::new(code, error.to_string())
    }
}
