//! What the adapters share: HTTP with errors as sentences, and the names of failures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::{ErrorKind, ServiceError};
use crate::archive::ArchiveError;
use crate::config::Config;
use crate::stack::StackService;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For requests that answer at once; long ones bring their own.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// No answer of these services that is held in memory is larger.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A service's HTTP address, or several of which one answers.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    service: String,
    /// The variable that sets the address, for messages.
    variable: &'static str,
    /// A path that answers without a login.
    probe: &'static str,
    candidates: Vec<Url>,
    client: Client,
}

impl Endpoint {
    /// The configured address, else every host of the service at `port`; `None` when there is neither.
    pub(super) fn new(
        service: &StackService,
        configured: Option<&str>,
        port: u16,
        variable: &'static str,
        probe: &'static str,
    ) -> Result<Option<Self>, ServiceError> {
        let setup = |message: String| ServiceError::new(&service.name, ErrorKind::Setup, message);
        let addresses: Vec<String> = match configured {
            Some(url) => vec![url.to_owned()],
            None => service
                .hosts
                .iter()
                .map(|host| format!("http://{host}:{port}"))
                .collect(),
        };
        let candidates = addresses
            .iter()
            .map(|address| parse_url(address, variable).map_err(setup))
            .collect::<Result<Vec<_>, _>>()?;
        if candidates.is_empty() {
            return Ok(None);
        }
        // A proxy of the environment is for the outside world, not for the neighbours in the stack.
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|e| setup(format!("cannot set up an HTTP client: {}", cause(&e))))?;
        Ok(Some(Self {
            service: service.name.clone(),
            variable,
            probe,
            candidates,
            client,
        }))
    }

    /// The first address that answers at all, without a slash at its end.
    pub(super) async fn base(&self) -> Result<Base, ServiceError> {
        let mut last = None;
        for url in &self.candidates {
            let base = Base {
                service: self.service.clone(),
                variable: self.variable,
                url: url.as_str().trim_end_matches('/').to_owned(),
                shown: without_login(url),
                client: self.client.clone(),
            };
            match base.get(self.probe).send().await {
                Ok(_) => return Ok(base),
                Err(e) => last = Some(base.failed("reach it", &e)),
            }
        }
        Err(last.unwrap_or_else(|| {
            let message = format!("has no address: set {}", self.variable);
            ServiceError::new(&self.service, ErrorKind::Setup, message)
        }))
    }
}

/// An address that answered.
#[derive(Debug, Clone)]
pub(super) struct Base {
    service: String,
    variable: &'static str,
    pub(super) url: String,
    /// Without a password.
    pub(super) shown: String,
    client: Client,
}

impl Base {
    /// A GET that must answer within [`REQUEST_TIMEOUT`].
    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.request(reqwest::Method::GET, path)
            .timeout(REQUEST_TIMEOUT)
    }

    /// A request without a limit in time.
    pub(super) fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// Sends and parses a JSON answer; anything but 2xx is an error in the server's words.
    pub(super) async fn json(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<serde_json::Value, ServiceError> {
        let body = self.body(what, request).await?;
        serde_json::from_slice(&body).map_err(|e| {
            let message = format!(
                "cannot {what}: {} answered no JSON ({e}): is this the right server? See {}",
                self.shown, self.variable
            );
            ServiceError::new(&self.service, ErrorKind::Damaged, message)
        })
    }

    /// Sends and reads a small answer whole; anything but 2xx is an error in the server's words.
    pub(super) async fn body(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<Vec<u8>, ServiceError> {
        let mut response = self.send(what, request).await?;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| self.failed(what, &e))? {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                let message = format!("cannot {what}: the answer is larger than 64 MiB");
                return Err(ServiceError::new(
                    &self.service,
                    ErrorKind::Damaged,
                    message,
                ));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Sends; anything but 2xx is an error in the server's words.
    pub(super) async fn send(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<Response, ServiceError> {
        let response = request.send().await.map_err(|e| self.failed(what, &e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(what, response).await)
    }

    /// No answer, or a torn one.
    pub(super) fn failed(&self, what: &str, error: &reqwest::Error) -> ServiceError {
        let hint = if error.is_timeout() {
            "it did not answer in time: see its log"
        } else {
            "check that it is running and reachable from here"
        };
        let message = format!(
            "cannot {what} at {}: {}; {hint} ({})",
            self.shown,
            cause(error),
            self.variable
        );
        ServiceError::new(&self.service, ErrorKind::Unreachable, message)
    }

    pub(super) async fn refused(&self, what: &str, response: Response) -> ServiceError {
        let status = response.status();
        let words = server_words(response).await;
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            s if s.is_server_error() => ErrorKind::Unreachable,
            _ => ErrorKind::Damaged,
        };
        let message = format!("cannot {what}: {} answered {status}: {words}", self.shown);
        ServiceError::new(&self.service, kind, message)
    }
}

/// The error text of an answer: `{"status": {"error": …}}`, `{"error": …}`, `{"message": …}` or plain.
async fn server_words(mut response: Response) -> String {
    let mut body = Vec::new();
    // A torn error text is still worth showing.
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() > 64 << 10 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&body);
    let words = serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|json| {
            [
                json.pointer("/status/error"),
                json.get("error"),
                json.get("message"),
            ]
            .into_iter()
            .flatten()
            .find_map(|v| v.as_str().map(str::to_owned))
        })
        .unwrap_or_else(|| text.into_owned());
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(500) {
        Some((end, _)) => format!("{}…", words.get(..end).unwrap_or_default()),
        None if words.is_empty() => "no text".to_owned(),
        None => words,
    }
}

fn parse_url(address: &str, variable: &str) -> Result<Url, String> {
    let url = Url::parse(address).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()
    });
    url.ok_or_else(|| {
        format!("{variable} is not an HTTP address: give one like http://host:port without a query")
    })
}

