//! What the manifest keeps of dumps, and how databases are described and called.
//!
//! Names of databases are data: any bytes but NUL and up to 63 of them. In the archive they are encoded, in
//! SQL quoted, and nowhere else used.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::services::ServiceReport;

/// Where dumps lie in an archive of their own.
pub const DIRECTORY: &str = "dumps";
/// Where they lie in an archive of a data directory: a name that no backup takes from one.
pub const BESIDE: &str = ".lifeboat-dumps";
/// Where dumps stand in a report's facts, beside those of a physical backup.
pub const KEY: &str = "dump";
/// The server's own limit (`NAMEDATALEN` - 1).
pub const MAX_NAME_BYTES: usize = 63;
const FORMAT: u32 = 1;

/// The dumps in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFacts {
    pub format: u32,
    pub version: String,
    pub major: u32,
    pub globals: Globals,
    pub databases: Vec<Dumped>,
}

/// Roles and tablespaces, as SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Globals {
    pub member: String,
    pub bytes: u64,
    pub sha256: String,
    /// Whether the roles' passwords are in it: only a superuser reads them.
    pub passwords: bool,
}

/// One database's dump: parts `<member>.000000` and so on, one after the other in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dumped {
    #[serde(flatten)]
    pub database: Described,
    pub member: String,
    pub parts: u32,
    pub bytes: u64,
    pub sha256: String,
    pub tables: u64,
}

/// What `CREATE DATABASE` and `ALTER DATABASE` are told: not in a dump that goes into a database of another
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    pub name: String,
    pub owner: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// `c` for libc's, `i` for ICU's, `b` for the server's own locales.
    pub provider: String,
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    pub tablespace: String,
    pub connection_limit: i32,
    pub comment: Option<String>,
    pub settings: Vec<Setting>,
    /// `None` for the rights a new database has.
    pub grants: Option<Vec<Grant>>,
}

/// `ALTER DATABASE … SET`, or `ALTER ROLE … IN DATABASE … SET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    pub role: Option<String>,
    /// `name=value`, as the server keeps it.
    pub config: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `None` for everybody.
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

/// Describes the databases whose oids the condition selects, as one JSON array. Columns that some versions lack are
/// read through the row's JSON.
pub fn describing(condition: &str) -> String {
    format!(
        "SELECT coalesce(json_agg(json_build_object(\
         'name', d.datname, 'owner', pg_get_userbyid(d.datdba), 'encoding', pg_encoding_to_char(d.encoding), \
         'collate', d.datcollate, 'ctype', d.datctype, \
         'provider', coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'), \
         'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), \
         'icu_rules', to_jsonb(d) ->> 'daticurules', \
         'tablespace', t.spcname, 'connection_limit', d.datconnlimit, \
         'comment', shobj_description(d.oid, 'pg_database'), \
         'settings', (SELECT coalesce(json_agg(json_build_object('role', \
             CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END, 'config', u.config)), '[]') \
             FROM pg_db_role_setting s, unnest(s.setconfig) AS u(config) WHERE s.setdatabase = d.oid), \
         'grants', CASE WHEN d.datacl IS NOT NULL THEN (SELECT coalesce(json_agg(json_build_object('grantee', \
             CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END, \
             'privilege', a.privilege_type, 'grantable', a.is_grantable)), '[]') FROM aclexplode(d.datacl) a) END\
         ) ORDER BY d.datname), '[]')::text \
         FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE {condition}"
    )
}

/// The databases that are dumped: those that people connect to.
pub const DUMPED: &str = "d.datallowconn AND NOT d.datistemplate";

pub fn parse_described(json: &str) -> Result<Vec<Described>, String> {
    serde_json::from_str(json)
        .map_err(|err| format!("the server describes its databases as \"{json}\" ({err})"))
}

impl DumpFacts {
    pub const fn new(version: String, major: u32, globals: Globals) -> Self {
        Self {
            format: FORMAT,
            version,
            major,
            globals,
            databases: Vec::new(),
        }
    }

