//! Archives on their way into empty directories, two at a time.
//!
//! One archive alone never keeps two cores busy: a model is read and proven by one thread, a large relation is
//! written by one, and at each archive's end everything waits for the disk. Another archive fills the gaps.
//!
//! When one fails, the others are told to end and are waited for: once the failure is returned nobody writes
//! any more, and the caller can remove what is half written.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::progress::Counted;
use super::{Event, Open, Site, interrupted};
use crate::archive::unpack::{UnpackOptions, UnpackReport, unpack};
use crate::repository::manifest::ArchiveRecord;

const AT_ONCE: usize = 2;

/// An archive and the empty directory it goes to.
pub struct Staging<'a> {
    pub service: &'a str,
    pub record: &'a ArchiveRecord,
    pub directory: PathBuf,
    pub options: UnpackOptions,
}

/// Unpacks all, the largest first; what became of each, in the order given.
pub async fn unpack_all(
    all: &[Staging<'_>],
    open: &Open<'_>,
    site: &Site<'_>,
) -> anyhow::Result<Vec<(UnpackReport, Duration)>> {
    let stop = site.cancel.child_token();
    let mut order: Vec<_> = all.iter().enumerate().collect();
    order.sort_by_key(|(_, staging)| Reverse(staging.record.raw_bytes));
    let works = order.into_iter().map(|(number, staging)| {
        let work = unpack_one(staging, open, site, stop.clone());
        async move { work.await.map(|unpacked| (number, unpacked)) }
    });
    let mut works = futures_util::stream::iter(works).buffer_unordered(AT_ONCE);
    let (mut unpacked, mut failure) = (Vec::with_capacity(all.len()), None);
    while let Some(work) = works.next().await {
        match work {
            Ok(done) => unpacked.push(done),
            Err(err) => {
                stop.cancel();
                // Those that end because of it come later.
                failure.get_or_insert(err);
            }
        }
    }
    if let Some(err) = failure {
        return Err(err);
    }
    unpacked.sort_unstable_by_key(|(number, _)| *number);
    Ok(unpacked.into_iter().map(|(_, unpacked)| unpacked).collect())
}

async fn unpack_one(
    staging: &Staging<'_>,
    open: &Open<'_>,
    site: &Site<'_>,
    stop: CancellationToken,
) -> anyhow::Result<(UnpackReport, Duration)> {
    if stop.is_cancelled() {
        return Err(interrupted());
    }
    let name = &staging.record.name;
    site.progress.tell(&Event::Step {
        service: staging.service.to_owned(),
        what: "writing its data",
    });
    let began = Instant::now();
    let reader = open(staging.record).with_context(|| format!("open archive {name}"))?;
    let reader = Counted::new(reader.into_async(), Arc::clone(&site.progress), stop);
    let report = unpack(reader, &staging.directory, &staging.options)
        .await
        .with_context(|| format!("unpack archive {name}"))?;
    Ok((report, began.elapsed()))
}