fn without_login(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only on addresses that cannot have a login.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return "its address".to_owned();
    }
    url.as_str().trim_end_matches('/').to_owned()
}

/// The innermost cause of an error, which names it best.
pub(super) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// An archive that could not be written, as this service's failure.
pub(crate) fn archive_failed(service: &str, error: ArchiveError) -> ServiceError {
    let kind = match &error {
        ArchiveError::Digest { .. } => ErrorKind::Damaged,
        ArchiveError::KeepsChanging(_) => ErrorKind::Setup,
        _ => ErrorKind::Io,
    };
    ServiceError::new(service, kind, error.to_string()).with_source(error)
}

/// Local files that could not be read or written.
pub(super) fn io_failed(
    service: &str,
    what: &str,
    path: &Path,
    error: std::io::Error,
) -> ServiceError {
    let message = format!("cannot {what} {}: {error}", path.display());
    ServiceError::new(service, ErrorKind::Io, message).with_source(error)
}

/// Opens a file to read it that must be a regular one: a link, pipe or device that a service put in its place
/// is neither followed nor waited for.
pub(crate) fn regular(path: &Path) -> std::io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let refused = || {
        std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is no regular file, and links are not followed here: put the file itself there",
        )
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => std::fs::File::from(fd),
        // open(2): a link, and a socket or a device that is not there.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return Err(refused()),
        Err(e) => return Err(e.into()),
    };
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(refused())
    }
}

/// Where the sidecar sees a directory of the service: as configured, else through a shared mount.
///
/// A mount of a parent directory is as good. When neither helps, `<LIFEBOAT_DATA>/<name>` is taken if it
/// exists: where compose.override.yml mounts it.
pub(super) fn data_directory(
    config: &Config,
    service: &StackService,
    configured: Option<&PathBuf>,
    in_container: &Path,
    name: &str,
    variable: &str,
) -> Result<PathBuf, ServiceError> {
    let missing = |message| ServiceError::new(&service.name, ErrorKind::Setup, message);
    if let Some(path) = configured {
        if path.is_dir() {
            return Ok(path.clone());
        }
        return Err(missing(format!(
            "{variable} is {}, which is not a directory here: mount it into this container or correct {variable}",
            path.display()
        )));
    }
    if let Some(path) = service.local_path(in_container) {
        return Ok(path);
    }
    let usual = config.data.join(name);
    // A guess, and only where the container's mounts are not known: a directory that compose made for a
    // forgotten setting is empty, and would pass for the service's data.
    if service.container.is_none() && usual.is_dir() {
        return Ok(usual);
    }
    Err(missing(format!(
        "its directory {} is not mounted into this container: mount the same volume or host directory at {} (with \
         compose.override.yml: LIFEBOAT_{variable} in .env), or set {variable}",
        in_container.display(),
        usual.display()
    )))
}

/// Checks one directory for `doctor`.
pub(super) fn check_directory(subject: String, path: &Path) -> super::Check {
    match std::fs::read_dir(path) {
        Ok(_) => super::Check::good(subject, path.display().to_string()),
        Err(e) => super::Check::bad(
            subject,
            format!(
                "cannot list {}: {e}; mount it into this container, readable for it (DAC_READ_SEARCH or DAC_OVERRIDE)",
                path.display()
            ),
        ),
    }
}

/// Checks that a restore can write to a directory, or to the nearest one that exists, without writing.
pub(super) fn check_writable(subject: String, directory: &Path) -> super::Check {
    let existing = directory
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(directory);
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) => super::Check::good(subject, directory.display().to_string()),
        Err(e) => super::Check::bad(
            subject,
            format!(
                "cannot write to {}: {e}; a restore writes there: mount it without :ro",
                existing.display()
            ),
        ),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

pub(super) fn sha256_from_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (n, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(digest)
}
