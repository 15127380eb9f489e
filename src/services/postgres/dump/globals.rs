//! Roles and tablespaces of a dump, brought into a server that has some of its own.
//!
//! What exists stays as it is, with its password and its rights: it is the present's, and the password that
//! this program connects with may be among them. What does not exist is made as it was.

use std::collections::BTreeSet;

use super::super::access::said;
use super::super::session::Session;
use crate::services::ServiceError;

/// What is to be done, decided from the text and from what there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Roles and tablespaces that will be made.
    pub roles: Vec<String>,
    pub tablespaces: Vec<String>,
    pub statements: Vec<Statement>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// Without it nothing that follows can be restored: a role that owns things.
    pub needed: bool,
}

/// What a server has.
#[derive(Debug, Default)]
pub struct Present {
    pub roles: BTreeSet<String>,
    pub tablespaces: BTreeSet<String>,
}

impl Present {
    pub async fn of(session: &Session) -> Result<Self, ServiceError> {
        session
            .run("list the roles and tablespaces", |client| {
                let mut names = |query: &str| -> Result<BTreeSet<String>, postgres::Error> {
                    let rows = client.query(query, &[])?;
                    Ok(rows.iter().map(|row| row.get(0)).collect())
                };
                Ok(Self {
                    roles: names("SELECT rolname::text FROM pg_roles")?,
                    tablespaces: names("SELECT spcname::text FROM pg_tablespace")?,
                })
            })
            .await
    }
}

/// Decides what of `pg_dumpall --globals-only` is run.
pub fn plan(sql: &str, present: &Present) -> Plan {
    let mut plan = Plan::default();
    for statement in statements(sql) {
        let mut words = Words(&statement);
        let (first, second) = (words.word(), words.word());
        let (wanted, needed) = match (first.as_str(), second.as_str()) {
            ("SET", _) => (false, false),
            ("CREATE", "ROLE") => {
                let name = words.word();
                let is_new = !present.roles.contains(&name);
                if is_new {
                    plan.roles.push(name);
                }
                (is_new, true)
            }
            ("CREATE", "TABLESPACE") => {
                let name = words.word();
                let is_new = !present.tablespaces.contains(&name);
                if is_new {
                    plan.tablespaces.push(name);
                }
                (is_new, false)
            }
            ("ALTER", "ROLE") => (!present.roles.contains(&words.word()), false),
            ("ALTER", "TABLESPACE") => (!present.tablespaces.contains(&words.word()), false),
            ("COMMENT", "ON") => match (words.word().as_str(), words.word()) {
                ("ROLE", name) => (!present.roles.contains(&name), false),
                ("TABLESPACE", name) => (!present.tablespaces.contains(&name), false),
                _ => (true, false),
            },
            // A membership among roles that are there already is theirs to have or not.
            ("GRANT", group) => match (words.word().as_str(), words.word()) {
                ("TO", member) => (
                    !(present.roles.contains(group) && present.roles.contains(&member)),
                    false,
                ),
                _ => (true, false),
            },
            _ => (true, false),
        };
        if wanted {
            plan.statements.push(Statement {
                sql: statement,
                needed,
            });
        }
    }
    plan
}

impl Plan {
    /// Runs the statements; what is not needed and fails comes back in sentences.
    pub async fn run(self, session: &Session) -> Result<Vec<String>, ServiceError> {
        session
            .run("create the roles of the backup", move |client| {
                let mut refused = Vec::new();
                for statement in self.statements {
                    match client.batch_execute(&statement.sql) {
                        Ok(()) => {}
                        Err(err) if statement.needed || err.is_closed() => return Err(err),
                        // The statement may hold a password: its first words say enough.
                        Err(err) => refused.push(format!(
                            "\"{}\" was refused: {}",
                            beginning(&statement.sql),
                            said(&err)
                        )),
                    }
                }
                Ok(refused)
            })
            .await
    }
}

