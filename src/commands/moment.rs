//! Which moment a restore goes to: the backup it begins with, and the WAL that is replayed after it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::record::Record;
use super::workplace::Workplace;
use super::{Context, Failure};
use crate::repository::Repository;
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::repository::wal::{Mark, WalList};
use crate::services::ServiceKind;
use crate::services::postgres::pitr::target::{Base, Question, TargetError};
use crate::services::postgres::pitr::{Replay, Target};
use crate::services::postgres::wal::Lsn;
use crate::services::postgres::{Facts, has_cluster};

/// Where PostgreSQL's recovery goes on to after the backup.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(skip)]
pub struct Args {
    /// PostgreSQL as it was at this time, such as "2026-11-22 14:03:07+01", or as late as there is WAL: `latest`.
    #[arg(long, value_name = "TIME", group = "moment")]
    pub at: Option<String>,
    /// PostgreSQL with everything before this position of its WAL, such as 16/B374D848.
    #[arg(long, value_name = "LSN", group = "moment")]
    pub lsn: Option<String>,
    /// PostgreSQL as it was right before this transaction ended.
    #[arg(long, value_name = "XID", group = "moment")]
    pub before_xid: Option<u32>,
    /// PostgreSQL as it was when `mark` was given this name.
    #[arg(long, value_name = "NAME", group = "moment")]
    pub mark: Option<String>,
    /// Along this timeline of PostgreSQL, instead of the newest that fits.
    #[arg(long, value_name = "NUMBER")]
    pub timeline: Option<u32>,
}

impl Args {
    pub fn is_given(&self) -> bool {
        self.at.is_some() || self.lsn.is_some() || self.before_xid.is_some() || self.mark.is_some()
    }
}

/// What is restored.
pub struct Moment {
    pub manifest: Manifest,
    /// By archive.
    pub replays: BTreeMap<String, Replay>,
    /// For the plan.
    pub notes: Vec<String>,
}

/// Finds the backup, and the WAL after it.
pub fn find(
    context: &Context,
    place: &Workplace,
    repository: &Arc<Repository>,
    backup: Option<&str>,
    args: &Args,
) -> Result<Moment, Failure> {
    let project = place.stack.project.as_deref();
    let named = match backup {
        Some("latest") => Some(repository.latest_of(project)),
        Some(wanted) => Some(repository.resolve(wanted)),
        None if args.is_given() => None,
        None => {
            return Err(Failure::usage(anyhow::Error::msg(
                "say which backup: an id (`list` shows them), `latest`, or a moment with --at",
            )));
        }
    };
    let named = named.transpose().map_err(anyhow::Error::new)?;
    let list = repository.wal().map_err(anyhow::Error::new)?;
    let zone = TimeZone::get(&context.config.schedule.time_zone).unwrap_or(TimeZone::UTC);
    let finder = Finder {
        context,
        place,
        repository,
        list,
        zone,
        timeline: args.timeline,
    };
    let mut found = match (named, args.is_given()) {
        (Some(id), false) => finder.backup(&id, backup == Some("latest")),
        // `latest` and a moment: the backup is chosen by the moment.
        (Some(id), true) => {
            finder.moment(args, Some(id.as_str()).filter(|_| backup != Some("latest")))
        }
        (None, _) => finder.moment(args, None),
    }?;
    let own = Record::load(&context.config.state).machine;
    if let (Some(own), Some(made)) = (own, &found.manifest.machine)
        && own != *made
    {
        found.notes.push(format!(
            "{} was made by another machine ({}) that gives its stack the same name",
            found.manifest.id, found.manifest.host
        ));
    }
    Ok(found)
}

struct Finder<'a> {
    context: &'a Context,
    place: &'a Workplace,
    repository: &'a Arc<Repository>,
    list: WalList,
    zone: TimeZone,
    timeline: Option<u32>,
}

