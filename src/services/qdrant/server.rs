//! The server: lists and counts through `qdrant-client` (gRPC), snapshots as files over plain HTTP.
//!
//! Snapshots are made over HTTP too: the client would end the request after its time-out, which leaves the
//! file that the server goes on to write, and could not be told to wait for one request only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qdrant_client::qdrant::{
    CollectionStatus, CountPointsBuilder, DeleteCollectionBuilder, DeleteSnapshotRequest,
};
use qdrant_client::{Qdrant as Client, QdrantError};
use reqwest::header::{ACCEPT_ENCODING, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::names::{is_plain, segment};
use crate::config::{Config, Secret};
use crate::services::support::{Base, Endpoint, REQUEST_TIMEOUT};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;

const REST_PORT: u16 = 6333;
const GRPC_PORT: u16 = 6334;
/// An exact count reads every point's id, and a deletion every file of a collection.
const GRPC_TIMEOUT: Duration = Duration::from_mins(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEY_HEADER: &str = "api-key";

/// Where the server is, and the key to it.
#[derive(Debug, Clone)]
pub(super) struct Address {
    service: String,
    endpoint: Endpoint,
    grpc_url: Option<Url>,
    key: Option<HeaderValue>,
}

/// A server that answered.
#[derive(Clone)]
pub(super) struct Server {
    service: String,
    base: Base,
    grpc: Client,
    grpc_shown: String,
    key: Option<HeaderValue>,
}

/// A snapshot as the server announces it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) size: u64,
    /// SHA-256 in hex; the server has none of uploaded files, and none when it keeps snapshots in S3.
    #[serde(default)]
    pub(super) checksum: Option<String>,
}

/// Why there is no snapshot.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server said so: it has ended its work on it.
    Answered(ServiceError),
    /// No answer, or one that says nothing: the server may still be making it, or have made it.
    Silent(ServiceError),
}

impl Refusal {
    pub(super) fn into_error(self) -> ServiceError {
        match self {
            Self::Answered(error) | Self::Silent(error) => error,
        }
    }
}

/// A snapshot in the listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    /// Seconds since 1970.
    pub(super) created: Option<i64>,
}

impl Address {
    pub(super) fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let setup = |message: &str| ServiceError::new(&service.name, ErrorKind::Setup, message);
        let environment = |name: &str| service.environment.get(name).filter(|v| !v.is_empty());
        let uses_tls = environment("QDRANT__SERVICE__ENABLE_TLS")
            .is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"));
        let own = service.hosts.first().filter(|_| uses_tls);
        let own = own.map(|host| format!("https://{host}:{REST_PORT}"));
        let url = config.qdrant.url.as_deref().or(own.as_deref());
        let endpoint = Endpoint::new(service, url, REST_PORT, "QDRANT_URL", "/")?
            .ok_or_else(|| setup("has no address: set QDRANT_URL"))?;
        let grpc_url = match &config.qdrant.grpc_url {
            None => None,
            Some(text) => Some(
                Url::parse(text)
                    .ok()
                    .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
                    .ok_or_else(|| {
                        setup("QDRANT_GRPC_URL is not an address: give one like http://qdrant:6334")
                    })?,
            ),
        };
        let configured = config.qdrant.api_key.as_ref().map(Secret::reveal);
        let key = configured.or(environment("QDRANT__SERVICE__API_KEY").map(String::as_str));
        // Checked here, because the client would print a malformed key in its error.
        let key = key
            .map(|key| match HeaderValue::from_str(key) {
                Ok(mut value) if key.bytes().all(|b| b.is_ascii_graphic()) => {
                    value.set_sensitive(true);
                    Ok(value)
                }
                _ => Err(setup(
                    "the API key has a space or another character that no HTTP header can carry: correct QDRANT_API_KEY",
                )),
            })
            .transpose()?;
        Ok(Self {
            service: service.name.clone(),
            endpoint,
            grpc_url,
            key,
        })
    }

    /// Finds the address that answers over HTTP, and prepares a client for gRPC on the same host.
    pub(super) async fn connect(&self) -> Result<Server, ServiceError> {
        let base = self.endpoint.base().await?;
        let setup = |message: String| ServiceError::new(&self.service, ErrorKind::Setup, message);
        let mut url = if let Some(url) = &self.grpc_url {
            url.clone()
        } else {
            let mut url = Url::parse(&base.url).map_err(|e| setup(e.to_string()))?;
            url.set_path("");
            url.set_port(Some(GRPC_PORT))
                .map_err(|()| setup("QDRANT_URL has no port: set QDRANT_GRPC_URL".to_owned()))?;
            url
        };
        // A login in the address is for HTTP alone, and must not get into messages.
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(setup("QDRANT_GRPC_URL is not an address".to_owned()));
        }
        let shown = url.as_str().trim_end_matches('/').to_owned();
        let mut client = Client::from_url(&shown)
            .timeout(GRPC_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .skip_compatibility_check();
        client.api_key = self
            .key
            .as_ref()
            .and_then(|key| key.to_str().ok())
            .map(str::to_owned);
        let grpc = client
            .build()
            .map_err(|e| setup(format!("QDRANT_GRPC_URL is not an address: {e}")))?;
        Ok(Server {
            service: self.service.clone(),
            base,
            grpc,
            grpc_shown: shown,
            key: self.key.clone(),
        })
    }
}

