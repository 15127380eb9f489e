use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Truth, presence};
use crate::ledger::Write;
use crate::ollama::{self, Ollama};
use crate::stack::{Service, Stack};
use crate::table::Check;

const SERVICE: Service = Service::Ollama;

pub fn compare(stack: &Stack, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let expected = truth.state.snapshot.ollama.as_ref();
    let expected = expected.context("the state file says nothing of Ollama")?;
    let ollama = Ollama::new(stack, Duration::from_mins(1))?;
    let found = ollama.digests()?;
    for (name, digest) in expected {
        let there = found.get(name).map_or("(absent)", String::as_str);
        checks.push(Check::new(
            SERVICE,
            format!("digest of {name}"),
            short(digest),
            short(there),
            digest == there,
        ));
    }
    let is_there = |write: &&Write| match write {
        Write::Model { name, digest } => found.get(name) == Some(digest),
        _ => false,
    };
    let acknowledged: Vec<&Write> = truth.acknowledged(SERVICE).collect();
    checks.push(presence(
        SERVICE,
        "models acknowledged before the backup, same digest",
        acknowledged.len(),
        acknowledged.iter().filter(|write| is_there(write)).count(),
    ));
    if truth.backup_end.is_some() {
        let there = truth.too_late(SERVICE).filter(is_there).count();
        checks.push(presence(SERVICE, "models from after the backup", 0, there));
    }
    let opened = found
        .keys()
        .filter(|name| ollama.show(name).is_ok())
        .count();
    checks.push(presence(SERVICE, "models that open", found.len(), opened));
    let (named, whole) = blobs(stack)?;
    checks.push(presence(
        SERVICE,
        "blobs named by manifests, with the right SHA-256",
        named,
        whole,
    ));
    Ok(())
}

/// Counts the blobs which the manifests name, and those of them that are there and whole.
///
/// No route of Ollama's reads a blob from end to end, so this looks at the files.
fn blobs(stack: &Stack) -> Result<(usize, usize)> {
    let container = stack.container(SERVICE)?;
    let models = ollama::models_dir(stack);
    let list = |directory: &str, command: &[&str]| {
        let directory = format!("{models}/{directory}");
        let mut find = vec!["find", directory.as_str(), "-type", "f", "-exec"];
        find.extend(command);
        find.extend(["{}", "+"]);
        container.exec(&find)
    };
    let manifests = list("manifests", &["cat"])?;
    let mut named = BTreeSet::new();
    for manifest in serde_json::Deserializer::from_str(&manifests).into_iter::<Value>() {
        let manifest = manifest.context("read the manifests")?;
        let layers = manifest.get("layers").and_then(Value::as_array);
        let parts = layers.into_iter().flatten().chain(manifest.get("config"));
        named.extend(parts.filter_map(|part| Some(part.get("digest")?.as_str()?.to_owned())));
    }
    let sums = list("blobs", &["sha256sum"])?;
    let whole = sums.lines().filter(|line| {
        let (sum, path) = line.split_once("  ").unwrap_or_default();
        path.ends_with(&format!("/sha256-{sum}")) && named.contains(&format!("sha256:{sum}"))
    });
    let whole = whole.count();
    Ok((named.len(), whole))
}

/// The part of a digest that Ollama itself shows.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
