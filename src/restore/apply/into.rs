//! `--into DIR`: archives as files, for a person or another machine. No service is touched.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::progress::Counted;
use super::{Open, Phase, RestoreReport, Site, checks};
use crate::archive::unpack::{UnpackOptions, unpack};
use crate::durable;
use crate::restore::plan::{Plan, PlannedService, PlannedWay};

/// Unpacks the plan's archives below its directory, each complete or not there at all.
///
/// Owners are put back when this process may; else the files are its own, which is said.
pub async fn into_directory(
    plan: &Plan,
    directory: &Path,
    open: &Open<'_>,
    site: &Site<'_>,
) -> anyhow::Result<RestoreReport> {
    let mut report = RestoreReport::new(&plan.backup, &site.run.run_id);
    report.begin(Phase::Preflight, &site.progress);
    site.progress.expect(plan.raw_bytes);
    durable::create_dir_all(directory, 0o700)?;
    check(plan, directory)?;
    report.begin(Phase::Stage, &site.progress);
    let mut staged = Vec::new();
    let mut result = Ok(());
    for service in &plan.services {
        result = stage(service, directory, open, site, &mut report, &mut staged).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        report.begin(Phase::Finish, &site.progress);
        result = publish(&staged);
    }
    if let Err(e) = result {
        return Err(clean_up(e, &staged));
    }
    report.end();
    Ok(report)
}

fn check(plan: &Plan, directory: &Path) -> anyhow::Result<()> {
    for service in &plan.services {
        let PlannedWay::Into { directory } = &service.way else {
            anyhow::bail!("{} is not planned to be unpacked", service.service);
        };
        if std::fs::symlink_metadata(directory).is_ok() {
            anyhow::bail!(
                "{} exists already, and nothing is overwritten: name another directory",
                directory.display()
            );
        }
    }
    let wanted = [(directory, plan.raw_bytes)];
    for check in checks::space(wanted.into_iter()) {
        if let Err(sentence) = check.outcome {
            anyhow::bail!("{}: {sentence}", check.subject);
        }
    }
    Ok(())
}

async fn stage(
    service: &PlannedService,
    directory: &Path,
    open: &Open<'_>,
    site: &Site<'_>,
    report: &mut RestoreReport,
    staged: &mut Vec<(PathBuf, PathBuf)>,
) -> anyhow::Result<()> {
    let record = &service.record;
    let staging = directory.join(format!(".lifeboat-new-{}-{}", record.name, site.run.run_id));
    durable::create_dir(&staging, 0o700)?;
    staged.push((staging.clone(), directory.join(&record.name)));
    let began = Instant::now();
    let reader = open(record).with_context(|| format!("open archive {}", record.name))?;
    let reader = Counted::new(
        reader.into_async(),
        site.progress.clone(),
        site.cancel.clone(),
    );
    let options = options(report);
    let unpacked = unpack(reader, &staging, &options)
        .await
        .with_context(|| format!("unpack archive {}", record.name))?;
    report.unpacked(&service.service, unpacked, began.elapsed());
    Ok(())
}

fn options(report: &mut RestoreReport) -> UnpackOptions {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if user.is_root() {
        return UnpackOptions::default();
    }
    let note = "files belong to the user who restored them, because only root may give files away";
    if !report.warnings.iter().any(|warning| warning == note) {
        report.warnings.push(note.to_owned());
    }
    UnpackOptions {
        owner: Some((user.as_raw(), group.as_raw())),
        ..UnpackOptions::default()
    }
}

fn publish(staged: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    for (staging, directory) in staged {
        durable::rename_new(staging, directory)?;
    }
    Ok(())
}

/// Removes what is half done; an archive that already has its name is complete and stays.
fn clean_up(mut error: anyhow::Error, staged: &[(PathBuf, PathBuf)]) -> anyhow::Error {
    for (staging, _) in staged {
        if let Err(e) = durable::remove_tree(staging) {
            error = error.context(format!("what is half unpacked stays behind ({e})"));
        }
    }
    error
}
