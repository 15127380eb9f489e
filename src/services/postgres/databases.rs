//! Databases that a restore makes beside the live ones, and puts into their place by name.
//!
//! # States of one database
//!
//! ```text
//! (none) ──create──▶ new: lifeboat_new_… ──load, describe──▶ whole ──switch──▶ live: its own name
//!                        │ undo: drop                                  │ undo: back to lifeboat_new_…, drop
//! live before ───────────────────────────────────────────────switch──▶ old: lifeboat_old_… ──commit──▶ dropped
//! ```
//!
//! Invariant: under the live name stands at every moment either the whole old database or the whole new one.
//! `ALTER DATABASE … RENAME` is part of a transaction, so all databases of a restore are switched in one. Only
//! databases whose names begin as above are ever dropped here. Connections to a live database are closed to
//! it before it is renamed, and clients that come back find the new one.
//!
//! All of it runs on a session with `template1`, which is no database of anybody's.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::access::Access;
use super::dump::facts::{Described, MAX_NAME_BYTES};
use super::server::{self, literal, quote};
use super::session::Session;
use crate::services::{ErrorKind, ServiceError};
use crate::stack::journal::PostgresSwitch;

const NEW: &str = "lifeboat_new_";
const OLD: &str = "lifeboat_old_";
/// How long sessions that come back at once are ended again before a rename is given up.
const RENAME_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

/// The name under which a database is made.
pub fn new_name(run_id: &str, number: usize) -> String {
    cut(format!("{NEW}{run_id}_{number}"))
}

/// The name under which a replaced one waits for the end.
pub fn old_name(run_id: &str, number: usize, live: &str) -> String {
    cut(format!("{OLD}{run_id}_{number}_{live}"))
}

fn is_own(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(OLD)
}

