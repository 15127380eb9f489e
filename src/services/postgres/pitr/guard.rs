//! The slot and its cap: the guards against a disk that fills because nobody fetches the WAL.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use postgres::error::SqlState;
use postgres::{Client, Error};
use serde::{Deserialize, Serialize};

use super::super::access::said;
use super::super::wal::Lsn;
use crate::durable;

/// A server's disk must have room for at least this much WAL before a slot may keep any.
const LEAST_CAP_BYTES: u64 = 64 << 20;
/// A setting takes effect when the session's process gets around to reading the files again.
const SETTLE_POLL: Duration = Duration::from_millis(50);
const SETTLE_POLLS: u32 = 100;
const MADE_PREFIX: &str = "pitr-made-";

/// What keeps the WAL until it is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Kept {
    Slot {
        /// Where it begins to keep WAL.
        restart: u64,
        /// What may still be written before the server gives it up.
        safe_bytes: Option<i64>,
    },
    /// Nothing but what the server keeps anyway: longer absences leave gaps.
    Nothing { why: String },
}

/// What was made in a server, and is to be taken back when it is not wanted any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub slot: String,
    /// The cap, in MB, where none was set before.
    pub cap_mb: Option<i64>,
}

/// The file of the state directory that says it.
pub fn made_path(state: &Path, service: &str) -> PathBuf {
    state.join(format!("{MADE_PREFIX}{service}.json"))
}

