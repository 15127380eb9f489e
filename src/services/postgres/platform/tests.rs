#![allow(clippy::unwrap_used)]

use super::*;
use crate::services::postgres::facts::tests::facts;

fn gnu(libc: &str, icu: &str) -> Platform {
    Platform {
        build: "x86_64-pc-linux-gnu".to_owned(),
        libc: Some(libc.to_owned()),
        icu: Some(icu.to_owned()),
        preload: Vec::new(),
        segment_bytes: 1 << 30,
    }
}

fn target(platform: Platform) -> Target {
    let offered = [("plpgsql", "1.0"), ("vector", "0.8.0"), ("vector", "0.7.0")];
    Target {
        platform,
        block_bytes: 8192,
        offered: offered.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        lacking: Some(Vec::new()),
    }
}

/// A cluster of one database that sorts by `provider`.
fn of(platform: Platform, provider: &str, collate: &str) -> Facts {
    let mut facts = facts();
    facts.platform = Some(platform);
    facts.databases = vec![
        serde_json::from_value(serde_json::json!({
            "oid": 5, "name": "app", "encoding": "UTF8", "collate": collate, "ctype": collate,
            "collation_version": null, "counted": true, "tables": 1, "rows_estimate": 1,
            "provider": provider, "extensions": { "plpgsql": "1.0", "vector": "0.7.0" },
        }))
        .unwrap(),
    ];
    facts
}

#[test]
fn servers_tell_what_they_were_built_for() {
    let debian =
        "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc, 64-bit";
    assert_eq!(build_of(debian), "x86_64-pc-linux-gnu");
    assert_eq!(build_of("PostgreSQL on a kite"), "a kite");
    assert_eq!(build_of("odd"), "");
    assert_eq!(
        listed("pg_stat_statements, \"$libdir/auto_explain\",,x"),
        ["pg_stat_statements", "auto_explain", "x"]
    );
    assert_eq!(listed(""), [""; 0]);
}

#[test]
fn another_sorting_library_asks_for_a_reindex_of_what_it_sorted() {
    let then = of(gnu("2.36", "72"), "c", "en_US.utf8");
    assert!(target(gnu("2.36", "72")).sorts(&then).is_ok());
    // ICU changed, and no database uses it.
    assert!(target(gnu("2.36", "76")).sorts(&then).is_ok());
    let why = target(gnu("2.41", "72")).sorts(&then).unwrap_err();
    assert!(
        why.contains("glibc 2.36") && why.contains("glibc 2.41"),
        "{why}"
    );
    assert!(why.contains("REINDEX DATABASE \"app\""), "{why}");
    let musl = Platform {
        build: "x86_64-pc-linux-musl".to_owned(),
        libc: None,
        ..gnu("", "72")
    };
    let why = target(musl.clone()).sorts(&then).unwrap_err();
    assert!(why.contains("sorts by musl"), "{why}");
    assert!(target(musl).sorts(&of(gnu("2.36", "72"), "c", "C")).is_ok());

    let by_icu = of(gnu("2.36", "72"), "i", "en-US");
    let why = target(gnu("2.36", "76")).sorts(&by_icu).unwrap_err();
    assert!(why.contains("ICU 72"), "{why}");
    let mut old = then;
    old.platform = None;
    assert!(target(gnu("1", "1")).sorts(&old).is_ok());
}

#[test]
fn missing_extensions_and_libraries_are_refused_and_other_versions_told() {
    let facts = of(gnu("2.36", "72"), "c", "C");
    let mut target = target(gnu("2.36", "72"));
    assert!(target.offers(&facts).unwrap().is_ok());
    target
        .offered
        .remove(&("vector".to_owned(), "0.7.0".to_owned()));
    let caution = target.offers(&facts).unwrap().unwrap_err();
    assert!(
        caution.contains("vector 0.7.0 (database \"app\")"),
        "{caution}"
    );
    target.offered.retain(|(name, _)| name != "vector");
    let why = target.offers(&facts).unwrap_err();
    assert!(
        why.contains("vector") && why.contains("--ignore extensions"),
        "{why}"
    );

    assert!(target.loads().is_ok());
    target.lacking = None;
    assert!(target.loads().is_ok());
    target.lacking = Some(vec!["timescaledb".to_owned()]);
    let why = target.loads().unwrap_err();
    assert!(
        why.contains("timescaledb") && why.contains("--ignore libraries"),
        "{why}"
    );
}

#[test]
fn a_server_built_for_other_pages_is_refused() {
    let facts = of(gnu("2.36", "72"), "c", "C");
    let mut target = target(gnu("2.36", "72"));
    assert!(target.fits(&facts).is_ok());
    target.platform.segment_bytes = 1 << 20;
    assert!(target.fits(&facts).unwrap_err().contains("1073741824"));
    target.block_bytes = 32768;
    assert!(target.fits(&facts).unwrap_err().contains("pages of 32768"));
}
