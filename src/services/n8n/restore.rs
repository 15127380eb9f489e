//! Puts n8n's directory back: unpacked beside, swapped in, and waited for until it is ready.

use std::cmp::Ordering;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::database;
use super::key::{Proof, fingerprint, prove};
use super::locate::{
    configured_key, endpoint, find_database, find_home, find_key, is_plain_relative,
    key_of_config_file,
};
use super::{Database, Environment, Facts, KEY_ENTRY, sqlite, version};
use crate::config::Config;
use crate::durable;
use crate::repository::manifest::ArchiveRecord;
use crate::restore::{Restore, Way};
use crate::services::support::{Endpoint, check_writable, io_failed};
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;

const POLL: Duration = Duration::from_millis(500);

/// n8n's restore.
#[derive(Debug)]
pub struct N8nRestore {
    name: String,
    home: PathBuf,
    database: Database,
    environment: Environment,
    endpoint: Option<Endpoint>,
    /// The address is a guess: neither configured nor found through the engine.
    guessed: bool,
    image: Option<String>,
    configured_key: Option<String>,
    timeout: Duration,
}

impl N8nRestore {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let home = find_home(config, service)?;
        let environment = Environment(service.environment.clone());
        Ok(Self {
            name: service.name.clone(),
            database: find_database(service, &environment, &home)?,
            endpoint: endpoint(config, service, &environment)?,
            guessed: config.n8n.url.is_none() && service.container.is_none(),
            image: service.container.as_ref().map(|c| c.image.clone()),
            configured_key: configured_key(config),
            timeout: config.restore_timeout,
            home,
            environment,
        })
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<Facts, ServiceError> {
        serde_json::from_value(record.report.facts.clone()).map_err(|e| {
            let message = format!(
                "the backup's notes on n8n cannot be read ({e}): it was written by another version or is damaged"
            );
            ServiceError::new(&self.name, ErrorKind::Damaged, message)
        })
    }

    /// n8n migrates its database forward only: an older one fails on a newer one's tables.
    async fn check_version(&self, recorded: &str) -> Result<String, String> {
        let live = match version::ask(self.endpoint.as_ref()).await {
            Some(version) => Some(version),
            None => self.image.as_deref().and_then(version::of_image),
        };
        let Some(live) = live else {
            return Ok(format!(
                "the backup is of n8n {recorded}; which one runs here is not known"
            ));
        };
        match version::compare(&live, recorded) {
            Some(Ordering::Less) => Err(format!(
                "the backup is of n8n {recorded}, and {live} runs here: an older n8n cannot read a newer one's data. Set the image to {recorded} or newer and start it, then restore"
            )),
            _ => Ok(format!("backup of n8n {recorded}, {live} runs here")),
        }
    }

    fn check_database(&self, facts: &Facts) -> Result<String, String> {
        let live = match self.database {
            Database::Sqlite { .. } => "sqlite",
            Database::Postgres => "postgres",
        };
        // Without the container's environment, an empty directory tells nothing.
        if live == facts.database || self.environment.is_empty() {
            return Ok(facts.database.clone());
        }
        Err(format!(
            "the backup is of an n8n on {}, and the one here uses {live}: its workflows would not be seen. Set DB_TYPE as it was, then restore",
            facts.database
        ))
    }

    fn check_key(&self, facts: &Facts) -> Result<String, String> {
        let given = [
            (
                "its container's",
                self.environment.get("N8N_ENCRYPTION_KEY"),
            ),
            ("this program's", self.configured_key.clone()),
        ];
        for (whose, key) in given {
            if key.is_some_and(|key| fingerprint(&key) != facts.key_fingerprint) {
                return Err(format!(
                    "N8N_ENCRYPTION_KEY in {whose} environment is not the key of the backup: n8n could not open its credentials. Set it to the key of that time, or remove it, as the backup brings its own"
                ));
            }
        }
        Ok(match &facts.key_opens {
            Some(what) => format!("the backup brings it; it opened {what}"),
            None => "the backup brings it".to_owned(),
        })
    }

