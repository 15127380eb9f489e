//! A bucket as the store: AWS, or any server that speaks S3 and knows conditional writes.
//!
//! Every file is one object below the prefix. `put` and `publish` send `If-None-Match: *`, so that the server
//! picks the one winner. An answer that got lost leaves open whether a request was carried out; therefore each
//! new object carries its writer's random token, and a writer that finds its key taken after such a doubt looks
//! whose object it is. Large files go up in parts, and appear when the last request closes them.
//!
//! Requests run on threads of their own: the blocking methods may be called from anywhere.

mod client;
mod explain;
mod http;
mod profile;
mod read;
mod retry;
mod upload;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use object_store::aws::AmazonS3;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore as _, ObjectStoreExt as _};
use tokio::runtime::Runtime;
use tokio_util::bytes::Bytes;

use super::file_blob::FileBlob;
use super::{Blob, Entry, RepositoryError, Spool, Store, check_key};
use crate::config::S3Config;

use http::Connector;
use read::S3Blob;
pub use retry::Patience;
use retry::{Fault, persist};
use upload::S3Spool;

/// Requests move this much at the most, so that each is over soon and memory stays small.
const PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// Pieces of one file on their way at once.
const PIECES_AT_ONCE: usize = 2;
/// The object whose time of modification is the store's clock. It stays: credentials that must not delete
/// would leave one behind each time.
const CLOCK_KEY: &str = "clock";

/// What a bucket is opened with.
#[derive(Debug, Clone)]
pub struct S3Options {
    pub bucket: String,
    /// Where in it; empty for all of it.
    pub prefix: String,
    pub access: S3Config,
    /// Directory for files on their way; they have no name there and vanish with the process.
    pub scratch: PathBuf,
    pub patience: Patience,
}

/// A prefix of a bucket.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

struct Inner {
    s3: AmazonS3,
    place: Place,
    scratch: PathBuf,
    patience: Patience,
    has_worked: AtomicBool,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

/// How messages name the store.
struct Place {
    bucket: String,
    prefix: String,
    server: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

impl S3Store {
    /// Prepares the way to a bucket; the first request is made by the first method that needs one.
    pub fn connect(options: S3Options) -> Result<Self, RepositoryError> {
        let S3Options {
            bucket,
            prefix,
            access,
            scratch,
            patience,
        } = options;
        let connector = Connector::new(&access, &patience)?;
        let s3 = client::client(&bucket, &access, connector)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lifeboat-s3")
            .enable_all()
            .build()
            .map_err(|e| RepositoryError::io("start the threads that speak to S3", e))?;
        let server = access.endpoint.unwrap_or_else(|| "AWS".to_owned());
        Ok(Self {
            inner: Arc::new(Inner {
                s3,
                place: Place {
                    bucket,
                    prefix,
                    server,
                },
                scratch,
                patience,
                has_worked: AtomicBool::new(false),
                runtime: Some(runtime),
            }),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Plainly dropped it would wait, which async callers must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    /// Runs requests on the store's own threads and waits for their end.
    fn run<T, Work>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> Work,
    ) -> Result<T, RepositoryError>
    where
        T: Send + 'static,
        Work: Future<Output = Result<T, RepositoryError>> + Send + 'static,
    {
        let stopped = || RepositoryError::Remote {
            what: format!("use {}", self.place),
            why: "the threads that speak to it have stopped".to_owned(),
            transient: false,
        };
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let work = work(Arc::clone(self));
        self.runtime
            .as_ref()
            .ok_or_else(stopped)?
            .spawn(async move {
                let result = work.await;
                // Nobody waits any more only where the waiting thread panicked.
                sender.send(result).ok();
            });
        receiver.recv().map_err(|_| stopped())?
    }

    async fn persist<T, Attempt>(&self, request: impl FnMut() -> Attempt) -> Result<T, Fault>
    where
        Attempt: Future<Output = object_store::Result<T>>,
    {
        persist(&self.patience, &self.has_worked, request).await
    }

    fn explain(&self, doing: &str, key: &str, fault: &Fault) -> RepositoryError {
        explain::explain(&self.place, doing, key, fault)
    }

    /// The object of a key.
    fn path(&self, key: &str) -> Result<Path, RepositoryError> {
        check_key(key)?;
        let path = if self.place.prefix.is_empty() {
            Path::parse(key)
        } else {
            Path::parse(format!("{}/{key}", self.place.prefix))
        };
        path.map_err(|e| RepositoryError::Invalid(format!("\"{key}\" is not a key: {e}")))
    }

    /// A file's size, time and tags.
    async fn head(&self, key: &str) -> Result<GetResult, RepositoryError> {
        let path = self.path(key)?;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        self.persist(|| self.s3.get_opts(&path, options.clone()))
            .await
            .map_err(|fault| self.explain("look at", key, &fault))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        let dir = format!("{}/", self.path(prefix)?);
        let own = match self.place.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let mut found = Vec::new();
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions {
                page_token: page_token.take(),
                ..PaginatedListOptions::default()
            };
            let page = self
                .persist(|| self.s3.list_paginated(Some(&dir), options.clone()))
                .await
                .map_err(|fault| match self.explain("list", prefix, &fault) {
                    RepositoryError::Missing(_) => RepositoryError::Remote {
                        what: format!("list {prefix} in {}", self.place),
                        why: fault.to_string(),
                        transient: false,
                    },
                    other => other,
                })?;
            for object in page.result.objects {
                let Some(key) = object.location.as_ref().strip_prefix(&own) else {
                    continue;
                };
                let at = object.last_modified;
                found.push(Entry {
                    key: key.to_owned(),
                    size: object.size,
                    modified: timestamp(at.timestamp(), at.timestamp_subsec_nanos())?,
                });
            }
            match page.page_token {
                Some(token) if !token.is_empty() => page_token = Some(token),
                _ => return Ok(found),
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        match self.persist(|| self.s3.delete(&path)).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_missing() => Ok(()),
            Err(fault) if explain::is_refusal(&fault) => {
                Err(RepositoryError::Refused(key.to_owned()))
            }
            Err(fault) => Err(self.explain("delete", key, &fault)),
        }
    }

    async fn now(&self) -> Result<Timestamp, RepositoryError> {
        self.replace(CLOCK_KEY, Bytes::from_static(b"lifeboat\n"))
            .await?;
        let at = self.head(CLOCK_KEY).await?.meta.last_modified;
        if at.timestamp() == 0 {
            return Err(RepositoryError::Invalid(format!(
                "{} does not say when a file was written: leases and prune need that",
                self.place
            )));
        }
        timestamp(at.timestamp(), at.timestamp_subsec_nanos())
    }
}

fn timestamp(second: i64, nanosecond: u32) -> Result<Timestamp, RepositoryError> {
    Timestamp::new(second, i32::try_from(nanosecond).unwrap_or(0))
        .map_err(|e| RepositoryError::Invalid(format!("the store gave a time out of range: {e}")))
}

impl Store for S3Store {
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let (key, bytes) = (key.to_owned(), Bytes::copy_from_slice(bytes));
        self.inner
            .run(|inner| async move { inner.put_new(&key, bytes).await })
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let (key, bytes) = (key.to_owned(), Bytes::copy_from_slice(bytes));
        self.inner
            .run(|inner| async move { inner.replace(&key, bytes).await })
    }

    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        let file = self.scratch_file()?;
        Ok(Box::new(S3Spool::new(Arc::clone(&self.inner), file)))
    }

    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        let key = key.to_owned();
        self.inner
            .run(move |inner| async move { inner.get(&key, limit_bytes).await })
    }

    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        S3Blob::open(Arc::clone(&self.inner), key).map(|blob| Box::new(blob) as Box<dyn Blob>)
    }

