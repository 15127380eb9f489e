//! In which order containers stop and start.

use std::collections::{BTreeMap, BTreeSet};

use super::{CompanionRole, ContainerRef, Stack};
use crate::services::ServiceKind;

/// A container that a restore may stop and start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    pub name: &'a str,
    pub kind: ServiceKind,
    /// `None` without the Docker API.
    pub container: Option<&'a ContainerRef>,
    pub depends_on: &'a [String],
    /// A worker beside a service, not the service itself.
    pub is_worker: bool,
}

impl Stack {
    /// Everything that may run, in start order: what others need first, n8n and its workers last. Jobs, which run
    /// to their end, are left out.
    pub fn dependencies_first(&self) -> Vec<Member<'_>> {
        let services = self.services.iter().map(|s| Member {
            name: &s.name,
            kind: s.kind,
            container: s.container.as_ref(),
            depends_on: &s.depends_on,
            is_worker: false,
        });
        let workers = self
            .companions
            .iter()
            .filter(|c| c.role == CompanionRole::Worker)
            .map(|c| Member {
                name: &c.name,
                kind: c.kind,
                container: Some(&c.container),
                depends_on: &c.depends_on,
                is_worker: true,
            });
        services.chain(workers).collect()
    }
}

/// A compose service, for ordering.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub depends_on: Vec<String>,
    /// To start as late as its dependents allow: n8n's active workflows fire at once.
    pub late: bool,
}

/// Start order of all nodes: dependencies first, late ones last, by name where nothing else says.
///
/// Unknown dependencies do not count; a circle, which compose refuses, is cut at its first name.
pub(super) fn start_order(nodes: &BTreeMap<String, Node>) -> Vec<String> {
    let mut waiting: BTreeSet<&String> = nodes.keys().collect();
    let mut order = Vec::with_capacity(nodes.len());
    while !waiting.is_empty() {
        let is_late = |name: &&String| nodes.get(*name).is_some_and(|n| n.late);
        let is_ready = |name: &&String| {
            nodes.get(*name).is_some_and(|n| {
                !n.depends_on
                    .iter()
                    .any(|d| d != *name && waiting.contains(d))
            })
        };
        let ready: Vec<&String> = waiting.iter().copied().filter(is_ready).collect();
        let next = ready
            .iter()
            .copied()
            .find(|name| !is_late(name))
            .or_else(|| ready.first().copied())
            .or_else(|| waiting.first().copied());
        let Some(next) = next else { break };
        waiting.remove(next);
        order.push(next.clone());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(nodes: &[(&str, &[&str], bool)]) -> Vec<String> {
        start_order(
            &nodes
                .iter()
                .map(|(name, depends_on, late)| {
                    let node = Node {
                        depends_on: depends_on.iter().map(|d| (*d).to_owned()).collect(),
                        late: *late,
                    };
                    ((*name).to_owned(), node)
                })
                .collect(),
        )
    }

    #[test]
    fn n8n_is_last_and_what_needs_it_follows() {
        let found = order(&[
            ("caddy", &["n8n"], false),
            ("n8n", &["n8n-import", "postgres"], true),
            ("n8n-import", &["postgres"], false),
            ("ollama", &[], false),
            ("postgres", &[], false),
            ("zoo", &[], false),
        ]);
        assert_eq!(
            found,
            ["ollama", "postgres", "n8n-import", "zoo", "n8n", "caddy"]
        );
    }

    #[test]
    fn circles_and_unknown_names_do_not_hang_it() {
        let found = order(&[("a", &["b"], false), ("b", &["a", "gone"], false)]);
        assert_eq!(found, ["a", "b"]);
    }
}
