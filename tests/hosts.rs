//! Several hosts in one repository: what one has stored, the others do not store again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/repo.rs"]
mod repo;

use lifeboat::archive::{Cut, OnChange};
use lifeboat::repository::manifest::Manifest;
use repo::{Place, backup, noise, read};

const MODEL_BYTES: usize = 5_000_000;

/// Backs a model up from a host of its own, and says how much was stored for it.
fn back_up(place: &Place, host: &str, name: &str, body: &[u8]) -> Manifest {
    let (state, file) = (place.path(host), place.path("data").join(name));
    std::fs::create_dir_all(&state).unwrap();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, body).unwrap();
    let manifest = backup(&place.repository(), &state, |archive| {
        archive
            .file(name, &file, Cut::Model, OnChange::ReadAgain)
            .unwrap();
    });
    let bytes = read(&place.repository(), &manifest).unwrap();
    assert!(bytes.windows(1000).any(|w| w == &body[body.len() - 1000..]));
    assert!(bytes.len() > body.len());
    manifest
}

#[test]
fn a_model_that_two_hosts_have_is_stored_once_wherever_it_lies() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let body = noise(MODEL_BYTES, 41);
        let first = back_up(&place, "state", "models/blobs/sha256-a", &body);
        assert!(first.stored_bytes >= MODEL_BYTES as u64);
        let moved = back_up(&place, "state", "elsewhere/renamed", &body);
        let second_host = back_up(&place, "other", "models/blobs/sha256-a", &body);
        let third_host = back_up(&place, "third", "own/place", &body);
        for manifest in [moved, second_host, third_host] {
            assert!(
                manifest.stored_bytes < MODEL_BYTES as u64 / 100,
                "{} bytes stored",
                manifest.stored_bytes
            );
        }
    }
}

#[test]
fn a_host_that_lost_its_state_does_not_store_its_files_again() {
    let place = Place::plain();
    let body = noise(MODEL_BYTES, 43);
    back_up(&place, "state", "a", &body);
    std::fs::remove_dir_all(place.path("state")).unwrap();
    let again = back_up(&place, "state", "a", &body);
    assert!(
        again.stored_bytes < MODEL_BYTES as u64 / 100,
        "{} bytes stored",
        again.stored_bytes
    );
}
