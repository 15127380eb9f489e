//! An n8n directory, a process that writes to it, and containers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lifeboat::services::ServiceKind;
use lifeboat::stack::StackService;
use rusqlite::Connection;

use crate::place::{Place, mount, service, wait_for};

pub const N8N_IMAGE: &str = "lifeboat-test/n8n:2";
pub const POSTGRES_IMAGE: &str = "lifeboat-test/postgres:17";

// Written by n8n 2.41.1 for a throw-away instance.
pub const KEY: &str = "zu60KadMkDONtWwkJWd7/s42ASKCAJfk";
pub const CREDENTIAL: &str =
    "U2FsdGVkX1+kdq3XHLnBwZWPgmqBk1NqzG39yZSzeTzUorXUiMs6IE3xC7R3nsAZBegHgwaFu7T3tij0RNGoBA==";

/// Tables as n8n has them, as far as they matter here; understood by SQLite and PostgreSQL.
pub fn schema() -> String {
    format!(
        r#"
        CREATE TABLE workflow_entity (id varchar(36) PRIMARY KEY, name text);
        CREATE TABLE "user" (id varchar(36) PRIMARY KEY);
        CREATE TABLE credentials_entity (id varchar(36) PRIMARY KEY, data text NOT NULL, "updatedAt" timestamp);
        CREATE TABLE deployment_key (id varchar(36), type varchar(64), value text, algorithm varchar(20));
        CREATE TABLE migrations (id integer, "timestamp" bigint, name varchar);
        CREATE TABLE instance_version_history (id integer, major integer, minor integer, patch integer);
        CREATE TABLE ledger (n integer PRIMARY KEY, body text);
        INSERT INTO workflow_entity VALUES ('w1', 'first'), ('w2', 'second');
        INSERT INTO credentials_entity VALUES ('c1', '{CREDENTIAL}', '2026-01-01 00:00:00');
        INSERT INTO migrations VALUES (1, 100, 'Older100'), (2, 1789995003141, 'Newest1789995003141');
        INSERT INTO instance_version_history VALUES (1, 2, 40, 0), (2, 2, 41, 1);
        "#
    )
}

/// An n8n directory with an SQLite database in WAL mode that is closed.
pub struct Home(pub PathBuf);

impl Home {
    pub fn new(place: &Place) -> Self {
        let home = Self(place.path("data/n8n"));
        std::fs::create_dir_all(home.0.join("storage/workflows/w1")).unwrap();
        std::fs::write(home.0.join("storage/workflows/w1/binary"), "binary data").unwrap();
        std::fs::write(home.0.join("crash.journal"), "").unwrap();
        std::fs::write(home.0.join("n8nEventLog.log"), "{}\n").unwrap();
        home.config(KEY);
        let database = Connection::open(home.database()).unwrap();
        database
            .execute_batch("PRAGMA page_size=8192; PRAGMA journal_mode=WAL;")
            .unwrap();
        database.execute_batch(&schema()).unwrap();
        home
    }

    pub fn database(&self) -> PathBuf {
        self.0.join("database.sqlite")
    }

    pub fn config(&self, key: &str) {
        let text = serde_json::json!({ "encryptionKey": key }).to_string();
        std::fs::write(self.0.join("config"), text).unwrap();
    }

    pub fn service(&self, environment: &[(&str, &str)]) -> StackService {
        let mut found = service(ServiceKind::N8n, "n8n");
        found.mounts = vec![mount("/home/node/.n8n", &self.0)];
        found.environment = environment
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        found
    }
}

/// Another process that keeps writing: locks of one process do not show between its own connections.
pub struct Writer {
    pub child: Child,
    ledger: PathBuf,
}

impl Writer {
    pub async fn start(place: &Place, database: &Path) -> Self {
        let ledger = place.path("ledger");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "write_for_another_test", "--nocapture"])
            .env("WRITER_DATABASE", database)
            .env("WRITER_LEDGER", &ledger)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let writer = Self { child, ledger };
        wait_for("the writer's first rows", async || {
            writer.acknowledged() > 20
        })
        .await;
        writer
    }

    /// How many rows were committed for certain.
    pub fn acknowledged(&self) -> i64 {
        std::fs::metadata(&self.ledger).map_or(0, |stat| i64::try_from(stat.len()).unwrap())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A container that is removed at the end.
pub struct Container {
    id: String,
}

impl Container {
    pub fn run(args: &[&str]) -> Self {
        let out = Command::new("docker")
            .args(["run", "-d"])
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "cannot start a container (scripts/setup builds the images): {said}"
        );
        Self {
            id: String::from_utf8(out.stdout).unwrap().trim().to_owned(),
        }
    }

    pub fn docker(&self, before: &[&str], after: &[&str]) -> (bool, String) {
        let out = Command::new("docker")
            .args(before)
            .arg(&self.id)
            .args(after)
            .output()
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        )
    }

    pub fn address(&self, port: &str) -> String {
        let (_, said) = self.docker(&["port"], &[port]);
        said.lines().next().unwrap().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = Command::new("docker")
            .args(["rm", "-fv", &self.id])
            .output();
        assert!(removed.is_ok());
    }
}

pub fn start_n8n(home: &Path) -> Container {
    let volume = format!("{}:/home/node/.n8n", home.display());
    Container::run(&["-p", "127.0.0.1::5678", "-v", &volume, N8N_IMAGE])
}

pub fn run_n8n(home: &Path, args: &[&str]) -> String {
    let volume = format!("{}:/home/node/.n8n", home.display());
    let out = Command::new("docker")
        .args(["run", "--rm", "-v", &volume, N8N_IMAGE])
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{said} {}",
        String::from_utf8_lossy(&out.stderr)
    );
    said
}
