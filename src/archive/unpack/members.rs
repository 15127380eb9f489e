//! The members of a tar stream one by one, for those who do not write them below a directory.

use std::io;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, BufReader};
use tokio_tar::{Archive, Entries, Entry};

use super::READ_AHEAD;
use super::header_limit::{HeaderLimit, Limit};

type Limited<R> = HeaderLimit<BufReader<R>>;

/// A tar stream whose headers are bounded as [`unpack`](super::unpack) bounds them.
pub struct Members<R: AsyncRead + Unpin> {
    entries: Entries<Limited<R>>,
    limit: Limit,
    current: Option<Entry<Archive<Limited<R>>>>,
}

impl<R: AsyncRead + Unpin> Members<R> {
    pub fn new(archive: R) -> io::Result<Self> {
        let (limited, limit) = HeaderLimit::new(BufReader::with_capacity(READ_AHEAD, archive));
        Ok(Self {
            entries: Archive::new(limited).entries()?,
            limit,
            current: None,
        })
    }

    /// The next member; what was left of the last one's body is skipped.
    pub async fn next(&mut self) -> io::Result<Option<&mut Entry<Archive<Limited<R>>>>> {
        if let Some(mut last) = self.current.take() {
            tokio::io::copy(&mut last, &mut tokio::io::sink()).await?;
        }
        self.limit.header();
        let Some(entry) = self.entries.next().await else {
            return Ok(None);
        };
        let entry = entry?;
        self.limit.body();
        if entry.header().entry_type().is_gnu_sparse() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds a sparse file, which no backup writes",
            ));
        }
        Ok(Some(self.current.insert(entry)))
    }

    /// The member that [`Self::next`] found last.
    pub fn current(&mut self) -> Option<&mut Entry<Archive<Limited<R>>>> {
        self.current.as_mut()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use tokio::io::AsyncReadExt;

    use super::*;

    async fn tar(long_name: usize) -> Vec<u8> {
        let mut tar = tokio_tar::Builder::new(Vec::new());
        for (name, size) in [
            ("large".to_owned(), 3 << 20),
            ("n".repeat(long_name), 1),
            ("last".to_owned(), 2),
        ] {
            let mut header = tokio_tar::Header::new_gnu();
            header.set_size(size as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, vec![b'x'; size].as_slice())
                .await
                .unwrap();
        }
        tar.into_inner().await.unwrap()
    }

    #[tokio::test]
    async fn bodies_left_unread_do_not_count_as_headers() {
        let tar = tar(200).await;
        let mut members = Members::new(tar.as_slice()).unwrap();
        let mut sizes = Vec::new();
        while let Some(entry) = members.next().await.unwrap() {
            sizes.push(entry.effective_size());
            if sizes.len() == 1 {
                entry.read_u8().await.unwrap();
            }
        }
        assert_eq!(sizes, [3 << 20, 1, 2]);
    }

    #[tokio::test]
    async fn headers_beyond_the_limit_are_refused() {
        let tar = tar(2 << 20).await;
        let mut members = Members::new(tar.as_slice()).unwrap();
        assert!(members.next().await.unwrap().is_some());
        let error = members.next().await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("headers take more"), "{error}");
    }
}
