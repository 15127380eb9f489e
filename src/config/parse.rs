//! Text to typed values, collecting every mistake.

mod pitr;
mod rate;
mod s3;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;

use super::{
    Config, ConfigError, N8nConfig, OllamaConfig, PostgresConfig, PostgresMode, QdrantConfig,
    RepositoryPlace, RetentionPolicy, Schedule, Secret, Variable,
};
use crate::repository::keys::Keys;

/// The environment as text, one field a variable of [`Variable::all`]; envy fills it.
#[derive(Debug, Deserialize)]
struct Raw {
    lifeboat_repository: Option<String>,
    lifeboat_repository_id: Option<String>,
    age_passphrase: Option<Secret>,
    age_public_keys: Option<String>,
    age_identity: Option<Secret>,
    backup_plaintext_secrets: Option<String>,
    backup_prune: Option<String>,
    lifeboat_state: Option<String>,
    copy_repository: Option<String>,
    target_age_passphrase: Option<Secret>,
    target_age_public_keys: Option<String>,
    target_age_identity: Option<Secret>,
    lifeboat_data: Option<String>,
    lifeboat_project_dir: Option<String>,
    lifeboat_project: Option<String>,
    lifeboat_services: Option<String>,
    docker_host: Option<String>,
    backup_cron_expression: Option<String>,
    backup_jitter: Option<String>,
    backup_on_start: Option<String>,
    tz: Option<String>,
    backup_retention_days: Option<String>,
    backup_keep_last: Option<String>,
    backup_keep_days: Option<String>,
    backup_keep_weeks: Option<String>,
    backup_keep_months: Option<String>,
    backup_pruning_leeway: Option<String>,
    backup_shrink_limit: Option<String>,
    backup_exclude_regexp: Option<String>,
    backup_compression_level: Option<String>,
    backup_rate_limit: Option<String>,
    backup_priority: Option<String>,
    lock_timeout: Option<String>,
    stop_grace: Option<String>,
    restore_timeout: Option<String>,
    log_level: Option<String>,
    log_format: Option<String>,
    postgres_host: Option<String>,
    postgres_port: Option<String>,
    postgres_db: Option<String>,
    postgres_user: Option<String>,
    postgres_password: Option<Secret>,
    postgres_data: Option<String>,
    pitr: Option<String>,
    pitr_interval: Option<String>,
    pitr_keep_days: Option<String>,
    pitr_max_wal: Option<String>,
    postgres_mode: Option<String>,
    postgres_bin: Option<String>,
    qdrant_url: Option<String>,
    qdrant_grpc_url: Option<String>,
    qdrant_api_key: Option<Secret>,
    ollama_url: Option<String>,
    ollama_data: Option<String>,
    n8n_url: Option<String>,
    n8n_data: Option<String>,
    n8n_encryption_key: Option<Secret>,
}

/// Mistakes found so far, and the readers that add to them.
#[derive(Default)]
struct Mistakes(Vec<String>);

