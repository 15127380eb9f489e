//! Reading that is held back to a rate: it waits, and ends when the backup is given up.
#![allow(clippy::unwrap_used)]

#[path = "support/repo.rs"]
mod repo;

use lifeboat::archive::{Cut, OnChange};
use repo::{Place, noise};

const FILE_BYTES: u64 = 4 << 20;
const PIECE_BYTES: u64 = 256 << 10;

#[test]
fn a_backup_waits_after_what_it_may_read_until_it_is_given_up() {
    let place = Place::plain();
    let path = place.path("data").join("large");
    std::fs::write(&path, noise(usize::try_from(FILE_BYTES).unwrap(), 1)).unwrap();
    let repository = place.repository();
    let backup = repository.begin("one", &place.path("state"), 1).unwrap();
    let session = backup.session().clone();
    // The whole file would take weeks.
    session.limit_reading(1);
    let mut archive = backup.archive("a").unwrap();
    let result = std::thread::scope(|scope| {
        let copying =
            scope.spawn(|| archive.file("large", &path, Cut::Content, OnChange::ReadAgain));
        while session.progress.read_bytes() == 0 {
            std::thread::yield_now();
        }
        session.request_stop();
        copying.join().unwrap()
    });
    let err = result.unwrap_err().to_string();
    assert_eq!(session.progress.read_bytes(), PIECE_BYTES, "{err}");
}
