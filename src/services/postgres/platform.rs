//! What a cluster's files depend on beside the server's major version: the library that sorts its text, and the
//! extensions and libraries that its tables and settings name.

use std::collections::{BTreeMap, BTreeSet};

use postgres::{Client, Error};
use serde::{Deserialize, Serialize};

use super::facts::Facts;

/// As the server tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// What it was built for, such as `x86_64-pc-linux-musl`.
    pub build: String,
    /// The C library's version, where its collations have one: glibc's do, musl's have none.
    pub libc: Option<String>,
    /// ICU's, where the server is built with it.
    pub icu: Option<String>,
    /// `shared_preload_libraries`: the server does not start without one of them.
    pub preload: Vec<String>,
    /// After how many bytes a relation goes on in another file.
    pub segment_bytes: u64,
}

impl Platform {
    pub fn ask(client: &mut Client) -> Result<Self, Error> {
        // Any collation whose order is the library's.
        let row = client.query_one(
            "SELECT version(), current_setting('shared_preload_libraries'), \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'segment_size') * current_setting('block_size')::bigint, \
             (SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'c'), \
             (SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'i' AND collname <> 'unicode')",
            &[],
        )?;
        Ok(Self {
            build: build_of(row.get(0)).to_owned(),
            preload: listed(row.get(1)),
            segment_bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            libc: row.get(3),
            icu: row.get(4),
        })
    }

    fn is_musl(&self) -> bool {
        self.build.ends_with("musl")
    }

    fn c_library(&self) -> String {
        match (&self.libc, self.is_musl()) {
            (_, true) => "musl".to_owned(),
            (Some(version), false) => format!("glibc {version}"),
            (None, false) => format!("the C library of {}", self.build),
        }
    }
}

/// `PostgreSQL 15.18 (Debian …) on x86_64-pc-linux-gnu, compiled by …`
fn build_of(version: &str) -> &str {
    let (_, rest) = version.split_once(" on ").unwrap_or_default();
    rest.split(',').next().unwrap_or_default()
}

