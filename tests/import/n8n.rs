//! Copies of n8n: whose key is where, and that nobody is asked.

use std::net::TcpListener;

use crate::home::KEY;
use crate::world::{World, report, warnings};

/// An n8n directory on SQLite without a key.
fn without_key(world: &World) {
    drop(crate::home::Home::new(&world.place));
    world.copy(&world.path("data/n8n"), "stack/n8n");
    std::fs::remove_file(world.path("stack/n8n/config")).unwrap();
}

#[test]
fn a_key_of_the_imported_env_file_goes_before_the_configured_one() {
    let mut world = World::new();
    without_key(&world);
    world.file(
        "stack/.env",
        format!("N8N_ENCRYPTION_KEY=\"{KEY}\" # keep\n"),
    );
    world.set("N8N_ENCRYPTION_KEY", "that-of-todays-stack");
    let manifest = world.import(&[&world.path("stack")]);
    assert_eq!(
        report(&manifest, "n8n")["facts"]["key_opens"],
        "a stored credential"
    );
    let into = world.unpack(manifest["id"].as_str().unwrap());
    let kept = into.join("n8n/.lifeboat/encryption-key");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), KEY);
}

#[test]
fn the_configured_key_is_tried_where_the_copy_has_none() {
    let mut world = World::new();
    without_key(&world);
    world.refuses(&world.path("stack"), &["n8n", "set N8N_ENCRYPTION_KEY"]);
    world.set("N8N_ENCRYPTION_KEY", "another key");
    world.refuses(
        &world.path("stack"),
        &["opens none of the stored credentials"],
    );
    world.set("N8N_ENCRYPTION_KEY", KEY);
    let manifest = world.import(&[&world.path("stack")]);
    let opens = &report(&manifest, "n8n")["facts"]["key_opens"];
    assert_eq!(opens, "a stored credential");
}

#[test]
fn a_wrong_key_in_the_copys_own_config_is_refused() {
    let world = World::new();
    drop(crate::home::Home::new(&world.place));
    world.copy(&world.path("data/n8n"), "stack/n8n");
    world.file("stack/n8n/config", r#"{"encryptionKey":"wrong"}"#);
    let tar = world.tar("n8n.tar.gz", &["n8n"]);
    world.refuses(&tar, &["opens none of the stored credentials"]);
}

#[test]
fn a_copy_on_postgresql_is_known_by_its_key_and_no_server_is_asked() {
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let port = listener.local_addr().unwrap().port().to_string();
    for name in ["N8N_URL", "OLLAMA_URL", "QDRANT_URL"] {
        world.set(name, &url);
    }
    world.set("POSTGRES_HOST", "127.0.0.1");
    world.set("POSTGRES_PORT", &port);
    world.file(
        "stack/n8n/config",
        format!(r#"{{"encryptionKey":"{KEY}"}}"#),
    );
    // Left behind by a former set-up, as the compose file tells.
    world.file(
        "stack/n8n/database.sqlite",
        "workflow_entity, but no database",
    );
    world.ollama("stack/ollama");
    world.file(
        "stack/compose.yml",
        format!("x: [DB_TYPE=postgresdb, DB_POSTGRESDB_HOST=127.0.0.1, DB_POSTGRESDB_PORT={port}]"),
    );
    let manifest = world.import(&[&world.path("stack")]);
    assert_eq!(report(&manifest, "n8n")["facts"]["database"], "postgres");
    assert!(warnings(&manifest, "n8n").contains("was not proven"));
    let asked = listener.accept();
    assert!(asked.is_err(), "{asked:?}");
}
