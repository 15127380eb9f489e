//! What was given, as trees on the disk: tars are unpacked beside the scratch files, directories stay in place.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::names::Names;
use super::sniff::{self, Compression, HEAD_BYTES};
use crate::archive::unpack::{UnpackError, UnpackOptions, unpack};
use crate::durable;
use crate::services::project::is_project_file;
use crate::services::volume::slug;

const READ_BYTES: usize = 256 * 1024;

/// One directory tree to be looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// What it is called where its own directories do not tell: `[a-z0-9._-]+`.
    pub name: String,
    pub root: PathBuf,
}

/// Makes a tree of each path; `staging` is an existing, empty directory that the caller removes.
///
/// Files of a compose project that are given by themselves are one tree together.
pub async fn stage(
    paths: &[PathBuf],
    staging: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Tree>> {
    let mut trees: Vec<Tree> = Vec::new();
    let loose = staging.join("project");
    for (number, path) in paths.iter().enumerate() {
        let shown = path.display();
        // Whoever names a link means what it leads to.
        let real = path
            .canonicalize()
            .with_context(|| format!("cannot read {shown}"))?;
        let kind = std::fs::metadata(&real).with_context(|| format!("cannot read {shown}"))?;
        if kind.is_dir() {
            trees.push(Tree {
                name: slug(&real),
                root: real,
            });
        } else if !kind.is_file() {
            anyhow::bail!("{shown} is neither a file nor a directory: nothing was imported");
        } else if path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_project_file)
        {
            keep_loose(path, &loose).with_context(|| format!("copy {shown}"))?;
        } else {
            let root = staging.join(number.to_string());
            durable::create_dir(&root, 0o700)?;
            tracing::info!("unpacking {shown}");
            unpack_file(path, &root, stop).await?;
            trees.push(Tree {
                name: stem(path),
                root,
            });
        }
    }
    if loose.exists() {
        trees.push(Tree {
            name: "project".to_owned(),
            root: loose,
        });
    }
    let mut names = Names::default();
    for tree in &mut trees {
        tree.name = names.distinct(&tree.name);
    }
    Ok(trees)
}

/// Copies a file of the project with its owner and time.
fn keep_loose(path: &Path, loose: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    durable::create_dir_all(loose, 0o700)?;
    let target = loose.join(path.file_name().unwrap_or_default());
    if target.exists() {
        return Err(io::Error::other(
            "another file of this name was given: import one of them",
        ));
    }
    std::fs::copy(path, &target)?;
    let stat = std::fs::metadata(path)?;
    std::os::unix::fs::lchown(&target, Some(stat.uid()), Some(stat.gid()))?;
    std::fs::File::options()
        .append(true)
        .open(&target)?
        .set_modified(stat.modified()?)
}

/// A tar's name without what says that it is one.
fn stem(path: &Path) -> String {
    let mut name = slug(path);
    for end in [".gz", ".tgz", ".zst", ".tzst", ".zstd", ".tar"] {
        if let Some(stem) = name.strip_suffix(end).filter(|stem| !stem.is_empty()) {
            name = stem.to_owned();
        }
    }
    name
}

async fn unpack_file(path: &Path, root: &Path, stop: &CancellationToken) -> anyhow::Result<()> {
    let shown = path.display();
    let unreadable = |e: io::Error| anyhow::anyhow!("{shown} cannot be read: {}", why(&e));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut file = Stoppable {
        inner: file,
        stop: stop.clone(),
    };
    let head = read_head(&mut file).await.map_err(unreadable)?;
    let mut tar = decompressed(io::Cursor::new(head).chain(file));
    let head = read_head(&mut tar).await.map_err(unreadable)?;
    if let Err(what) = sniff::require_tar(&head) {
        anyhow::bail!("{shown} {what}");
    }
    let tar = io::Cursor::new(head).chain(tar);
    match unpack(tar, root, &options()).await {
        Ok(_) => Ok(()),
        Err(UnpackError::Archive(e)) => Err(unreadable(e)),
        Err(UnpackError::Write { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
            anyhow::bail!(
                "{shown} does not fit unpacked into {}: make room there (LIFEBOAT_STATE), or unpack it elsewhere, and import that directory",
                root.display()
            )
        }
        Err(UnpackError::Unsafe { name, why }) => {
            anyhow::bail!("{shown} cannot be imported: its entry {name} is refused, because {why}")
        }
        Err(e) => Err(anyhow::Error::new(e).context(format!("unpack {shown}"))),
    }
}

/// A cut-off file is the usual trouble, and decoders have many ways to say it.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
            format!("it is cut off or damaged ({error}), so nothing was imported")
        }
        _ => error.to_string(),
    }
}

/// Only root may give files away; for others they stay their own.
fn options() -> UnpackOptions {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    UnpackOptions {
        owner: (!user.is_root()).then(|| (user.as_raw(), group.as_raw())),
        ..UnpackOptions::default()
    }
}

/// The first bytes; fewer where there are no more.
async fn read_head(file: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    file.take(HEAD_BYTES as u64).read_to_end(&mut head).await?;
    Ok(head)
}

fn decompressed<R>(
    file: tokio::io::Chain<io::Cursor<Vec<u8>>, R>,
) -> Box<dyn AsyncRead + Unpin + Send>
where
    R: AsyncRead + Unpin + Send + 'static,
{
    let compression = Compression::of(file.get_ref().0.get_ref());
    let file = BufReader::with_capacity(READ_BYTES, file);
    match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => {
            let mut decoder = GzipDecoder::new(file);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
        Compression::Zstd => {
            let mut decoder = ZstdDecoder::new(file);
            decoder.multiple_members(true);
            Box::new(decoder)
        }
    }
}

/// A file that fails to be read once the program is asked to stop: what is half unpacked is then removed.
struct Stoppable {
    inner: tokio::fs::File,
    stop: CancellationToken,
}

impl AsyncRead for Stoppable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stop.is_cancelled() {
            let stopped =
                io::Error::new(io::ErrorKind::ConnectionAborted, "the import was stopped");
            return Poll::Ready(Err(stopped));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_called_as_their_files_without_the_endings() {
        for (file, name) in [
            ("/x/n8n_data.tar.gz", "n8n_data"),
            ("Backup 2026.tgz", "backup-2026"),
            ("pg.tar.zst", "pg"),
            ("plain.tar", "plain"),
            ("tar", "tar"),
            ("noname", "noname"),
        ] {
            assert_eq!(stem(Path::new(file)), name);
        }
    }
}
