//! A stack out of the tar file that the old guides have people make.

use std::process::Command;

use crate::project::Project;

#[test]
fn a_guides_tar_of_the_stopped_stack_comes_back_whole() {
    let project = Project::new("import", "bind", "postgres");
    // As the README says: Qdrant's storage can only be swapped where the sidecar has it, too.
    let qdrant = "services:\n  lifeboat:\n    volumes:\n      - ./data/qdrant:/data/qdrant\n";
    std::fs::write(project.path().join("compose.qdrant.yml"), qdrant).unwrap();
    let files = "compose.yml:compose.bind.yml:compose.override.yml:compose.qdrant.yml";
    project.set("COMPOSE_FILE", files);
    project.up();
    project.harness(&["seed", "--rows", "5000"]).good();
    project.harness(&["snapshot-state"]).good();
    project.compose(&["stop"]).good();
    // Where the stand-in runs, its number is in a file of its own; Qdrant's is here.
    let raft_state = project.path().join("data/qdrant/raft_state.json");
    if !raft_state.exists() {
        std::fs::write(&raft_state, "{}").unwrap();
    }
    let status = Command::new("tar")
        .args(["-czf", "backup.tar.gz", "./data", ".env", "compose.yml"])
        .current_dir(project.path())
        .status()
        .unwrap();
    assert!(status.success());

    project.up();
    project.sidecar_up();
    project.destroy();
    let said = project
        .lifeboat(&["import", "/project/backup.tar.gz", "--json"])
        .good();
    let manifest = &serde_json::from_str::<serde_json::Value>(&said).unwrap()["manifest"];
    let archives = manifest["archives"].as_array().unwrap();
    let found = |kind: &str| archives.iter().find(|a| a["kind"] == kind).unwrap();
    assert_eq!(found("postgres")["report"]["facts"]["copied"], "cold");
    for kind in ["n8n", "ollama", "project"] {
        assert_ne!(found(kind)["raw_bytes"], 0);
    }
    let collections = &found("qdrant")["report"]["counts"]["collections"];
    assert!(collections.as_u64().unwrap() > 0);
    project.lifeboat(&["restore", "latest", "--yes"]).good();
    project.harness(&["compare"]).good();

    // From here on it is a stack as any other, and its backups are.
    project.backup();
    let list: serde_json::Value =
        serde_json::from_str(&project.lifeboat(&["list", "--json"]).good()).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert!(list[0]["imported"].is_object() && list[1]["imported"].is_null());
}