    fn fetch(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        let file = Arc::new(self.scratch_file()?);
        let (key, target) = (key.to_owned(), Arc::clone(&file));
        self.inner
            .run(|inner| async move { inner.download(&key, target).await })?;
        file.try_clone()
            .and_then(FileBlob::new)
            .map(|blob| Box::new(blob) as Box<dyn Blob>)
            .map_err(|e| RepositoryError::io("open a file that was downloaded", e))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        let prefix = prefix.to_owned();
        self.inner
            .run(|inner| async move { inner.list(&prefix).await })
    }

    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        let key = key.to_owned();
        self.inner
            .run(|inner| async move { inner.delete(&key).await })
    }

    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        // An upload that was not completed is no object; the server's own rules remove its parts.
        Ok(())
    }

    fn now(&self) -> Result<Timestamp, RepositoryError> {
        self.inner.run(|inner| async move { inner.now().await })
    }

    fn check_writable(&self) -> Result<(), RepositoryError> {
        self.inner.run(|inner| async move {
            inner.now().await?;
            match inner.put_new(CLOCK_KEY, Bytes::from_static(b"lifeboat\n")).await {
                Err(RepositoryError::Exists(_)) => Ok(()),
                Ok(()) => Err(RepositoryError::Invalid(format!(
                    "{} at {} overwrites files although it is asked not to (If-None-Match): two hosts could destroy \
                     each other's backups. Use a server that knows conditional writes",
                    inner.place, inner.place.server
                ))),
                Err(other) => Err(other),
            }
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.inner.place.to_string()
    }
}

impl S3Store {
    /// A file without a name: it is gone when the process is.
    fn scratch_file(&self) -> Result<File, RepositoryError> {
        let dir = &self.inner.scratch;
        crate::durable::create_dir_all(dir, 0o700)
            .and_then(|()| tempfile::tempfile_in(dir))
            .map_err(|e| {
                RepositoryError::io(
                    format!(
                        "create a scratch file in {} (LIFEBOAT_STATE)",
                        dir.display()
                    ),
                    e,
                )
            })
    }
}
