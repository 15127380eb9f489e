//! Where the server is and as whom to connect: from the configuration, else from its container.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postgres::error::SqlState;

use crate::config::{Config, Secret};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::{SharedMount, StackService, is_plain, joined};

/// Everything to connect with, and how the server's paths are seen from here.
#[derive(Debug, Clone)]
pub struct Access {
    pub service: String,
    pub hosts: Vec<String>,
    pub port: u16,
    pub user: String,
    password: Option<Secret>,
    database: Option<String>,
    /// `POSTGRES_DATA`: the data directory as this process sees it.
    pub data_override: Option<PathBuf>,
    stack: StackService,
}

impl Access {
    pub fn new(config: &Config, stack: &StackService) -> Self {
        let own = &config.postgres;
        let text = |ours: &Option<String>, name: &str| {
            ours.clone()
                .or_else(|| container_value(stack, name))
                .filter(|value| !value.is_empty())
        };
        let user = text(&own.user, "POSTGRES_USER").unwrap_or_else(|| "postgres".to_owned());
        Self {
            service: stack.name.clone(),
            hosts: own
                .host
                .clone()
                .map_or_else(|| stack.hosts.clone(), |host| vec![host]),
            port: own.port.unwrap_or_else(|| exposed_port(stack)),
            password: own
                .password
                .clone()
                .or_else(|| container_value(stack, "POSTGRES_PASSWORD").map(Secret::new)),
            database: text(&own.database, "POSTGRES_DB"),
            user,
            data_override: own.data.clone(),
            stack: stack.clone(),
        }
    }

    /// What to try, in this order: each address with the named database, then with `postgres`, which is
    /// there unless someone dropped it.
    pub fn attempts(&self) -> Result<Vec<postgres::Config>, ServiceError> {
        if self.hosts.is_empty() {
            return Err(self.error(
                ErrorKind::Setup,
                "no address of the server is known: set POSTGRES_HOST, or give Lifeboat the Docker API",
            ));
        }
        let named = self.database.as_deref().unwrap_or(&self.user);
        let databases: &[&str] = if named == "postgres" {
            &[named]
        } else {
            &[named, "postgres"]
        };
        Ok(self
            .hosts
            .iter()
            .flat_map(|host| databases.iter().map(move |database| (host, database)))
            .map(|(host, database)| self.config(host, database))
            .collect())
    }

    /// The database that is named, if one is.
    pub fn named_database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// The same servers, with another database.
    pub fn attempts_at(&self, database: &str) -> Vec<postgres::Config> {
        self.hosts
            .iter()
            .map(|host| self.config(host, database))
            .collect()
    }

    fn config(&self, host: &str, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config
            .host(host)
            .port(self.port)
            .user(&self.user)
            .dbname(database)
            .application_name("lifeboat")
            .connect_timeout(Duration::from_secs(10))
            // A peer that is gone without a word is noticed within about two minutes.
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(6)
            .tcp_user_timeout(Duration::from_mins(2));
        if let Some(password) = &self.password {
            config.password(password.reveal());
        }
        config
    }

    /// This process's view of a path in the server's filesystem.
    ///
    /// `data` is the data directory, as the server and as this process see it. Without a container, and when
    /// both see it under one name, the filesystem is shared. `None` for a path with `..`.
    pub fn local_path(&self, path: &Path, data: Option<(&Path, &Path)>) -> Option<PathBuf> {
        if !is_plain(path) {
            return None;
        }
        if let Some((theirs, ours)) = data {
            if let Ok(rest) = path.strip_prefix(theirs) {
                return Some(joined(ours, rest));
            }
            if self.stack.container.is_none() && theirs == ours {
                return Some(path.to_owned());
            }
        }
        self.stack.local_path(path)
    }

    /// The mount of the container that a local path lies on.
    pub fn mount_of(&self, local: &Path) -> Option<&SharedMount> {
        self.stack
            .mounts
            .iter()
            .filter(|mount| local.starts_with(&mount.local))
            .max_by_key(|mount| mount.local.components().count())
    }

