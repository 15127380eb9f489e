//! What is damaged is found, named, and never stored upon.

use super::*;

#[test]
fn verify_names_what_a_damaged_or_missing_pack_costs() {
    let place = Place::new();
    let manifest = place.backup(|archive| {
        archive
            .bytes("a", &EntryMeta::default(), &noise(200_000, 8))
            .unwrap();
    });
    let repository = place.repository();
    let pack = *usable_packs(repository.vault())
        .unwrap()
        .iter()
        .next()
        .unwrap();
    let path = place.root.path().join("repo").join(pack.key());
    let good = std::fs::read(&path).unwrap();
    for at in [10, good.len() / 2, good.len() - 3] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let report = verify(&repository, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
        let fault = &report.damage[0];
        assert!(fault.fault.contains(&pack.to_string()), "{}", fault.fault);
        assert_eq!(fault.backups.iter().collect::<Vec<_>>(), [&manifest.id]);
        assert_eq!(fault.archives.iter().collect::<Vec<_>>(), ["files"]);
    }
    std::fs::remove_file(&path).unwrap();
    let report = verify(&repository, &Scope::Everything, Depth::Structure, |_, _| {}).unwrap();
    assert!(report.damage[0].fault.contains("missing"), "{report:?}");
    // The next backup stores again what is lost.
    let second = place.backup(|archive| {
        archive
            .bytes("a", &EntryMeta::default(), &noise(200_000, 8))
            .unwrap();
    });
    assert!(second.stored_bytes > 190_000);
    assert!(
        verify(
            &repository,
            &Scope::Backup(second.id.clone()),
            Depth::Full,
            |_, _| {}
        )
        .unwrap()
        .is_good()
    );
}

#[test]
fn a_file_that_does_not_match_its_digest_is_refused_and_taken_back() {
    use sha2::{Digest, Sha256};
    let place = Place::new();
    let path = place.data().join("blob");
    std::fs::write(&path, b"model").unwrap();
    let manifest = place.backup(|archive| {
        let wrong = archive
            .file_with_digest("blob", &path, Cut::Model, &[0; 32])
            .unwrap_err();
        assert!(
            wrong.to_string().contains("does not match its own name"),
            "{wrong}"
        );
        let right: [u8; 32] = Sha256::digest(b"model").into();
        archive
            .file_with_digest("blob", &path, Cut::Model, &right)
            .unwrap();
    });
    assert_eq!(
        place.extracted(&manifest),
        BTreeMap::from([("blob".to_owned(), b"model".to_vec())])
    );
}

#[test]
fn an_unfinished_member_can_not_be_sealed() {
    let place = Place::new();
    let repository = place.repository();
    let backup = repository
        .begin(
            "20260101T000000Z-abcdef",
            &place.root.path().join("state"),
            3,
        )
        .unwrap();
    let mut archive = backup.archive("files").unwrap();
    let mut member = archive
        .member("m", &EntryMeta::default(), 10, Cut::Content)
        .unwrap();
    member.write(b"12345").unwrap();
    let short = member.finish().unwrap_err();
    assert!(short.to_string().contains("5 bytes before"), "{short}");
    assert!(archive.seal().is_err());
}

#[test]
fn an_archive_that_is_whole_verifies_beside_one_that_is_not() {
    let place = Place::new();
    let repository = place.repository();
    let backup = repository
        .begin(
            "20260101T000000Z-abcdef",
            &place.root.path().join("state"),
            3,
        )
        .unwrap();
    let mut sealed = Vec::new();
    for (name, seed) in [("good", 10), ("bad", 11)] {
        let mut archive = backup.archive(name).unwrap();
        archive
            .bytes("a", &EntryMeta::default(), &noise(100_000, seed))
            .unwrap();
        sealed.push((archive.seal().unwrap(), notes()));
    }
    let manifest = backup.commit(sealed, BackupNotes::default()).unwrap();
    let text = std::fs::read_to_string(
        place
            .root
            .path()
            .join("repo/backups")
            .join(&manifest.id)
            .join("bad.ranges"),
    )
    .unwrap();
    // Its longest range: header and end are blocks that the other archive stored.
    let longest = text
        .lines()
        .skip(1)
        .max_by_key(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    let pack: lifeboat::repository::PackName =
        longest.unwrap().split(' ').next().unwrap().parse().unwrap();
    std::fs::remove_file(place.root.path().join("repo").join(pack.key())).unwrap();
    let check = |archive: &str| {
        let scope = Scope::Archives {
            backup: manifest.id.clone(),
            archives: [archive.to_owned()].into(),
        };
        verify(&repository, &scope, Depth::Full, |_, _| {})
            .unwrap()
            .is_good()
    };
    assert!(check("good") && !check("bad"));
}

#[test]
fn a_damaged_pack_is_not_referred_to_again() {
    let place = Place::new();
    let body = lifeboat::repository::hex(&noise(50_000, 12));
    let write = |archive: &mut ArchiveWriter| {
        archive
            .bytes("a", &EntryMeta::default(), body.as_bytes())
            .unwrap();
    };
    place.backup(write);
    let repository = place.repository();
    let pack = *usable_packs(repository.vault())
        .unwrap()
        .iter()
        .next()
        .unwrap();
    let path = place.root.path().join("repo").join(pack.key());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(
        !verify(&repository, &Scope::Everything, Depth::Full, |_, _| {})
            .unwrap()
            .is_good()
    );
    let second = place.backup(write);
    assert!(
        second.stored_bytes > 45_000,
        "{} bytes stored",
        second.stored_bytes
    );
    let scope = Scope::Backup(second.id.clone());
    let report = verify(&repository, &scope, Depth::Full, |_, _| {}).unwrap();
    assert!(report.is_good(), "{report:?}");
    let third = place.backup(write);
    assert!(
        third.stored_bytes < 2_000,
        "{} bytes stored",
        third.stored_bytes
    );
}
