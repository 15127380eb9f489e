//! What is looked at before anything is touched.

use std::path::Path;

use super::{PostgresRestore, major_of};
use crate::repository::manifest::ArchiveRecord;
use crate::services::Check;
use crate::services::postgres::facts::{Copied, Facts};
use crate::services::postgres::pitr::Replay;
use crate::services::postgres::platform::Target;
use crate::services::postgres::session::Session;
use crate::services::postgres::{locate, tablespaces};

/// The user of the official image, and of its Alpine family.
const IMAGE_OWNER: u32 = 999;
const ALPINE_OWNER: u32 = 70;

/// Everything that would make the restore fail or do harm.
pub(super) async fn look(restore: &mut PostgresRestore, record: &ArchiveRecord) -> Vec<Check> {
    let name = restore.access.service.clone();
    let facts = match Facts::of(&record.report) {
        Ok(facts) => facts,
        Err(why) => return vec![Check::bad(format!("{name}: backup"), why)],
    };
    restore.choose_owner(&facts, record);
    let line = |what: &str, outcome: Result<String, String>| Check {
        subject: format!("{name}: {what}"),
        outcome,
        caution: false,
    };
    let tablespaces = tablespaces::preflight(&restore.access, &facts, &restore.root);
    let count = facts.tablespaces.len();
    let mut checks = vec![
        line("data directory", restore.look_at_root()),
        line("version", restore.look_at_version(&facts)),
        restore.look_at_cluster(&facts),
        line("owner", Ok(restore.look_at_owner(&facts))),
        line(
            "tablespaces",
            tablespaces.map(|()| format!("{count}, each can be put back")),
        ),
        line("space", restore.look_at_space(record)),
    ];
    if let Some(replay) = restore.replay.as_ref().filter(|replay| replay.goes_on()) {
        checks.push(Check::good(
            format!("{name}: moment"),
            format!(
                "after the backup, {} MB of WAL are replayed {}",
                replay.bytes() >> 20,
                replay.said()
            ),
        ));
    }
    if facts.copied == Some(Copied::Running) {
        checks.push(Check::caution(
            format!("{name}: copy"),
            "the backup was copied from a RUNNING server without a base backup and may be torn: check it soon with pg_amcheck --all --heapallindexed and a pg_dumpall",
        ));
    }
    if let Some(damage) = record.report.damage() {
        checks.push(Check::caution(format!("{name}: damage"), damage));
    }
    checks.extend(restore.look_at_target(&facts, record).await);
    checks
}

