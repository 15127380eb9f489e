//! `copy`: all backups to a second repository.

use indicatif::ProgressBar;

use super::record::Record;
use super::{Context, Failure, output};
use crate::config::RepositoryPlace;
use crate::repository::copy::{CopyReport, copy, reencrypt};
use crate::repository::{Repository, RepositoryError, store};

/// Copies all backups to a second repository, file by file: it has the same id and the same keys. What is
/// there is not sent again, so a copy that was cut short goes on where it was.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A directory, or `s3://bucket/prefix`; COPY_REPOSITORY without it.
    pub target: Option<String>,
    /// The target is a repository with keys of its own (TARGET_AGE_PASSPHRASE, TARGET_AGE_PUBLIC_KEYS, or
    /// none): everything is decrypted here and encrypted anew.
    #[arg(long)]
    pub reencrypt: bool,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let target = match &args.target {
        Some(text) => RepositoryPlace::parse(text)
            .map_err(|fault| Failure::usage(anyhow::Error::msg(fault)))?,
        None => context.config.copy_repository.clone().ok_or_else(|| {
            Failure::usage(anyhow::Error::msg(
                "say where to copy to: `copy /mnt/disk/backups` or `copy s3://bucket/prefix`, or set COPY_REPOSITORY",
            ))
        })?,
    };
    let _lock = super::workplace::lock(context, "copy").await?;
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let report = send(context, &repository, &target, args.reencrypt)?;
    output::print(context.json, &report, |report| text(report, &target))?;
    complete(&report).map_err(|err| {
        if report.faults.is_empty() {
            Failure::sentence(err.to_string())
        } else {
            Failure::damage(err.to_string())
        }
    })?;
    if context.config.copy_repository.as_ref() == Some(&target) {
        Record::update(&context.config.state, |record| record.copy_failed = None);
    }
    Ok(())
}

/// Copies with a progress bar. For whoever holds the lock.
pub(super) fn send(
    context: &Context,
    repository: &Repository,
    target: &RepositoryPlace,
    anew: bool,
) -> anyhow::Result<CopyReport> {
    let config = &context.config;
    anyhow::ensure!(
        *target != config.repository,
        "the copy would go to where the repository is: {target}"
    );
    let encrypts = if anew {
        config.target_keys.encrypts()
    } else {
        repository.is_encrypted()
    };
    let store = store::connect_to(config, target)?;
    anyhow::ensure!(
        encrypts || !store.is_remote() || config.plaintext_secrets,
        "{target} is remote and what would lie there is not encrypted, and a backup holds passwords and keys: \
         agree with BACKUP_PLAINTEXT_SECRETS=yes, or encrypt it (`copy --reencrypt` with TARGET_AGE_PASSPHRASE)"
    );
    if let Some(directory) = target.directory() {
        crate::durable::create_dir_all(directory, 0o700).map_err(|e| {
            RepositoryError::io(format!("create the directory {}", directory.display()), e)
        })?;
    }
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    let report = tokio::task::block_in_place(|| {
        let progress = |_: &str, bytes| {
            bar.inc(bytes);
            bar.set_message(output::bytes(bar.position()));
        };
        if anew {
            let target = Repository::open_or_init(store, &config.target_keys)?;
            let level = config.compression_level;
            return reencrypt(repository, &target, &config.state, level, progress);
        }
        copy(repository, store, &config.keys, &config.state, progress)
    });
    bar.finish_and_clear();
    let report = report?;
    for note in &report.notes {
        tracing::warn!("{note}");
    }
    Ok(report)
}

/// Fails when a backup could not be copied.
pub(super) fn complete(report: &CopyReport) -> anyhow::Result<()> {
    let missing: Vec<&str> = report
        .faults
        .iter()
        .chain(&report.waiting)
        .map(String::as_str)
        .collect();
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("; "));
    Ok(())
}

fn text(report: &CopyReport, target: &RepositoryPlace) -> String {
    format!(
        "{} backups copied to {target} with {} packs of {}, and {} of WAL; {} backups were there\n",
        report.copied.len(),
        report.packs,
        output::bytes(report.pack_bytes),
        output::bytes(report.wal_bytes),
        report.there
    )
}
