//! The local cache over many runs: what stays as it is costs nothing, and what is gone is forgotten.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/repo.rs"]
mod repo;

use lifeboat::archive::cache::Cache;
use lifeboat::archive::{ArchiveWriter, Cut, EntryMeta, FileOutcome, OnChange};
use lifeboat::repository::index::current_parts;
use lifeboat::repository::lease::usable_packs;
use repo::{Place, noise, only_body, read};

fn store(archive: &mut ArchiveWriter, place: &Place, name: &str) -> FileOutcome {
    let path = place.path("data").join(name);
    archive
        .file(name, &path, Cut::Pages(8192), OnChange::ReadAgain)
        .unwrap()
}

fn database(place: &Place) -> rusqlite::Connection {
    let name = format!("cache-{}-0.sqlite", place.repository().id());
    rusqlite::Connection::open(place.path("state").join(name)).unwrap()
}

/// Names of the files that a table has rows of.
fn names(place: &Place, table: &str) -> Vec<String> {
    let db = database(place);
    let mut query = db
        .prepare(&format!("SELECT name FROM {table} ORDER BY name"))
        .unwrap();
    let names = query
        .query_map(
            [],
            |row| Ok(String::from_utf8(row.get(0).unwrap()).unwrap()),
        )
        .unwrap();
    names.map(Result::unwrap).collect()
}

#[test]
fn a_file_that_stays_is_known_in_every_run_and_one_that_went_is_forgotten() {
    let place = Place::plain();
    let stays = place.path("data").join("stays");
    std::fs::write(&stays, noise(2_000_000, 1)).unwrap();
    std::fs::write(place.path("data").join("goes"), noise(2_000_000, 2)).unwrap();
    // Its times are trusted once it is older than two seconds.
    std::thread::sleep(std::time::Duration::from_millis(2_200));
    place.backup(|archive| {
        store(archive, &place, "stays");
        store(archive, &place, "goes");
    });
    assert_eq!(names(&place, "files"), ["goes", "stays"]);
    assert_eq!(names(&place, "pages"), ["goes", "stays"]);
    let mut last = None;
    for run in 0..40 {
        last = Some(place.backup(|archive| {
            let outcome = store(archive, &place, "stays");
            assert_eq!(
                outcome,
                FileOutcome::Spliced { bytes: 2_000_000 },
                "run {run}"
            );
        }));
    }
    assert_eq!(names(&place, "files"), ["stays"]);
    assert_eq!(names(&place, "pages"), ["stays"]);
    let stream = read(&place.repository(), &last.unwrap()).unwrap();
    assert_eq!(
        only_body(&stream, 2_000_000),
        std::fs::read(&stays).unwrap()
    );
}

#[test]
fn what_a_run_put_into_the_index_it_does_not_read_again() {
    let place = Place::plain();
    let manifest = place.files(&[("one", &noise(3_000_000, 3))]);
    let repository = place.repository();
    let vault = repository.vault();
    let parts = current_parts(vault).unwrap();
    assert_eq!(parts.len(), 1, "{parts:?}");
    let open = |state: &std::path::Path| {
        let name = format!("{}-0", repository.id());
        Cache::open(state, &name, &usable_packs(vault).unwrap(), &|_| Ok(None)).unwrap()
    };
    let mut own = open(&place.path("state"));
    assert!(own.unknown_parts(&parts).unwrap().is_empty());
    // Another host has it to learn.
    let other = tempfile::tempdir().unwrap();
    let mut fresh = open(other.path());
    assert_eq!(fresh.unknown_parts(&parts).unwrap(), parts);
    // And what the run knows is right: the same content is not stored again.
    let again = place.files(&[("two", &noise(3_000_000, 3))]);
    assert!(
        again.stored_bytes < manifest.stored_bytes / 100,
        "{} bytes stored",
        again.stored_bytes
    );
}

#[test]
fn the_log_that_a_run_finds_stays_short() {
    let place = Place::plain();
    let changes = place.path("data").join("changes");
    std::fs::write(place.path("data").join("stays"), noise(2_000_000, 4)).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2_200));
    let log = place
        .path("state")
        .join(format!("cache-{}-0.sqlite-wal", place.repository().id()));
    let mut longest = 0;
    for run in 0..40 {
        std::fs::write(&changes, noise(30_000, run)).unwrap();
        place.backup(|archive| {
            store(archive, &place, "changes");
            let outcome = store(archive, &place, "stays");
            // It is known from the database as from the log.
            let known = outcome == FileOutcome::Spliced { bytes: 2_000_000 };
            assert!(known || run == 0, "run {run}: {outcome:?}");
        });
        longest = longest.max(std::fs::metadata(&log).unwrap().len());
    }
    assert!(longest <= 64 * 1024, "{longest} bytes");
    assert!(longest > 0, "every run waits for a checkpoint");
}

#[test]
fn a_pack_that_was_away_for_a_while_is_not_believed_to_be_known() {
    let place = Place::plain();
    let body = noise(500_000, 5);
    place.files(&[("one", &noise(500_000, 6))]);
    let before = place.packs();
    place.files(&[("two", &body)]);
    let all = usable_packs(place.repository().vault()).unwrap();
    let name = format!("{}-0", place.repository().id());
    let open =
        |packs| drop(Cache::open(&place.path("state"), &name, packs, &|_| Ok(None)).unwrap());
    // Runs that came to nothing: to the first all is as it was left, and the second one misses a pack.
    open(&all);
    open(&before.into_iter().collect());
    // It is there again.
    let again = place.files(&[("two", &body)]);
    let stream = read(&place.repository(), &again).unwrap();
    assert_eq!(only_body(&stream, body.len()), body);
    assert!(
        place
            .verify(lifeboat::repository::verify::Depth::Full)
            .is_good()
    );
    let once_more = place.files(&[("two", &body)]);
    assert!(
        once_more.stored_bytes < 10_000,
        "{} bytes stored",
        once_more.stored_bytes
    );
    let stream = read(&place.repository(), &once_more).unwrap();
    assert_eq!(only_body(&stream, body.len()), body);
}

#[test]
fn packs_of_tiny_files_are_closed_before_their_tables_grow() {
    let place = Place::plain();
    let manifest = place.backup(|archive| {
        for number in 0..70_000 {
            archive
                .bytes(&format!("f{number}"), &EntryMeta::default(), b"")
                .unwrap();
        }
    });
    assert_eq!(place.packs().len(), 2);
    let stream = read(&place.repository(), &manifest).unwrap();
    assert_eq!(stream.len(), 70_000 * 512 + 1024);
}