pub fn read_made(state: &Path, service: &str) -> std::io::Result<Option<Made>> {
    match std::fs::read(made_path(state, service)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Whether anything was made in any server.
pub fn any_made(state: &Path) -> bool {
    let files = std::fs::read_dir(state).into_iter().flatten().flatten();
    files
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| name.starts_with(MADE_PREFIX))
}

fn write_made(state: &Path, service: &str, made: &Made) -> std::io::Result<()> {
    if read_made(state, service)?.as_ref() == Some(made) {
        return Ok(());
    }
    let bytes = serde_json::to_vec(made)?;
    durable::write_replace(&made_path(state, service), &bytes, 0o600)
}

/// How much a slot may keep: a quarter of the free space, and what was configured at most. `None` where that is
/// too little to be of use.
pub fn cap_bytes(free: u64, most: u64) -> Option<u64> {
    Some((free / 4).min(most)).filter(|cap| *cap >= LEAST_CAP_BYTES)
}

/// Who asks, and what may be made.
#[derive(Debug, Clone)]
pub struct Guard {
    pub state: PathBuf,
    pub service: String,
    pub slot: String,
    /// See [`cap_bytes`].
    pub cap: Option<u64>,
}

/// Why nothing could be asked or made.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Query(#[from] Error),
    #[error("cannot write down what is made in the server: {0}")]
    State(#[from] std::io::Error),
}

struct Slot {
    restart: Option<u64>,
    status: String,
    safe_bytes: Option<i64>,
}

impl Guard {
    /// Sees to it that a capped slot keeps the WAL. Blocks, on the session's thread.
    pub fn keep(&self, client: &mut Client) -> Result<Kept, GuardError> {
        let found = self.slot(client)?;
        let cap = match self.capped(client)? {
            Ok(cap) => cap,
            Err(why) => {
                if found.is_some() {
                    self.drop_slot(client)?;
                }
                return Ok(Kept::Nothing { why });
            }
        };
        if let Some(slot) = found {
            // One that is close to its cap keeps what is fetched now, and is advanced then.
            if let Some(restart) = slot.restart.filter(|_| slot.status != "lost") {
                return Ok(Kept::Slot {
                    restart,
                    safe_bytes: slot.safe_bytes,
                });
            }
            tracing::warn!(
                service = %self.service,
                "the slot {} is {} (the cap is {cap} MB): it is dropped, and begun anew",
                self.slot,
                slot.status
            );
            self.drop_slot(client)?;
        }
        self.create(client)
    }

    fn slot(&self, client: &mut Client) -> Result<Option<Slot>, Error> {
        let row = client.query_opt(
            "SELECT restart_lsn::text, coalesce(wal_status, ''), safe_wal_size \
             FROM pg_replication_slots WHERE slot_name = $1::text::name",
            &[&self.slot],
        )?;
        Ok(row.map(|row| Slot {
            restart: row
                .get::<_, Option<String>>(0)
                .and_then(|text| Lsn::parse(&text))
                .map(|lsn| lsn.0),
            status: row.get(1),
            safe_bytes: row.get(2),
        }))
    }

    /// Writes down what is about to be made. A slot for another repository is dropped before it is forgotten.
    fn note(&self, client: &mut Client, cap_mb: Option<i64>) -> Result<(), GuardError> {
        let before = read_made(&self.state, &self.service)?.unwrap_or_default();
        if before.slot != self.slot && !before.slot.is_empty() {
            self.of(&before.slot).drop_slot(client)?;
        }
        let made = Made {
            slot: self.slot.clone(),
            cap_mb: cap_mb.or(before.cap_mb),
        };
        Ok(write_made(&self.state, &self.service, &made)?)
    }

    fn of(&self, slot: &str) -> Self {
        Self {
            slot: slot.to_owned(),
            ..self.clone()
        }
    }

    fn create(&self, client: &mut Client) -> Result<Kept, GuardError> {
        self.note(client, None)?;
        let created = client.query_one(
            "SELECT lsn::text FROM pg_create_physical_replication_slot($1::text::name, true, false)",
            &[&self.slot],
        );
        match created {
            Ok(row) => Ok(Kept::Slot {
                restart: row
                    .get::<_, Option<String>>(0)
                    .and_then(|text| Lsn::parse(&text))
                    .map_or(0, |lsn| lsn.0),
                safe_bytes: None,
            }),
            Err(err) => match err.code() {
                Some(
                    &SqlState::INSUFFICIENT_PRIVILEGE
                    | &SqlState::CONFIGURATION_LIMIT_EXCEEDED
                    | &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                ) => Ok(Kept::Nothing {
                    why: format!(
                        "no slot could be made ({}): give the role the REPLICATION attribute and the server a free slot, or raise wal_keep_size",
                        said(&err)
                    ),
                }),
                _ => Err(err.into()),
            },
        }
    }

    /// The cap in MB, set where there is none; `Err` says why there is none.
    fn capped(&self, client: &mut Client) -> Result<Result<i64, String>, GuardError> {
        let now = max_slot_wal_keep_size(client)?;
        if now >= 0 {
            return Ok(Ok(now));
        }
        let Some(cap) = self.cap else {
            return Ok(Err(
                "the server's disk has too little free space for a slot to keep WAL on it"
                    .to_owned(),
            ));
        };
        let wanted = i64::try_from(cap >> 20).unwrap_or(i64::MAX);
        self.note(client, Some(wanted))?;
        let set = client
            .batch_execute(&format!(
                "ALTER SYSTEM SET max_slot_wal_keep_size = '{wanted}MB'"
            ))
            .and_then(|()| client.batch_execute("SELECT pg_reload_conf()"));
        if let Err(err) = set {
            if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
                // What an administrator sets instead is not to be taken back.
                let made = Made {
                    slot: self.slot.clone(),
                    cap_mb: None,
                };
                write_made(&self.state, &self.service, &made)?;
                return Ok(Err(format!(
                    "max_slot_wal_keep_size is -1, and a slot without that cap could fill the server's disk: run ALTER SYSTEM SET max_slot_wal_keep_size = '{wanted}MB'; SELECT pg_reload_conf(); as a superuser"
                )));
            }
            return Err(err.into());
        }
        for _ in 0..SETTLE_POLLS {
            let now = max_slot_wal_keep_size(client)?;
            if now >= 0 {
                tracing::info!(
                    service = %self.service,
                    "max_slot_wal_keep_size is {now} MB now, so that the slot {} can never fill the disk",
                    self.slot
                );
                return Ok(Ok(now));
            }
            std::thread::sleep(SETTLE_POLL);
        }
        Ok(Err(
            "max_slot_wal_keep_size was set and has no effect: another setting overrides it; set it to a finite size".to_owned(),
        ))
    }

    fn drop_slot(&self, client: &mut Client) -> Result<(), Error> {
        client
            .execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                 WHERE slot_name = $1::text::name AND NOT active",
                &[&self.slot],
            )
            .map(|_| ())
    }

    /// Advances the slot to `to`, the start of a segment. Also when it is there already: a slot that is never
    /// advanced counts as idle.
    pub fn advance(&self, client: &mut Client, to: u64) -> Result<(), Error> {
        client
            .execute(
                "SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots \
                 WHERE slot_name = $1::text::name AND restart_lsn <= $2::text::pg_lsn",
                &[&self.slot, &Lsn(to).to_string()],
            )
            .map(|_| ())
    }

    /// Takes back what was made: the slot, and the cap where it still is the one that was set.
    pub fn give_back(&self, client: &mut Client) -> Result<Vec<String>, GuardError> {
        let mut told = Vec::new();
        let made = read_made(&self.state, &self.service)?.unwrap_or_default();
        for slot in [&made.slot, &self.slot] {
            let own = self.of(slot);
            if !slot.is_empty() && own.slot(client)?.is_some() {
                own.drop_slot(client)?;
                told.push(format!("dropped the replication slot {slot}"));
            }
        }
        if let Some(cap) = made.cap_mb {
            let is_ours = client.query_one(
                "SELECT count(*) FROM pg_settings WHERE name = 'max_slot_wal_keep_size' AND setting = $1 \
                 AND (sourcefile IS NULL OR sourcefile LIKE '%postgresql.auto.conf')",
                &[&cap.to_string()],
            )?;
            let others: i64 = client
                .query_one(
                    "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat\\_pitr\\_%'",
                    &[],
                )?
                .get(0);
            if is_ours.get::<_, i64>(0) == 1 {
                told.push(if others > 0 {
                    "left max_slot_wal_keep_size as it is, because another repository's slot still needs it".to_owned()
                } else {
                    reset_cap(client)?
                });
            }
        }
        durable::remove(&made_path(&self.state, &self.service))?;
        Ok(told)
    }
}