impl Finder<'_> {
    /// A backup as it is; with the WAL after it where the cluster is gone.
    fn backup(&self, id: &str, is_latest: bool) -> Result<Moment, Failure> {
        let manifest = self.repository.manifest(id).map_err(anyhow::Error::new)?;
        let manifests = [manifest];
        let [manifest] = &manifests;
        let (mut replays, mut notes) = (BTreeMap::new(), Vec::new());
        for record in clusters(manifest) {
            // An imported one has its own way of recovery, and dumps have none.
            let Some(base) = Base::of(manifest, &record.name) else {
                continue;
            };
            let bases = [base];
            let question = self.question(&bases);
            let reaches = question.choose(&Target::Latest).map_err(failure)?;
            let is_further = reaches.1.goes_on();
            if is_latest && !self.is_there(record) && self.is_from_another(manifest, record)? {
                return self.moment(&Args::default(), None);
            }
            if is_latest && is_further && !self.is_there(record) {
                notes.push(format!(
                    "{}: no cluster is there any more, so its WAL is replayed {}; give the backup's id to restore the backup alone",
                    record.name,
                    reaches.1.said()
                ));
                replays.insert(record.name.clone(), reaches.1);
                continue;
            }
            if is_further {
                notes.push(format!(
                    "{}: there is WAL after this backup, and this restore leaves it out; `restore --at latest` goes {}, `--at TIME` stops where you say",
                    record.name,
                    reaches.1.said()
                ));
            }
            let (_, replay) = question.choose(&Target::Backup).map_err(failure)?;
            replays.insert(record.name.clone(), replay);
        }
        Ok(Moment {
            manifest: manifest.clone(),
            replays,
            notes,
        })
    }

    /// Whether the newest state is reached from another backup: this one is on a timeline that was left.
    fn is_from_another(&self, newest: &Manifest, record: &ArchiveRecord) -> Result<bool, Failure> {
        let manifests = self.manifests(None)?;
        let bases: Vec<_> = manifests
            .iter()
            .filter_map(|manifest| Base::of(manifest, &record.name))
            .collect();
        let question = self.question(&bases);
        let (manifest, _) = question.choose(&Target::Latest).map_err(failure)?;
        Ok(manifest.id != newest.id)
    }

    /// The backup that a moment is reached from.
    fn moment(&self, args: &Args, only: Option<&str>) -> Result<Moment, Failure> {
        let manifests = self.manifests(only)?;
        let newest = manifests
            .iter()
            .find(|manifest| clusters(manifest).next().is_some())
            .ok_or_else(|| {
                Failure::sentence("no backup here has a PostgreSQL cluster, and only that can go to a moment between backups")
            })?;
        let (mut chosen, mut replays, mut notes): (Option<&Manifest>, BTreeMap<_, _>, Vec<String>) =
            (None, BTreeMap::new(), Vec::new());
        let marks = match &args.mark {
            Some(name) => self.marks(name)?,
            None => Vec::new(),
        };
        for record in clusters(newest) {
            let (target, timeline) = self.target(args, &marks, record)?;
            let bases: Vec<Base<'_>> = manifests
                .iter()
                .filter(|m| chosen.is_none_or(|chosen| chosen.id == m.id))
                .filter_map(|manifest| Base::of(manifest, &record.name))
                .collect();
            let mut question = self.question(&bases);
            question.timeline = question.timeline.or(timeline);
            let (manifest, replay) = question.choose(&target).map_err(failure)?;
            notes.push(format!(
                "{}: recovery goes on {}, along timeline {}, over {} of WAL after the backup; the other services are restored as they were in the backup",
                record.name,
                replay.said(),
                replay.timeline(),
                super::output::bytes(replay.bytes())
            ));
            chosen = Some(manifest);
            replays.insert(record.name.clone(), replay);
        }
        Ok(Moment {
            manifest: chosen.unwrap_or(newest).clone(),
            replays,
            notes,
        })
    }

    /// The project's backups, the newest first.
    fn manifests(&self, only: Option<&str>) -> Result<Vec<Manifest>, Failure> {
        let mut found = Vec::new();
        for id in self
            .repository
            .backups()
            .map_err(anyhow::Error::new)?
            .iter()
            .rev()
        {
            if only.is_some_and(|only| only != id) {
                continue;
            }
            match self.repository.manifest(id) {
                Ok(manifest) if only.is_some() || manifest.project == self.place.stack.project => {
                    found.push(manifest);
                }
                Ok(_) => {}
                Err(err) => tracing::warn!("{err}: it is passed over; run `verify`"),
            }
        }
        Ok(found)
    }

    fn question<'q, 'm>(&'q self, bases: &'q [Base<'m>]) -> Question<'q, 'm> {
        Question {
            repository: self.repository,
            list: &self.list,
            bases,
            timeline: self.timeline,
            zone: &self.zone,
        }
    }

    fn target(
        &self,
        args: &Args,
        marks: &[Mark],
        record: &ArchiveRecord,
    ) -> Result<(Target, Option<u32>), Failure> {
        if let Some(name) = &args.mark {
            let facts = Facts::of(&record.report).map_err(Failure::sentence)?;
            let mark = marks
                .iter()
                .find(|mark| mark.system.to_string() == facts.system_identifier)
                .ok_or_else(|| {
                    Failure::sentence(format!(
                        "the mark \"{name}\" is of another cluster than {}",
                        record.name
                    ))
                })?;
            return Ok((Target::Lsn(mark.lsn), Some(mark.timeline)));
        }
        let target = if let Some(xid) = args.before_xid {
            Target::BeforeXid(xid)
        } else if let Some(lsn) = &args.lsn {
            let parsed = Lsn::parse(lsn).ok_or_else(|| {
                Failure::usage(anyhow::anyhow!(
                    "\"{lsn}\" is no position in a WAL: those look like 16/B374D848"
                ))
            })?;
            Target::Lsn(parsed.0)
        } else {
            let given = args.at.as_deref().unwrap_or("latest");
            if given == "latest" {
                Target::Latest
            } else {
                Target::Time(parse_time(given, &self.zone).ok_or_else(|| {
                    Failure::usage(anyhow::anyhow!(
                        "\"{given}\" is no time: give it as \"2026-11-22 14:03:07\" (in {}), or with an offset as \"2026-11-22 14:03:07+01\"",
                        self.context.config.schedule.time_zone
                    ))
                })?)
            }
        };
        Ok((target, None))
    }

    /// The newest marks of this name, one for each cluster.
    fn marks(&self, name: &str) -> Result<Vec<Mark>, Failure> {
        let mut marks = self
            .repository
            .marks(&self.list)
            .map_err(anyhow::Error::new)?;
        let names: Vec<String> = marks.iter().map(|mark| mark.name.clone()).collect();
        marks.retain(|mark| mark.name == name);
        // Not by time: the clock may have been set back between them.
        marks.sort_by_key(|mark| Reverse((mark.timeline, mark.lsn)));
        if marks.is_empty() {
            let there = if names.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            return Err(Failure::sentence(format!(
                "no mark is named \"{name}\": {there}"
            )));
        }
        Ok(marks)
    }

    /// Whether the stack has a cluster where this archive goes.
    fn is_there(&self, record: &ArchiveRecord) -> bool {
        let services = &self.place.stack.services;
        let of_kind = || services.iter().filter(|s| s.kind == ServiceKind::Postgres);
        let service = of_kind()
            .find(|s| s.name == record.name)
            .or_else(|| of_kind().next());
        // Where it cannot be told, nothing is replayed that nobody asked for.
        service.is_none_or(|service| has_cluster(&self.context.config, service))
    }
}

