//! Damaged pages: found while they are read, named, and the backup is no good one.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use lifeboat::repository::manifest::Manifest;
use lifeboat::services::postgres::facts::Facts;
use lifeboat::services::postgres::pages::DamagedPages;

use crate::cluster::{Cluster, config};
use crate::load::Load;
use crate::place::Place;
use crate::{mounted, service};

fn found(manifest: &Manifest) -> Option<DamagedPages> {
    let report = &manifest.archive("db").unwrap().report;
    let facts = Facts::of(report).unwrap();
    assert_eq!(
        report.damage().is_some(),
        facts.damaged_pages.is_some(),
        "{facts:?}"
    );
    assert_eq!(report.damage().is_some(), !manifest.damage().is_empty());
    facts.damaged_pages
}

/// Flips a bit in the middle of a page.
fn flip(file: &Path, block: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let (mut byte, at) = ([0], block * 8192 + 5000);
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn a_flipped_bit_is_reported_with_file_and_block_until_it_is_repaired() {
    let cluster = Cluster::with(&["--data-checksums"], &[]);
    let outside = cluster.directory("fast");
    cluster.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        outside.display()
    ));
    let filled = "AS SELECT g AS id, repeat('x', 300) AS body FROM generate_series(1, 20000) g";
    cluster.sql(&format!(
        "CREATE TABLE here {filled}; CREATE TABLE there TABLESPACE fast {filled}; \
         CREATE UNLOGGED TABLE unlogged {filled}; CHECKPOINT"
    ));
    let mut stack = cluster.stack();
    mounted(&mut stack, &outside);
    let place = Place::new();
    let backup = || {
        let mut service =
            lifeboat::services::postgres::Postgres::new(&config(&[]), &stack).unwrap();
        place.backup(&mut service, || ()).unwrap()
    };
    assert_eq!(found(&backup()), None);

    let path = |table: &str| cluster.text(&format!("SELECT pg_relation_filepath('{table}')"));
    let (here, there, unlogged) = (path("here"), path("there"), path("unlogged"));
    flip(&cluster.data.join(&here), 17);
    flip(&cluster.data.join(&there), 3);
    // It is not in the backup.
    flip(&cluster.data.join(&unlogged), 1);
    let manifest = backup();
    let pages = found(&manifest).unwrap();
    let mut named: Vec<_> = pages
        .first
        .iter()
        .map(|p| (p.file.clone(), p.block))
        .collect();
    named.sort();
    assert_eq!(named, [(here.clone(), 17), (there.clone(), 3)]);
    assert_eq!(pages.count, 2);
    let warnings = &manifest.archive("db").unwrap().report.warnings;
    assert!(
        warnings
            .iter()
            .any(|w| w.contains(&format!("block 17 of {here}"))),
        "{warnings:?}"
    );
    // Once the times of the files are to be trusted they are still read, for they were not approved of.
    cluster.wait_for_zero(&format!(
        "SELECT (clock_timestamp() - modification < '3 s')::int::bigint FROM pg_stat_file('{here}')"
    ));
    assert_eq!(found(&backup()).unwrap(), pages);
    assert_eq!(found(&backup()).unwrap(), pages);
    flip(&cluster.data.join(&here), 17);
    flip(&cluster.data.join(&there), 3);
    assert_eq!(found(&backup()), None);
}

#[test]
fn pages_that_change_while_they_are_read_are_no_damage() {
    let cluster = Cluster::with(&["--data-checksums"], &[]);
    let load = Load::start(&cluster, 3);
    load.wait_for(200);
    let place = Place::new();
    for _ in 0..5 {
        let manifest = place
            .backup(&mut service(&cluster), || {
                load.wait_for(load.acknowledged() + 100);
            })
            .unwrap();
        assert_eq!(found(&manifest), None);
    }
    load.stop();
}
