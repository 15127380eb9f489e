//! HTTP for plain threads: every call blocks until its answer is complete.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("starting the runtime needs two threads, which the system refused")
});

/// One server's address with the headers each request to it carries.
#[derive(Clone)]
pub struct Web {
    client: reqwest::Client,
    base: String,
    headers: HeaderMap,
}

/// A complete answer.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Web {
    /// Opens a client that keeps connections alive between requests.
    pub fn new(base: &str, timeout: Duration) -> Result<Self> {
        Self::build(base, reqwest::Client::builder().timeout(timeout))
    }

    /// Opens a client that connects anew for each request, as a first-time visitor would.
    pub fn unpooled(base: &str, timeout: Duration) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .timeout(timeout)
            .pool_max_idle_per_host(0);
        Self::build(base, builder)
    }

    fn build(base: &str, builder: reqwest::ClientBuilder) -> Result<Self> {
        Ok(Self {
            client: builder.no_proxy().build().context("build HTTP client")?,
            base: base.to_owned(),
            headers: HeaderMap::new(),
        })
    }

    /// Adds a header to every later request; its value never shows in debug output.
    pub fn set_header(&mut self, name: &'static str, value: &str) -> Result<()> {
        let mut value = HeaderValue::from_str(value).context("read header value")?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        Ok(())
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.send(&Method::GET, path, |request| request)?.json()
    }

    pub fn delete(&self, path: &str) -> Result<Value> {
        self.send(&Method::DELETE, path, |request| request)?.json()
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(&Method::POST, path, |request| request.json(body))?
            .json()
    }

    pub fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(&Method::PUT, path, |request| request.json(body))?
            .json()
    }

    /// Sends a request and returns its answer, refusing statuses that are not a success.
    pub fn send(
        &self,
        method: &Method,
        path: &str,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer> {
        let answer = self.send_any(method, path, with)?;
        if !(200..300).contains(&answer.status) {
            bail!(
                "{method} {}{path} answered {}: {}",
                self.base,
                answer.status,
                answer.excerpt()
            );
        }
        Ok(answer)
    }

    /// Sends a request and returns its answer whatever the status.
    pub fn send_any(
        &self,
        method: &Method,
        path: &str,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer> {
        let url = format!("{}{path}", self.base);
        let request = with(
            self.client
                .request(method.clone(), &url)
                .headers(self.headers.clone()),
        );
        RUNTIME
            .block_on(async {
                let response = request.send().await?;
                let status = response.status().as_u16();
                let headers = response.headers().clone();
                let body = response.bytes().await?.to_vec();
                Ok::<_, reqwest::Error>(Answer {
                    status,
                    headers,
                    body,
                })
            })
            .with_context(|| format!("{method} {url}"))
    }
}

impl Answer {
    /// Reads the body as JSON; an empty body is `null`.
    pub fn json(&self) -> Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body)
            .with_context(|| format!("read JSON answer {:?}", self.excerpt()))
    }

    fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body)
            .chars()
            .take(400)
            .collect()
    }
}
