//! What cannot be read is never left out of a backup.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::*;

/// The program itself, with the right to read what the server's group may read, and no more.
fn backup_without_capabilities(place: &Place, cluster: &Cluster) -> Output {
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let mut command = if rustix::process::getuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--regid=postgres", "--clear-groups"])
            .arg("--bounding-set=-dac_override,-dac_read_search")
            .args(["--", program]);
        command
    } else {
        Command::new(program)
    };
    place.environment(&mut command, cluster);
    command.arg("backup").output().unwrap()
}

#[test]
fn a_file_that_may_not_be_read_fails_the_backup() {
    let cluster = Cluster::with(&["--allow-group-access"], &["autovacuum=off"]);
    // The server has no more to do with the file.
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CHECKPOINT");
    let place = Place::new();
    let file = cluster
        .data
        .join(cluster.text("SELECT pg_relation_filepath('t')"));
    let allow = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let before = std::fs::metadata(&file).unwrap().permissions().mode();
    allow(&file, 0o000);
    let output = backup_without_capabilities(&place, &cluster);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in [file.to_str().unwrap(), "DAC_READ_SEARCH"] {
        assert!(said.contains(word), "\"{word}\" is not in: {said}");
    }
    assert_eq!(place.repository().backups().unwrap().len(), 0);
    assert_nothing_left(&cluster);

    allow(&file, before);
    let output = backup_without_capabilities(&place, &cluster);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(place.repository().backups().unwrap().len(), 1);
}