pub(super) fn parse(mut vars: BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let mut mistakes = Mistakes::default();
    resolve_names(&mut vars, &mut mistakes);
    let warnings = misspelt(&vars);
    // An empty value means "not set": compose passes `${NAME:-}` that way.
    let set = vars.into_iter().filter(|(_, v)| !v.trim().is_empty());
    let set: Vec<_> = set.collect();
    let raw = envy::from_iter(set.clone())
        .and_then(|raw| Ok((raw, envy::prefixed("AWS_").from_iter(set)?)));
    let (raw, aws): (Raw, s3::Raw) = match raw {
        Ok(raw) => raw,
        Err(err) => {
            mistakes.0.push(err.to_string());
            return Err(ConfigError(mistakes.0));
        }
    };

    let s3 = s3::parse(aws, &mut mistakes);
    let path = |value: Option<String>, default: &str| {
        PathBuf::from(value.unwrap_or_else(|| default.to_owned()))
    };
    let state = path(raw.lifeboat_state, "/var/lib/lifeboat");
    let config = Config {
        keys: Keys {
            passphrase: raw.age_passphrase,
            public_keys: words(raw.age_public_keys.as_deref()),
            identity: raw.age_identity,
            state: Some(state.clone()),
            expected_id: raw.lifeboat_repository_id,
        },
        target_keys: Keys {
            passphrase: raw.target_age_passphrase,
            public_keys: words(raw.target_age_public_keys.as_deref()),
            identity: raw.target_age_identity,
            state: Some(state.clone()),
            expected_id: None,
        },
        plaintext_secrets: mistakes
            .yes_no("BACKUP_PLAINTEXT_SECRETS", raw.backup_plaintext_secrets),
        prune: raw.backup_prune.is_none() || mistakes.yes_no("BACKUP_PRUNE", raw.backup_prune),
        repository: mistakes
            .place("LIFEBOAT_REPOSITORY", raw.lifeboat_repository)
            .unwrap_or_else(|| RepositoryPlace::Directory(PathBuf::from("/backup"))),
        copy_repository: mistakes.place("COPY_REPOSITORY", raw.copy_repository),
        s3,
        state,
        data: path(raw.lifeboat_data, "/data"),
        project_dir: path(raw.lifeboat_project_dir, "/project"),
        project: raw.lifeboat_project,
        services: raw.lifeboat_services.map(|list| {
            list.split(',')
                .map(|s| s.trim().to_owned())
                .filter(|s| !s.is_empty())
                .collect()
        }),
        docker_host: mistakes.docker_host(raw.docker_host),
        schedule: Schedule {
            cron: mistakes.cron(raw.backup_cron_expression),
            jitter: mistakes.duration("BACKUP_JITTER", raw.backup_jitter, Duration::ZERO),
            on_start: mistakes.yes_no("BACKUP_ON_START", raw.backup_on_start),
            time_zone: mistakes.time_zone(raw.tz),
        },
        retention: RetentionPolicy {
            within_days: mistakes.count("BACKUP_RETENTION_DAYS", raw.backup_retention_days),
            last: mistakes
                .count("BACKUP_KEEP_LAST", raw.backup_keep_last)
                .or(Some(3)),
            daily: mistakes
                .count("BACKUP_KEEP_DAYS", raw.backup_keep_days)
                .or(Some(7)),
            weekly: mistakes
                .count("BACKUP_KEEP_WEEKS", raw.backup_keep_weeks)
                .or(Some(4)),
            monthly: mistakes
                .count("BACKUP_KEEP_MONTHS", raw.backup_keep_months)
                .or(Some(6)),
            leeway: mistakes.duration(
                "BACKUP_PRUNING_LEEWAY",
                raw.backup_pruning_leeway,
                Duration::from_mins(1),
            ),
            shrink_limit_percent: mistakes.within(
                "BACKUP_SHRINK_LIMIT",
                raw.backup_shrink_limit,
                50,
                0,
                100,
            ),
        },
        exclude: mistakes.regexp(raw.backup_exclude_regexp),
        compression_level: mistakes.within(
            "BACKUP_COMPRESSION_LEVEL",
            raw.backup_compression_level,
            3,
            1,
            19,
        ),
        rate_limit: mistakes.rate("BACKUP_RATE_LIMIT", raw.backup_rate_limit),
        priority: mistakes.priority("BACKUP_PRIORITY", raw.backup_priority),
        lock_timeout: mistakes.duration("LOCK_TIMEOUT", raw.lock_timeout, Duration::from_hours(1)),
        stop_grace: mistakes.duration("STOP_GRACE", raw.stop_grace, Duration::from_secs(90)),
        restore_timeout: mistakes.duration(
            "RESTORE_TIMEOUT",
            raw.restore_timeout,
            Duration::from_mins(10),
        ),
        log_level: mistakes.one_of(
            "LOG_LEVEL",
            raw.log_level,
            &["info", "error", "warn", "debug", "trace"],
        ),
        log_json: mistakes.one_of("LOG_FORMAT", raw.log_format, &["text", "json"]) == "json",
        postgres: PostgresConfig {
            host: raw.postgres_host,
            port: raw
                .postgres_port
                .map(|p| mistakes.within("POSTGRES_PORT", Some(p), 5432, 1, 65535)),
            database: raw.postgres_db,
            user: raw.postgres_user,
            password: raw.postgres_password,
            data: raw.postgres_data.map(PathBuf::from),
            mode: match mistakes
                .one_of(
                    "POSTGRES_MODE",
                    raw.postgres_mode,
                    &["physical", "dump", "both"],
                )
                .as_str()
            {
                "dump" => PostgresMode::Dump,
                "both" => PostgresMode::Both,
                _ => PostgresMode::Physical,
            },
            bin: raw.postgres_bin.map(PathBuf::from),
        },
        pitr: pitr::parse(
            &mut mistakes,
            raw.pitr,
            raw.pitr_interval,
            raw.pitr_keep_days,
            raw.pitr_max_wal,
        ),
        qdrant: QdrantConfig {
            url: mistakes.url("QDRANT_URL", raw.qdrant_url),
            grpc_url: mistakes.url("QDRANT_GRPC_URL", raw.qdrant_grpc_url),
            api_key: raw.qdrant_api_key,
        },
        ollama: OllamaConfig {
            url: mistakes.url("OLLAMA_URL", raw.ollama_url),
            data: raw.ollama_data.map(PathBuf::from),
        },
        n8n: N8nConfig {
            url: mistakes.url("N8N_URL", raw.n8n_url),
            data: raw.n8n_data.map(PathBuf::from),
            encryption_key: raw.n8n_encryption_key,
        },
        warnings,
    };
    if mistakes.0.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError(mistakes.0))
    }
}

