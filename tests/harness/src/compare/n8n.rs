use std::time::Duration;

use anyhow::{Context, Result};

use super::{Truth, presence};
use crate::ledger::Write;
use crate::n8n::{HEADER, N8n, workflows};
use crate::stack::{Service, Stack};
use crate::table::Check;

const SERVICE: Service = Service::N8n;
/// Executions of which the stored data is read, not only the status.
const SAMPLE: usize = 25;

pub fn compare(stack: &Stack, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let seeded = truth.state.n8n.as_ref();
    let seeded = seeded.context("the state file says nothing of n8n")?;
    let mut n8n = N8n::new(stack, Duration::from_mins(1))?;
    n8n.log_in(&seeded.email, &seeded.password)?;
    checks.push(Check::equal(
        SERVICE,
        "login of the owner",
        &"accepted",
        &"accepted",
    ));

    let header = n8n.credential_header(&seeded.credential)?;
    checks.push(Check::equal(
        SERVICE,
        "credential opens",
        &HEADER,
        &header.as_str(),
    ));
    let active = seeded.workflows.values().map(|id| n8n.is_active(id));
    let active = active.collect::<Result<Vec<_>>>()?;
    let active = active.into_iter().filter(|active| *active).count();
    checks.push(presence(
        SERVICE,
        "published workflows",
        seeded.workflows.len(),
        active,
    ));

    // Before new executions are made, which take the ids that follow the restored ones.
    compare_executions(&n8n, truth, &seeded.executions, checks)?;
    checks.push(runs(&n8n));
    checks.push(carries_credential(&n8n, &seeded.secret));
    Ok(())
}

fn runs(n8n: &N8n) -> Check {
    let what = format!("webhook {} runs its workflow", workflows::ECHO);
    match n8n.wait_for_webhook() {
        Ok(()) => Check::equal(SERVICE, what, &"the nonce", &"the nonce"),
        Err(error) => Check::failed(SERVICE, what, &error),
    }
}

fn carries_credential(n8n: &N8n, secret: &str) -> Check {
    let what = format!("webhook {} sends the credential", workflows::CALL);
    match n8n.call_with_credential() {
        Ok(arrived) => {
            let found = if arrived == secret {
                "its value"
            } else {
                "another value"
            };
            Check::equal(SERVICE, what, &"its value", &found)
        }
        Err(error) => Check::failed(SERVICE, what, &error),
    }
}

/// Compares the executions that are listed, and the data and files of a sample of them.
fn compare_executions(
    n8n: &N8n,
    truth: &Truth,
    seeded: &[Write],
    checks: &mut Vec<Check>,
) -> Result<()> {
    let workflows = truth
        .state
        .n8n
        .iter()
        .flat_map(|seeded| seeded.workflows.values());
    let found = n8n.executions(&workflows.map(String::as_str).collect::<Vec<_>>())?;
    let acknowledged: Vec<&Write> = seeded.iter().chain(truth.acknowledged(SERVICE)).collect();
    let succeeded = acknowledged.iter().filter(|write| {
        let execution = id(write).and_then(|id| found.get(id));
        execution.is_some_and(|execution| execution.status == "success")
    });
    checks.push(presence(
        SERVICE,
        "executions acknowledged before the backup",
        acknowledged.len(),
        succeeded.count(),
    ));
    let sample: Vec<&Write> = acknowledged.iter().rev().take(SAMPLE).copied().collect();
    let right = sample.iter().filter(|write| holds_nonce(n8n, write));
    checks.push(presence(
        SERVICE,
        "executions of the last that hold their data",
        sample.len(),
        right.count(),
    ));
    let files = acknowledged.iter().rev();
    let files: Vec<&Write> = files
        .filter(|write| matches!(write, Write::Binary { .. }))
        .take(SAMPLE)
        .copied()
        .collect();
    let right = files.iter().filter(|write| holds_file(n8n, write));
    checks.push(presence(
        SERVICE,
        "stored files of the last with the right SHA-256",
        files.len(),
        right.count(),
    ));
    Ok(())
}

fn id(write: &Write) -> Option<&str> {
    match write {
        Write::Execution { execution, .. } | Write::Binary { execution, .. } => Some(execution),
        _ => None,
    }
}

fn holds_nonce(n8n: &N8n, write: &Write) -> bool {
    match write {
        Write::Execution { execution, nonce }
        | Write::Binary {
            execution, nonce, ..
        } => n8n
            .execution_data(execution)
            .is_ok_and(|data| data.contains(nonce)),
        _ => false,
    }
}

fn holds_file(n8n: &N8n, write: &Write) -> bool {
    match write {
        Write::Binary {
            execution, sha256, ..
        } => n8n
            .stored_file(execution)
            .is_ok_and(|found| found == *sha256),
        _ => false,
    }
}
