#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn postgres(&self, directory: &str) {
        self.file(&format!("{directory}/PG_VERSION"), "15\n");
        self.file(&format!("{directory}/global/pg_control"), "");
    }

    fn look(&self) -> Seen {
        look(self.0.path(), &[]).unwrap()
    }

    fn kinds(&self) -> Vec<(ServiceKind, String)> {
        let seen = self.look();
        seen.services
            .into_iter()
            .map(|r| (r.kind, r.path))
            .collect()
    }
}

fn found(kinds: &[(ServiceKind, &str)]) -> Vec<(ServiceKind, String)> {
    kinds.iter().map(|(k, p)| (*k, (*p).to_owned())).collect()
}

#[test]
fn services_are_found_by_what_lies_in_their_directories() {
    let place = Place::new();
    place.postgres("data/any name");
    place.file("data/flows/config", r#"{"encryptionKey":"k"}"#);
    place.file("data/llm/models/manifests/h/n/m/t", "{}");
    place.file("data/llm/models/blobs/sha256-00", "");
    place.file("data/llm/notes.txt", "");
    place.file("data/vectors/raft_state.json", "{}");
    place.file("data/vectors/collections/docs/config.json", "{}");
    place.file("docker-compose.yml", "");
    place.file(
        "data/flowise/database.sqlite",
        "SQLite format 3\0 CREATE TABLE chat_flow",
    );
    let seen = place.look();
    assert_eq!(seen.projects, [""]);
    let claims: Vec<_> = seen.services.iter().map(|r| r.claims.join(" ")).collect();
    let claims: Vec<_> = seen.services.iter().map(|r| r.kind).zip(claims).collect();
    assert_eq!(
        claims,
        found(&[
            (ServiceKind::Postgres, "data/any name"),
            (ServiceKind::N8n, "data/flows"),
            (
                ServiceKind::Ollama,
                "data/llm/models data/llm/id_ed25519 data/llm/id_ed25519.pub"
            ),
            (ServiceKind::Qdrant, "data/vectors"),
        ])
    );
}

#[test]
fn the_tree_itself_may_be_a_services_directory() {
    let place = Place::new();
    place.postgres(".");
    // Not looked for inside of another.
    place.file("base/config", r#"{"encryptionKey":"k"}"#);
    place.file("base/.env", "");
    assert_eq!(place.kinds(), found(&[(ServiceKind::Postgres, "")]));
    assert!(place.look().projects.is_empty());

    let place = Place::new();
    place.file("manifests/h/n/m/t", "{}");
    place.file("blobs/sha256-00", "");
    assert_eq!(place.kinds(), found(&[(ServiceKind::Ollama, "")]));
}

#[test]
fn n8n_databases_are_told_from_others_wherever_the_name_lies() {
    let place = Place::new();
    let padding = "x".repeat(READ_BYTES - 7);
    place.file("a/database.sqlite", &format!("{padding}workflow_entity"));
    // A young database is all in its log.
    place.file("b/database.sqlite", "SQLite format 3\0");
    place.file("b/database.sqlite-wal", "CREATE TABLE \"workflow_entity\"");
    place.file("c/database.sqlite", &"workflow_entit ".repeat(40_000));
    place.file("d/config", r#"{"key":"no n8n"}"#);
    place.file("e/config", "encryptionKey");
    let expected = [(ServiceKind::N8n, "a"), (ServiceKind::N8n, "b")];
    assert_eq!(place.kinds(), found(&expected));
}

#[test]
fn what_only_looks_alike_is_no_service() {
    let place = Place::new();
    place.file("pg/PG_VERSION", "15");
    place.file("registry/manifests/x", "");
    place.file("registry/blobs/sha256/00", "");
    place.file("app/collections/x", "");
    place.file("app/.env.example", "");
    assert_eq!(place.look().services, []);
    assert!(place.look().projects.is_empty());
}

#[test]
fn links_are_not_followed() {
    let other = Place::new();
    other.postgres("pg");
    let config = other.file("config", r#"{"encryptionKey":"k"}"#);
    let place = Place::new();
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, place.0.path().join(name)).unwrap();
    };
    link(&other.0.path().join("pg"), "pg");
    link(&config, "config");
    link(&config, ".env");
    std::fs::create_dir(place.0.path().join("half")).unwrap();
    place.file("half/PG_VERSION", "15");
    link(&other.0.path().join("pg/global"), "half/global");
    let seen = place.look();
    assert_eq!((seen.services, seen.projects), (vec![], vec![]));
    assert!(has_rest(place.0.path(), Vec::new()).unwrap());
}

#[test]
fn depth_is_bounded() {
    let place = Place::new();
    let deep = |levels: usize| vec!["d"; levels].join("/");
    place.postgres(&deep(MAX_DEPTH + 1));
    assert_eq!(place.kinds(), []);
    place.postgres(&format!("x/{}", deep(MAX_DEPTH - 1)));
    assert_eq!(place.kinds().len(), 1);
}

#[test]
fn the_newest_file_tells_the_age_and_directories_do_not() {
    let place = Place::new();
    let at: Timestamp = "2025-03-04T05:06:07Z".parse().unwrap();
    for (name, time) in [
        ("old", at - jiff::SignedDuration::from_hours(9)),
        ("new", at),
    ] {
        let path = place.file(name, "");
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(time.into()).unwrap();
    }
    std::fs::create_dir(place.0.path().join("made just now")).unwrap();
    assert_eq!(place.look().newest, Some(at));
    assert_eq!(Place::new().look().newest, None);
}

#[test]
fn rest_is_what_is_left_without_empty_directories() {
    let place = Place::new();
    place.postgres("data/pg");
    std::fs::create_dir(place.0.path().join("data/empty")).unwrap();
    let rest = |exclude: &str| has_rest(place.0.path(), vec![exclude.to_owned()]).unwrap();
    assert!(!rest("data/pg"));
    place.file("data/notes.txt", "");
    assert!(rest("data/pg"));
    assert!(!rest("data"));
}
