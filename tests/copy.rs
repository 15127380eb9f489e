//! `copy`: a second repository holds what the first does, whatever is in between.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/program.rs"]
mod program;
#[path = "support/repo.rs"]
mod repo;
#[path = "store/server.rs"]
#[allow(dead_code)]
mod server;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use age::secrecy::ExposeSecret;
use lifeboat::archive::{Cut, EntryMeta, OnChange};
use lifeboat::config::Secret;
use lifeboat::repository::copy::{CopyReport, copy, reencrypt};
use lifeboat::repository::keys::Keys;
use lifeboat::repository::lease::usable_packs;
use lifeboat::repository::repair::heal;
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{Repository, RepositoryError};
use repo::{Place, noise, read};

fn second(place: &Place) -> Arc<dyn Store> {
    let path = place.path("second");
    std::fs::create_dir_all(&path).unwrap();
    Arc::new(LocalStore::new(path))
}

fn send(place: &Place) -> Result<CopyReport, RepositoryError> {
    copy(
        &place.repository(),
        second(place),
        &place.keys,
        &place.path("state"),
        |_, _| {},
    )
}

fn target(place: &Place) -> Repository {
    Repository::open(second(place), &place.keys).unwrap()
}

#[track_caller]
fn assert_same(place: &Place) {
    let (from, to) = (place.repository(), target(place));
    assert_eq!(from.backups().unwrap(), to.backups().unwrap());
    for id in from.backups().unwrap() {
        let manifest = to.manifest(&id).unwrap();
        assert_eq!(manifest, from.manifest(&id).unwrap());
        assert_eq!(
            read(&to, &manifest).unwrap(),
            read(&from, &manifest).unwrap()
        );
    }
    let report = verify(&to, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
    assert!(report.is_good(), "{report:?}");
    assert!(to.store().list("leases").unwrap().is_empty());
}

fn lifeboat(place: &Place, args: &[&str], copy_to: Option<&Path>) -> Output {
    let mut command = program::lifeboat(&place.path(""), args);
    if let Some(target) = copy_to {
        command.env("COPY_REPOSITORY", target);
    }
    command.output().unwrap()
}

#[test]
fn every_backup_is_copied_once_and_reads_the_same() {
    for place in [Place::plain(), Place::with_passphrase()] {
        place.files(&[("a", &noise(300_000, 1))]);
        place.files(&[("a", &noise(300_000, 1)), ("b", &noise(100_000, 2))]);
        let report = send(&place).unwrap();
        assert_eq!((report.copied.len(), report.there, report.packs), (2, 0, 2));
        assert_same(&place);
        place.files(&[("b", &noise(100_000, 2)), ("c", &noise(50_000, 3))]);
        let report = send(&place).unwrap();
        assert_eq!((report.copied.len(), report.there, report.packs), (1, 2, 1));
        assert_same(&place);
        let report = send(&place).unwrap();
        assert_eq!((report.copied.len(), report.there, report.packs), (0, 3, 0));
    }
}

#[test]
fn a_copy_that_was_cut_short_goes_on_where_it_was() {
    let place = Place::plain();
    let manifest = place.files(&[("a", &noise(300_000, 1))]);
    place.files(&[("b", &noise(300_000, 2))]);
    send(&place).unwrap();
    // As if another host had been killed before the first manifest.
    let id = &manifest.id;
    let own = place.path(&format!("second/backups/{id}/manifest.json"));
    std::fs::remove_file(&own).unwrap();
    std::fs::create_dir_all(place.path("second/leases")).unwrap();
    let lease = place.path(&format!("second/leases/{id}"));
    std::fs::write(&lease, "{}").unwrap();
    for _ in 0..2 {
        let report = send(&place).unwrap();
        assert_eq!((report.copied.len(), report.there), (0, 1), "{report:?}");
        assert!(
            report.waiting[0].contains("another host copies"),
            "{report:?}"
        );
        assert_eq!(std::fs::read(&lease).unwrap(), b"{}", "it is not ours");
    }
    let done = lifeboat(&place, &["copy"], Some(&place.path("second")));
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    // A day later it is nobody's, and nobody has to prune there for that.
    let old = SystemTime::now() - Duration::from_hours(25);
    let file = std::fs::File::options().append(true).open(&lease).unwrap();
    file.set_modified(old).unwrap();
    let report = send(&place).unwrap();
    assert_eq!((report.copied.len(), report.there, report.packs), (1, 1, 0));
    assert_same(&place);
    std::fs::remove_file(&own).unwrap();
    // As if a prune had taken the copy for dead.
    std::fs::write(&own, "void\n").unwrap();
    assert_eq!(send(&place).unwrap().copied, std::slice::from_ref(id));
    assert_same(&place);
}

#[test]
fn a_copy_replaces_what_the_target_lost_and_never_sends_damage() {
    for place in [Place::plain(), Place::with_passphrase()] {
        place.files(&[("a", &noise(300_000, 1))]);
        place.files(&[("b", &noise(300_000, 2))]);
        send(&place).unwrap();
        let packs = place.packs();
        let suffix = if place.repository().is_encrypted() {
            ".age"
        } else {
            ""
        };
        let path = |n: usize| place.path(&format!("second/{}{suffix}", packs[n].key()));
        std::fs::remove_file(path(0)).unwrap();
        let mut bytes = std::fs::read(path(1)).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(path(1), bytes).unwrap();
        let to = target(&place);
        assert!(
            !verify(&to, &Scope::Everything, Depth::Full, |_, _| {})
                .unwrap()
                .is_good()
        );
        assert_eq!(send(&place).unwrap().packs, 2);
        assert_same(&place);

        let third = place.files(&[("c", &noise(200_000, 3))]);
        let new = place
            .packs()
            .into_iter()
            .find(|p| !packs.contains(p))
            .unwrap();
        place.flip(new, 4000);
        let report = send(&place).unwrap();
        assert!(report.faults[0].contains(&third.id), "{report:?}");
        assert_eq!(target(&place).backups().unwrap().len(), 2);
        // The next backup stores it again, a repair heals this one, and then it is copied: as it reads now.
        place.files(&[("c", &noise(200_000, 3))]);
        heal(&place.repository(), false, |_, _| {}).unwrap();
        let report = send(&place).unwrap();
        assert_eq!(
            (report.copied.len(), report.faults.len()),
            (2, 0),
            "{report:?}"
        );
        assert_same(&place);
    }
}

#[test]
fn a_damaged_pack_here_costs_no_part_of_the_copy_there() {
    let place = Place::plain();
    let (a, b) = (noise(300_000, 1), noise(300_000, 2));
    let first = place.files(&[("a", &a)]);
    send(&place).unwrap();
    let pack = place.packs()[0];
    let there = place.path(&format!("second/{}", pack.key()));
    let mut bytes = std::fs::read(&there).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&there, &bytes).unwrap();
    let to = target(&place);
    assert!(
        !verify(&to, &Scope::Everything, Depth::Full, |_, _| {})
            .unwrap()
            .is_good()
    );
    place.flip(pack, 250_000);
    // What else there is goes on its way, also what comes after it.
    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::create_dir(place.path("state")).unwrap();
    std::fs::remove_dir_all(place.path("repo/index")).unwrap();
    place.files(&[("b", &b)]);
    let report = send(&place).unwrap();
    assert!(report.faults[0].contains(&first.id), "{report:?}");
    assert_eq!(report.copied.len(), 1, "{report:?}");
    assert_eq!(std::fs::read(&there).unwrap(), bytes, "the last rest of it");
}

