//! What cannot be read is never left out of a backup.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::*;
use crate::mount::Mount;

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

#[test]
fn a_disk_that_reports_errors_fails_the_backup() {
    let place = Place::new();
    let image = place.state().join("image");
    let disk = Mount::image(&image, 64);
    let mut cluster = Cluster::with(&[], &["autovacuum=off"]);
    let slow = disk.path().join("tablespace");
    std::fs::create_dir(&slow).unwrap();
    own(&slow, 0o700);
    cluster.sql(&format!(
        "CREATE TABLESPACE slow LOCATION '{}'",
        slow.display()
    ));
    cluster.sql(
        "CREATE TABLE t TABLESPACE slow AS SELECT repeat('x', 1000) FROM generate_series(1, 36000)",
    );
    let file = cluster.text("SELECT pg_relation_filepath('t')");
    let name = file.rsplit('/').next().unwrap();
    let backup = |cluster: &Cluster| {
        let mut stack = cluster.stack();
        mounted(&mut stack, &slow);
        let mut service = Postgres::new(&config(&[]), &stack).unwrap();
        place.backup(&mut service, || ())
    };
    backup(&cluster).unwrap();

    // A restart, so that the server has written everything, and keeps no file open.
    cluster.stop();
    disk.break_after(&image, 16);
    cluster.start();
    // The file did not change, and is read again when a day has passed or it was touched.
    let broken = std::fs::File::open(cluster.data.join(&file)).unwrap();
    broken.set_modified(std::time::SystemTime::now()).unwrap();
    refused(
        backup(&cluster),
        ErrorKind::Io,
        &[name, "Input/output error"],
    );
    assert_nothing_left(&cluster);
    assert_eq!(place.repository().backups().unwrap().len(), 1);
}
