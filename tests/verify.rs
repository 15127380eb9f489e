//! `verify`: what is damaged is found, and named down to the files that it touches.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/repo.rs"]
mod repo;

use lifeboat::repository::Repository;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::verify::{Depth, ReadLog, Scope, verify, verify_noting};
use repo::{Place, noise};

#[test]
fn a_missing_pack_names_the_files_in_it_and_no_others() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let long = format!("{}/second", "d".repeat(150));
        let first = place.files(&[("kept", &noise(100_000, 1))]);
        let before = place.packs();
        let second = place.files(&[
            ("kept", &noise(100_000, 1)),
            ("first", &noise(50_000, 2)),
            (&long, &noise(50_000, 3)),
        ]);
        assert!(place.verify(Depth::Structure).is_good());
        let new = place.packs().into_iter().find(|p| !before.contains(p));
        std::fs::remove_file(place.pack_path(new.unwrap())).unwrap();
        let report = place.verify(Depth::Structure);
        assert_eq!(report.damage.len(), 1, "{report:?}");
        let damage = &report.damage[0];
        assert!(damage.fault.contains("missing"), "{damage:?}");
        assert_eq!(damage.backups.iter().collect::<Vec<_>>(), [&second.id]);
        // The header of the file that follows went with the pack, so the rest has no names.
        assert_eq!(damage.files, ["files: everything after kept"]);
        assert!(place.verify_one(&first.id, Depth::Full).is_good());
    }
}

#[test]
fn files_whose_bodies_alone_are_lost_are_named_and_counted() {
    let place = Place::plain();
    let names: Vec<String> = (0..30).map(|n| format!("file-{n:02}")).collect();
    let headers: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &[][..])).collect();
    place.files(&headers);
    // The headers of files of one size are blocks of their own: put once, with other bodies.
    let body = |seed| noise(40_000, seed);
    let bodies: Vec<Vec<u8>> = (0..30).map(|n| body(100 + n)).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&bodies)
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    place.files(&files);
    let other: Vec<Vec<u8>> = (0..30).map(|n| body(200 + n)).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&other)
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    let before = place.packs();
    let third = place.files(&files);
    let new = place.packs().into_iter().find(|p| !before.contains(p));
    place.flip(new.unwrap(), 5_000);
    assert!(place.verify(Depth::Structure).is_good());
    let report = place.verify(Depth::Full);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    let damage = &report.damage[0];
    assert_eq!(damage.backups.iter().collect::<Vec<_>>(), [&third.id]);
    assert_eq!(
        (damage.files.len(), damage.more_files),
        (20, 10),
        "{damage:?}"
    );
    assert_eq!(damage.files[0], "files: file-00");
    // It is marked: from now on no depth calls it good.
    assert!(!place.verify(Depth::Structure).is_good());
}

#[test]
fn every_sealed_file_that_is_changed_is_found_without_reading_data() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let manifest = place.files(&[("a", &noise(100_000, 4))]);
        let suffix = if place.repository().is_encrypted() {
            ".age"
        } else {
            ""
        };
        let index = format!("index/{}-0001.0{suffix}", manifest.id);
        let own = |name: &str| format!("backups/{}/{name}", manifest.id);
        let files = [
            index,
            own("packs"),
            own(&format!("files.ranges{suffix}")),
            own(&format!("manifest.json{suffix}")),
        ];
        for key in files {
            let path = place.path("repo").join(&key);
            let good = std::fs::read(&path).unwrap();
            for at in [3, good.len() / 2, good.len() - 3] {
                let mut bad = good.clone();
                bad[at] ^= 1;
                std::fs::write(&path, bad).unwrap();
                let report = place.verify(Depth::Structure);
                assert!(!report.is_good(), "{key}, byte {at}");
            }
            std::fs::write(&path, good).unwrap();
        }
        assert!(place.verify(Depth::Full).is_good());
    }
}

#[test]
fn samples_find_damage_in_as_many_nights_as_the_share_says() {
    let place = Place::plain();
    for seed in 0..8 {
        place.files(&[("a", &noise(100_000, 10 + seed))]);
    }
    let packs = place.packs();
    place.flip(packs[3], 1000);
    let repository = place.repository();
    let state = place.path("state");
    let mut found = 0;
    for seed in 0..4 {
        let mut log = ReadLog::load(&state, repository.id());
        let depth = Depth::Sample { percent: 25, seed };
        let report =
            verify_noting(&repository, &Scope::Everything, depth, &mut log, |_, _| {}).unwrap();
        log.save(&state, repository.id()).unwrap();
        assert!(report.read_packs <= 3, "{report:?}");
        found = found.max(report.damage.len());
    }
    assert_eq!(found, 1);
    assert!(
        place
            .path("repo/damaged")
            .join(packs[3].to_string())
            .exists()
    );
}

#[test]
fn a_host_with_public_keys_only_checks_what_it_can_and_says_what_it_could_not() {
    let mut place = Place::plain();
    let identity = age::x25519::Identity::generate();
    place.keys = Keys {
        public_keys: vec![identity.to_public().to_string()],
        ..place.keys
    };
    let manifest = place.files(&[("a", &noise(100_000, 5))]);
    let report = place.verify(Depth::Full);
    assert!(report.is_good() && report.read_packs == 1, "{report:?}");
    assert!(
        report.unchecked[0].contains("only public keys"),
        "{report:?}"
    );
    let list = place
        .path("repo")
        .join(format!("backups/{}/packs", manifest.id));
    let good = std::fs::read(&list).unwrap();
    let mut forged = good.clone();
    forged[good.len() / 2] ^= 1;
    std::fs::write(&list, forged).unwrap();
    assert!(!place.verify(Depth::Structure).is_good());
    std::fs::write(&list, good).unwrap();
    let pack = place.packs()[0];
    place.flip(pack, 500);
    let report = place.verify(Depth::Full);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(
        report.damage[0].backups.contains(&manifest.id),
        "{report:?}"
    );
    std::fs::remove_file(place.pack_path(pack)).unwrap();
    let report = verify(
        &place.repository(),
        &Scope::Everything,
        Depth::Structure,
        |_, _| {},
    );
    assert!(report.unwrap().damage[0].fault.contains("missing"));
}

#[test]
fn a_damaged_pack_that_no_backup_needs_is_told_and_marked() {
    let place = Place::plain();
    let manifest = place.files(&[("a", &noise(60_000, 6))]);
    place.repository().drop_backup(&manifest.id).unwrap();
    let pack = place.packs()[0];
    place.flip(pack, 300);
    assert!(place.verify(Depth::Structure).is_good());
    let report = place.verify(Depth::Full);
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!(
        report.damage[0].fault.contains("no backup needs it"),
        "{report:?}"
    );
    let repository = Repository::open(place.store(), &place.keys).unwrap();
    assert!(repository.backups().unwrap().is_empty());
    assert!(place.packs().is_empty());
}