/// What commas, spaces or line ends separate.
fn words(list: Option<&str>) -> Vec<String> {
    list.unwrap_or_default()
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Replaces `NAME_FILE` by the file's content and an alias by the name it stands for.
fn resolve_names(vars: &mut BTreeMap<String, String>, mistakes: &mut Mistakes) {
    for variable in Variable::all() {
        for name in [Some(variable.name), variable.alias].into_iter().flatten() {
            let file_name = format!("{name}_FILE");
            let Some(path) = vars.remove(&file_name).filter(|p| !p.is_empty()) else {
                continue;
            };
            if vars.get(name).is_some_and(|v| !v.is_empty()) {
                mistakes.0.push(format!(
                    "{name} and {file_name} are both set: remove one of them"
                ));
                continue;
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    vars.insert(name.to_owned(), text.trim_end_matches(['\n', '\r']).to_owned());
                }
                Err(err) => mistakes.0.push(format!(
                    "{file_name} names {path}, which cannot be read ({err}): mount the file, or correct the path"
                )),
            }
        }
        let Some(alias) = variable.alias else {
            continue;
        };
        let Some(value) = vars.remove(alias).filter(|v| !v.is_empty()) else {
            continue;
        };
        match vars.get(variable.name) {
            Some(other) if !other.is_empty() && *other != value => mistakes.0.push(format!(
                "{} and {alias} mean the same and differ: remove one of them",
                variable.name
            )),
            _ => {
                vars.insert(variable.name.to_owned(), value);
            }
        }
    }
}

