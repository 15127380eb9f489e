//! From what was found to the adapters that make the archives: the real ones, so that all they prove is
//! proven, with nothing of the configuration that leads to a live server.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use regex::Regex;

use super::detect::{self, Root};
use super::names::Names;
use super::rest::Rest;
use super::stage::Tree;
use super::{Source, dotenv};
use crate::config::{Config, N8nConfig, OllamaConfig, PostgresConfig, QdrantConfig, Secret};
use crate::services::n8n::N8n;
use crate::services::ollama::Ollama;
use crate::services::postgres::PostgresFiles;
use crate::services::project::Project;
use crate::services::qdrant::QdrantStorage;
use crate::services::support::{archive_failed, regular};
use crate::services::volume::slug;
use crate::services::{Service, ServiceError, ServiceKind};
use crate::stack::{SharedMount, StackService, joined};

/// The archive of what belongs to no service.
const REST: &str = "other";
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// What n8n's own files do not tell of themselves.
const N8N_VARIABLES: [&str; 2] = ["DB_TABLE_PREFIX", "DB_SQLITE_DATABASE"];

pub fn services(
    config: &Config,
    sources: &[Source],
) -> Result<Vec<Box<dyn Service>>, ServiceError> {
    let mut names = Names::default();
    let mut services: Vec<Box<dyn Service>> = Vec::new();
    let project = CopiedProject::find(sources)?;
    if let Some(project) = &project {
        let name = names.distinct(ServiceKind::Project.as_str());
        services.push(Box::new(Project::of_copy(&name, &project.directory)));
    }
    let roots = || {
        sources
            .iter()
            .flat_map(|source| source.seen.services.iter().map(move |root| (source, root)))
    };
    for (source, root) in roots() {
        let is_only = roots().filter(|(_, other)| other.kind == root.kind).count() == 1;
        let name = if is_only {
            names.distinct(root.kind.as_str())
        } else {
            names.distinct(&directory_name(source, root))
        };
        let directory = joined(&source.tree.root, &root.path);
        services.push(adapter(
            config,
            root.kind,
            &name,
            &directory,
            project.as_ref(),
        )?);
    }
    if !services.is_empty() {
        let rest = rest(sources, project.as_ref())?;
        if !rest.is_empty() {
            services.push(Box::new(Rest::new(&names.distinct(REST), rest)));
        }
    }
    Ok(services)
}

fn directory_name(source: &Source, root: &Root) -> String {
    if root.path.is_empty() {
        source.tree.name.clone()
    } else {
        slug(Path::new(&root.path))
    }
}

fn adapter(
    config: &Config,
    kind: ServiceKind,
    name: &str,
    directory: &Path,
    project: Option<&CopiedProject>,
) -> Result<Box<dyn Service>, ServiceError> {
    Ok(match kind {
        ServiceKind::Postgres => Box::new(PostgresFiles::new(name, directory)),
        ServiceKind::Qdrant => Box::new(QdrantStorage::new(name, directory)),
        ServiceKind::Ollama => {
            let service = service(kind, name, "/root/.ollama", directory);
            Box::new(Ollama::new(&offline(config), &service)?)
        }
        ServiceKind::N8n => {
            let (config, service) = n8n(config, name, directory, project);
            Box::new(N8n::of_copy(&config, &service)?)
        }
        ServiceKind::Project => Box::new(Project::of_copy(name, directory)),
        ServiceKind::Volume => {
            let tree = Tree {
                name: name.to_owned(),
                root: directory.to_owned(),
            };
            Box::new(Rest::new(name, vec![(tree, Vec::new())]))
        }
    })
}

/// The configuration without what belongs to the live stack; nothing is left out of a copy.
fn offline(config: &Config) -> Config {
    Config {
        postgres: PostgresConfig::default(),
        qdrant: QdrantConfig::default(),
        ollama: OllamaConfig::default(),
        n8n: N8nConfig::default(),
        exclude: None,
        ..config.clone()
    }
}

fn service(kind: ServiceKind, name: &str, target: &str, directory: &Path) -> StackService {
    StackService {
        kind,
        name: name.to_owned(),
        container: None,
        environment: BTreeMap::new(),
        mounts: vec![SharedMount {
            target: target.into(),
            local: directory.to_owned(),
            read_only: true,
        }],
        all_mount_targets: vec![target.to_owned()],
        hosts: Vec::new(),
        ports: Vec::new(),
        depends_on: Vec::new(),
    }
}

