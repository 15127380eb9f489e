use std::collections::HashMap;
use std::time::Duration;

use ::postgres::Client;
use ::postgres::error::SqlState;
use anyhow::{Context, Result};

use super::{Truth, presence};
use crate::ledger::Write;
use crate::postgres;
use crate::stack::{Service, Stack};
use crate::table::Check;

const SERVICE: Service = Service::Postgres;

/// Queries that count what must not be.
const FAULTS: [(&str, &str); 8] = [
    (
        "accounts whose balance is not opening + received - sent",
        "SELECT count(*) FROM harness.accounts a WHERE balance <> opening
            + coalesce((SELECT sum(amount) FROM harness.transfers WHERE target = a.id), 0)
            - coalesce((SELECT sum(amount) FROM harness.transfers WHERE source = a.id), 0)",
    ),
    (
        "accounts below zero",
        "SELECT count(*) FROM harness.accounts WHERE balance < 0",
    ),
    (
        "rows whose foreign key leads nowhere",
        "SELECT (SELECT count(*) FROM harness.accounts
                 WHERE branch NOT IN (SELECT id FROM harness.branches))
              + (SELECT count(*) FROM harness.transfers
                 WHERE source NOT IN (SELECT id FROM harness.accounts)
                    OR target NOT IN (SELECT id FROM harness.accounts))
              + (SELECT count(*) FROM harness.ledger
                 WHERE transfer NOT IN (SELECT id FROM harness.transfers))",
    ),
    (
        "transfers without a row in the ledger table",
        "SELECT count(*) FROM harness.transfers
         WHERE id NOT IN (SELECT transfer FROM harness.ledger)",
    ),
    (
        "gaps in the ledger table",
        "SELECT coalesce(max(serial), 0) - count(*) FROM harness.ledger",
    ),
    (
        "serials counted but not in the ledger table",
        "SELECT serial - (SELECT coalesce(max(serial), 0) FROM harness.ledger)
         FROM harness.counter",
    ),
    (
        "documents that differ from their digest",
        "SELECT count(*) FROM harness.documents WHERE digest <> md5(revision || body)",
    ),
    (
        "constraints and indexes that are not valid",
        "SELECT (SELECT count(*) FROM pg_constraint WHERE NOT convalidated)
              + (SELECT count(*) FROM pg_index WHERE NOT indisvalid OR NOT indisready)",
    ),
];

pub fn compare(stack: &Stack, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let expected = truth.state.snapshot.postgres.as_ref();
    let expected = expected.context("the state file says nothing of Postgres")?;
    let found = postgres::state(stack)?;
    let mut equal = |what: &str, expected, found| {
        checks.push(Check::equal(SERVICE, what, expected, found));
    };
    equal("accounts", &expected.accounts, &found.accounts);
    equal("sum of all balances", &expected.total, &found.total);
    equal("documents", &expected.documents, &found.documents);
    equal("sum of revisions", &expected.revisions, &found.revisions);
    let mut client = postgres::connect(stack, Duration::from_secs(10))?;
    for (what, query) in FAULTS {
        let faults = client.query_one(&format!("SELECT ({query})::bigint"), &[]);
        let faults: i64 = faults
            .with_context(|| format!("count {what}"))?
            .try_get(0)?;
        checks.push(Check::equal(SERVICE, what, &0, &faults));
    }
    checks.push(refuses(&mut client)?);
    compare_ledger(&mut client, truth, expected.serial, checks)?;
    checks.push(amcheck(stack));
    Ok(())
}