    /// Reads them out of a record; `None` when the archive has no dumps.
    ///
    /// Refuses what this program cannot have written: member names that are not their database's, names that
    /// no database can have.
    pub fn of(report: &ServiceReport) -> Result<Option<Self>, String> {
        let Some(found) = report.facts.get(KEY) else {
            return Ok(None);
        };
        let unreadable = |why: String| {
            format!(
                "the backup's list of dumps cannot be read ({why}): use the version of this program that wrote it, or a newer one"
            )
        };
        let facts = Self::deserialize(found).map_err(|err| unreadable(err.to_string()))?;
        if facts.format != FORMAT {
            return Err(unreadable(format!("it has format {}", facts.format)));
        }
        let mut names = BTreeSet::new();
        for dumped in &facts.databases {
            let name = dumped.database.name.as_str();
            let is_name = !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains('\0');
            let is_member = [DIRECTORY, BESIDE]
                .map(|directory| member(directory, name))
                .contains(&dumped.member);
            if !is_name || !is_member || !names.insert(name) {
                return Err(unreadable(format!(
                    "it names the database \"{}\" as {}",
                    name.escape_debug(),
                    dumped.member.escape_debug()
                )));
            }
        }
        Ok(Some(facts))
    }

    pub fn database(&self, name: &str) -> Option<&Dumped> {
        self.databases.iter().find(|d| d.database.name == name)
    }
}

/// Whether an archive holds dumps and no data directory.
pub fn is_only_dumps(report: &ServiceReport) -> bool {
    report.facts.get(KEY).is_some() && report.facts.get("system_identifier").is_none()
}

/// The member that a database's dump is written as: everything but letters, digits, `-` and `_` is `%XX`.
pub fn member(directory: &str, database: &str) -> String {
    let mut encoded = format!("{directory}/");
    for byte in database.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => encoded.push(char::from(byte)),
            // Writing to a String cannot fail.
            other => write!(encoded, "%{other:02X}").unwrap_or_default(),
        }
    }
    encoded.push_str(".dump");
    encoded
}

/// The name of one part.
pub fn part(member: &str, number: u32) -> String {
    format!("{member}.{number:06}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn members_are_plain_and_differ() {
        let dump = |name: &str| member(DIRECTORY, name);
        assert_eq!(dump("n8n_main-2"), "dumps/n8n_main-2.dump");
        assert_eq!(dump("../a b"), "dumps/%2E%2E%2Fa%20b.dump");
        assert_eq!(dump("é%"), "dumps/%C3%A9%25.dump");
        assert_eq!(part("dumps/a.dump", 12), "dumps/a.dump.000012");
        assert!(part(&dump(&"/".repeat(MAX_NAME_BYTES)), 999_999).len() < 255);
    }

    #[test]
    fn forged_names_are_refused() {
        let report = |name: &str, member: &str| ServiceReport {
            version: String::new(),
            counts: std::collections::BTreeMap::new(),
            warnings: Vec::new(),
            facts: serde_json::json!({ KEY: {
                "format": 1, "version": "15", "major": 15,
                "globals": { "member": "dumps/globals.sql", "bytes": 1, "sha256": "", "passwords": true },
                "databases": [{
                    "name": name, "owner": "o", "encoding": "UTF8", "collate": "C", "ctype": "C",
                    "provider": "c", "locale": null, "icu_rules": null, "tablespace": "pg_default",
                    "connection_limit": -1, "comment": null, "settings": [], "grants": null,
                    "member": member, "parts": 1, "bytes": 1, "sha256": "", "tables": 0,
                }],
            }}),
        };
        let facts = DumpFacts::of(&report("a", "dumps/a.dump"))
            .unwrap()
            .unwrap();
        assert_eq!(facts.database("a").unwrap().parts, 1);
        for (name, member) in [
            ("a", "dumps/b.dump"),
            ("", "dumps/.dump"),
            ("a", "../a.dump"),
        ] {
            let why = DumpFacts::of(&report(name, member)).unwrap_err();
            assert!(why.contains("names the database"), "{why}");
        }
    }
}
