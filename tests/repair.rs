//! `repair`: what is lost in one place is taken from another, and nothing is called healed that is not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/program.rs"]
mod program;
#[path = "support/repo.rs"]
mod repo;

use std::process::Output;

use lifeboat::archive::{Cut, EntryMeta, OnChange};
use lifeboat::repository::repair::{heal, rebuild_index};
use lifeboat::repository::verify::Depth;
use repo::{Place, noise, read};

fn lifeboat(place: &Place, args: &[&str]) -> Output {
    let mut command = program::lifeboat(&place.path(""), args);
    if let Some(passphrase) = &place.keys.passphrase {
        command.env("AGE_PASSPHRASE", passphrase.reveal());
    }
    command.output().unwrap()
}

#[test]
fn the_next_backup_heals_the_older_ones() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let relation = place.path("data/relation");
        std::fs::write(&relation, noise(50 * 8192, 1)).unwrap();
        let content = noise(300_000, 2);
        let make = || {
            place.backup(|archive| {
                archive
                    .file("relation", &relation, Cut::Pages(8192), OnChange::Repaired)
                    .unwrap();
                archive
                    .bytes("content", &EntryMeta::default(), &content)
                    .unwrap();
            })
        };
        let first = make();
        let stream = read(&place.repository(), &first).unwrap();
        let packs = place.packs();
        assert_eq!(packs.len(), 1);
        place.flip(packs[0], 100_000);
        let report = place.verify(Depth::Full);
        assert!(!report.is_good());
        read(&place.repository(), &first).unwrap_err();
        let second = make();
        assert!(second.stored_bytes > 600_000, "{}", second.stored_bytes);
        assert!(!place.verify(Depth::Structure).is_good());

        let told = lifeboat(&place, &["repair", "--dry-run"]);
        assert_eq!(told.status.code(), Some(3), "{told:?}");
        assert!(!place.path("repo/moved").exists());
        let healed = lifeboat(&place, &["repair"]);
        let said = String::from_utf8_lossy(&healed.stdout);
        assert!(healed.status.success(), "{healed:?}");
        assert!(
            said.contains("0 B nowhere") && said.contains("all good"),
            "{said}"
        );
        for manifest in [&first, &second] {
            assert_eq!(read(&place.repository(), manifest).unwrap(), stream);
        }
        let report = place.verify(Depth::Full);
        assert!(report.is_good() && report.replaced_packs == 1, "{report:?}");
        assert!(
            heal(&place.repository(), false, |_, _| {})
                .unwrap()
                .is_empty()
        );
    }
}

#[test]
fn what_a_damaged_pack_still_gives_is_saved_and_the_rest_stays_reported() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let bodies: Vec<Vec<u8>> = (0..8).map(|n| noise(200_000, 10 + n)).collect();
        for (n, body) in bodies.iter().enumerate() {
            std::fs::write(place.path(&format!("data/file-{n}")), body).unwrap();
        }
        let make = || {
            place.backup(|archive| {
                for n in 0..8 {
                    let name = format!("file-{n}");
                    let path = place.path("data").join(&name);
                    archive
                        .file(&name, &path, Cut::Content, OnChange::ReadAgain)
                        .unwrap();
                }
            })
        };
        let manifest = make();
        let pack = place.packs()[0];
        place.flip(pack, 700_000);
        assert!(!place.verify(Depth::Full).is_good());
        let output = lifeboat(&place, &["repair", "--json"]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let lost = outcome["packs"][0]["lost_bytes"].as_u64().unwrap();
        assert!(lost > 0 && lost < 500_000, "{outcome}");
        assert!(outcome["packs"][0]["saved_bytes"].as_u64().unwrap() > 1_000_000);
        let files = outcome["verify"]["damage"][0]["files"].as_array().unwrap();
        assert!(!files.is_empty() && files.len() < 4, "{outcome}");
        assert!(
            files
                .iter()
                .all(|f| !f.as_str().unwrap().contains("file-0"))
        );
        // The loss goes on being told, and the next backup of the same files ends it.
        assert!(!place.verify(Depth::Structure).is_good());
        make();
        heal(&place.repository(), false, |_, _| {}).unwrap();
        let report = place.verify(Depth::Full);
        assert!(report.is_good(), "{report:?}");
        let stream = read(&place.repository(), &manifest).unwrap();
        assert!(stream.windows(200_000).any(|window| window == bodies[3]));
    }
}