fn clusters(manifest: &Manifest) -> impl Iterator<Item = &ArchiveRecord> {
    manifest
        .archives
        .iter()
        .filter(|record| record.kind == ServiceKind::Postgres)
}

fn failure(err: TargetError) -> Failure {
    match err {
        TargetError::Repository(err) => anyhow::Error::new(err).into(),
        other => anyhow::Error::new(other).into(),
    }
}

/// A time with an offset, or in the configured time zone.
pub fn parse_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let local: DateTime = text.parse().ok()?;
    Some(local.to_zoned(zone.clone()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn times_are_taken_as_people_write_them() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let wanted: Timestamp = "2026-11-22T13:03:07Z".parse().unwrap();
        for text in [
            "2026-11-22 14:03:07+01",
            "2026-11-22T14:03:07+01:00",
            "2026-11-22 13:03:07Z",
            "2026-11-22 14:03:07",
            " 2026-11-22T14:03:07 ",
        ] {
            assert_eq!(parse_time(text, &berlin), Some(wanted), "{text}");
        }
        assert!(parse_time("2026-11-22 14:03", &berlin).is_some());
        for text in ["", "yesterday", "14:03:07", "2026-13-22 14:03:07"] {
            assert_eq!(parse_time(text, &berlin), None, "{text}");
        }
    }
}