/// Compares the ledger table with the ledger file: nothing missing, no hole, nothing too new.
fn compare_ledger(
    client: &mut Client,
    truth: &Truth,
    before: i64,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let found = stored_transfers(client)?;
    let last = found.keys().max().copied().unwrap_or(0);
    let is_there = |write: &&Write| serial(write).is_some_and(|at| found.get(&at) == Some(*write));
    let is_within = |write: &&Write| serial(write).is_some_and(|at| at <= last);

    let acknowledged = truth.acknowledged(SERVICE);
    let (expected, there) = count(acknowledged, is_there);
    checks.push(presence(
        SERVICE,
        "transfers acknowledged before the backup",
        expected,
        there,
    ));
    let restored = truth
        .of(SERVICE)
        .map(|record| &record.write)
        .filter(is_within);
    let (expected, there) = count(restored, is_there);
    checks.push(presence(
        SERVICE,
        "transfers acknowledged up to the restored end",
        expected,
        there,
    ));
    checks.push(Check::new(
        SERVICE,
        "last serial of the ledger table",
        format!("at least {before}"),
        last,
        last >= before,
    ));
    if truth.backup_end.is_some() {
        let (_, there) = count(truth.too_late(SERVICE), is_there);
        checks.push(presence(
            SERVICE,
            "transfers from after the backup",
            0,
            there,
        ));
    }
    Ok(())
}

fn stored_transfers(client: &mut Client) -> Result<HashMap<i64, Write>> {
    let rows = client
        .query(
            "SELECT serial, nonce, source, target, amount
             FROM harness.ledger JOIN harness.transfers ON transfers.id = transfer",
            &[],
        )
        .context("read the ledger table")?;
    rows.iter()
        .map(|row| {
            let serial = row.try_get(0)?;
            let transfer = Write::Transfer {
                serial,
                nonce: row.try_get(1)?,
                from: row.try_get(2)?,
                to: row.try_get(3)?,
                amount: row.try_get(4)?,
            };
            Ok((serial, transfer))
        })
        .collect()
}

fn serial(write: &Write) -> Option<i64> {
    match write {
        Write::Transfer { serial, .. } => Some(*serial),
        _ => None,
    }
}

fn count<'a>(
    writes: impl Iterator<Item = &'a Write>,
    is_there: impl Fn(&&'a Write) -> bool,
) -> (usize, usize) {
    writes.fold((0, 0), |(all, there), write| {
        (all + 1, there + usize::from(is_there(&write)))
    })
}

/// Tries what the constraints forbid; all of it is rolled back.
fn refuses(client: &mut Client) -> Result<Check> {
    let forbidden = [
        (
            "UPDATE harness.accounts SET balance = -1 WHERE id = 1",
            SqlState::CHECK_VIOLATION,
        ),
        (
            "UPDATE harness.accounts SET branch = -1 WHERE id = 1",
            SqlState::FOREIGN_KEY_VIOLATION,
        ),
        (
            "INSERT INTO harness.ledger SELECT serial, transfer FROM harness.ledger LIMIT 1",
            SqlState::UNIQUE_VIOLATION,
        ),
        ("DELETE FROM harness.ledger", SqlState::RAISE_EXCEPTION),
    ];
    let all = forbidden.len();
    let mut refused = 0;
    for (statement, state) in forbidden {
        let mut transaction = client.transaction()?;
        let done = transaction.batch_execute(statement);
        refused += usize::from(done.is_err_and(|error| error.code() == Some(&state)));
        transaction.rollback()?;
    }
    Ok(presence(
        SERVICE,
        "forbidden changes that are refused",
        all,
        refused,
    ))
}

/// Runs `pg_amcheck` in the container over the whole database, n8n's tables included.
fn amcheck(stack: &Stack) -> Check {
    let (user, database) = (postgres::user(stack), postgres::database(stack));
    let what = "pg_amcheck, every heap row in its indexes";
    let output = stack.container(SERVICE).and_then(|container| {
        container.exec(&[
            "pg_amcheck",
            "--username",
            user,
            "--heapallindexed",
            "--parent-check",
            "--install-missing",
            database,
        ])
    });
    match output {
        Ok(output) if output.trim().is_empty() => Check::equal(SERVICE, what, &"clean", &"clean"),
        Ok(output) => Check::new(SERVICE, what, "clean", output.trim(), false),
        Err(error) => Check::failed(SERVICE, what, &error),
    }
}