#[test]
fn a_missing_pack_is_healed_and_one_that_comes_back_is_whole_again() {
    let place = Place::plain();
    let body = noise(400_000, 20);
    let first = place.files(&[("a", &body)]);
    let pack = place.packs()[0];
    let bytes = std::fs::read(place.pack_path(pack)).unwrap();
    std::fs::remove_file(place.pack_path(pack)).unwrap();
    place.files(&[("a", &body)]);
    let healed = heal(&place.repository(), false, |_, _| {}).unwrap();
    assert!(
        healed[0].lost_bytes == 0 && healed[0].found_bytes > 400_000,
        "{healed:?}"
    );
    assert!(place.verify(Depth::Full).is_good());
    read(&place.repository(), &first).unwrap();

    let other = Place::plain();
    let manifest = other.files(&[("a", &body)]);
    let pack = other.packs()[0];
    other.flip(pack, 1000);
    assert!(!other.verify(Depth::Full).is_good());
    other.flip(pack, 1000);
    assert!(!other.verify(Depth::Structure).is_good());
    let healed = heal(&other.repository(), false, |_, _| {}).unwrap();
    assert!(healed[0].is_whole, "{healed:?}");
    assert!(other.verify(Depth::Structure).is_good());
    read(&other.repository(), &manifest).unwrap();
    assert!(bytes.len() > 400_000);
}

#[test]
fn the_index_is_made_anew_from_the_packs_alone() {
    for place in [Place::plain(), Place::with_passphrase()] {
        let body = noise(500_000, 30);
        place.files(&[("a", &body)]);
        place.files(&[("a", &body), ("b", &noise(100_000, 31))]);
        std::fs::remove_dir_all(place.path("repo/index")).unwrap();
        let told = rebuild_index(&place.repository(), true, |_, _| {}).unwrap();
        assert_eq!(told.packs_added, 2);
        assert!(!place.path("repo/index").exists());
        let output = lifeboat(&place, &["repair", "index"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            rebuild_index(&place.repository(), false, |_, _| {}).unwrap(),
            lifeboat::repository::repair::IndexRepair::default()
        );
        // A host that never wrote here learns from it what is stored.
        std::fs::remove_dir_all(place.path("state")).unwrap();
        std::fs::create_dir(place.path("state")).unwrap();
        let third = place.files(&[("a", &body)]);
        assert!(third.stored_bytes < 2_000, "{} stored", third.stored_bytes);
        assert!(place.verify(Depth::Full).is_good());
    }
}

#[test]
fn a_damaged_part_of_the_index_is_replaced() {
    let place = Place::plain();
    let manifest = place.files(&[("a", &noise(100_000, 40))]);
    let part = place.path(&format!("repo/index/{}-0001.0", manifest.id));
    std::fs::write(&part, b"nonsense").unwrap();
    assert!(!place.verify(Depth::Structure).is_good());
    let repaired = rebuild_index(&place.repository(), false, |_, _| {}).unwrap();
    assert_eq!((repaired.packs_added, repaired.parts_removed.len()), (1, 1));
    assert!(!part.exists());
    assert!(place.verify(Depth::Structure).is_good());
}

#[test]
fn the_files_for_people_are_written_anew_where_they_are_gone_or_changed() {
    let place = Place::plain();
    place.files(&[("a", b"text")]);
    let (readme, script) = (place.path("repo/README.txt"), place.path("repo/RECOVER.sh"));
    let good = [&readme, &script].map(|path| std::fs::read(path).unwrap());
    let harm = || {
        std::fs::remove_file(&readme).unwrap();
        std::fs::write(&script, "rm -rf /\n").unwrap();
        let verified = lifeboat(&place, &["verify"]);
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{verified:?}");
        assert!(
            said.contains("note: README.txt is missing")
                && said.contains("note: RECOVER.sh is not the one")
                && said.contains("all good"),
            "{said}"
        );
    };
    let assert_mended = || {
        let now = [&readme, &script].map(|path| std::fs::read(path).unwrap());
        assert_eq!(now, good);
        assert_eq!(place.verify(Depth::Structure).notes, [""; 0]);
    };
    harm();
    let told = lifeboat(&place, &["repair", "--dry-run"]);
    assert!(told.status.success() && !readme.exists(), "{told:?}");
    let repaired = lifeboat(&place, &["repair"]);
    assert!(repaired.status.success(), "{repaired:?}");
    assert_mended();
    harm();
    place.files(&[("a", b"other")]);
    assert_mended();
}