impl Server {
    /// The REST address, for messages.
    pub(super) fn shown(&self) -> &str {
        &self.base.shown
    }

    pub(super) async fn version(&self) -> Result<String, ServiceError> {
        let answer = self
            .json("read Qdrant's version", self.quick(Method::GET, "/"))
            .await?;
        let version = answer.get("version").and_then(Value::as_str);
        version.map(str::to_owned).ok_or_else(|| {
            self.damaged(format!(
                "{} names no version: is this a Qdrant server? See QDRANT_URL",
                self.shown()
            ))
        })
    }

    /// `/readyz`: all shards are loaded.
    pub(super) async fn ready(&self) -> Result<(), ServiceError> {
        let request = self.quick(Method::GET, "/readyz");
        self.base.body("see that Qdrant is ready", request).await?;
        Ok(())
    }

    /// Nodes of the cluster; one when it is not in cluster mode, or does not tell.
    pub(super) async fn nodes(&self) -> usize {
        let answer = self
            .json(
                "read the cluster's state",
                self.quick(Method::GET, "/cluster"),
            )
            .await;
        let peers = answer
            .ok()
            .and_then(|a| Some(a.pointer("/result/peers")?.as_object()?.len()));
        peers.unwrap_or(1).max(1)
    }

    pub(super) async fn collections(&self) -> Result<BTreeSet<String>, ServiceError> {
        let what = "list collections";
        let answer = self.answered(what, self.grpc.list_collections().await)?;
        let names: BTreeSet<String> = answer.collections.into_iter().map(|c| c.name).collect();
        match names.iter().find(|name| !is_plain(name)) {
            None => Ok(names),
            Some(name) => Err(self.damaged(format!(
                "the server names a collection \"{}\", which no collection can be called: is this a Qdrant server? See QDRANT_GRPC_URL",
                name.escape_debug()
            ))),
        }
    }

    /// Collections by alias.
    pub(super) async fn aliases(&self) -> Result<BTreeMap<String, String>, ServiceError> {
        let answer = self.answered("list aliases", self.grpc.list_aliases().await)?;
        let pair = |a: qdrant_client::qdrant::AliasDescription| (a.alias_name, a.collection_name);
        Ok(answer.aliases.into_iter().map(pair).collect())
    }

    /// The exact number of points; `None` when there is no such collection.
    pub(super) async fn count(&self, collection: &str) -> Result<Option<u64>, ServiceError> {
        let request = CountPointsBuilder::new(collection)
            .exact(true)
            .timeout(GRPC_TIMEOUT.as_secs());
        let what = format!("count the points of {collection}");
        let answer = self.found(&what, self.grpc.count(request).await)?;
        Ok(answer.map(|a| a.result.map_or(0, |r| r.count)))
    }

    /// Whether the collection is ready, and in the server's words why not; `None` when there is none.
    pub(super) async fn status(
        &self,
        collection: &str,
    ) -> Result<Option<(CollectionStatus, String)>, ServiceError> {
        let what = format!("read the state of {collection}");
        let answer = self.found(&what, self.grpc.collection_info(collection).await)?;
        Ok(answer.and_then(|a| a.result).map(|info| {
            let words = info.optimizer_status.as_ref().map(|o| o.error.clone());
            (info.status(), words.unwrap_or_default())
        }))
    }

