//! `export`: a backup as a plain tar file.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use async_compression::Level;
use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy};

use super::{Context, Failure};
use crate::repository::RepositoryError;
use crate::repository::manifest::{ArchiveRecord, Manifest};

/// Writes one archive of a backup as a plain tar stream to standard output or a file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A backup's id, the beginning of one, or `latest`.
    pub backup: String,
    /// The archive (see `show`); may be left out when the backup has only one.
    pub archive: Option<String>,
    /// How the stream is compressed.
    #[arg(long, short, value_enum, default_value = "zst")]
    pub compress: Compress,
    /// Writes to this file, which must not exist, instead of standard output.
    #[arg(long, short)]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compress {
    None,
    Zst,
    Gz,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let id = match args.backup.as_str() {
        "latest" => repository.latest_of_one(),
        id => repository.resolve(id),
    }
    .map_err(anyhow::Error::new)?;
    let manifest = repository.manifest(&id).map_err(anyhow::Error::new)?;
    let record = choose(&manifest, args.archive.as_deref())?;
    let stream = repository
        .archive(&manifest, record)
        .map_err(anyhow::Error::new)?
        .into_async();
    match &args.output {
        Some(path) => {
            let directory = path
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(std::path::Path::new("."));
            let file = crate::durable::AtomicFile::create(directory, 0o600)
                .context("create the output file")?;
            let out =
                tokio::fs::File::from_std(file.file().try_clone().context("open the output file")?);
            write(stream, out, args.compress).await?;
            file.commit_new(path).with_context(|| {
                format!(
                    "write {} (a file that exists is not replaced)",
                    path.display()
                )
            })?;
        }
        None if std::io::stdout().is_terminal() => {
            return Err(Failure::usage(anyhow::Error::msg(
                "export writes a tar file to standard output: redirect it (`> backup.tar.zst`), or give --output FILE",
            )));
        }
        None => write(stream, tokio::io::stdout(), args.compress).await?,
    }
    Ok(())
}

fn choose<'a>(manifest: &'a Manifest, wanted: Option<&str>) -> Result<&'a ArchiveRecord, Failure> {
    let names = || {
        manifest
            .archives
            .iter()
            .map(|a| a.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (wanted, manifest.archives.as_slice()) {
        (Some(name), _) => manifest.archive(name).ok_or_else(|| {
            Failure::from(anyhow::Error::new(RepositoryError::Invalid(format!(
                "backup {} has no archive \"{}\": it has {}",
                manifest.id,
                name.escape_debug(),
                names()
            ))))
        }),
        (None, [only]) => Ok(only),
        (None, _) => Err(Failure::usage(anyhow::Error::msg(format!(
            "say which archive to export: {}",
            names()
        )))),
    }
}

async fn write(
    mut stream: impl AsyncRead + Unpin,
    out: impl AsyncWrite + Unpin,
    compress: Compress,
) -> anyhow::Result<()> {
    async fn pass(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        copy(&mut from, &mut to).await?;
        to.shutdown().await
    }
    let written = match compress {
        Compress::None => pass(&mut stream, out).await,
        Compress::Zst => {
            pass(
                &mut stream,
                ZstdEncoder::with_quality(out, Level::Precise(3)),
            )
            .await
        }
        Compress::Gz => pass(&mut stream, GzipEncoder::new(out)).await,
    };
    written.context("export the archive")
}