/// Takes the cap back; says so, or who can.
fn reset_cap(client: &mut Client) -> Result<String, Error> {
    let reset = client
        .batch_execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        .and_then(|()| client.batch_execute("SELECT pg_reload_conf()"));
    match reset {
        Ok(()) => Ok("took max_slot_wal_keep_size back".to_owned()),
        Err(err) if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(
            "left max_slot_wal_keep_size as it is, because the role may not change it any more: a superuser takes it back with ALTER SYSTEM RESET max_slot_wal_keep_size; SELECT pg_reload_conf()".to_owned(),
        ),
        Err(err) => Err(err),
    }
}

fn max_slot_wal_keep_size(client: &mut Client) -> Result<i64, Error> {
    Ok(client
        .query_one(
            "SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'",
            &[],
        )?
        .get(0))
}

/// What a look at the server finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub timeline: u32,
    /// Flushed up to here, and everything acknowledged by `at` with it.
    pub flushed: u64,
    pub at: Timestamp,
}

/// Where the server is; `None` while it is in recovery. Blocks, on the session's thread.
pub fn look(client: &mut Client) -> Result<Option<Look>, Error> {
    let in_recovery: bool = client.query_one("SELECT pg_is_in_recovery()", &[])?.get(0);
    if in_recovery {
        return Ok(None);
    }
    // The clock first, in a query of its own: what was acknowledged by then is flushed.
    let clock: i64 = client
        .query_one(
            "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            &[],
        )?
        .get(0);
    let row = client.query_one(
        "SELECT pg_current_wal_flush_lsn()::text, pg_walfile_name(pg_current_wal_insert_lsn())",
        &[],
    )?;
    let flushed = Lsn::parse(row.get(0));
    let timeline = row
        .get::<_, &str>(1)
        .get(..8)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let at = Timestamp::from_millisecond(clock).ok();
    Ok(flushed
        .zip(timeline)
        .zip(at)
        .map(|((flushed, timeline), at)| Look {
            timeline,
            flushed: flushed.0,
            at,
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_a_quarter_of_the_free_space_and_never_more_than_configured() {
        let gb = 1 << 30;
        assert_eq!(cap_bytes(100 * gb, 4 * gb), Some(4 * gb));
        assert_eq!(cap_bytes(8 * gb, 4 * gb), Some(2 * gb));
        assert_eq!(cap_bytes(100 << 20, 4 * gb), None);
    }
}
