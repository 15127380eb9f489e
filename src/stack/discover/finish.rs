//! What both ways of discovery end with: loose directories, the project's files, names, `LIFEBOAT_SERVICES`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{DiscoverError, Surroundings};
use crate::config::Config;
use crate::services::ServiceKind;
use crate::stack::{
    Companion, CompanionRole, SharedMount, Stack, StackService, archive_characters,
};

/// Adds directories that no service has, and the project's files; gives names; applies `LIFEBOAT_SERVICES`.
pub(super) fn finish(
    config: &Config,
    mut stack: Stack,
    claimed: &[PathBuf],
    around: &dyn Surroundings,
) -> Result<Stack, DiscoverError> {
    let kept_apart: Vec<_> = config
        .own_directories()
        .chain([config.project_dir.as_path()])
        .collect();
    let loose = around
        .directories(&config.data)
        .into_iter()
        .filter(|dir| !touches(claimed, dir))
        .filter(|dir| !kept_apart.iter().any(|other| related(other, dir)))
        .map(|dir| directory(ServiceKind::Volume, &file_name(&dir), &dir))
        .collect::<Vec<_>>();
    // Volumes wait for nothing and nothing is known to wait for them: before all that has a start order.
    stack.services.splice(0..0, loose);
    if around.is_dir(&config.project_dir) {
        let dir = &config.project_dir;
        stack
            .services
            .insert(0, directory(ServiceKind::Project, "project", dir));
    }
    make_names_unique(&mut stack.services);
    filter(config, &mut stack)?;
    if stack.services.is_empty() {
        stack.warnings.push(format!(
            "no service was found: mount the services' data below {} and mount the Docker socket, or name the \
             services with POSTGRES_HOST, QDRANT_URL, OLLAMA_URL and N8N_URL",
            config.data.display()
        ));
    }
    Ok(stack)
}

/// A service that no container is known of.
pub(super) fn bare(kind: ServiceKind, name: &str) -> StackService {
    StackService {
        kind,
        name: name.to_owned(),
        container: None,
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        all_mount_targets: Vec::new(),
        hosts: Vec::new(),
        ports: Vec::new(),
        depends_on: Vec::new(),
    }
}

pub(super) fn add_mount(service: &mut StackService, target: &Path, local: &Path) {
    service.all_mount_targets.push(target.display().to_string());
    service.mounts.push(SharedMount {
        target: target.to_owned(),
        local: local.to_owned(),
        read_only: false,
    });
}

/// A service that is a directory of the sidecar.
fn directory(kind: ServiceKind, name: &str, dir: &Path) -> StackService {
    let mut service = bare(kind, name);
    add_mount(&mut service, dir, dir);
    service
}

/// Whether a path is one of those, or above or below one.
pub(super) fn touches(paths: &[PathBuf], path: &Path) -> bool {
    paths.iter().any(|p| related(p, path))
}

fn related(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// Archives are named after services: `[a-z0-9._-]+`, each once.
fn make_names_unique(services: &mut [StackService]) {
    let mut taken = BTreeSet::new();
    for service in services {
        let plain = archive_characters(&service.name);
        let plain = match plain.trim_start_matches('.') {
            "" => service.kind.as_str().to_owned(),
            name => name.to_owned(),
        };
        let mut name = plain.clone();
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        service.name = name;
    }
}

fn filter(config: &Config, stack: &mut Stack) -> Result<(), DiscoverError> {
    let Some(wanted) = &config.services else {
        return Ok(());
    };
    let matches = |entry: &str, service: &StackService| {
        entry.eq_ignore_ascii_case(&service.name)
            || entry.eq_ignore_ascii_case(service.kind.as_str())
    };
    for entry in wanted {
        if !stack.services.iter().any(|s| matches(entry, s)) {
            let found: Vec<String> = stack
                .services
                .iter()
                .map(|s| format!("{} ({})", s.name, s.kind))
                .collect();
            return Err(DiscoverError::NoSuchService(format!(
                "LIFEBOAT_SERVICES names \"{entry}\", which is not there; found: {}",
                if found.is_empty() {
                    "nothing".to_owned()
                } else {
                    found.join(", ")
                }
            )));
        }
    }
    let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut stack.services)
        .into_iter()
        .partition(|s| wanted.iter().any(|entry| matches(entry, s)));
    stack.services = kept;
    // n8n writes to the others: a restore of those must be able to stop it.
    let writers = dropped.into_iter().filter(|s| s.kind == ServiceKind::N8n);
    stack.companions.extend(writers.filter_map(|s| {
        Some(Companion {
            name: s.name,
            kind: s.kind,
            role: CompanionRole::Worker,
            container: s.container?,
            depends_on: s.depends_on,
        })
    }));
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