/// The first words of a statement, up to what could be secret.
fn beginning(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().take(4).collect();
    words.join(" ")
}

/// Cuts a script into its statements; comments and psql's own commands are left out.
fn statements(sql: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut current = String::new();
    let mut quote = None;
    let mut rest = sql.chars().peekable();
    let mut at_line_start = true;
    while let Some(c) = rest.next() {
        let is_line_start = std::mem::replace(&mut at_line_start, c == '\n');
        match (quote, c) {
            (Some(open), c) => {
                current.push(c);
                if c == open {
                    // A doubled one opens again at once.
                    quote = None;
                }
            }
            (None, '\'' | '"') => {
                quote = Some(c);
                current.push(c);
            }
            (None, '-') if rest.peek() == Some(&'-') => {
                skip_line(&mut rest);
                at_line_start = true;
            }
            (None, '\\') if is_line_start => {
                skip_line(&mut rest);
                at_line_start = true;
            }
            (None, ';') => {
                let statement = std::mem::take(&mut current).trim().to_owned();
                if !statement.is_empty() {
                    all.push(statement);
                }
            }
            (None, c) => current.push(c),
        }
    }
    all
}

fn skip_line(rest: &mut impl Iterator<Item = char>) {
    for c in rest.by_ref() {
        if c == '\n' {
            return;
        }
    }
}

/// Reads words and identifiers off the front of a statement.
struct Words<'a>(&'a str);

impl Words<'_> {
    /// The next word; of a quoted identifier, what it names. Empty at the end.
    fn word(&mut self) -> String {
        self.0 = self.0.trim_start();
        let mut name = String::new();
        let mut rest = self.0.char_indices().peekable();
        let mut end = self.0.len();
        if self.0.starts_with('"') {
            rest.next();
            while let Some((at, c)) = rest.next() {
                if c != '"' {
                    name.push(c);
                } else if rest.next_if(|(_, next)| *next == '"').is_some() {
                    name.push('"');
                } else {
                    end = at + 1;
                    break;
                }
            }
        } else {
            for (at, c) in rest {
                if c.is_whitespace() {
                    end = at;
                    break;
                }
                name.push(c);
            }
        }
        self.0 = self.0.get(end..).unwrap_or_default();
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict abc

SET default_transaction_read_only = off;

CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER PASSWORD 'SCRAM;''--x';
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER PASSWORD 'old';
COMMENT ON ROLE postgres IS 'it''s
\the one';
CREATE ROLE "o""d; d";
GRANT postgres TO app GRANTED BY postgres;
GRANT pg_read_all_data TO postgres;
CREATE TABLESPACE fast OWNER app LOCATION '/fast';
GRANT ALL ON TABLESPACE fast TO app;
"#;

    #[test]
    fn what_exists_is_left_as_it_is() {
        let present = Present {
            roles: ["postgres", "pg_read_all_data"].map(str::to_owned).into(),
            tablespaces: BTreeSet::new(),
        };
        let plan = plan(SQL, &present);
        assert_eq!(plan.roles, ["app", "o\"d; d"]);
        assert_eq!(plan.tablespaces, ["fast"]);
        let run: Vec<&str> = plan.statements.iter().map(|s| s.sql.as_str()).collect();
        assert_eq!(
            run,
            [
                "CREATE ROLE app",
                "ALTER ROLE app WITH NOSUPERUSER PASSWORD 'SCRAM;''--x'",
                "CREATE ROLE \"o\"\"d; d\"",
                "GRANT postgres TO app GRANTED BY postgres",
                "CREATE TABLESPACE fast OWNER app LOCATION '/fast'",
                "GRANT ALL ON TABLESPACE fast TO app",
            ]
        );
    }

    #[test]
    fn a_refused_statement_is_named_without_its_password() {
        assert_eq!(
            beginning("ALTER ROLE app WITH LOGIN PASSWORD 'secret'"),
            "ALTER ROLE app WITH"
        );
    }
}