    /// What the tools are given through their environment.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    pub fn stack(&self) -> &StackService {
        &self.stack
    }

    pub fn error(&self, kind: ErrorKind, message: impl Into<String>) -> ServiceError {
        ServiceError::new(&self.service, kind, message)
    }

    /// The sentence for an attempt to connect that failed.
    pub fn connect_error(&self, err: &postgres::Error) -> ServiceError {
        let place = format!("{}, port {}", self.hosts.join(" or "), self.port);
        let user = &self.user;
        let said = said(err);
        let (kind, message) = match err.code() {
            Some(&SqlState::INVALID_PASSWORD) => (
                ErrorKind::Denied,
                format!(
                    "the server refuses the password of user \"{user}\": set POSTGRES_USER and POSTGRES_PASSWORD to what the server has now (changing POSTGRES_PASSWORD in .env does not change it in an existing database)"
                ),
            ),
            Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => (
                ErrorKind::Denied,
                format!(
                    "the server does not let user \"{user}\" in ({said}): allow it in pg_hba.conf, or set POSTGRES_USER"
                ),
            ),
            Some(&SqlState::INVALID_CATALOG_NAME) => (
                ErrorKind::Setup,
                format!("the database to connect to is not there ({said}): set POSTGRES_DB"),
            ),
            Some(_) => (
                ErrorKind::Unreachable,
                format!("the server at {place} does not accept connections: {said}"),
            ),
            None if err.to_string().contains("password missing") => (
                ErrorKind::Denied,
                format!("the server asks for a password of user \"{user}\": set POSTGRES_PASSWORD"),
            ),
            None => (
                ErrorKind::Unreachable,
                format!(
                    "cannot connect to the server at {place}: {said}. Is it running, and is Lifeboat in one network with it? (POSTGRES_HOST and POSTGRES_PORT in .env are for inside the stack: leave them out to go by the container)"
                ),
            ),
        };
        self.error(kind, message)
    }
}

/// What an error says, with its causes, on one line.
pub fn said(err: &postgres::Error) -> String {
    if let Some(db) = err.as_db_error() {
        let hint = db.hint().map(|h| format!(" ({h})")).unwrap_or_default();
        return format!("{}{hint}", db.message());
    }
    let mut text = err.to_string();
    let mut cause = std::error::Error::source(err);
    while let Some(err) = cause {
        let inner = err.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = err.source();
    }
    text
}

