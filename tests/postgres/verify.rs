//! PostgreSQL's own `pg_verifybackup` looks at what was unpacked.

use std::path::Path;
use std::process::Command;

use lifeboat::repository::hex;
use lifeboat::repository::manifest::Manifest;
use lifeboat::services::postgres::PostgresRestore;
use lifeboat::services::postgres::control::ControlFile;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::cluster::{Cluster, client_program, config, major, newest_installed_major, own, run};
use crate::place::Place;

/// Unpacks the newest backup and has it compared with its list of files, and its WAL read where the tool is
/// of the server's own version.
pub fn accepts(place: &Place) {
    let unpacked = unpack(place);
    let data = unpacked.path().join("data");
    let tool_major = newest_installed_major();
    if major() >= 17 {
        let list: Value = serde_json::from_str(&read_list(&data)).unwrap();
        let control = ControlFile::read(&data).unwrap();
        assert_eq!(list["System-Identifier"], control.system_identifier);
        if tool_major < 17 {
            rewrite_for_older_tools(&data);
        }
    }
    let mut command = tool(&data);
    if tool_major != major() {
        command.arg("--no-parse-wal");
    }
    let said = run(&mut command);
    assert!(said.contains("successfully verified"), "{said}");
}

/// A backup's list.
pub fn list(place: &Place, backup: &Manifest) -> String {
    read_list(&unpack_of(place, backup).path().join("data"))
}

fn read_list(data: &Path) -> String {
    std::fs::read_to_string(data.join("backup_manifest")).unwrap()
}

/// Version 2 is version 1 with one line more.
fn rewrite_for_older_tools(data: &Path) {
    let text = read_list(data);
    let (body, last) = text.rsplit_once("\"Manifest-Checksum\"").unwrap();
    let sum = |body: &str| hex(&Sha256::digest(body));
    assert_eq!(last, format!(": \"{}\"}}\n", sum(body)));
    let (head, files) = body.split_once("\"Files\"").unwrap();
    assert_eq!(head.lines().count(), 2, "{head}");
    let body = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\"{files}");
    let text = format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", sum(&body));
    std::fs::write(data.join("backup_manifest"), text).unwrap();
}

fn unpack(place: &Place) -> tempfile::TempDir {
    let repository = place.repository();
    let newest = repository.resolve("latest").unwrap();
    unpack_of(place, &repository.manifest(&newest).unwrap())
}

fn unpack_of(place: &Place, backup: &Manifest) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let target = Cluster::empty();
    let restore = PostgresRestore::new(&config(&[]), &target.stack()).unwrap();
    place.unpack_of(backup, &restore, &home.path().join("data"));
    home
}

fn tool(data: &Path) -> Command {
    let mut command = Command::new(client_program("pg_verifybackup"));
    command.arg(data);
    command
}

#[test]
fn what_is_not_as_it_was_backed_up_is_found_by_the_servers_own_tool() {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id; CHECKPOINT");
    // A server keeps the list of the base backup that it was made from.
    std::fs::write(cluster.data.join("backup_manifest"), "of another backup").unwrap();
    own(&cluster.data.join("backup_manifest"), 0o600);
    let place = Place::new();
    place.backup(&mut crate::service(&cluster), || ()).unwrap();
    accepts(&place);

    let table = cluster.text("SELECT pg_relation_filepath('t')");
    let refuses = |change: &dyn Fn(&Path), word: &str| {
        let unpacked = unpack(&place);
        let data = unpacked.path().join("data");
        change(&data);
        let output = tool(&data).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains(word), "\"{word}\" is not in: {said}");
    };
    if newest_installed_major() < 17 && major() >= 17 {
        // The tool cannot read the list, and says so of every change.
        return;
    }
    let flip = |data: &Path, file: &str| {
        let path = data.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    refuses(&|data| flip(data, &table), "checksum mismatch");
    refuses(&|data| flip(data, "global/pg_control"), "checksum mismatch");
    refuses(&|data| flip(data, "backup_manifest"), "manifest");
    refuses(
        &|data| std::fs::remove_file(data.join(&table)).unwrap(),
        "is present in the manifest but not on disk",
    );
    refuses(
        &|data| std::fs::write(data.join("base/stray"), "").unwrap(),
        "is present on disk but not in the manifest",
    );
}
