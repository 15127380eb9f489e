//! The program itself, with its repository in a bucket.

#[path = "../support/program.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};

use super::noise;
use super::server::{PASSWORD, Server, USER};

fn run(server: &Server, root: &Path, args: &[&str]) -> Output {
    command(server, root, args)
        .env("AGE_PASSPHRASE", "of the bucket")
        .output()
        .unwrap()
}

fn command(server: &Server, root: &Path, args: &[&str]) -> Command {
    let mut command = support::lifeboat(root, args);
    command
        .env("LIFEBOAT_REPOSITORY", "s3://lifeboat/program")
        .env("AWS_ENDPOINT_URL", server.url())
        .env("AWS_ACCESS_KEY_ID", USER)
        .env("AWS_SECRET_ACCESS_KEY", PASSWORD);
    command
}

fn good(server: &Server, root: &Path, args: &[&str]) -> String {
    let output = run(server, root, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn backups_go_into_the_bucket_and_come_back_out_of_it() {
    let server = Server::shared();
    let dir = tempfile::tempdir().unwrap();
    let (root, server) = (dir.path(), &*server);
    std::fs::create_dir_all(root.join("data/notes")).unwrap();
    // More than one pack.
    let bytes = noise(30_000_000, 11);
    std::fs::write(root.join("data/notes/a.bin"), &bytes).unwrap();
    let said = good(server, root, &["doctor"]);
    assert!(said.contains("s3://lifeboat/program, new"), "{said}");
    // Without a key nothing is stored in a place that others keep.
    let refused = command(server, root, &["backup"]).output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(told.contains("BACKUP_PLAINTEXT_SECRETS"), "{told}");
    good(server, root, &["backup"]);
    std::fs::write(root.join("data/notes/b.txt"), "second\n").unwrap();
    good(server, root, &["backup"]);
    let list: serde_json::Value =
        serde_json::from_str(&good(server, root, &["list", "--json"])).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    good(server, root, &["verify", "--full"]);
    let said = good(server, root, &["doctor"]);
    assert!(said.contains("s3://lifeboat/program, 2 backups"), "{said}");
    let tar = run(
        server,
        root,
        &["export", "latest", "notes", "--compress", "none"],
    );
    assert!(tar.status.success(), "{tar:?}");
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("all.tar"), &tar.stdout).unwrap();
    let status = Command::new("tar")
        .arg("-xf")
        .arg(out.path().join("all.tar"))
        .arg("-C")
        .arg(out.path())
        .status()
        .unwrap();
    assert!(status.success());
    let found = Command::new("find")
        .arg(out.path())
        .args(["-name", "a.bin"])
        .output()
        .unwrap();
    let path = String::from_utf8(found.stdout).unwrap();
    assert!(std::fs::read(path.trim()).unwrap() == bytes);
}
