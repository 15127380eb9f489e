//! What is not taken in: a sentence, nothing committed, nothing left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tarball::Tarball;
use crate::world::{World, noise};

fn ollama_tar(world: &World, file: &str) -> PathBuf {
    world.ollama("stack/ollama");
    world.tar(file, &["."])
}

#[test]
fn a_file_that_is_cut_off_or_damaged_is_named() {
    let world = World::new();
    for (file, at) in [
        ("a.tar.gz", 2),
        ("a.tar.zst", 2),
        ("a.tar", 2),
        ("b.tar.gz", 100),
    ] {
        let tar = ollama_tar(&world, file);
        let bytes = std::fs::read(&tar).unwrap();
        std::fs::write(&tar, &bytes[..bytes.len() / at]).unwrap();
        world.refuses(&tar, &[file, "cut off or damaged", "nothing was imported"]);
    }
    let tar = ollama_tar(&world, "c.tar.gz");
    let mut bytes = std::fs::read(&tar).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0);
    std::fs::write(&tar, bytes).unwrap();
    world.refuses(&tar, &["c.tar.gz", "damaged"]);
}

#[test]
fn a_tar_that_leads_elsewhere_is_refused() {
    let world = World::new();
    let inner = Tarball::new().directory("data");
    for (tar, said) in [
        (inner.clone().file("data/../../out", b"x"), "\"..\""),
        (inner.clone().file("/etc/out", b"x"), "absolute"),
        (inner.file("data/a", b"x").file("data/a", b"y"), "data/a"),
    ] {
        let path = world.file("hostile.tar", tar.end());
        world.refuses(&path, &["hostile.tar", said]);
    }
    assert!(!world.path("out").exists() && !Path::new("/etc/out").exists());
}

#[test]
fn links_in_a_tar_are_kept_as_links_and_lead_nowhere() {
    let world = World::new();
    let secret = world.file("secret/.env", "SECRET=1\n");
    let secret = secret.to_str().unwrap();
    let models = world.path("secret/models");
    world.ollama("secret");
    let tar = Tarball::new()
        .symlink(".env", secret)
        .file("compose.yml", b"COMPOSE_FILE=x")
        .symlink("models", models.to_str().unwrap())
        .symlink("a", "/etc/passwd");
    let path = world.file("links.tar", tar.end());
    let manifest = world.import(&[&path]);
    let into = world.unpack(manifest["id"].as_str().unwrap());
    let names: Vec<_> = std::fs::read_dir(into.join("project"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["compose.yml"]);
    for (link, to) in [(".env", secret), ("a", "/etc/passwd")] {
        let kept = std::fs::read_link(into.join("other").join(link)).unwrap();
        assert_eq!(kept, Path::new(to));
    }
    assert_eq!(crate::world::archives(&manifest), ["other", "project"]);
}

#[test]
fn other_files_are_called_what_they_are() {
    let world = World::new();
    let dump = world.file("dump.sql", "--\n-- PostgreSQL database cluster dump\n--\n");
    world.refuses(&dump, &["dump.sql", "SQL dump", "psql"]);
    for (program, ending, said) in [
        ("gzip", "gz", "SQL dump"),
        ("bzip2", "bz2", "bunzip2"),
        ("xz", "xz", "unxz"),
    ] {
        let status = Command::new(program).args(["-k", "-f"]).arg(&dump).status();
        assert!(status.unwrap().success(), "{program}");
        let packed = world.path(&format!("dump.sql.{ending}"));
        world.refuses(&packed, &[&format!("dump.sql.{ending}"), said]);
    }
    world.refuses(
        &world.file("x.zip", "PK\x03\x04..."),
        &["zip file", "unzip"],
    );
    world.refuses(
        &world.file("empty.tar.gz", ""),
        &["empty.tar.gz", "is empty"],
    );
    world.refuses(&world.path("missing.tar"), &["missing.tar", "No such file"]);
    let nothing = Tarball::new().directory("data").end();
    world.refuses(&world.file("nothing.tar", nothing), &["holds no files"]);
    let unknown = Tarball::new().file("data/x", b"x").end();
    world.refuses(
        &world.file("unknown.tar", unknown),
        &["nothing in", "PG_VERSION", "nothing was imported"],
    );
}

#[test]
fn a_state_directory_without_room_for_it_is_said() {
    let world = World::new();
    let tar = ollama_tar(&world, "models.tar.gz");
    let state = world.path("state");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
        .arg(&state)
        .status();
    assert!(mounted.unwrap().success(), "mounting a tmpfs needs root");
    let said = std::panic::catch_unwind(|| {
        world.refuses(&tar, &["models.tar.gz", "does not fit", "LIFEBOAT_STATE"]);
    });
    let unmounted = Command::new("umount").arg(&state).status();
    assert!(unmounted.unwrap().success());
    said.unwrap();
}

#[test]
fn qdrant_storage_needs_its_directory_mounted_and_says_so() {
    let mut world = World::new();
    world.file("stack/q/raft_state.json", "{}");
    world.file("stack/q/collections/docs/config.json", noise(10));
    let manifest = world.import(&[&world.path("stack")]);
    let id = manifest["id"].as_str().unwrap();
    world.set("QDRANT_URL", "http://127.0.0.1:9");
    let output = world.run(&["restore", id, "--yes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in [
        "/qdrant/storage",
        "not mounted",
        "live/qdrant",
        "--into DIR",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let into = world.unpack(id);
    assert!(into.join("qdrant/collections/docs/config.json").exists());
}