/// Backups of one second are in no order.
fn next_second() {
    let second = || jiff::Timestamp::now().as_second();
    let begun = second();
    while second() == begun {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_backup_whose_own_files_are_damaged_does_not_keep_others_from_being_copied() {
    let place = Place::plain();
    let first = place.files(&[("a", b"one")]);
    next_second();
    let later = place.files(&[("a", b"two")]);
    let ranges = place.path(&format!("repo/backups/{}/files.ranges", first.id));
    std::fs::write(ranges, "nonsense").unwrap();
    let report = send(&place).unwrap();
    assert_eq!(report.copied, [later.id]);
    assert!(report.faults[0].contains(&first.id), "{report:?}");
}

#[test]
fn a_key_that_nothing_here_opens_replaces_no_other() {
    let identity = age::x25519::Identity::generate();
    let mut place = Place::plain();
    place.keys.public_keys = vec![identity.to_public().to_string()];
    place.files(&[("a", b"one")]);
    send(&place).unwrap();
    let key = std::fs::read_dir(place.path("repo/keys")).unwrap().next();
    let key = key.unwrap().unwrap().path();
    let there = place.path("second/keys").join(key.file_name().unwrap());
    let good = std::fs::read(&key).unwrap();
    assert_eq!(std::fs::read(&there).unwrap(), good);
    // The file rots here; this host holds public keys only, and never reads it.
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&key, &bad).unwrap();
    let report = send(&place).unwrap();
    assert!(report.notes[0].contains("was left"), "{report:?}");
    assert_eq!(std::fs::read(&there).unwrap(), good);
    // It is the one there that rots: who can open this one sends it.
    std::fs::write(&key, &good).unwrap();
    std::fs::write(&there, &bad).unwrap();
    place.keys.identity = Some(Secret::new(identity.to_string().expose_secret()));
    let report = send(&place).unwrap();
    assert_eq!(report.notes, [""; 0]);
    assert_eq!(std::fs::read(&there).unwrap(), good);
}

#[test]
fn a_new_copy_does_not_count_on_what_only_an_earlier_lease_guarded() {
    let place = Place::plain();
    let body = noise(300_000, 1);
    // The first backup cannot be copied, for the second of its packs is damaged.
    place.files(&[("a", &body)]);
    let old = place.packs();
    let first = place.files(&[("a", &body), ("b", &noise(300_000, 2))]);
    let bad = place.packs().into_iter().find(|p| !old.contains(p));
    let from = place.repository();
    from.drop_backup(
        &from
            .backups()
            .unwrap()
            .into_iter()
            .find(|id| *id != first.id)
            .unwrap(),
    )
    .unwrap();
    next_second();
    let later = place.files(&[("a", &body)]);
    place.flip(bad.unwrap(), 4000);
    let to = Repository::open_or_init(second(&place), &Keys::none()).unwrap();
    // What was sent for the first one has lain in the trash of the target by the time of the second one.
    let trash = second(&place);
    let throw = |_: &str, _| {
        let packs = trash.list("packs").unwrap();
        let names: Vec<String> = packs
            .iter()
            .map(|entry| entry.key.rsplit('/').next().unwrap())
            .map(|name| name.strip_suffix(".zst").unwrap().to_owned())
            .collect();
        let text = serde_json::json!({ "packs": names }).to_string();
        // Only what was there at that time.
        match trash.put("trash/20260101T000000Z-000001", text.as_bytes()) {
            Ok(()) | Err(RepositoryError::Exists(_)) => {}
            Err(err) => panic!("{err}"),
        }
    };
    let report = reencrypt(&from, &to, &place.path("state"), 3, throw).unwrap();
    assert_eq!(report.copied, std::slice::from_ref(&later.id), "{report:?}");
    let usable = usable_packs(to.vault()).unwrap();
    for (pack, _) in to.uses(&later.id).unwrap().packs() {
        assert!(usable.contains(&pack), "{pack} lies in the trash");
    }
}

#[test]
fn a_copy_with_keys_of_its_own_goes_on_where_it_was_killed() {
    let place = Place::plain();
    let manifest = place.files(&[("a", &noise(300_000, 1))]);
    let (from, state) = (place.repository(), place.path("state"));
    let to = Repository::open_or_init(second(&place), &Keys::none()).unwrap();
    let send = || reencrypt(&from, &to, &state, 3, |_, _| {}).unwrap();
    send();
    // As if it had been killed before the manifest: the lists and the index are there.
    std::fs::remove_file(place.path(&format!("second/backups/{}/manifest.json", manifest.id)))
        .unwrap();
    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::create_dir(place.path("state")).unwrap();
    assert_eq!(send().copied, std::slice::from_ref(&manifest.id));
    let new = to.manifest(&manifest.id).unwrap();
    assert_eq!(read(&to, &new).unwrap(), read(&from, &manifest).unwrap());
}

#[test]
fn another_repository_is_not_written_into() {
    let place = Place::plain();
    place.files(&[("a", b"one")]);
    let other = Repository::open_or_init(second(&place), &place.keys).unwrap();
    let refused = send(&place).unwrap_err();
    assert!(
        refused.to_string().contains("another repository"),
        "{refused}"
    );
    assert!(other.backups().unwrap().is_empty());
}

#[test]
fn backup_copies_when_it_is_asked_to_and_stands_when_the_copy_fails() {
    let place = Place::plain();
    std::fs::create_dir(place.path("data/notes")).unwrap();
    std::fs::write(place.path("data/notes/a"), "text").unwrap();
    let to = place.path("second");
    let done = lifeboat(&place, &["backup"], Some(&to));
    assert!(done.status.success(), "{done:?}");
    assert_same(&place);
    let done = lifeboat(&place, &["copy", "--json"], Some(&to));
    assert!(
        String::from_utf8_lossy(&done.stdout).contains("\"there\": 1"),
        "{done:?}"
    );
    std::fs::write(place.path("file"), "").unwrap();
    let done = lifeboat(&place, &["backup", "--json"], Some(&place.path("file")));
    assert!(done.status.success(), "{done:?}");
    let outcome: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(
        outcome["copy_failed"]
            .as_str()
            .unwrap()
            .contains("is not complete"),
        "{outcome}"
    );
    let done = lifeboat(&place, &["copy"], Some(&place.path("repo")));
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    // It is loud until there is one.
    let done = lifeboat(&place, &["status"], Some(&to));
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("is not complete"));
    let done = lifeboat(&place, &["copy"], Some(&to));
    assert!(done.status.success(), "{done:?}");
    let done = lifeboat(&place, &["status"], Some(&to));
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_copy_with_keys_of_its_own_reads_the_same_and_goes_on_where_it_was() {
    for (place, keys) in [
        (Place::plain(), Place::with_passphrase().keys),
        (Place::with_passphrase(), Keys::none()),
    ] {
        let relation = place.path("data/relation");
        let mut pages = noise(3000 * 1024, 1);
        let content = noise(300_000, 2);
        let make = |pages: &[u8]| {
            std::fs::write(&relation, pages).unwrap();
            place.backup(|archive| {
                archive
                    .file("relation", &relation, Cut::Pages(1024), OnChange::Repaired)
                    .unwrap();
                archive
                    .bytes("content", &EntryMeta::default(), &content)
                    .unwrap();
            })
        };
        make(&pages);
        // A list of ranges that is itself kept as blocks.
        for page in (0..3000).step_by(2) {
            pages[page * 1024] ^= 1;
        }
        make(&pages);
        let from = place.repository();
        let keys = Keys {
            state: Some(place.path("state")),
            ..keys
        };
        let to = Repository::open_or_init(second(&place), &keys).unwrap();
        let send = || reencrypt(&from, &to, &place.path("state"), 3, |_, _| {}).unwrap();
        let same = |count: usize| {
            assert_eq!(from.backups().unwrap(), to.backups().unwrap());
            assert_eq!(to.backups().unwrap().len(), count);
            for id in from.backups().unwrap() {
                let (old, new) = (from.manifest(&id).unwrap(), to.manifest(&id).unwrap());
                assert_eq!(new.repository, to.id());
                assert_eq!(read(&to, &new).unwrap(), read(&from, &old).unwrap());
            }
            let report = verify(&to, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
            assert!(report.is_good(), "{report:?}");
            assert!(to.store().list("leases").unwrap().is_empty());
        };
        let first = send();
        assert_eq!((first.copied.len(), first.there), (2, 0), "{first:?}");
        same(2);
        assert_eq!(send().there, 2);
        // What is the same in the next one is not sent again; nor is it when a backup is gone there.
        pages[5 * 1024] ^= 1;
        let third = make(&pages);
        let report = send();
        assert!(
            report.packs == 1 && report.pack_bytes < 100_000,
            "{report:?}"
        );
        same(3);
        to.drop_backup(&third.id).unwrap();
        let report = send();
        assert_eq!((report.copied.len(), report.packs), (1, 0), "{report:?}");
        same(3);
        // A prune may have closed its place; what is damaged here is healed first or not sent.
        to.drop_backup(&third.id).unwrap();
        let suffix = if to.is_encrypted() { ".age" } else { "" };
        let manifest = format!("backups/{}/manifest.json{suffix}", third.id);
        to.store().put(&manifest, b"void\n").unwrap();
        assert_eq!(send().copied.len(), 1);
        same(3);
    }
}

#[test]
fn a_clone_is_not_encrypted_anew_into_itself() {
    let place = Place::plain();
    place.files(&[("a", b"one")]);
    send(&place).unwrap();
    let refused = reencrypt(
        &place.repository(),
        &target(&place),
        &place.path("state"),
        3,
        |_, _| {},
    );
    assert!(refused.unwrap_err().to_string().contains("same keys"));
    let done = lifeboat(
        &place,
        &["copy", "--reencrypt", "--json"],
        Some(&place.path("third")),
    );
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn a_repository_goes_into_a_bucket_and_back() {
    let server = server::Server::shared();
    let place = Place::with_passphrase();
    place.files(&[("a", &noise(300_000, 1))]);
    place.files(&[("a", &noise(300_000, 1)), ("b", &noise(100_000, 2))]);
    let bucket = || -> Arc<dyn Store> {
        Arc::new(server::connect(server::options(
            &server.url(),
            "copies/one",
            &place.path("state/spool"),
        )))
    };
    let state = place.path("state");
    let from = place.repository();
    let report = copy(&from, bucket(), &place.keys, &state, |_, _| {}).unwrap();
    assert_eq!((report.copied.len(), report.packs), (2, 2));
    let report = copy(&from, bucket(), &place.keys, &state, |_, _| {}).unwrap();
    assert_eq!((report.there, report.packs), (2, 0));
    let remote = Repository::open(bucket(), &place.keys).unwrap();
    let report = verify(&remote, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
    assert!(report.is_good(), "{report:?}");
    let report = copy(&remote, second(&place), &place.keys, &state, |_, _| {}).unwrap();
    assert_eq!((report.copied.len(), report.packs), (2, 2));
    assert_same(&place);
}
