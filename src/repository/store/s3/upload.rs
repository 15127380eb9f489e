//! Files into the bucket: never over another one, never half of one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, MultipartId, ObjectStore as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload,
};
use tokio_util::bytes::Bytes;

use super::retry::Fault;
use super::{Inner, PIECE_BYTES, PIECES_AT_ONCE};
use crate::repository::store::Spool;
use crate::repository::{RepositoryError, hex};

/// Tag of an object: which write made it.
const WRITER: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("lifeboat-writer"));

/// Names one write, so that its own object can be told from another writer's.
struct Token(String);

impl Token {
    fn new() -> Self {
        Self(hex(&rand::random::<[u8; 16]>()))
    }

    fn attributes(&self) -> Attributes {
        Attributes::from_iter([(WRITER, self.0.clone())])
    }
}

impl Inner {
    /// Stores a small file under a key that is free.
    pub(super) async fn put_new(&self, key: &str, bytes: Bytes) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        let token = Token::new();
        let options = PutOptions {
            mode: PutMode::Create,
            attributes: token.attributes(),
            ..PutOptions::default()
        };
        let payload = PutPayload::from_bytes(bytes);
        match self
            .persist(|| self.s3.put_opts(&path, payload.clone(), options.clone()))
            .await
        {
            Ok(_) => Ok(()),
            Err(fault) => self.judge("write", key, &token, &fault).await,
        }
    }

    /// Stores a small file, whatever is there.
    pub(super) async fn replace(&self, key: &str, bytes: Bytes) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        let payload = PutPayload::from_bytes(bytes);
        self.persist(|| {
            self.s3
                .put_opts(&path, payload.clone(), PutOptions::default())
        })
        .await
        .map(drop)
        .map_err(|fault| self.explain("write", key, &fault))
    }

    /// What a failed write means. Where an earlier attempt may have succeeded unheard, the object itself tells.
    async fn judge(
        &self,
        doing: &str,
        key: &str,
        token: &Token,
        fault: &Fault,
    ) -> Result<(), RepositoryError> {
        if fault.doubtful || fault.may_have_worked() {
            match self.head(key).await {
                Ok(found)
                    if found
                        .attributes
                        .get(&WRITER)
                        .is_some_and(|w| **w == token.0) =>
                {
                    return Ok(());
                }
                // A server that refuses a long body early may cut the line before its answer is read.
                Ok(_) => return Err(RepositoryError::Exists(key.to_owned())),
                Err(RepositoryError::Missing(_)) => {}
                Err(_) => return Err(self.explain(doing, key, fault)),
            }
        }
        Err(if fault.is_taken() {
            RepositoryError::Exists(key.to_owned())
        } else {
            match self.explain(doing, key, fault) {
                // An upload, not a file of the repository: somebody removed it.
                RepositoryError::Missing(_) => RepositoryError::Remote {
                    what: format!("{doing} {key} in {}", self.place),
                    why: format!("{fault}: the upload was removed while it went on; try again"),
                    transient: true,
                },
                other => other,
            }
        })
    }

    /// Stores a file of any size under a key that is free.
    async fn publish(
        self: &Arc<Self>,
        key: &str,
        file: Arc<File>,
        size: u64,
    ) -> Result<(), RepositoryError> {
        if size <= PIECE_BYTES {
            let bytes = piece_of(file, 0, size).await?;
            return self.put_new(key, bytes).await;
        }
        match self.head(key).await {
            // Told before anything is sent; the last request makes sure.
            Ok(_) => return Err(RepositoryError::Exists(key.to_owned())),
            Err(RepositoryError::Missing(_)) => {}
            Err(other) => return Err(other),
        }
        let path = self.path(key)?;
        let token = Token::new();
        let options = PutMultipartOptions {
            attributes: token.attributes(),
            ..PutMultipartOptions::default()
        };
        let upload = self
            .persist(|| self.s3.create_multipart_opts(&path, options.clone()))
            .await
            .map_err(|fault| self.explain("begin to write", key, &fault))?;
        let closed = match self.send_parts(key, &path, &upload, file, size).await {
            Ok(parts) => {
                let close = || self.s3.complete_multipart(&path, &upload, parts.clone());
                match self.persist(close).await {
                    Ok(_) => Ok(()),
                    Err(fault) => self.judge("finish", key, &token, &fault).await,
                }
            }
            Err(err) => Err(err),
        };
        if closed.is_err() {
            self.abort(key, &path, &upload).await;
        }
        closed
    }

    async fn send_parts(
        &self,
        key: &str,
        path: &Path,
        upload: &MultipartId,
        file: Arc<File>,
        size: u64,
    ) -> Result<Vec<PartId>, RepositoryError> {
        let mut parts = Vec::new();
        let mut from = 0;
        while from < size {
            parts.push((parts.len(), from, size.min(from + PIECE_BYTES)));
            from += PIECE_BYTES;
        }
        futures_util::stream::iter(parts.into_iter().map(|(number, from, to)| {
            let file = Arc::clone(&file);
            async move {
                let payload = PutPayload::from_bytes(piece_of(file, from, to).await?);
                self.persist(|| self.s3.put_part(path, upload, number, payload.clone()))
                    .await
                    .map_err(|fault| match self.explain("write", key, &fault) {
                        RepositoryError::Missing(_) => RepositoryError::Remote {
                            what: format!("write {key} in {}", self.place),
                            why: format!(
                                "{fault}: the upload was removed while it went on; try again"
                            ),
                            transient: true,
                        },
                        other => other,
                    })
            }
        }))
        .buffered(PIECES_AT_ONCE)
        .try_collect()
        .await
    }

    /// Frees what an upload that failed has sent. One try: the bucket's rule for such uploads gets the rest.
    async fn abort(&self, key: &str, path: &Path, upload: &MultipartId) {
        let aborted =
            tokio::time::timeout(self.patience.stall, self.s3.abort_multipart(path, upload)).await;
        let why = match aborted {
            Ok(Ok(())) => return,
            Ok(Err(err)) => err.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::debug!("the parts sent for {key} could not be removed: {why}");
    }
}

async fn piece_of(file: Arc<File>, from: u64, to: u64) -> Result<Bytes, RepositoryError> {
    let read = move || -> io::Result<Bytes> {
        let length = usize::try_from(to - from).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, from)?;
        Ok(bytes.into())
    };
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|e| RepositoryError::io("read a scratch file", e))
}

/// A file on this side until it is whole.
pub(super) struct S3Spool {
    inner: Arc<Inner>,
    file: File,
    size: u64,
}

impl S3Spool {
    pub fn new(inner: Arc<Inner>, file: File) -> Self {
        Self {
            inner,
            file,
            size: 0,
        }
    }
}

impl Write for S3Spool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buf)?;
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Spool for S3Spool {
    fn publish(self: Box<Self>, key: &str) -> Result<(), RepositoryError> {
        let Self { inner, file, size } = *self;
        let (key, file) = (key.to_owned(), Arc::new(file));
        inner.run(|inner| async move { inner.publish(&key, file, size).await })
    }
}