impl PostgresRestore {
    fn look_at_root(&self) -> Result<String, String> {
        let root = self.root.display();
        match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(format!("{root} is not a directory: correct POSTGRES_DATA")),
            Err(err) => {
                return Err(format!(
                    "{root} cannot be used ({err}): start the server once, so that it makes its data directory, or create it"
                ));
            }
        }
        if self
            .access
            .mount_of(&self.root)
            .is_some_and(|m| m.read_only)
        {
            return Err(format!(
                "{root} is mounted read-only: a restore writes there; mount it without `:ro`"
            ));
        }
        Ok(root.to_string())
    }

    /// Data files fit one major version only.
    fn look_at_version(&self, facts: &Facts) -> Result<String, String> {
        let image = self
            .access
            .stack()
            .environment
            .get("PG_MAJOR")
            .and_then(|text| text.parse::<u32>().ok());
        let other = [
            (image, "the server is"),
            (major_of(&self.root), "the data there is of"),
        ]
        .into_iter()
        .find_map(|(major, what)| Some((major.filter(|m| *m != facts.major)?, what)));
        match other {
            Some((major, what)) => Err(format!(
                "the backup is of PostgreSQL {}, {what} PostgreSQL {major}: use the image of PostgreSQL {} for the restore (an empty data directory, if there is data of another version)",
                facts.major, facts.major
            )),
            None if image.is_none() && major_of(&self.root).is_none() => Ok(format!(
                "the backup is of PostgreSQL {}; what the server is cannot be seen from here: it must be the same",
                facts.major
            )),
            None => Ok(format!("PostgreSQL {}, as the backup", facts.major)),
        }
    }

    fn look_at_cluster(&self, facts: &Facts) -> Check {
        let subject = format!("{}: cluster", self.access.service);
        if major_of(&self.root).is_none() {
            let found = if is_empty(&self.root) {
                "there is no data yet"
            } else {
                "note: what is there is damaged, or no cluster's (it has no PG_VERSION); it will be replaced"
            };
            return Check::good(subject, found);
        }
        match locate::system_identifier(&self.access, &self.root) {
            Ok(live) if live.to_string() == facts.system_identifier => {
                Check::good(subject, "the backup is of the cluster that is there")
            }
            Ok(live) => Check::caution(
                subject,
                format!(
                    "ANOTHER cluster's data is there (system identifier {live}, the backup's is {}); it will be replaced",
                    facts.system_identifier
                ),
            ),
            Err(err) => Check::good(
                subject,
                format!("note: the data that is there is damaged: {}", err.message),
            ),
        }
    }

    /// Without data there, the image's own user: the two families of the official image have different ones.
    fn choose_owner(&mut self, facts: &Facts, record: &ArchiveRecord) {
        let own = [IMAGE_OWNER, ALPINE_OWNER].contains(&facts.owner.uid);
        if own && self.live_owner.is_none() && self.changes_family(record).is_some() {
            let id = if facts.owner.uid == ALPINE_OWNER {
                IMAGE_OWNER
            } else {
                ALPINE_OWNER
            };
            self.live_owner = Some((id, id));
        }
    }

    /// The images then and now, when one is Alpine's and the other is not.
    fn changes_family<'r>(&'r self, record: &'r ArchiveRecord) -> Option<(&'r str, &'r str)> {
        let (then, now) = (
            record.container.as_ref()?,
            self.access.stack().container.as_ref()?,
        );
        let is_alpine = |image: &str| image.contains("alpine");
        (is_alpine(&then.image) != is_alpine(&now.image)).then_some((&then.image, &now.image))
    }

    fn look_at_owner(&self, facts: &Facts) -> String {
        let (uid, gid) = self.owner(facts);
        let then = (facts.owner.uid, facts.owner.gid);
        if (uid, gid) == then {
            return format!("{uid}:{gid}");
        }
        format!(
            "{uid}:{gid}, which the server runs as; in the backup it is {}:{}",
            then.0, then.1
        )
    }

    /// What only a server can tell that the backup is to be restored into; often it is down.
    async fn look_at_target(&self, facts: &Facts, record: &ArchiveRecord) -> Vec<Check> {
        let name = &self.access.service;
        let subject = |what: &str| format!("{name}: {what}");
        let libraries = facts.platform.as_ref().map(|p| p.preload.clone());
        let Some(target) = self.ask(libraries.unwrap_or_default()).await else {
            let unseen = "the server cannot be asked now: it must have the backup's extensions and preloaded libraries, if there are any";
            let mut checks = vec![Check::good(subject("extensions"), unseen)];
            checks.extend(self.changes_family(record).map(|(then, now)| {
                Check::caution(
                    subject("collation"),
                    format!("the backup is of the image {then}, the server runs {now}. They sort text differently: run REINDEX DATABASE on every database after the restore"),
                )
            }));
            return checks;
        };
        let caution = |what: &str, outcome: Result<String, String>| match outcome {
            Ok(found) => Check::good(subject(what), found),
            Err(sentence) => Check::caution(subject(what), sentence),
        };
        let refusal = |what: &str, outcome: Result<String, String>| match outcome {
            Ok(found) => Check::good(subject(what), found),
            Err(sentence) => Check::bad(subject(what), sentence),
        };
        vec![
            refusal("pages", target.fits(facts)),
            caution("collation", target.sorts(facts)),
            match target.offers(facts) {
                Ok(outcome) => caution("extensions", outcome),
                Err(sentence) => Check::bad(subject("extensions"), sentence),
            },
            refusal("libraries", target.loads()),
        ]
    }

    /// `None` when it is down, refuses, or is of another version, which is told already.
    async fn ask(&self, libraries: Vec<String>) -> Option<Target> {
        let session = Session::open(&self.access).await.ok()?;
        let asked = session
            .run("ask what the server offers", move |client| {
                Target::ask(client, &libraries)
            })
            .await;
        session.close().await;
        asked
            .inspect_err(|err| tracing::info!("{err}: what the server offers is not compared"))
            .ok()
    }

    fn look_at_space(&self, record: &ArchiveRecord) -> Result<String, String> {
        let found = rustix::fs::statvfs(&self.root).map_err(|err| {
            format!(
                "the free space of {} is not known: {err}",
                self.root.display()
            )
        })?;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let replayed = self.replay.as_ref().map_or(0, Replay::staged_bytes);
        let needed = record.raw_bytes + replayed;
        if free < needed {
            return Err(format!(
                "{} has {} MiB free, the backup needs {} MiB beside the data that is there: make room",
                self.root.display(),
                mib(free),
                mib(needed)
            ));
        }
        Ok(format!("{} of {} MiB free", mib(needed), mib(free)))
    }
}

/// Whether nothing is lost with a directory; what a file system keeps for itself does not count.
fn is_empty(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory);
    entries.map_or(true, |entries| {
        entries
            .flatten()
            .all(|entry| entry.file_name() == "lost+found")
    })
}