    /// The collection's information as the REST interface gives it, for the record.
    pub(super) async fn info(&self, collection: &str) -> Result<Value, ServiceError> {
        let path = format!("/collections/{}", segment(collection));
        let what = format!("read the configuration of {collection}");
        let mut answer = self.json(&what, self.quick(Method::GET, &path)).await?;
        Ok(answer
            .get_mut("result")
            .map(Value::take)
            .unwrap_or_default())
    }

    /// Makes a collection without vectors.
    pub(super) async fn create_empty(&self, collection: &str) -> Result<(), ServiceError> {
        let path = format!("/collections/{}", segment(collection));
        let request = self.quick(Method::PUT, &path).json(&json!({"vectors": {}}));
        self.json(&format!("make collection {collection}"), request)
            .await
            .map(drop)
    }

    /// Deletes a collection and the aliases that point to it; a missing one is fine.
    pub(super) async fn delete_collection(&self, collection: &str) -> Result<(), ServiceError> {
        let what = format!("delete collection {collection}");
        let request = DeleteCollectionBuilder::new(collection);
        self.found(&what, self.grpc.delete_collection(request).await)?;
        Ok(())
    }

    /// Changes aliases, all or none: drops `drop`, then points each of `point` at its collection.
    pub(super) async fn change_aliases(
        &self,
        drop: &BTreeSet<String>,
        point: &BTreeMap<String, String>,
    ) -> Result<(), ServiceError> {
        let drops = drop
            .iter()
            .map(|alias| json!({"delete_alias": {"alias_name": alias}}));
        let points = point.iter().map(|(alias, collection)| {
            json!({"create_alias": {"alias_name": alias, "collection_name": collection}})
        });
        let actions: Vec<Value> = drops.chain(points).collect();
        if actions.is_empty() {
            return Ok(());
        }
        let request = self
            .quick(Method::POST, "/collections/aliases")
            .json(&json!({ "actions": actions }));
        self.json("change aliases", request).await?;
        Ok(())
    }

    /// The collection's snapshots; `None` when there is no such collection.
    pub(super) async fn snapshots(
        &self,
        collection: &str,
    ) -> Result<Option<Vec<Listed>>, ServiceError> {
        let what = format!("list the snapshots of {collection}");
        let answer = self.found(&what, self.grpc.list_snapshots(collection).await)?;
        Ok(answer.map(|a| {
            let listed = a.snapshot_descriptions.into_iter().map(|s| Listed {
                name: s.name,
                created: s.creation_time.map(|t| t.seconds),
            });
            listed.collect()
        }))
    }

    /// Makes a snapshot and waits as long as it takes.
    pub(super) async fn create_snapshot(&self, collection: &str) -> Result<Snapshot, Refusal> {
        let path = format!("/collections/{}/snapshots?wait=true", segment(collection));
        let what = format!("make a snapshot of {collection}");
        let silent = |e: reqwest::Error| Refusal::Silent(self.failed(&what, &e));
        let response = self.request(Method::POST, &path).send().await;
        let response = response.map_err(silent)?;
        if !response.status().is_success() {
            let error = self.base.refused(&what, response).await;
            return Err(Refusal::Answered(explained(error)));
        }
        let mut answer: Value = response.json().await.map_err(silent)?;
        let result = answer
            .get_mut("result")
            .map(Value::take)
            .unwrap_or_default();
        serde_json::from_value::<Snapshot>(result)
            .ok()
            .filter(|made| is_plain(&made.name))
            .ok_or_else(|| {
                Refusal::Silent(self.damaged(format!(
                    "the server did not say under which name it made a snapshot of {collection}"
                )))
            })
    }

    /// Deletes a snapshot; a missing one is fine.
    pub(super) async fn delete_snapshot(
        &self,
        collection: &str,
        snapshot: &str,
    ) -> Result<(), ServiceError> {
        let request = DeleteSnapshotRequest {
            collection_name: collection.to_owned(),
            snapshot_name: snapshot.to_owned(),
        };
        let what = format!("delete snapshot {snapshot} of {collection}");
        self.found(&what, self.grpc.delete_snapshot(request).await)?;
        Ok(())
    }

