//! Tables beside n8n's whose content proves itself: conserved sums, gapless serials, digests.

use std::time::Duration;

use ::postgres::{Client, Config, NoTls};
use anyhow::{Context, Result, bail};

use crate::ledger::Write;
use crate::stack::{Service, Stack};
use crate::state::PostgresState;

/// Accounts are few enough for transfers to meet on the same pages.
const ACCOUNTS: i32 = 1000;
const OPENING: i64 = 10_000;

const SCHEMA: &str = "
CREATE SCHEMA harness;
CREATE EXTENSION IF NOT EXISTS amcheck;

CREATE TABLE harness.branches (
    id int PRIMARY KEY,
    name text NOT NULL UNIQUE
);
CREATE TABLE harness.accounts (
    id int PRIMARY KEY,
    branch int NOT NULL REFERENCES harness.branches,
    opening bigint NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0)
);
CREATE INDEX ON harness.accounts (branch, balance);

CREATE TABLE harness.transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    nonce text NOT NULL UNIQUE,
    source int NOT NULL REFERENCES harness.accounts,
    target int NOT NULL REFERENCES harness.accounts,
    amount bigint NOT NULL CHECK (amount > 0),
    at timestamptz NOT NULL DEFAULT now(),
    CHECK (source <> target)
);
CREATE INDEX ON harness.transfers (source);
CREATE INDEX ON harness.transfers (target);

-- Serials come from a locked row, not a sequence: commits are in serial order, without gaps.
CREATE TABLE harness.counter (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    serial bigint NOT NULL
);
INSERT INTO harness.counter (serial) VALUES (0);
CREATE TABLE harness.ledger (
    serial bigint PRIMARY KEY,
    transfer bigint NOT NULL UNIQUE REFERENCES harness.transfers
);
CREATE FUNCTION harness.refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON harness.ledger
    FOR EACH ROW EXECUTE FUNCTION harness.refuse();

CREATE TABLE harness.documents (
    id bigint PRIMARY KEY,
    revision int NOT NULL DEFAULT 0,
    body text NOT NULL,
    digest text NOT NULL
);
CREATE INDEX ON harness.documents (digest);
";

/// Opens connections as the stack's own user to the stack's own database.
pub struct Connector(Config);

impl Connector {
    pub fn new(stack: &Stack) -> Result<Self> {
        let container = stack.container(Service::Postgres)?;
        let password = stack
            .setting(Service::Postgres, &["POSTGRES_PASSWORD"])
            .context("POSTGRES_PASSWORD is set neither in .env nor in the container")?;
        let mut config = Config::new();
        config
            .host(&container.address)
            .port(container.port)
            .user(user(stack))
            .password(password)
            .dbname(database(stack))
            .application_name("harness");
        Ok(Self(config))
    }

    pub fn connect(&mut self, patience: Duration) -> Result<Client> {
        self.0
            .connect_timeout(patience)
            .connect(NoTls)
            .context("connect to Postgres")
    }
}

pub fn connect(stack: &Stack, patience: Duration) -> Result<Client> {
    Connector::new(stack)?.connect(patience)
}

pub fn user(stack: &Stack) -> &str {
    let user = stack.setting(Service::Postgres, &["POSTGRES_USER"]);
    user.unwrap_or("postgres")
}

pub fn database(stack: &Stack) -> &str {
    let database = stack.setting(Service::Postgres, &["POSTGRES_DB"]);
    database.unwrap_or_else(|| user(stack))
}

/// Connects anew and reads one row.
pub fn ping(stack: &Stack) -> Result<()> {
    let mut client = connect(stack, Duration::from_secs(5))?;
    client.query_one("SELECT 1", &[]).context("run SELECT 1")?;
    client.close().context("close the connection")
}

/// Connects anew and reads a row of a table the writer changes.
pub fn probe(stack: &Stack) -> Result<()> {
    let mut client = connect(stack, Duration::from_secs(5))?;
    client
        .query_one("SELECT balance FROM harness.accounts WHERE id = 1", &[])
        .context("read an account")?;
    client.close().context("close the connection")
}

