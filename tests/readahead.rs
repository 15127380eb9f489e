//! Reading ahead: many packs, scattered ranges, damage in the middle, and readers that go away.
//!
//! `support::repo::read` compares it with reading in place wherever a test reads an archive.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/repo.rs"]
mod repo;

use lifeboat::archive::{ArchiveWriter, Cut, OnChange};
use lifeboat::repository::manifest::Manifest;
use repo::{Place, noise, only_body, read, read_ahead};
use tokio::io::AsyncReadExt as _;

const PAGE: usize = 8192;

/// A file of pages that changes here and there for some nights: its ranges go back and forth between packs.
fn scattered(place: &Place, nights: u64) -> (Manifest, Vec<u8>) {
    let path = place.path("data").join("relation");
    let mut body = noise(600 * PAGE, 1);
    let mut last = None;
    for night in 0..nights {
        for page in (0..600).filter(|page| (page * 7919 + night) % 23 == 0) {
            let at = usize::try_from(page).unwrap() * PAGE;
            body[at..at + 64].copy_from_slice(&noise(64, page * 1000 + night));
        }
        std::fs::write(&path, &body).unwrap();
        last = Some(place.backup(|archive: &mut ArchiveWriter| {
            archive
                .file("relation", &path, Cut::Pages(8192), OnChange::Repaired)
                .unwrap();
        }));
    }
    (last.unwrap(), body)
}

#[test]
fn scattered_ranges_come_in_order() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let (manifest, body) = scattered(&place, 12);
        assert!(place.packs().len() >= 12);
        let stream = read(&place.repository(), &manifest).unwrap();
        assert_eq!(only_body(&stream, body.len()), body);
    }
}

#[test]
fn damage_shows_where_it_lies_and_says_what_is_damaged() {
    let place = Place::plain();
    let (manifest, _) = scattered(&place, 6);
    for pack in place.packs() {
        let path = place.pack_path(pack);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let middle = damaged.len() / 3;
        damaged[middle] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let fault = read(&place.repository(), &manifest).unwrap_err();
        assert!(fault.to_string().contains(&pack.to_string()), "{fault}");
        std::fs::remove_file(&path).unwrap();
        let fault = read(&place.repository(), &manifest).unwrap_err();
        assert!(fault.to_string().contains("missing"), "{fault}");
        std::fs::write(&path, &whole).unwrap();
    }
    read(&place.repository(), &manifest).unwrap();
}

#[test]
fn a_reader_that_goes_away_early_is_not_waited_for() {
    let place = Place::plain();
    let manifest = place.files(&[("large", &noise(40_000_000, 5))]);
    let whole = read_ahead(&place.repository(), &manifest).unwrap();
    let archive = place
        .repository()
        .archive(&manifest, &manifest.archives[0])
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut first = vec![0; 1000];
    runtime.block_on(async {
        archive.into_async().read_exact(&mut first).await.unwrap();
    });
    // Waits for the threads: it would not return if one of them waited for the reader.
    drop(runtime);
    assert_eq!(first, whole[..1000]);
}
