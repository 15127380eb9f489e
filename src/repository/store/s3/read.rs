//! Files out of the bucket, piece by piece.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore as _};
use tokio_util::bytes::Bytes;

use super::{Inner, PIECE_BYTES, PIECES_AT_ONCE};
use crate::repository::RepositoryError;
use crate::repository::store::Blob;

/// Which content of an object is meant, so that all pieces are of the same one.
#[derive(Debug, Clone)]
struct Version {
    path: Path,
    e_tag: Option<String>,
}

impl Inner {
    /// A small file whole.
    pub(super) async fn get(
        &self,
        key: &str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, RepositoryError> {
        let mut version = Version {
            path: self.path(key)?,
            e_tag: None,
        };
        let first = limit_bytes.saturating_add(1).min(PIECE_BYTES);
        let Some((piece, size, e_tag)) = self.first_piece(key, &version, first).await? else {
            return Ok(Vec::new());
        };
        if size > limit_bytes {
            return Err(RepositoryError::Invalid(format!(
                "{key} is larger than {limit_bytes} bytes: it is damaged"
            )));
        }
        version.e_tag = e_tag;
        let mut bytes = Vec::from(piece);
        while (bytes.len() as u64) < size {
            let from = bytes.len() as u64;
            let piece = from..size.min(from + PIECE_BYTES);
            bytes.extend_from_slice(&self.piece(key, &version, piece).await?);
        }
        Ok(bytes)
    }

    /// The front of an object, with the size and the tag of all of it; `None` where it is empty.
    async fn first_piece(
        &self,
        key: &str,
        version: &Version,
        length: u64,
    ) -> Result<Option<(Bytes, u64, Option<String>)>, RepositoryError> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(0..length)),
            ..GetOptions::default()
        };
        let read = || async {
            let answer = self.s3.get_opts(&version.path, options.clone()).await?;
            let (size, e_tag) = (answer.meta.size, answer.meta.e_tag.clone());
            Ok((answer.bytes().await?, size, e_tag))
        };
        match self.persist(read).await {
            Ok((bytes, size, _)) if bytes.len() as u64 != size.min(length) => {
                Err(short(key, size.min(length), bytes.len()))
            }
            Ok(found) => Ok(Some(found)),
            // No range of an empty file can be had.
            Err(fault) if fault.answer().is_some_and(|a| a.status == 416) => Ok(None),
            Err(fault) => Err(self.explain("read", key, &fault)),
        }
    }

    /// A piece of an object.
    async fn piece(
        &self,
        key: &str,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Bytes, RepositoryError> {
        let wanted = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: version.e_tag.clone(),
            ..GetOptions::default()
        };
        let read = || async {
            let answer = self.s3.get_opts(&version.path, options.clone()).await?;
            answer.bytes().await
        };
        let bytes = self.persist(read).await.map_err(|fault| {
            if fault.is_taken() {
                RepositoryError::Invalid(format!("{key} was replaced while it was read: try again"))
            } else {
                self.explain("read", key, &fault)
            }
        })?;
        if bytes.len() as u64 == wanted {
            Ok(bytes)
        } else {
            Err(short(key, wanted, bytes.len()))
        }
    }

    /// Copies an object into a file and checks that it is all there.
    pub(super) async fn download(
        self: &Arc<Self>,
        key: &str,
        file: Arc<File>,
    ) -> Result<(), RepositoryError> {
        let meta = self.head(key).await?.meta;
        let version = Version {
            path: self.path(key)?,
            e_tag: meta.e_tag,
        };
        futures_util::stream::iter((0..meta.size).step_by(PIECE_STEP).map(|from| {
            let (file, version) = (Arc::clone(&file), &version);
            async move {
                let range = from..meta.size.min(from + PIECE_BYTES);
                let bytes = self.piece(key, version, range).await?;
                tokio::task::spawn_blocking(move || file.write_all_at(&bytes, from))
                    .await
                    .unwrap_or_else(|e| Err(io::Error::other(e)))
                    .map_err(|e| RepositoryError::io(format!("write a copy of {key}"), e))
            }
        }))
        .buffer_unordered(PIECES_AT_ONCE)
        .try_collect::<()>()
        .await?;
        let written = file
            .metadata()
            .map_err(|e| RepositoryError::io(format!("look at a copy of {key}"), e))?
            .len();
        if written == meta.size {
            Ok(())
        } else {
            Err(RepositoryError::Invalid(format!(
                "the copy of {key} has {written} bytes and should have {}",
                meta.size
            )))
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // 8 MiB
const PIECE_STEP: usize = PIECE_BYTES as usize;

fn short(key: &str, wanted: u64, got: usize) -> RepositoryError {
    RepositoryError::Remote {
        what: format!("read {key}"),
        why: format!("the server gave {got} bytes of the {wanted} that were asked for"),
        transient: true,
    }
}

/// An object, each read of which is a request.
pub(super) struct S3Blob {
    inner: Arc<Inner>,
    key: String,
    version: Version,
    size: u64,
}

impl S3Blob {
    pub fn open(inner: Arc<Inner>, key: &str) -> Result<Self, RepositoryError> {
        let path = inner.path(key)?;
        let name = key.to_owned();
        let meta = inner
            .run(|inner| async move { inner.head(&name).await })?
            .meta;
        Ok(Self {
            inner,
            key: key.to_owned(),
            version: Version {
                path,
                e_tag: meta.e_tag,
            },
            size: meta.size,
        })
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let (key, version) = (self.key.clone(), self.version.clone());
        self.inner
            .run(|inner| async move { inner.piece(&key, &version, range).await })
            .map_err(io::Error::other)
    }
}

impl Blob for S3Blob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= self.size)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        for part in buf.chunks_mut(PIECE_STEP) {
            let next = end.min(at + PIECE_BYTES);
            part.copy_from_slice(&self.read(at..next)?);
            at = next;
        }
        Ok(())
    }

    fn stream(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Pieces {
            blob: self,
            at: 0,
            piece: Bytes::new(),
        }))
    }
}

/// An object from its start to its end.
struct Pieces<'a> {
    blob: &'a S3Blob,
    at: u64,
    piece: Bytes,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.blob.size {
            let end = self.blob.size.min(self.at + PIECE_BYTES);
            self.piece = self.blob.read(self.at..end)?;
            self.at = end;
        }
        let count = buf.len().min(self.piece.len());
        let front = self.piece.split_to(count);
        if let Some(out) = buf.get_mut(..count) {
            out.copy_from_slice(&front);
        }
        Ok(count)
    }
}