/// Its key is in its directory, else in the project's `.env`, else it is the configured one.
fn n8n(
    config: &Config,
    name: &str,
    directory: &Path,
    project: Option<&CopiedProject>,
) -> (Config, StackService) {
    let value = |name: &str| dotenv::value(&project?.env, name);
    let mut offline = offline(config);
    if !detect::has_key(&directory.join("config")) {
        offline.n8n.encryption_key = value("N8N_ENCRYPTION_KEY")
            .map(Secret::new)
            .or_else(|| config.n8n.encryption_key.clone());
    }
    let mut service = service(ServiceKind::N8n, name, "/home/node/.n8n", directory);
    for name in N8N_VARIABLES {
        service
            .environment
            .extend(value(name).map(|value| (name.to_owned(), value)));
    }
    let file = service.environment.get("DB_SQLITE_DATABASE");
    let file = directory.join(file.map_or("database.sqlite", String::as_str));
    let on_postgres = !file.is_file() || project.is_some_and(|project| project.n8n_on_postgres);
    let database = if on_postgres { "postgresdb" } else { "sqlite" };
    service
        .environment
        .insert("DB_TYPE".to_owned(), database.to_owned());
    (offline, service)
}

/// The compose project's own files, where some were found.
struct CopiedProject {
    /// In which of the sources.
    source: usize,
    directory: PathBuf,
    /// Its files, relative to the source's tree.
    files: Vec<String>,
    /// The text of `.env`.
    env: String,
    /// It says so itself.
    n8n_on_postgres: bool,
}

impl CopiedProject {
    /// The one nearest to a tree's root: others are kept with the rest.
    fn find(sources: &[Source]) -> Result<Option<Self>, ServiceError> {
        let candidates = sources.iter().enumerate().flat_map(|(number, source)| {
            let paths = source.seen.projects.iter();
            paths.map(move |path| (number, source, path))
        });
        let depth = |path: &str| path.split('/').filter(|part| !part.is_empty()).count();
        let Some((number, source, path)) = candidates.min_by_key(|(_, _, path)| depth(path)) else {
            return Ok(None);
        };
        let directory = joined(&source.tree.root, path);
        let names = Project::of_copy(ServiceKind::Project.as_str(), &directory).list()?;
        let text = |name: &str| text_of(&directory.join(name));
        let n8n_on_postgres = names.iter().any(|name| says_postgres(&text(name)));
        let env = if names.contains(".env") {
            text(".env")
        } else {
            String::new()
        };
        let files = names.iter().map(|name| {
            if path.is_empty() {
                name.clone()
            } else {
                format!("{path}/{name}")
            }
        });
        Ok(Some(Self {
            source: number,
            files: files.collect(),
            directory,
            env,
            n8n_on_postgres,
        }))
    }
}

/// A small text file; empty where it cannot be read, which its own archive then says.
fn text_of(path: &Path) -> String {
    let mut text = String::new();
    let read = regular(path).and_then(|file| file.take(MAX_TEXT_BYTES).read_to_string(&mut text));
    read.map(|_| text).unwrap_or_default()
}

/// Whether `.env` or a compose file puts n8n on PostgreSQL: an SQLite file beside it is then of former times.
fn says_postgres(text: &str) -> bool {
    Regex::new(r#"(?m)^[^#\n]*\bDB_TYPE["']?[ \t]*[:=][ \t]*["']?postgresdb\b"#)
        .is_ok_and(|pattern| pattern.is_match(text))
}

/// The trees that hold more than the services' archives take, each with what they take.
fn rest(
    sources: &[Source],
    project: Option<&CopiedProject>,
) -> Result<Vec<(Tree, Vec<String>)>, ServiceError> {
    let mut rest = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let mut taken = source.own.clone();
        taken.extend(source.seen.services.iter().flat_map(|r| r.claims.clone()));
        if taken.iter().any(String::is_empty) {
            continue;
        }
        if let Some(project) = project.filter(|project| project.source == number) {
            taken.extend(project.files.clone());
        }
        let is_more = detect::has_rest(&source.tree.root, taken.clone())
            .map_err(|e| archive_failed(REST, e))?;
        if is_more {
            rest.push((source.tree.clone(), taken));
        }
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_files_tell_what_n8n_keeps_its_data_in() {
        for text in [
            "DB_TYPE=postgresdb\n",
            "x:\n  environment:\n    - DB_TYPE=postgresdb\n",
            "    DB_TYPE: postgresdb",
            "    \"DB_TYPE\": \"postgresdb\"",
        ] {
            assert!(says_postgres(text), "{text}");
        }
        for text in [
            "# DB_TYPE=postgresdb\n",
            "DB_TYPE=sqlite",
            "MY_DB_TYPE=postgresdb",
            "DB_TYPE=\nX=postgresdb",
        ] {
            assert!(!says_postgres(text), "{text}");
        }
    }
}