/// The libraries of a setting that lists them, without quotes and paths.
fn listed(setting: &str) -> Vec<String> {
    setting
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .map(|name| name.strip_prefix("$libdir/").unwrap_or(name).to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

/// The extensions of the connected database, and their versions.
pub fn extensions(client: &mut Client) -> Result<BTreeMap<String, String>, Error> {
    let rows = client.query(
        "SELECT extname::text, extversion FROM pg_extension ORDER BY extname",
        &[],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a server that is to be restored into offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub platform: Platform,
    pub block_bytes: u32,
    /// Names and versions of the extensions that can be created.
    pub offered: BTreeSet<(String, String)>,
    /// Those of the libraries it was asked for that it lacks; `None` when the role may not look.
    pub lacking: Option<Vec<String>>,
}

impl Target {
    pub fn ask(client: &mut Client, libraries: &[String]) -> Result<Self, Error> {
        client.batch_execute("SET search_path = pg_catalog; SET statement_timeout = '30s'")?;
        let block: String = client.query_one("SHOW block_size", &[])?.get(0);
        let offered = client.query(
            "SELECT name::text, version FROM pg_available_extension_versions",
            &[],
        )?;
        let platform = Platform::ask(client)?;
        // Only superusers and members of pg_read_server_files may look.
        let lacking = client.query(
            "SELECT library FROM unnest($1::text[]) library, pg_config WHERE name = 'PKGLIBDIR' \
             AND (pg_stat_file(setting || '/' || library || '.so', true)).size IS NULL",
            &[&libraries],
        );
        Ok(Self {
            platform,
            block_bytes: block.parse().unwrap_or(0),
            offered: offered.iter().map(|row| (row.get(0), row.get(1))).collect(),
            lacking: lacking
                .ok()
                .map(|rows| rows.iter().map(|row| row.get(0)).collect()),
        })
    }

    /// Relations are read by the sizes that the server was built with.
    pub fn fits(&self, facts: &Facts) -> Result<String, String> {
        let files = facts.platform.as_ref().map_or(0, |p| p.segment_bytes);
        if self.block_bytes != facts.block_bytes {
            return Err(format!(
                "the backup has pages of {} bytes, the server is built for pages of {}: use a server that is built like the one that was backed up",
                facts.block_bytes, self.block_bytes
            ));
        }
        if files != 0 && files != self.platform.segment_bytes {
            return Err(format!(
                "the backup's relations go on in another file after {files} bytes, the server's after {}: use a server that is built like the one that was backed up",
                self.platform.segment_bytes
            ));
        }
        Ok(format!(
            "pages of {} bytes, as the backup",
            self.block_bytes
        ))
    }

    /// Whether text sorts as when the indexes were made; `Err` is a caution.
    pub fn sorts(&self, facts: &Facts) -> Result<String, String> {
        let Some(then) = &facts.platform else {
            return Ok("the backup does not tell which libraries sorted its text".to_owned());
        };
        let now = &self.platform;
        let mut changed = Vec::new();
        if (then.is_musl(), &then.libc) != (now.is_musl(), &now.libc) {
            changed.push((then.c_library(), now.c_library(), 'c'));
        }
        if let (Some(then), Some(now)) = (&then.icu, &now.icu)
            && then != now
        {
            changed.push((format!("ICU {then}"), format!("ICU {now}"), 'i'));
        }
        let mut said = Vec::new();
        for (then, now, provider) in changed {
            let names: Vec<_> = facts
                .databases
                .iter()
                .filter(|d| d.counted && d.sorts_by(provider))
                .map(|d| format!("REINDEX DATABASE \"{0}\"; ALTER DATABASE \"{0}\" REFRESH COLLATION VERSION;", d.name))
                .collect();
            if !names.is_empty() {
                said.push(format!(
                    "the backup's text was sorted by {then}, the server sorts by {now}: indexes on text may be wrong until you run, in each database after the restore, {}",
                    names.join(" ")
                ));
            }
        }
        if said.is_empty() {
            Ok("text sorts as in the backup".to_owned())
        } else {
            Err(said.join("; "))
        }
    }

    /// Whether every extension of the backup can be used; the inner `Err` is a caution.
    pub fn offers(&self, facts: &Facts) -> Result<Result<String, String>, String> {
        let (mut missing, mut other) = (BTreeSet::new(), BTreeSet::new());
        for (database, name, version) in facts.extensions() {
            let mut of_name = self.offered.iter().filter(|(offered, _)| offered == name);
            if of_name.clone().next().is_none() {
                missing.insert(format!("{name} {version} (database \"{database}\")"));
            } else if !of_name.any(|(_, offered)| offered == version) {
                other.insert(format!("{name} {version} (database \"{database}\")"));
            }
        }
        let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
        if !missing.is_empty() {
            return Err(format!(
                "the server has no files of extensions that the backup uses: {}. What they define would fail: use the image that was backed up, or install them; --ignore extensions restores all the same",
                list(missing)
            ));
        }
        if !other.is_empty() {
            return Ok(Err(format!(
                "the server has other versions of extensions than the backup: {}. Run ALTER EXTENSION … UPDATE after the restore",
                list(other)
            )));
        }
        Ok(Ok("all of the backup's can be used".to_owned()))
    }

    /// Whether the server can load what the backup's settings make it load.
    pub fn loads(&self) -> Result<String, String> {
        match &self.lacking {
            None => Ok("whether the server has them cannot be seen by this role".to_owned()),
            Some(lacking) if lacking.is_empty() => Ok("the server has them".to_owned()),
            Some(lacking) => Err(format!(
                "the backup's shared_preload_libraries names {}, which the server does not have: it would not start. Use the image that was backed up, or install them; --ignore libraries restores all the same",
                lacking.join(", ")
            )),
        }
    }
}

#[cfg(test)]
#[path = "platform/tests.rs"]
mod tests;
