//! What is known of the server that is to be restored into is compared before anything is touched.

use lifeboat::repository::manifest::ArchiveRecord;
use lifeboat::restore::Restore as _;
use lifeboat::services::Check;
use lifeboat::services::postgres::PostgresRestore;
use lifeboat::services::postgres::facts::Facts;
use lifeboat::stack::{ContainerRef, StackService};
use serde_json::json;

use crate::cluster::{Cluster, config};
use crate::place::Place;
use crate::{container, service};

fn look(place: &Place, stack: &StackService, record: &ArchiveRecord) -> Vec<Check> {
    let mut restore = PostgresRestore::new(&config(&[]), stack).unwrap();
    place.block_on(restore.preflight(record))
}

pub fn find<'c>(checks: &'c [Check], what: &str) -> &'c Check {
    let end = format!(": {what}");
    let found = checks.iter().find(|check| check.subject.ends_with(&end));
    found.unwrap_or_else(|| panic!("{what} is not in {checks:?}"))
}

#[test]
fn what_the_server_lacks_is_told_before_anything_is_touched() {
    let cluster = Cluster::new();
    cluster.sql("CREATE EXTENSION amcheck");
    let place = Place::new();
    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let record = manifest.archive("db").unwrap().clone();
    let facts = Facts::of(&record.report).unwrap();
    let installed = cluster.text("SELECT extversion FROM pg_extension WHERE extname = 'amcheck'");
    let recorded: Vec<_> = facts.extensions().collect();
    assert!(
        recorded.contains(&("postgres", "amcheck", installed.as_str())),
        "{recorded:?}"
    );
    let platform = facts.platform.unwrap();
    assert!(platform.build.contains("linux"), "{platform:?}");
    assert_eq!(platform.segment_bytes, 1 << 30);

    // As it is, nothing is wrong with it, and nothing but the server itself is a reason to hesitate.
    let same = look(&place, &cluster.stack(), &record);
    for what in ["pages", "collation", "extensions", "libraries"] {
        let check = find(&same, what);
        assert!(check.outcome.is_ok() && !check.caution, "{check:?}");
    }

    let forged = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut record = record.clone();
        change(&mut record.report.facts);
        look(&place, &cluster.stack(), &record)
    };
    let refused = |checks: &[Check], what: &str, words: &[&str]| {
        let why = find(checks, what).outcome.clone().unwrap_err();
        for word in words {
            assert!(why.contains(word), "\"{word}\" is not in: {why}");
        }
        let bad = checks.iter().filter(|check| check.outcome.is_err()).count();
        assert_eq!(bad, 1, "{checks:?}");
    };
    let checks = forged(&|facts| facts["databases"][0]["extensions"] = json!({"timescaledb": "2"}));
    refused(
        &checks,
        "extensions",
        &["timescaledb 2", "--ignore extensions"],
    );
    let ignored = find(&checks, "extensions").clone();
    assert!(ignored.unless_ignored(&["extensions".to_owned()]).caution);
    let checks = forged(&|facts| facts["platform"]["preload"] = json!(["no_such_library"]));
    refused(
        &checks,
        "libraries",
        &["no_such_library", "--ignore libraries"],
    );
    let checks = forged(&|facts| facts["block_bytes"] = json!(4096));
    refused(&checks, "pages", &["pages of 4096 bytes"]);

    let checks = forged(&|facts| {
        facts["platform"]["build"] = json!("x86_64-pc-linux-musl");
        for database in facts["databases"].as_array_mut().unwrap() {
            database["collate"] = json!("de_DE.utf8");
        }
    });
    let check = find(&checks, "collation");
    assert!(check.caution, "{check:?}");
    let said = check.outcome.as_ref().unwrap();
    assert!(said.contains("sorted by musl"), "{said}");
    assert!(said.contains("REINDEX DATABASE \"postgres\""), "{said}");

    // A record from before there was anything of it in there.
    let checks = forged(&|facts| {
        let facts = facts.as_object_mut().unwrap();
        facts.remove("platform");
        for database in facts["databases"].as_array_mut().unwrap() {
            let database = database.as_object_mut().unwrap();
            database.remove("provider");
            database.remove("extensions");
        }
    });
    assert!(
        checks.iter().all(|check| check.outcome.is_ok()),
        "{checks:?}"
    );
}

#[test]
fn a_server_that_is_down_is_judged_by_its_image() {
    let cluster = Cluster::new();
    let place = Place::new();
    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let image = |image: &str| {
        Some(ContainerRef {
            image: image.to_owned(),
            ..container()
        })
    };
    let mut record = manifest.archive("db").unwrap().clone();
    record.container = image("postgres:17");
    record.report.facts["owner"] = json!({"uid": 999, "gid": 999, "mode": 0o700});
    let mut stack = Cluster::empty().stack();
    let looked = |stack: &StackService, record: &ArchiveRecord| {
        let mut restore = PostgresRestore::new(&config(&[]), stack).unwrap();
        let checks = place.block_on(restore.preflight(record));
        (checks, restore.unpack_options().owner)
    };

    stack.container = image("postgres:17-alpine");
    let (checks, owner) = looked(&stack, &record);
    let collation = find(&checks, "collation");
    assert!(collation.caution, "{collation:?}");
    assert!(collation.outcome.as_ref().unwrap().contains("REINDEX"));
    let said = find(&checks, "owner").outcome.clone().unwrap();
    assert!(said.starts_with("70:70"), "{said}");
    assert_eq!(owner, Some((70, 70)));

    stack.container = image("postgres:18");
    let (checks, owner) = looked(&stack, &record);
    assert_eq!(find(&checks, "owner").outcome, Ok("999:999".to_owned()));
    assert_eq!(owner, None);
    let extensions = find(&checks, "extensions").outcome.clone().unwrap();
    assert!(extensions.contains("cannot be asked"), "{extensions}");
    assert!(
        !checks
            .iter()
            .any(|check| check.subject.ends_with("collation"))
    );
}
