//! Backups under load, and everything back: both layouts, both of n8n's databases, a part, another place.

use std::process::Command;

use crate::project::{Project, copy_tree};

/// Backup under load, destruction, restore, comparison with what was acknowledged.
fn round_trip(project: &mut Project, rows: &str) {
    project.up();
    project.harness(&["seed", "--rows", rows]).good();
    project.sidecar_up();
    project.lifeboat(&["doctor"]).good();
    project.begin_load();
    let start = now();
    let manifest = project.backup();
    let end = now();
    project.end_load();
    assert!(manifest["skew_ms"].as_u64().unwrap() < 30_000, "{manifest}");
    let before = project.running();
    let import = project.started_at("n8n-import");
    project.destroy();
    project.lifeboat(&["restore", "latest", "--yes"]).good();
    assert_eq!(project.running(), before);
    // It would overwrite what was restored.
    assert_eq!(project.started_at("n8n-import"), import);
    compare(project, &start, &end);
}

fn compare(project: &Project, start: &str, end: &str) {
    let ledger = project.file("ledger.jsonl");
    project
        .harness(&[
            "compare",
            "--ledger",
            &ledger,
            "--backup-start",
            start,
            "--backup-end",
            end,
        ])
        .good();
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[test]
fn bind_mounts_come_back_whole_and_the_repository_can_be_opened_by_hand() {
    let mut project = Project::new("bind", "bind", "postgres");
    round_trip(&mut project, "780000");

    // A second backup of a gigabyte at rest stores next to nothing and reads no data file again.
    project.backup();
    settle(&project);
    project.backup();
    let second = project.backup();
    let bytes = |what: &str| second[what].as_u64().unwrap();
    let (raw, read, stored) = (
        bytes("raw_bytes"),
        bytes("read_bytes"),
        bytes("stored_bytes"),
    );
    assert!(raw >= 1_000_000_000, "{raw} bytes are not the size meant");
    assert!(
        stored <= 1_000_000,
        "{stored} bytes stored for a stack at rest"
    );
    // What PostgreSQL writes for every backup (segments of its log), Qdrant's snapshots, and little files.
    assert!(read <= 48 << 20, "{read} bytes read of a stack at rest");

    // Every archive, by hand and by `export`, is the same tar stream, and GNU tar extracts it.
    let id = second["id"].as_str().unwrap();
    let repository = project.repository();
    for archive in second["archives"].as_array().unwrap() {
        let name = archive["name"].as_str().unwrap();
        let by_hand = project.file(&format!("{name}.tar"));
        let out = std::fs::File::create(&by_hand).unwrap();
        let status = Command::new("sh")
            .arg(repository.join("RECOVER.sh"))
            .args([id, name])
            .stdout(out)
            .status()
            .unwrap();
        assert!(status.success(), "RECOVER.sh {name}");
        let exported = project.file(&format!("{name}.tar.zst"));
        let script = format!("docker compose exec -T lifeboat export {id} {name} > {exported}");
        assert!(
            Command::new("sh")
                .args(["-c", &script])
                .current_dir(project.path())
                .status()
                .unwrap()
                .success()
        );
        let same = format!("zstd -dqc {exported} | cmp - {by_hand}");
        assert!(
            Command::new("sh")
                .args(["-c", &same])
                .status()
                .unwrap()
                .success(),
            "{name} differs"
        );
        let target = project.file(&format!("{name}.d"));
        std::fs::create_dir(&target).unwrap();
        assert!(
            Command::new("tar")
                .args(["-xf", &exported, "-C", &target])
                .status()
                .unwrap()
                .success()
        );
    }
    for pack in walk(&repository.join("packs")) {
        assert!(
            Command::new("zstd")
                .args(["-tq"])
                .arg(&pack)
                .status()
                .unwrap()
                .success(),
            "{}",
            pack.display()
        );
    }
    project.lifeboat(&["verify", "--full"]).good();

    // After one row in a hundred changed, far less than a full backup is stored.
    project
        .harness(&["change", "--fraction", "0.01", "--pattern", "range"])
        .good();
    let changed = project.backup();
    let first: serde_json::Value =
        serde_json::from_str(&project.lifeboat(&["list", "--json"]).good()).unwrap();
    let full = first[0]["stored_bytes"].as_u64().unwrap();
    let stored = changed["stored_bytes"].as_u64().unwrap();
    assert!(
        stored * 4 < full,
        "{stored} bytes stored after a change of 1 %, {full} for a full backup"
    );
}

/// PostgreSQL writes its dirty pages out, so that the next backup finds nothing new.
fn settle(project: &Project) {
    project.sql("CHECKPOINT");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn named_volumes_with_n8n_on_sqlite_come_back_whole_out_of_an_encrypted_repository() {
    let mut project = Project::new("sqlite", "volumes", "sqlite");
    project.set("AGE_PASSPHRASE", "only for this test");
    round_trip(&mut project, "50000");
    let files = walk(&project.repository());
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        if name == "RECOVER.sh" || name == "README.txt" {
            continue;
        }
        let told = ["POSTGRES_PASSWORD", "encryptionKey", "sqlite_master"]
            .into_iter()
            .find(|secret| bytes.windows(secret.len()).any(|w| w == secret.as_bytes()));
        assert_eq!(told, None, "{}", file.display());
    }
}

#[test]
fn each_service_alone_comes_back_and_the_others_stay_as_they_are() {
    let project = Project::new("only", "volumes", "postgres");
    project.up();
    project.harness(&["seed", "--rows", "5000"]).good();
    project.sidecar_up();
    project.backup();
    project.harness(&["snapshot-state"]).good();
    project.sql("CREATE TABLE made_after_the_backup (id int)");
    for service in ["qdrant", "ollama-cpu", "n8n"] {
        project
            .lifeboat(&["restore", "latest", "--only", service, "--yes"])
            .good();
        assert_eq!(
            project.sql("SELECT count(*) FROM made_after_the_backup"),
            "0"
        );
    }
    project
        .lifeboat(&["restore", "latest", "--only", "postgres", "--yes"])
        .good();
    assert_eq!(
        project.sql("SELECT to_regclass('made_after_the_backup') IS NULL"),
        "t"
    );
    project.harness(&["compare"]).good();
}

#[test]
fn a_backup_restores_into_a_second_and_empty_project() {
    let first = Project::new("from", "bind", "postgres");
    first.up();
    first.harness(&["seed", "--rows", "5000"]).good();
    first.sidecar_up();
    first.backup();
    first.harness(&["snapshot-state"]).good();
    let second = Project::new("to", "volumes", "postgres");
    copy_tree(&first.repository(), &second.path());
    std::fs::copy(first.file("state.json"), second.file("state.json")).unwrap();
    drop(first);
    second.up();
    second.sidecar_up();
    second.lifeboat(&["restore", "latest", "--yes"]).good();
    second.harness(&["compare"]).good();
}
