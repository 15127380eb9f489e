//! What the Docker API refuses, said so that one can act on it.

use std::error::Error as _;
use std::io::ErrorKind;
use std::time::Duration;

use bollard::errors::Error as ApiError;

/// Why a call to the engine failed: a sentence.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct EngineError {
    pub kind: EngineErrorKind,
    pub sentence: String,
}

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineErrorKind {
    /// There is no socket at the path.
    NoSocket,
    /// Nobody answers, or not in time.
    Unreachable,
    Timeout,
    /// The socket's rights, or a proxy before it, forbid it.
    Denied,
    NoSuchContainer,
    /// The settings cannot work.
    Setup,
    /// The engine tried and could not.
    Failed,
}

impl EngineError {
    pub fn new(kind: EngineErrorKind, sentence: impl Into<String>) -> Self {
        Self {
            kind,
            sentence: sentence.into(),
        }
    }

    pub const fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            EngineErrorKind::Unreachable | EngineErrorKind::Timeout
        )
    }
}

/// A request, as the sentences about it name it.
pub(super) struct Call {
    host: String,
    does: String,
    route: &'static str,
    /// What a socket proxy must be told to let it pass.
    permission: &'static str,
}

const LONGEST: usize = 400;

impl Call {
    pub(super) fn new(
        host: &str,
        does: impl Into<String>,
        route: &'static str,
        permission: &'static str,
    ) -> Self {
        Self {
            host: host.to_owned(),
            does: does.into(),
            route,
            permission,
        }
    }

    pub(super) fn hung(&self, limit: Duration) -> EngineError {
        EngineError::new(
            EngineErrorKind::Timeout,
            format!(
                "cannot {}: {} did not answer {} within {} seconds. If a socket proxy is in between, it must \
                 allow it with {}; else see that the engine is well",
                self.does,
                self.host,
                self.route,
                limit.as_secs_f32(),
                self.permission
            ),
        )
    }

    pub(super) fn failed(&self, err: &ApiError) -> EngineError {
        let does = &self.does;
        let host = &self.host;
        match err {
            ApiError::DockerResponseServerError {
                status_code: status @ (401 | 403 | 405),
                ..
            } => EngineError::new(
                EngineErrorKind::Denied,
                format!(
                    "cannot {does}: {host} refuses {} (status {status}). Allow it at the socket proxy with {}",
                    self.route, self.permission
                ),
            ),
            ApiError::DockerResponseServerError {
                status_code: 404,
                message,
            } if self.route.contains("/containers/{id}") => EngineError::new(
                EngineErrorKind::NoSuchContainer,
                format!("cannot {does}: {}", shorten(message)),
            ),
            ApiError::DockerResponseServerError {
                status_code,
                message,
            } => EngineError::new(
                if matches!(status_code, 502..=504) {
                    EngineErrorKind::Unreachable
                } else {
                    EngineErrorKind::Failed
                },
                format!(
                    "cannot {does}: {host} answers {} with status {status_code}: {}",
                    self.route,
                    shorten(message)
                ),
            ),
            ApiError::RequestTimeoutError => self.hung(Duration::ZERO),
            ApiError::SocketNotFoundError(path) => EngineError::new(
                EngineErrorKind::NoSocket,
                format!(
                    "cannot {does}: there is no socket at {path}. Mount /var/run/docker.sock there, name a \
                     socket proxy with DOCKER_HOST, or set DOCKER_HOST=none to work without the Docker API"
                ),
            ),
            ApiError::JsonDataError { .. } | ApiError::JsonSerdeError { .. } => EngineError::new(
                EngineErrorKind::Failed,
                format!(
                    "cannot {does}: what {host} answers to {} is not the Docker API's ({}). See what listens there",
                    self.route,
                    shorten(&err.to_string())
                ),
            ),
            _ => self.not_reached(err),
        }
    }

    fn not_reached(&self, err: &ApiError) -> EngineError {
        let (does, host) = (&self.does, &self.host);
        if io_kind(err) == Some(ErrorKind::PermissionDenied) {
            return EngineError::new(
                EngineErrorKind::Denied,
                format!(
                    "cannot {does}: this process may not open {host} (permission denied). Run it as root, or add \
                     the socket's group (group_add), or name a socket proxy with DOCKER_HOST"
                ),
            );
        }
        let mut why = err.to_string();
        let mut cause = err.source();
        while let Some(deeper) = cause {
            let text = deeper.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            cause = deeper.source();
        }
        EngineError::new(
            EngineErrorKind::Unreachable,
            format!(
                "cannot {does}: {host} is not reached ({}). See that the engine, or the socket proxy, runs and \
                 that DOCKER_HOST names it",
                shorten(&why)
            ),
        )
    }
}

fn io_kind(err: &ApiError) -> Option<ErrorKind> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(err);
    // The variants are transparent or carry the error in a field, so begin with what they carry.
    if let ApiError::HyperLegacyError { err } = err {
        cause = Some(err);
    }
    while let Some(err) = cause {
        if let Some(io) = err.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = err.source();
    }
    None
}

/// One line of bounded length: the text comes from outside.
pub(super) fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > LONGEST {
        line.chars().take(LONGEST).chain(['…']).collect()
    } else {
        line
    }
}
