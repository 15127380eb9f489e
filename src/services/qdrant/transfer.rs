//! Snapshots on their way back into the server: uploaded, or recovered from a file that it has already.

use std::path::Path;

use futures_util::stream;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Method, Url};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::names::segment;
use super::server::Server;
use crate::services::{ErrorKind, ServiceError};

const PIECE_BYTES: usize = 256 * 1024;
const PIECES_AHEAD: usize = 4;
/// Where the server's image keeps snapshots.
pub(super) const USUAL_DIRECTORY: &str = "/qdrant/snapshots";

/// A snapshot file on its way to the server.
pub(super) struct Upload<'a> {
    pub(super) collection: &'a str,
    /// The server keeps the file under this name.
    pub(super) file_name: &'a str,
    pub(super) bytes: u64,
    pub(super) sha256: &'a str,
}

impl Server {
    /// Streams a snapshot into a collection, which the server makes when there is none.
    ///
    /// The server compares the SHA-256 before it changes anything, and keeps the file
    /// (`POST /collections/{name}/snapshots/upload`).
    pub(super) async fn upload(
        &self,
        upload: &Upload<'_>,
        body: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ServiceError> {
        let what = format!("upload the snapshot of {}", upload.collection);
        let path = format!(
            "/collections/{}/snapshots/upload?wait=true&priority=snapshot&checksum={}",
            segment(upload.collection),
            segment(upload.sha256)
        );
        let (pieces, receiver) = tokio::sync::mpsc::channel(PIECES_AHEAD);
        let stream = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let part = Part::stream_with_length(Body::wrap_stream(stream), upload.bytes)
            .file_name(upload.file_name.to_owned());
        let request = self
            .request(Method::POST, &path)
            .multipart(Form::new().part("snapshot", part));
        let feed = async move {
            let mut body = body.take(upload.bytes);
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let got = match body.read(&mut piece).await {
                    Ok(0) if body.limit() > 0 => Err(std::io::Error::other(format!(
                        "{} bytes are missing at the end of a snapshot",
                        body.limit()
                    ))),
                    got => got,
                };
                match got {
                    Ok(0) => return Ok(()),
                    Ok(got) => piece.truncate(got),
                    Err(e) => {
                        let told = std::io::Error::other("the archive cannot be read");
                        // A request that has ended needs no reason any more.
                        pieces.send(Err(told)).await.unwrap_or_default();
                        return Err(e);
                    }
                }
                // The server has answered already: its answer says why.
                if pieces.send(Ok(piece)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let (answer, read) = tokio::join!(self.json(&what, request), feed);
        read.map_err(|e| self.error(ErrorKind::Io, format!("cannot read the archive: {e}")))?;
        answer.map(drop)
    }

    /// Recovers a collection, which the server makes when there is none, from one of its own files.
    pub(super) async fn recover(
        &self,
        collection: &str,
        location: &str,
        sha256: &str,
    ) -> Result<(), ServiceError> {
        let what = format!("recover {collection} from {location}");
        self.json(&what, self.recovery(collection, location, sha256))
            .await
            .map(drop)
    }

    /// The location of a file among the server's snapshots, proven to be readable there and to have this
    /// SHA-256.
    ///
    /// Proven by asking for a recovery with another checksum: the server reads the file, names its own
    /// checksum, and changes nothing (`_do_recover_from_snapshot` in `content_manager/snapshots/recover.rs`).
    /// A server that stores snapshots in S3 has no such files.
    pub(super) async fn locate(
        &self,
        collection: &str,
        snapshot: &str,
        sha256: &str,
        directories: &[String],
    ) -> Result<String, ServiceError> {
        let mut last = None;
        let mut asked = Vec::new();
        for known in directories {
            asked.push(known.clone());
            match self.prove(collection, snapshot, sha256, known).await? {
                Ok(location) => return Ok(location),
                Err(why) => last = Some(why),
            }
        }
        if let Some(told) = self.snapshots_directory(collection).await
            && !asked.contains(&told)
        {
            match self.prove(collection, snapshot, sha256, &told).await? {
                Ok(location) => return Ok(location),
                Err(why) => last = Some(why),
            }
        }
        Err(self.error(
            ErrorKind::Setup,
            format!(
                "the server cannot recover from its own snapshot {snapshot} of {collection}, so a live collection could not be put back; nothing was changed. Is its snapshots directory on a local disk ({USUAL_DIRECTORY})? The server says: {}",
                last.unwrap_or_default()
            ),
        ))
    }

    /// `Err` inside holds the server's words.
    async fn prove(
        &self,
        collection: &str,
        snapshot: &str,
        sha256: &str,
        directory: &str,
    ) -> Result<Result<String, String>, ServiceError> {
        let path = Path::new(directory).join(collection).join(snapshot);
        let Ok(url) = Url::from_file_path(&path) else {
            return Ok(Err(format!("{} is not an absolute path", path.display())));
        };
        let location = url.to_string();
        let what = format!("read {location}");
        let wrong = "0".repeat(64);
        let request = self.recovery(collection, &location, &wrong);
        match self.json(&what, request).await {
            Err(e) if e.message.contains(sha256) => Ok(Ok(location)),
            Err(e) => Ok(Err(e.message)),
            Ok(_) => Err(self.error(
                ErrorKind::Setup,
                "the server does not compare checksums of snapshots: use a newer image (1.17.1 or later)"
                    .to_owned(),
            )),
        }
    }

    /// The directory as the server names it when it refuses a file elsewhere (`validate_snapshot_path`).
    async fn snapshots_directory(&self, collection: &str) -> Option<String> {
        let request = self.recovery(collection, "file:///dev/null", &"0".repeat(64));
        let refused = self.json("find the snapshots directory", request).await;
        let words = refused.err()?.message;
        let rest = words.split_once("snapshots directory \"")?.1;
        Some(rest.split_once('"')?.0.to_owned())
    }

    fn recovery(&self, collection: &str, location: &str, sha256: &str) -> reqwest::RequestBuilder {
        let path = format!(
            "/collections/{}/snapshots/recover?wait=true",
            segment(collection)
        );
        let body: Value = json!({"location": location, "priority": "snapshot", "checksum": sha256});
        self.request(Method::PUT, &path).json(&body)
    }
}