/// Creates the tables and fills the documents with `rows` rows of about one kilobyte.
pub fn seed(stack: &Stack, rows: i64) -> Result<()> {
    let mut client = connect(stack, Duration::from_secs(10))?;
    let exists = "SELECT to_regnamespace('harness') IS NOT NULL";
    if client.query_one(exists, &[])?.try_get(0)? {
        bail!("Postgres has a schema \"harness\" already; seed a fresh stack");
    }
    client.batch_execute(SCHEMA).context("create the tables")?;
    client
        .batch_execute(
            "INSERT INTO harness.branches SELECT g, 'branch ' || g FROM generate_series(1, 10) g",
        )
        .context("insert branches")?;
    client
        .execute(
            "INSERT INTO harness.accounts (id, branch, opening, balance)
             SELECT g, 1 + g % 10, $2, $2 FROM generate_series(1, $1::int) g",
            &[&ACCOUNTS, &OPENING],
        )
        .context("insert accounts")?;
    fill_documents(&mut client, rows)?;
    for _ in 0..50 {
        transfer(&mut client)?;
    }
    client
        .batch_execute("ANALYZE")
        .context("analyze the tables")
}

fn fill_documents(client: &mut Client, rows: i64) -> Result<()> {
    const BATCH: i64 = 20_000;
    let mut first = 1;
    while first <= rows {
        let last = rows.min(first + BATCH - 1);
        client
            .execute(
                "INSERT INTO harness.documents (id, body, digest)
                 SELECT g, body, md5('0' || body) FROM generate_series($1::bigint, $2) g,
                 LATERAL (SELECT string_agg(md5(g || ':0:' || k), '') AS body
                          FROM generate_series(1, 32) k) made",
                &[&first, &last],
            )
            .context("insert documents")?;
        first = last + 1;
    }
    Ok(())
}

/// Moves an amount between two random accounts and appends to the ledger table, in one commit.
pub fn transfer(client: &mut Client) -> Result<Write> {
    loop {
        let from = rand::random_range(1..=ACCOUNTS);
        let to = rand::random_range(1..=ACCOUNTS);
        let amount = rand::random_range(1..=100);
        if from == to {
            continue;
        }
        if let Some(done) = try_transfer(client, from, to, amount)? {
            return Ok(done);
        }
    }
}

/// Returns nothing, and changes nothing, when the account lacks the amount.
fn try_transfer(client: &mut Client, from: i32, to: i32, amount: i64) -> Result<Option<Write>> {
    let nonce = crate::write::nonce();
    let mut transaction = client.transaction().context("begin a transfer")?;
    let serial: i64 = transaction
        .query_one(
            "UPDATE harness.counter SET serial = serial + 1 RETURNING serial",
            &[],
        )
        .context("take a serial")?
        .try_get(0)?;
    let taken = transaction
        .execute(
            "UPDATE harness.accounts SET balance = balance - $2 WHERE id = $1 AND balance >= $2",
            &[&from, &amount],
        )
        .context("take from an account")?;
    if taken == 0 {
        transaction.rollback().context("give a transfer up")?;
        return Ok(None);
    }
    transaction
        .execute(
            "UPDATE harness.accounts SET balance = balance + $2 WHERE id = $1",
            &[&to, &amount],
        )
        .context("give to an account")?;
    transaction
        .execute(
            "WITH moved AS (INSERT INTO harness.transfers (nonce, source, target, amount)
                            VALUES ($1, $2, $3, $4) RETURNING id)
             INSERT INTO harness.ledger (serial, transfer) SELECT $5, id FROM moved",
            &[&nonce, &from, &to, &amount, &serial],
        )
        .context("append to the ledger table")?;
    transaction.commit().context("commit a transfer")?;
    Ok(Some(Write::Transfer {
        serial,
        nonce,
        from,
        to,
        amount,
    }))
}

/// Says what the tables hold now.
pub fn state(stack: &Stack) -> Result<PostgresState> {
    let mut client = connect(stack, Duration::from_secs(10))?;
    let row = client
        .query_one(
            "SELECT (SELECT count(*) FROM harness.accounts),
                    (SELECT sum(balance)::bigint FROM harness.accounts),
                    (SELECT count(*) FROM harness.documents),
                    (SELECT coalesce(sum(revision), 0) FROM harness.documents),
                    (SELECT serial FROM harness.counter)",
            &[],
        )
        .context("read the tables' sums")?;
    let number = |index: usize| -> Result<i64> { Ok(row.try_get(index)?) };
    Ok(PostgresState {
        accounts: number(0)?,
        total: number(1)?,
        documents: number(2)?,
        revisions: number(3)?,
        serial: number(4)?,
    })
}