/// Names that look like ours but are not: a typo must not silently mean "default".
fn misspelt(vars: &BTreeMap<String, String>) -> Vec<String> {
    let known = |name: &str| {
        Variable::all().any(|v| v.name == name || v.alias == Some(name))
            || super::variables::COMPOSE_VARIABLES
                .iter()
                .any(|(v, ..)| *v == name)
    };
    vars.keys()
        .filter(|name| {
            (name.starts_with("LIFEBOAT_") || name.starts_with("BACKUP_")) && !known(name)
        })
        .map(|name| {
            let nearest = Variable::all()
                .min_by_key(|v| distance(v.name, name))
                .filter(|v| distance(v.name, name) <= 4);
            match nearest {
                Some(v) => format!("{name} is not a setting: did you mean {}?", v.name),
                None => format!("{name} is not a setting and has no effect"),
            }
        })
        .collect()
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(b.chars()) {
            let next = (diagonal + usize::from(ca != cb))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

impl Mistakes {
    fn wrong(&mut self, name: &str, value: &str, fault: &str) {
        let example = Variable::all()
            .find(|v| v.name == name)
            .map_or("", |v| v.example);
        self.0.push(format!(
            "{name} is \"{value}\": {fault}, for example {name}={example}"
        ));
    }

    fn duration(&mut self, name: &str, value: Option<String>, default: Duration) -> Duration {
        let Some(value) = value else { return default };
        // A bare number is seconds, as in the peers' settings.
        if let Ok(secs) = value.parse::<u64>() {
            return Duration::from_secs(secs);
        }
        if let Some(duration) = value
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|d| Duration::try_from(d).ok())
        {
            duration
        } else {
            self.wrong(name, &value, "not a duration such as 30s, 10m, 1h30m");
            default
        }
    }

    fn within<T>(&mut self, name: &str, value: Option<String>, default: T, low: T, high: T) -> T
    where
        T: FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let Some(value) = value else { return default };
        match value.trim().parse::<T>() {
            Ok(number) if number >= low && number <= high => number,
            _ => {
                self.wrong(
                    name,
                    &value,
                    &format!("not a whole number from {low} to {high}"),
                );
                default
            }
        }
    }

    fn count(&mut self, name: &str, value: Option<String>) -> Option<u32> {
        value.map(|v| self.within(name, Some(v), 0, 0, 100_000))
    }

    fn yes_no(&mut self, name: &str, value: Option<String>) -> bool {
        let Some(value) = value else { return false };
        match value.to_ascii_lowercase().as_str() {
            "yes" | "true" | "1" | "on" => true,
            "no" | "false" | "0" | "off" => false,
            _ => {
                self.wrong(name, &value, "neither yes nor no");
                false
            }
        }
    }

    fn one_of(&mut self, name: &str, value: Option<String>, allowed: &[&str]) -> String {
        let default = allowed.first().copied().unwrap_or_default();
        let Some(value) = value else {
            return default.to_owned();
        };
        let lower = value.to_ascii_lowercase();
        if allowed.contains(&lower.as_str()) {
            return lower;
        }
        self.wrong(name, &value, &format!("not one of {}", allowed.join(", ")));
        default.to_owned()
    }

    fn url(&mut self, name: &str, value: Option<String>) -> Option<String> {
        let value = value?;
        match reqwest::Url::parse(&value) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() => {
                Some(value.trim_end_matches('/').to_owned())
            }
            _ => {
                self.wrong(name, &value, "not an http:// or https:// address");
                None
            }
        }
    }

    fn place(&mut self, name: &str, value: Option<String>) -> Option<RepositoryPlace> {
        let value = value?;
        match RepositoryPlace::parse(&value) {
            Ok(place) => Some(place),
            Err(fault) => {
                self.wrong(name, &value, &fault);
                None
            }
        }
    }

    fn docker_host(&mut self, value: Option<String>) -> Option<String> {
        let value = value?;
        let known = ["unix://", "tcp://", "http://"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
        if !known && value != "none" {
            self.wrong(
                "DOCKER_HOST",
                &value,
                "not unix://, tcp:// or http://, nor none",
            );
        }
        Some(value)
    }

    fn cron(&mut self, value: Option<String>) -> String {
        let value = value.unwrap_or_else(|| "0 3 * * *".to_owned());
        if let Err(err) = crate::schedule::Cron::parse(&value) {
            self.wrong(
                "BACKUP_CRON_EXPRESSION",
                &value,
                &format!("not a cron expression ({err})"),
            );
        }
        value
    }

    fn time_zone(&mut self, value: Option<String>) -> String {
        let value = value.unwrap_or_else(|| "UTC".to_owned());
        if jiff::tz::TimeZone::get(&value).is_err() {
            self.wrong("TZ", &value, "not a time zone of the IANA database");
        }
        value
    }

    fn regexp(&mut self, value: Option<String>) -> Option<Regex> {
        let value = value?;
        match Regex::new(&value) {
            Ok(regex) => Some(regex),
            Err(err) => {
                self.wrong(
                    "BACKUP_EXCLUDE_REGEXP",
                    &value,
                    &format!("not a regular expression ({err})"),
                );
                None
            }
        }
    }
}