    /// Has the staged directory hold the key where n8n looks for it.
    fn put_key(&self, staged: &Path) -> Result<(), ServiceError> {
        let kept = staged.join(KEY_ENTRY);
        let key = match std::fs::read_to_string(&kept) {
            Ok(key) => key,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_failed(&self.name, "read", &kept, e)),
        };
        let config = staged.join("config");
        if key_of_config_file(&self.name, &config)?.is_none() {
            self.write_config(&config, &key)?;
        }
        let own = kept.parent().unwrap_or(&kept);
        durable::remove_tree(own)
            .map(drop)
            .map_err(|e| io_failed(&self.name, "remove", own, e))
    }

    /// As n8n writes it; other settings of an existing file are kept.
    fn write_config(&self, config: &Path, key: &str) -> Result<(), ServiceError> {
        let failed = |e| io_failed(&self.name, "write", config, e);
        let old = std::fs::read(config).unwrap_or_default();
        let mut settings: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&old).unwrap_or_default();
        settings.insert("encryptionKey".to_owned(), key.into());
        let text = serde_json::to_vec_pretty(&settings).map_err(|e| failed(e.into()))?;
        durable::write_replace(config, &text, 0o600).map_err(failed)?;
        let kept = config.with_file_name(KEY_ENTRY);
        let owner = std::fs::metadata(&kept).map_err(failed)?;
        std::os::unix::fs::lchown(config, Some(owner.uid()), Some(owner.gid())).map_err(failed)
    }

    /// Removes what belongs to another state of the database, then tries the key on it.
    fn complete_database(&self, staged: &Path, facts: &Facts) -> Result<(), ServiceError> {
        let Some(file) = &facts.file else {
            return Ok(());
        };
        let damaged = |message| ServiceError::new(&self.name, ErrorKind::Damaged, message);
        if !is_plain_relative(Path::new(file)) {
            return Err(damaged(format!("the database's name {file:?} is none")));
        }
        let path = staged.join(file);
        for suffix in ["-wal", "-shm", "-journal"] {
            let side = sqlite::with_suffix(&path, suffix);
            durable::remove(&side).map_err(|e| io_failed(&self.name, "remove", &side, e))?;
        }
        let copy = sqlite::open_copy(&path).map_err(|e| damaged(e.to_string()))?;
        sqlite::check_copy(&copy, &path).map_err(|e| damaged(e.to_string()))?;
        let findings = database::read_sqlite(&copy, &self.environment)
            .map_err(|e| damaged(format!("the restored database cannot be read: {e}")))?;
        let key = find_key(&self.name, staged, &Environment::default(), None)?;
        if prove(&key.value, &findings) == Proof::OpensNothing {
            return Err(damaged(
                "the backed-up key does not open the backed-up credentials: the backup is damaged"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Restore for N8nRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Swap {
            root: self.home.clone(),
        }
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let facts = match self.facts(record) {
            Ok(facts) => facts,
            Err(e) => return vec![Check::bad(subject("backup"), e.message)],
        };
        let check = |what: &str, outcome| Check {
            subject: subject(what),
            outcome,
            caution: false,
        };
        vec![
            check("version", self.check_version(&record.report.version).await),
            check("database", self.check_database(&facts)),
            check("encryption key", self.check_key(&facts)),
            check_writable(subject("directory"), &self.home),
        ]
    }

    async fn prepare(
        &mut self,
        staged: &Path,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        tokio::task::block_in_place(|| {
            self.put_key(staged)?;
            self.complete_database(staged, &facts)
        })
    }

    /// `/healthz` answers while migrations still run: only `/healthz/readiness` counts.
    async fn settle(
        &mut self,
        _record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        // Without the engine nothing starts n8n here: it may be down for good reason.
        if self.guessed
            && let Err(e) = endpoint.base().await
        {
            tracing::warn!(service = %self.name, "n8n was not waited for: {}", e.message);
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let ready = async {
                let base = endpoint.base().await?;
                let request = base.get("/healthz/readiness");
                base.body("see n8n ready", request).await
            };
            let Err(trouble) = ready.await else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let message = format!(
                    "n8n is not ready {} seconds after its start: {}. See its log: a wrong encryption key or an unreachable database ends it",
                    self.timeout.as_secs(),
                    trouble.message
                );
                return Err(ServiceError::new(&self.name, trouble.kind, message));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
