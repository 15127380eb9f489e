//! Which containers a restore stops and starts, and why.

use std::collections::BTreeSet;

use super::{PlannedContainer, PlannedService, PlannedWay};
use crate::services::ServiceKind;
use crate::stack::order::Member;

pub enum Why {
    Restored,
    Writes(ServiceKind),
    Needs(String),
    /// Its database is replaced in a server that runs: it starts when that is done.
    Uses(String),
}

/// What stops: each swapped service, the workers on its data, n8n where its database or files are swapped,
/// and whatever depends on one of them. A PostgreSQL server that takes dumps runs on, and what uses it stops.
pub fn affected<'a, 's>(
    members: &'a [Member<'s>],
    services: &[PlannedService],
) -> Vec<(&'a Member<'s>, Why)> {
    let swapped: Vec<_> = services
        .iter()
        .filter(|s| matches!(s.way, PlannedWay::Swap { .. }))
        .collect();
    let online = services
        .iter()
        .find(|s| s.kind == ServiceKind::Postgres && s.way == PlannedWay::Online);
    let n8n_writes = swapped
        .iter()
        .map(|s| s.kind)
        .find(|kind| matches!(kind, ServiceKind::Postgres | ServiceKind::N8n));
    members
        .iter()
        .filter(|member| member.kind != ServiceKind::Project)
        .filter_map(|member| {
            let why = if swapped
                .iter()
                .any(|s| s.service == member.name && !member.is_worker)
            {
                Why::Restored
            } else if let Some(kind) = n8n_writes.filter(|_| member.kind == ServiceKind::N8n) {
                Why::Writes(kind)
            } else if member.is_worker && swapped.iter().any(|s| s.kind == member.kind) {
                Why::Writes(member.kind)
            } else if let Some(needed) = swapped
                .iter()
                .find(|s| depends(member, &s.service, members))
            {
                Why::Needs(needed.service.clone())
            } else {
                let server = online.filter(|s| {
                    member.kind == ServiceKind::N8n || depends(member, &s.service, members)
                })?;
                Why::Uses(server.service.clone())
            };
            Some((member, why))
        })
        .collect()
}

/// A container that stops, as the plan shows it.
pub fn planned(member: &Member<'_>, why: &Why, members: &[Member<'_>]) -> PlannedContainer {
    let needs_n8n = members
        .iter()
        .any(|other| other.kind == ServiceKind::N8n && depends(member, other.name, members));
    PlannedContainer {
        service: member.name.to_owned(),
        kind: member.kind,
        container: member.container.cloned(),
        why: match why {
            Why::Restored => "its data is swapped".to_owned(),
            Why::Writes(kind) => format!("it writes to the {kind} data that is restored"),
            Why::Needs(name) => format!("it depends on {name}"),
            Why::Uses(name) => format!("its database in {name} is replaced"),
        },
        late: member.kind == ServiceKind::N8n || needs_n8n || matches!(why, Why::Uses(_)),
    }
}

/// Whether a member needs another, directly or through others.
fn depends(member: &Member<'_>, on: &str, members: &[Member<'_>]) -> bool {
    let mut waiting: Vec<&str> = member.depends_on.iter().map(String::as_str).collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if name == on {
            return true;
        }
        if seen.insert(name)
            && let Some(next) = members.iter().find(|m| m.name == name)
        {
            waiting.extend(next.depends_on.iter().map(String::as_str));
        }
    }
    false
}
