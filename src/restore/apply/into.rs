//! `--into DIR`: archives as files, for a person or another machine. No service is touched.

use std::path::{Path, PathBuf};

use super::staging::{Staging, unpack_all};
use super::{Open, Phase, RestoreReport, Site, checks};
use crate::archive::unpack::UnpackOptions;
use crate::durable;
use crate::restore::plan::{Plan, PlannedWay};

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
    let mut result = stage(plan, directory, open, site, &mut report, &mut staged).await;
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
    plan: &Plan,
    directory: &Path,
    open: &Open<'_>,
    site: &Site<'_>,
    report: &mut RestoreReport,
    staged: &mut Vec<(PathBuf, PathBuf)>,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for service in &plan.services {
        let name = &service.record.name;
        let staging = directory.join(format!(".lifeboat-new-{name}-{}", site.run.run_id));
        durable::create_dir(&staging, 0o700)?;
        staged.push((staging.clone(), directory.join(name)));
        all.push(Staging {
            service: &service.service,
            record: &service.record,
            directory: staging,
            options: options(report),
        });
    }
    let unpacked = unpack_all(&all, open, site).await?;
    for (staging, (unpacked, took)) in all.iter().zip(unpacked) {
        report.unpacked(staging.service, unpacked, took);
    }
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