    /// Whether the key may make snapshots, tried on a collection that does not exist.
    ///
    /// The server checks rights before it looks for the collection: 403 against 404 (seen with 1.18.3).
    pub(super) async fn may_write(&self) -> Result<(), ServiceError> {
        let path = "/collections/lifeboat-asks-for-its-rights/snapshots?wait=true";
        let request = self.request(Method::POST, path).timeout(REQUEST_TIMEOUT);
        match self.json("make snapshots", request).await {
            Err(e) if e.kind == ErrorKind::Denied || e.is_transient() => Err(e),
            _ => Ok(()),
        }
    }

    /// Begins the download of a snapshot: uncompressed, and as long as it was announced.
    pub(super) async fn download(
        &self,
        collection: &str,
        snapshot: &Snapshot,
    ) -> Result<Response, ServiceError> {
        let (name, what) = (
            &snapshot.name,
            format!("download snapshot {}", snapshot.name),
        );
        let path = format!(
            "/collections/{}/snapshots/{}",
            segment(collection),
            segment(name)
        );
        // The route compresses what it sends unless told otherwise.
        let request = self
            .request(Method::GET, &path)
            .header(ACCEPT_ENCODING, "identity");
        let response = self.base.send(&what, request).await;
        let response = response.map_err(explained)?;
        match response.content_length() {
            Some(length) if length != snapshot.size => Err(self.damaged(format!(
                "cannot {what}: {} announces {length} bytes, but it was made with {}",
                self.shown(),
                snapshot.size
            ))),
            _ => Ok(response),
        }
    }

    /// A torn answer.
    pub(super) fn failed(&self, what: &str, error: &reqwest::Error) -> ServiceError {
        self.base.failed(what, error)
    }

    pub(super) fn damaged(&self, message: String) -> ServiceError {
        ServiceError::new(&self.service, ErrorKind::Damaged, message)
    }

    pub(super) fn error(&self, kind: ErrorKind, message: String) -> ServiceError {
        ServiceError::new(&self.service, kind, message)
    }

    /// A request without a limit in time.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.base.request(method, path);
        match &self.key {
            Some(key) => request.header(KEY_HEADER, key.clone()),
            None => request,
        }
    }

    fn quick(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).timeout(REQUEST_TIMEOUT)
    }

    pub(super) async fn json(
        &self,
        what: &str,
        request: RequestBuilder,
    ) -> Result<Value, ServiceError> {
        self.base.json(what, request).await.map_err(explained)
    }

    /// As [`Self::found`], for what must be there.
    fn answered<T>(&self, what: &str, answer: Result<T, QdrantError>) -> Result<T, ServiceError> {
        self.found(what, answer)?
            .ok_or_else(|| self.damaged(format!("cannot {what}: {} has it not", self.grpc_shown)))
    }

    /// A gRPC answer; `None` for "not found". Codes are those of gRPC's `status.proto`.
    fn found<T>(
        &self,
        what: &str,
        answer: Result<T, QdrantError>,
    ) -> Result<Option<T>, ServiceError> {
        let error = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        let QdrantError::ResponseError { status } = &error else {
            let message = format!("cannot {what} at {} (gRPC): {error}", self.grpc_shown);
            return Err(self.error(ErrorKind::Unreachable, message));
        };
        let kind = match i32::from(status.code()) {
            5 => return Ok(None),
            7 | 16 => ErrorKind::Denied,
            3 | 9 | 12 | 15 => ErrorKind::Damaged,
            _ => ErrorKind::Unreachable,
        };
        let hint = if kind == ErrorKind::Unreachable {
            "; see that it runs and that its gRPC port can be reached from here (QDRANT_GRPC_URL)"
        } else {
            ""
        };
        let words: String = status.message().chars().take(500).collect();
        let message = format!("cannot {what} at {} (gRPC): {words}{hint}", self.grpc_shown);
        Err(explained(self.error(kind, message)))
    }
}

/// Adds what to do about a refused key.
fn explained(mut error: ServiceError) -> ServiceError {
    if error.kind == ErrorKind::Denied {
        error.message.push_str(
            ". Set QDRANT_API_KEY to the server's full API key (its QDRANT__SERVICE__API_KEY), not a read-only one",
        );
    }
    error
}