/// Cuts as the server would, at a character.
pub fn cut(mut name: String) -> String {
    let mut end = name.len().min(MAX_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

/// A session that no database of the cluster is in the way of.
pub async fn control(access: &Access) -> Result<Session, ServiceError> {
    let session = Session::open_at(access, access.attempts_at("template1")).await?;
    session
        .run("set up the session", server::settle_session)
        .await?;
    Ok(session)
}

pub async fn exists(session: &Session, name: &str) -> Result<bool, ServiceError> {
    let name = name.to_owned();
    session
        .run("look for a database", move |client| has(client, &name))
        .await
}

fn has(client: &mut Client, name: &str) -> Result<bool, postgres::Error> {
    let query = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    Ok(client.query_one(query, &[&name])?.get(0))
}

/// Makes an empty database like another one was.
///
/// A tablespace that this server has not is left out; the default one takes its place.
pub async fn create(session: &Session, name: &str, like: &Described) -> Result<(), ServiceError> {
    let doing = format!("create a database for \"{}\"", like.name);
    let tablespace = like.tablespace.clone();
    let has_tablespace = session
        .run("look for a tablespace", move |client| {
            let query = "SELECT EXISTS (SELECT FROM pg_tablespace WHERE spcname = $1)";
            Ok(client.query_one(query, &[&tablespace])?.get::<_, bool>(0))
        })
        .await?;
    let statement = create_statement(name, like, has_tablespace);
    session
        .run(&doing, move |client| client.batch_execute(&statement))
        .await
}

fn create_statement(name: &str, like: &Described, has_tablespace: bool) -> String {
    let mut parts = vec![
        format!("CREATE DATABASE {}", quote(name)),
        format!("OWNER {}", quote(&like.owner)),
        "TEMPLATE template0".to_owned(),
        format!("ENCODING {}", literal(&like.encoding)),
        format!("LC_COLLATE {}", literal(&like.collate)),
        format!("LC_CTYPE {}", literal(&like.ctype)),
    ];
    let locale = like.locale.as_deref().map(literal);
    match (like.provider.as_str(), locale) {
        ("i", Some(locale)) => {
            parts.push(format!("LOCALE_PROVIDER icu ICU_LOCALE {locale}"));
            let rules = like.icu_rules.as_deref().map(literal);
            parts.extend(rules.map(|rules| format!("ICU_RULES {rules}")));
        }
        ("b", Some(locale)) => {
            parts.push(format!("LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"));
        }
        _ => {}
    }
    if has_tablespace && like.tablespace != "pg_default" {
        parts.push(format!("TABLESPACE {}", quote(&like.tablespace)));
    }
    parts.join(" ")
}

/// Gives a database what belongs to it and is not in its dump: settings, rights, comment, limit.
///
/// Returns what could not be given, in sentences: a setting that this server does not know, a role that it
/// has not.
pub async fn describe(
    session: &Session,
    name: &str,
    like: &Described,
) -> Result<Vec<String>, ServiceError> {
    let (name, like) = (name.to_owned(), like.clone());
    session
        .run("describe a restored database", move |client| {
            let mut refused = Vec::new();
            for (what, statements) in describing_statements(&name, &like) {
                let done = client.batch_execute(&format!("BEGIN; {statements}; COMMIT"));
                if let Err(err) = done {
                    if err.is_closed() {
                        return Err(err);
                    }
                    client.batch_execute("ROLLBACK")?;
                    refused.push(format!(
                        "database \"{}\" is without its {what}: {}",
                        like.name,
                        super::access::said(&err)
                    ));
                }
            }
            Ok(refused)
        })
        .await
}

/// What each of these is, and the statements that give it.
fn describing_statements(name: &str, like: &Described) -> Vec<(String, String)> {
    let database = quote(name);
    let mut all = Vec::new();
    for setting in &like.settings {
        let Some((variable, value)) = setting.config.split_once('=') else {
            continue;
        };
        // The server takes its own writing of a value back, which for a list is not what SET takes.
        let local = format!(
            "SELECT pg_catalog.set_config({}, {}, true)",
            literal(variable),
            literal(value)
        );
        let target = setting.role.as_deref().map_or_else(
            || format!("DATABASE {database}"),
            |role| format!("ROLE {} IN DATABASE {database}", quote(role)),
        );
        let variable_name: Vec<String> = variable.split('.').map(quote).collect();
        all.push((
            format!("setting {variable}"),
            format!(
                "{local}; ALTER {target} SET {} FROM CURRENT",
                variable_name.join(".")
            ),
        ));
    }
    if let Some(grants) = &like.grants {
        let mut statements = vec![
            format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
            format!(
                "REVOKE ALL ON DATABASE {database} FROM {}",
                quote(&like.owner)
            ),
        ];
        statements.extend(grants.iter().map(|grant| {
            let grantee = grant
                .grantee
                .as_deref()
                .map_or_else(|| "PUBLIC".to_owned(), quote);
            let option = if grant.grantable && grant.grantee.is_some() {
                " WITH GRANT OPTION"
            } else {
                ""
            };
            // Privileges are words of the server's.
            let privilege: String = grant
                .privilege
                .chars()
                .filter(|c| c.is_ascii_alphabetic() || *c == ' ')
                .collect();
            format!("GRANT {privilege} ON DATABASE {database} TO {grantee}{option}")
        }));
        all.push(("rights".to_owned(), statements.join("; ")));
    }
    if let Some(comment) = &like.comment {
        let statement = format!("COMMENT ON DATABASE {database} IS {}", literal(comment));
        all.push(("comment".to_owned(), statement));
    }
    if like.connection_limit >= 0 {
        all.push((
            "connection limit".to_owned(),
            format!(
                "ALTER DATABASE {database} CONNECTION LIMIT {}",
                like.connection_limit
            ),
        ));
    }
    all
}

/// Drops a database of this program's own; a missing one is fine.
pub async fn drop_own(session: &Session, name: &str) -> Result<(), ServiceError> {
    if !is_own(name) {
        return Err(ServiceError::new(
            session.service(),
            ErrorKind::Setup,
            format!("\"{name}\" is not a database that this program made: it is left alone"),
        ));
    }
    let doing = format!("drop the database \"{name}\"");
    let name = name.to_owned();
    session
        .run(&doing, move |client| {
            if has(client, &name)? {
                client.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", quote(&name)))?;
            }
            Ok(())
        })
        .await
}

/// Renames one database of this program's own to a name that is free.
pub async fn publish(session: &Session, new: &str, name: &str) -> Result<(), ServiceError> {
    let doing = format!("call the restored database \"{name}\"");
    let statement = format!("ALTER DATABASE {} RENAME TO {}", quote(new), quote(name));
    rename(session, &doing, vec![new.to_owned()], statement).await
}

/// Puts the new databases into the places of the live ones, all at once or none.
pub async fn switch(session: &Session, switches: &[PostgresSwitch]) -> Result<(), ServiceError> {
    let live: Vec<String> = switches
        .iter()
        .filter(|s| s.old.is_some())
        .map(|s| s.live.clone())
        .collect();
    let mut statements = Vec::new();
    for switch in switches {
        if let Some(old) = &switch.old {
            statements.push(rename_statement(&switch.live, old));
        }
        statements.push(rename_statement(&switch.new, &switch.live));
    }
    allow_connections(session, live.clone(), false).await?;
    let doing = "put the restored databases into their places";
    let sessions = live
        .iter()
        .cloned()
        .chain(switches.iter().map(|s| s.new.clone()));
    let renamed = rename(session, doing, sessions.collect(), statements.join("; ")).await;
    if renamed.is_err() {
        allow_connections(session, live, true).await?;
    }
    renamed
}

/// Puts live databases back that [`switch`] replaced, from wherever it was interrupted.
pub async fn put_back(session: &Session, switches: &[PostgresSwitch]) -> Result<(), ServiceError> {
    let all = switches.to_vec();
    let (present, closed): (Vec<PostgresSwitch>, Vec<String>) = session
        .run("look for the databases of before", move |client| {
            let mut done = Vec::new();
            let mut closed = Vec::new();
            for switch in all {
                // One transaction switches all: where the new name is gone, it was done.
                let is_done = !has(client, &switch.new)?
                    && match &switch.old {
                        Some(old) => has(client, old)?,
                        None => has(client, &switch.live)?,
                    };
                if switch.old.is_some() {
                    closed.push(switch.live.clone());
                }
                if is_done {
                    done.push(switch);
                }
            }
            Ok((done, closed))
        })
        .await?;
    if !present.is_empty() {
        let names: Vec<String> = present.iter().map(|s| s.live.clone()).collect();
        let mut statements = Vec::new();
        for switch in &present {
            statements.push(rename_statement(&switch.live, &switch.new));
            if let Some(old) = &switch.old {
                statements.push(rename_statement(old, &switch.live));
            }
        }
        allow_connections(session, names.clone(), false).await?;
        let doing = "put the databases of before back";
        let sessions = names
            .into_iter()
            .chain(present.iter().filter_map(|s| s.old.clone()));
        rename(session, doing, sessions.collect(), statements.join("; ")).await?;
    }
    allow_connections(session, closed, true).await
}

/// Drops what [`switch`] replaced or, to keep it, opens it again.
pub async fn discard_old(
    session: &Session,
    switches: &[PostgresSwitch],
    keep: bool,
) -> Result<(), ServiceError> {
    let old: Vec<String> = switches.iter().filter_map(|s| s.old.clone()).collect();
    if keep {
        tracing::info!(
            service = session.service(),
            "the databases of before are kept as {}",
            old.join(", ")
        );
        return allow_connections(session, old, true).await;
    }
    for name in old {
        drop_own(session, &name).await?;
    }
    Ok(())
}

/// Drops roles and tablespaces; missing ones are fine.
///
/// All roles in one statement: rights that they gave each other are in nobody's way then.
pub async fn drop_globals(
    session: &Session,
    roles: Vec<String>,
    tablespaces: Vec<String>,
) -> Result<(), ServiceError> {
    session
        .run("drop the roles that a restore made", move |client| {
            for tablespace in tablespaces {
                client
                    .batch_execute(&format!("DROP TABLESPACE IF EXISTS {}", quote(&tablespace)))?;
            }
            if roles.is_empty() {
                return Ok(());
            }
            let names: Vec<String> = roles.iter().map(|role| quote(role)).collect();
            client.batch_execute(&format!("DROP ROLE IF EXISTS {}", names.join(", ")))
        })
        .await
}

fn rename_statement(from: &str, to: &str) -> String {
    format!("ALTER DATABASE {} RENAME TO {}", quote(from), quote(to))
}

/// Opens or closes databases to new connections; missing ones are left out.
pub async fn allow_connections(
    session: &Session,
    names: Vec<String>,
    allow: bool,
) -> Result<(), ServiceError> {
    session
        .run("open or close databases", move |client| {
            for name in names {
                if has(client, &name)? {
                    client.batch_execute(&format!(
                        "ALTER DATABASE {} ALLOW_CONNECTIONS {allow}",
                        quote(&name)
                    ))?;
                }
            }
            Ok(())
        })
        .await
}

/// Renames in one transaction, after the sessions of these databases were ended; again while others come.
async fn rename(
    session: &Session,
    doing: &str,
    names: Vec<String>,
    statements: String,
) -> Result<(), ServiceError> {
    let deadline = Instant::now() + RENAME_WITHIN;
    loop {
        let (names, statements) = (names.clone(), statements.clone());
        let renamed = session
            .run(doing, move |client| {
                end_sessions(client, &names)?;
                let done = client.batch_execute(&format!("BEGIN; {statements}; COMMIT"));
                if done.is_err() {
                    client.batch_execute("ROLLBACK")?;
                }
                match done {
                    Err(err) if err.code() == Some(&SqlState::OBJECT_IN_USE) => Ok(Err(err)),
                    other => other.map(Ok),
                }
            })
            .await?;
        match renamed {
            Ok(()) => return Ok(()),
            Err(err) if Instant::now() >= deadline => {
                return Err(super::session::query_error(session.service(), doing, err));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn end_sessions(client: &mut Client, names: &[String]) -> Result<(), postgres::Error> {
    client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = ANY($1) AND pid <> pg_backend_pid()",
            &[&names],
        )
        .map(drop)
}

/// Ends the sessions of tools that a run left behind.
pub async fn end_tools(session: &Session, application: &str) -> Result<(), ServiceError> {
    let application = application.to_owned();
    session
        .run(
            "end the sessions of pg_dump and pg_restore",
            move |client| {
                client.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = $1 AND pid <> pg_backend_pid()",
                    &[&application],
                )
            },
        )
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Described {
        Described {
            name: "a\"b".to_owned(),
            owner: "o".to_owned(),
            encoding: "UTF8".to_owned(),
            collate: "C".to_owned(),
            ctype: "C".to_owned(),
            provider: "i".to_owned(),
            locale: Some("de-DE".to_owned()),
            icu_rules: None,
            tablespace: "fast".to_owned(),
            connection_limit: -1,
            comment: None,
            settings: Vec::new(),
            grants: None,
        }
    }

    #[test]
    fn a_database_is_made_as_it_was() {
        let statement = create_statement("n", &described(), true);
        assert_eq!(
            statement,
            "CREATE DATABASE \"n\" OWNER \"o\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' \
             LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' TABLESPACE \"fast\""
        );
        assert!(!create_statement("n", &described(), false).contains("TABLESPACE"));
    }

    #[test]
    fn own_names_are_names_of_the_server_and_no_others_are_own() {
        let name = old_name("20261122T230333Z-a1B2c3", 12, &"é".repeat(31));
        assert!(name.len() <= MAX_NAME_BYTES && is_own(&name), "{name}");
        assert_ne!(new_name("r", 1), new_name("r", 2));
        assert!(!is_own("postgres") && !is_own("lifeboat"));
    }
}