/// A variable of the container, or the content of the file that `NAME_FILE` names, where it is mounted here
/// too (the image's own convention for secrets).
fn container_value(stack: &StackService, name: &str) -> Option<String> {
    if let Some(value) = stack.environment.get(name).filter(|v| !v.is_empty()) {
        return Some(value.clone());
    }
    let file = stack.environment.get(&format!("{name}_FILE"))?;
    let local = stack.local_path(Path::new(file))?;
    match std::fs::read_to_string(&local) {
        Ok(text) => Some(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(err) => {
            tracing::warn!(service = %stack.name, "cannot read {} for {name}: {err}", local.display());
            None
        }
    }
}

fn exposed_port(stack: &StackService) -> u16 {
    const DEFAULT: u16 = 5432;
    if let Some(port) = stack.environment.get("PGPORT").and_then(|p| p.parse().ok()) {
        return port;
    }
    if stack.ports.contains(&DEFAULT) {
        return DEFAULT;
    }
    stack.ports.first().copied().unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::services::ServiceKind;

    fn stack(environment: &[(&str, &str)]) -> StackService {
        StackService {
            kind: ServiceKind::Postgres,
            name: "db".to_owned(),
            container: None,
            environment: environment
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            mounts: vec![SharedMount {
                target: "/var/lib/postgresql/data".into(),
                local: "/data/postgres".into(),
                read_only: false,
            }],
            all_mount_targets: Vec::new(),
            hosts: vec!["db".to_owned(), "172.18.0.2".to_owned()],
            ports: vec![9187, 5432],
            depends_on: Vec::new(),
        }
    }

    fn config(vars: &[(&str, &str)]) -> Config {
        Config::from_vars(
            vars.iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        )
        .unwrap()
    }

    #[test]
    fn the_containers_environment_is_enough() {
        let stack = stack(&[("POSTGRES_USER", "n8n"), ("POSTGRES_PASSWORD", "geheim")]);
        let access = Access::new(&config(&[]), &stack);
        let attempts = access.attempts().unwrap();
        // No POSTGRES_DB: the database has the user's name, as in the image; then the fallback.
        let databases: Vec<_> = attempts.iter().filter_map(|c| c.get_dbname()).collect();
        assert_eq!(databases, ["n8n", "postgres", "n8n", "postgres"]);
        assert_eq!(attempts[0].get_password(), Some(b"geheim".as_slice()));
        assert_eq!(access.port, 5432);
        assert!(!format!("{access:?}").contains("password: Some(\"geheim"));
    }

    #[test]
    fn the_configuration_comes_before_the_containers_environment() {
        let stack = stack(&[("POSTGRES_USER", "n8n"), ("POSTGRES_DB", "app")]);
        let config = config(&[
            ("POSTGRES_HOST", "10.0.0.9"),
            ("POSTGRES_PORT", "6000"),
            ("POSTGRES_USER", "backup"),
        ]);
        let access = Access::new(&config, &stack);
        assert_eq!(access.hosts, ["10.0.0.9"]);
        assert_eq!((access.port, access.user.as_str()), (6000, "backup"));
        assert_eq!(access.attempts().unwrap()[0].get_dbname(), Some("app"));
    }

    #[test]
    fn a_password_file_is_read_where_it_is_mounted_here_too() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pw"), "from a file\n").unwrap();
        let mut stack = stack(&[("POSTGRES_PASSWORD_FILE", "/run/secrets/pw")]);
        stack.mounts.push(SharedMount {
            target: "/run/secrets".into(),
            local: dir.path().to_owned(),
            read_only: true,
        });
        let access = Access::new(&config(&[]), &stack);
        assert_eq!(
            access.attempts().unwrap()[0].get_password(),
            Some(b"from a file".as_slice())
        );
    }

    #[test]
    fn no_address_is_a_sentence() {
        let mut stack = stack(&[]);
        stack.hosts.clear();
        let err = Access::new(&config(&[]), &stack).attempts().unwrap_err();
        assert!(err.to_string().contains("POSTGRES_HOST"), "{err}");
    }

    #[test]
    fn paths_are_mapped_through_the_data_directory_and_the_mounts() {
        let access = Access::new(&config(&[]), &stack(&[]));
        let local = |path: &str, data: Option<(&str, &str)>| {
            access.local_path(
                Path::new(path),
                data.map(|(a, b)| (Path::new(a), Path::new(b))),
            )
        };
        assert_eq!(
            local("/var/lib/postgresql/data/pgdata", None),
            Some("/data/postgres/pgdata".into())
        );
        assert_eq!(local("/srv/ts", None), None);
        let other = Some(("/var/lib/postgresql/18/docker", "/mnt/pg"));
        assert_eq!(
            local("/var/lib/postgresql/18/docker/ts", other),
            Some("/mnt/pg/ts".into())
        );
        assert_eq!(local("/srv/ts", other), None);
        // The same machine, no container.
        assert_eq!(
            local("/srv/ts", Some(("/pg", "/pg"))),
            Some("/srv/ts".into())
        );
        // Forged: neither below the data directory nor on the mount.
        assert_eq!(local("/var/lib/postgresql/18/docker/../../x", other), None);
        assert_eq!(local("/srv/../etc", Some(("/pg", "/pg"))), None);
        assert_eq!(local("/var/lib/postgresql/data/../../x", None), None);
    }
}
