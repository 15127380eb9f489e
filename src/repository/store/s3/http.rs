//! One HTTP request for the S3 client, with nothing left open: bounded in time, its answer read whole.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{Method, Url};
use tokio::time::timeout;

use super::retry::Patience;
use crate::config::S3Config;
use crate::repository::RepositoryError;

/// An uplink slower than this is taken for a dead one.
const SLOWEST_UPLOAD_BYTES_PER_SEC: u64 = 16 * 1024;
/// No request here asks for more: listings are pages, files are read in pieces.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024 * 1024;
/// Where clouds tell a machine its role.
const MACHINE_ROLE_HOST: &str = "169.254.169.254";
/// How rustls says that it does not trust a certificate.
const UNTRUSTED: &str = "invalid peer certificate";

/// The server's answer, when it is not the wanted one.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub status: u16,
    /// S3's own name for what is wrong; empty where the server gave none.
    pub code: String,
    pub message: String,
    /// Where the bucket really is.
    pub region: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                write!(f, " {part}")?;
            }
        }
        Ok(())
    }
}

impl StdError for Answer {}

/// There was no answer, or not a whole one; or the server that was asked for keys gave none.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub why: String,
    pub host: String,
    /// The request may have reached the store, and may have been carried out.
    pub sent: bool,
    /// It will not be different next time.
    pub lasting: bool,
    /// It was not the store that was spoken to, but who hands out the keys to it.
    pub for_keys: bool,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.why)
    }
}

impl StdError for Broken {}

impl Broken {
    /// Whether this was the question for the machine's role, asked because no credentials were given.
    pub fn is_machine_role(&self) -> bool {
        self.for_keys && self.host == MACHINE_ROLE_HOST
    }

    pub fn is_untrusted(&self) -> bool {
        self.why.contains(UNTRUSTED)
    }
}

/// Makes the requests of [`object_store`]'s client. Retries are not its business: see [`super::retry`].
#[derive(Debug, Clone)]
pub(super) struct Connector {
    client: reqwest::Client,
    stall: Duration,
}

impl Connector {
    pub fn new(access: &S3Config, patience: &Patience) -> Result<Self, RepositoryError> {
        let failed = |why: String| {
            RepositoryError::Invalid(format!("the connection to S3 cannot be set up: {why}"))
        };
        let mut builder = reqwest::Client::builder()
            .use_rustls_tls()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(patience.stall.min(Duration::from_secs(10)))
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_keepalive(Duration::from_secs(30));
        if let Some(path) = &access.ca_bundle {
            let pem = std::fs::read(path).map_err(|e| {
                failed(format!(
                    "AWS_CA_BUNDLE names {}, which cannot be read ({e})",
                    path.display()
                ))
            })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| {
                    failed(format!(
                        "AWS_CA_BUNDLE names {}, which holds no certificate in PEM form",
                        path.display()
                    ))
                })?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self {
            client: builder.build().map_err(|e| failed(causes(&e)))?,
            stall: patience.stall,
        })
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|e| Broken {
            why: format!("not an address ({e})"),
            host: String::new(),
            sent: false,
            lasting: true,
            for_keys: false,
        })?;
        let for_keys = !is_signed(&parts.headers);
        let host = url.host_str().unwrap_or_default().to_owned();
        let broken = |why: String, sent: bool| Broken {
            lasting: why.contains(UNTRUSTED),
            host: host.clone(),
            why,
            sent: sent && !for_keys,
            for_keys,
        };
        let closes_upload =
            parts.method == Method::POST && url.query_pairs().any(|(name, _)| name == "uploadId");
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        if closes_upload {
            // Nothing is ever overwritten. The client signs which headers it knows; this one needs no signature.
            request
                .headers_mut()
                .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let upload =
            Duration::from_secs(body.content_length() as u64 / SLOWEST_UPLOAD_BYTES_PER_SEC);
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let silent = |_| broken(format!("no answer for {:?}", self.stall), true);
        let mut response = timeout(self.stall + upload, self.client.execute(request))
            .await
            .map_err(silent)?
            .map_err(|e| broken(causes(&e), !e.is_connect()))?;
        let mut bytes = Vec::new();
        while let Some(piece) = timeout(self.stall, response.chunk())
            .await
            .map_err(silent)?
            .map_err(|e| broken(format!("the answer broke off ({})", causes(&e)), true))?
        {
            bytes.extend_from_slice(&piece);
            if bytes.len() > ANSWER_LIMIT_BYTES {
                return Err(broken("the answer does not end".to_owned(), true).into());
            }
        }
        let status = response.status();
        // Closing an upload may fail after the 200 was sent.
        if !status.is_success() || (closes_upload && tag(&bytes, "Error").is_some()) {
            let region = response.headers().get("x-amz-bucket-region");
            let answer = Answer {
                status: if status.is_success() {
                    500
                } else {
                    status.as_u16()
                },
                code: tag(&bytes, "Code").unwrap_or_default(),
                message: tag(&bytes, "Message").unwrap_or_default(),
                region: region.and_then(|v| v.to_str().ok()).map(str::to_owned),
            };
            // Its 404, say, is about a role: no file is missing.
            return Err(if for_keys {
                Failure::Broken(Broken {
                    lasting: answer.status < 500 && answer.status != 429,
                    ..broken(answer.to_string(), false)
                })
            } else {
                Failure::Answer(answer)
            });
        }
        let mut whole = HttpResponse::new(bytes.into());
        *whole.status_mut() = status;
        *whole.headers_mut() = std::mem::take(response.headers_mut());
        Ok(whole)
    }
}

enum Failure {
    Answer(Answer),
    Broken(Broken),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // The kind would steer the client's own retries, which are off.
        self.exchange(request)
            .await
            .map_err(|failure| match failure {
                Failure::Answer(answer) => HttpError::new(HttpErrorKind::Unknown, answer),
                Failure::Broken(broken) => HttpError::new(HttpErrorKind::Unknown, broken),
            })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// Whether a request is for the store: those that ask for keys have none to be signed with.
fn is_signed(headers: &HeaderMap) -> bool {
    headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes().starts_with(b"AWS4-"))
}

/// The first element of that name in an XML answer; bounded, for it ends in a message.
fn tag(answer: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(answer.get(..answer.len().min(64 * 1024))?);
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.trim().chars().take(300).collect())
}

/// An error's deepest causes; reqwest's own sentence says only that it failed.
fn causes(error: &reqwest::Error) -> String {
    let mut parts = Vec::new();
    let mut next: Option<&dyn StdError> = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if parts.last() != Some(&said) {
            parts.push(said);
        }
        next = cause.source();
    }
    if parts.is_empty() {
        parts.push(if error.is_timeout() {
            "timed out".to_owned()
        } else {
            "the request failed".to_owned()
        });
    }
    parts.join(": ")
}
