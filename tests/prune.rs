//! The prune on real repositories: what nobody needs goes, and nothing else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "prune/history.rs"]
mod history;
#[path = "prune/hosts.rs"]
mod hosts;
#[path = "prune/store.rs"]
mod store;
#[path = "prune/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use lifeboat::repository::prune::{Amount, Options, prune};
use lifeboat::repository::store::Store;
use world::{Noise, PAGE, World, archive_of, distinct_bytes};

const SEED: u64 = 0x5EED_0001;

/// Backups and what they hold, oldest first: ids of one second are in no order.
type Kept = Vec<(String, Vec<u8>)>;

#[test]
fn what_retention_drops_comes_back_as_space() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(1500);
    let mut kept: Kept = Vec::new();
    for night in 0..12 {
        let changed: Vec<usize> = (0..150).map(|_| noise.below(1500)).collect();
        noise.change(&mut body, changed);
        let manifest = host.backup(&world.repository(), &body);
        kept.push((manifest.id.clone(), body.clone()));
        if night > 2 {
            let (oldest, _) = kept.remove(0);
            world.repository().drop_backup(&oldest).unwrap();
        }
        world.prune();
        world.store.pass_hours(24);
    }
    world.prune_through();
    let (stored, live) = (
        world.pack_bytes(),
        distinct_bytes(kept.iter().map(|(_, body)| body)),
    );
    eprintln!("stored {stored}, live {live}");
    assert!(stored * 10 <= live * 14, "stored {stored}, live {live}");
    for (id, body) in &kept {
        assert!(world.restored(id) == *body, "{id}");
    }
    world.assert_good();
    // The cache has followed: an unchanged relation is not stored again.
    let again = host.backup(&world.repository(), &body);
    assert!(again.stored_bytes < 40_000, "{}", again.stored_bytes);
    // Nothing is left to do, and no index speaks of packs that are gone.
    world.prune_through();
    let report = world.prune();
    assert_eq!(
        (report.deleted, report.trashed, report.waiting),
        Default::default()
    );
}

#[test]
fn a_dry_run_changes_nothing_and_tells_what_a_prune_does() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(300);
    let first = host.backup(&world.repository(), &body);
    noise.change(&mut body, 0..300);
    host.backup(&world.repository(), &body);
    world.repository().drop_backup(&first.id).unwrap();
    world.store.pass_hours(25);
    for round in 0..3 {
        let before = world.files();
        let dry = Options {
            dry_run: true,
            ..world.options()
        };
        let planned = prune(&world.repository(), &dry).unwrap();
        assert!(world.files() == before, "the dry run changed something");
        let done = world.prune();
        assert_eq!(
            (
                planned.deleted,
                planned.trashed,
                planned.waiting,
                planned.live
            ),
            (done.deleted, done.trashed, done.waiting, done.live)
        );
        let about = |amount: Amount| amount.packs == 1 && amount.bytes > 300 * 8192;
        match round {
            0 => assert!(about(done.trashed), "{done:?}"),
            1 => assert!(about(done.waiting) && done.deleted.packs == 0, "{done:?}"),
            _ => assert!(about(done.deleted), "{done:?}"),
        }
        world.store.pass_hours(if round == 0 { 24 } else { 25 });
    }
}

#[test]
fn what_was_repacked_reads_as_before_through_every_move() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(1000);
    // The first pack loses more and more of its pages, and the backup that has most of them goes first.
    let mut kept: Kept = Vec::new();
    for share in [1, 3, 9, 27] {
        let changed: Vec<usize> = (0..1000).filter(|page| page % share != 0).collect();
        noise.change(&mut body, changed);
        let manifest = host.backup(&world.repository(), &body);
        kept.push((manifest.id, body.clone()));
    }
    let mut repacked = 0;
    while kept.len() > 1 {
        let archives: BTreeMap<String, Vec<u8>> = kept
            .iter()
            .map(|(id, _)| (id.clone(), archive_of(&world.repository(), id)))
            .collect();
        let (oldest, _) = kept.remove(0);
        world.repository().drop_backup(&oldest).unwrap();
        let before = world.packs();
        let report = world.prune_through();
        repacked += report.repacked.packs;
        assert!(!before.is_subset(&world.packs()), "nothing was deleted");
        for (id, body) in &kept {
            assert!(world.restored(id) == *body, "{id}");
            assert!(world.recovered(id) == archives[id], "RECOVER.sh, {id}");
        }
        world.assert_good();
    }
    assert!(repacked >= 3, "{repacked} packs were repacked");
    let chain = world.store.list("moved").unwrap();
    assert!(chain.len() >= 4, "no pack moved twice: {chain:?}");
    let live = distinct_bytes(kept.iter().map(|(_, body)| body));
    assert!(world.pack_bytes() * 10 <= live * 14);
    let again = host.backup(&world.repository(), &body);
    assert!(again.stored_bytes < 40_000, "{}", again.stored_bytes);
    // When the last backup that needs a move is gone, so is the move.
    for id in world.repository().backups().unwrap() {
        world.repository().drop_backup(&id).unwrap();
    }
    world.prune_through();
    world.prune_now().unwrap();
    for prefix in ["packs", "moved", "trash", "leases", "index", "backups"] {
        assert_eq!(world.store.list(prefix).unwrap(), [], "{prefix}");
    }
}

/// Lists of packs tell how much of a pack each backup wants, not whether it is the same part of it.
#[test]
fn a_pack_of_which_backups_want_different_parts_hides_no_dead_weight_of_another() {
    let world = World::new();
    let (a, b) = (world.host("a"), world.host("b"));
    let mut noise = Noise(SEED);
    let (shared, other) = (noise.pages(500), noise.pages(400));
    let dropped = [
        a.backup(&world.repository(), &shared),
        b.backup(&world.repository(), &other),
    ];
    let c = world.copy_of(&a, "c");
    // 405 of 500 pages stay wanted, 205 at the most by one backup; and 244 of 400.
    let mut right = shared[..405 * PAGE].to_vec();
    right[..205 * PAGE].fill(0);
    let kept = [
        (&a, &shared[..205 * PAGE]),
        (&b, &other[..244 * PAGE]),
        (&c, &right),
    ]
    .map(|(host, body)| (host.backup(&world.repository(), body), body));
    for (backup, _) in &kept {
        assert!(backup.stored_bytes < 100_000, "{}", backup.stored_bytes);
    }
    for backup in dropped {
        world.repository().drop_backup(&backup.id).unwrap();
    }
    world.store.pass_hours(25);
    let planned = prune(
        &world.repository(),
        &Options {
            dry_run: true,
            ..world.options()
        },
    );
    assert_eq!(planned.unwrap().repacked.packs, 1);
    let report = world.prune_through();
    assert_eq!(report.repacked.packs, 1, "{report:?}");
    let (stored, live) = (
        world.pack_bytes(),
        distinct_bytes(&kept.map(|(_, body)| body.to_vec())),
    );
    assert!(stored * 100 <= live * 119, "stored {stored}, live {live}");
}

#[test]
fn a_backup_that_commits_in_the_moment_of_a_repack_keeps_what_it_needs() {
    let world = Arc::new(World::new());
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let old = noise.pages(400);
    let first = host.backup(&world.repository(), &old);
    // A machine that was copied knows the first backup, and nothing later.
    let copy = Arc::new(world.copy_of(&host, "c"));
    let mut body = old.clone();
    noise.change(&mut body, 0..250);
    let second = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&first.id).unwrap();
    world.store.pass_hours(25);
    let (committing, at, copied) = (Arc::clone(&world), Arc::clone(&copy), old.clone());
    world.store.before_put("/packs", move || {
        let manifest = at.backup(&committing.repository(), &copied);
        assert!(manifest.stored_bytes < 40_000, "it stored what it knew");
    });
    assert_eq!(world.prune().repacked.packs, 1);
    let third = world.repository().backups().unwrap();
    let third = third.iter().find(|id| **id != second.id).unwrap().clone();
    for _ in 0..3 {
        world.prune_through();
    }
    assert!(world.restored(&second.id) == body && world.restored(&third) == old);
    // A second run moves the pack for all who want a part of it.
    let mut newer = old;
    noise.change(&mut newer, 150..400);
    let fourth = copy.backup(&world.repository(), &newer);
    world.repository().drop_backup(&third).unwrap();
    let moved = world.prune_through().repacked.packs;
    assert!(moved >= 1, "the pack did not move again");
    assert!(world.restored(&second.id) == body && world.restored(&fourth.id) == newer);
    for id in [&second.id, &fourth.id] {
        assert!(world.recovered(id) == archive_of(&world.repository(), id));
    }
    world.assert_good();
    let live = distinct_bytes([&body, &newer]);
    assert!(world.pack_bytes() * 10 <= live * 14);
}

#[test]
fn a_backup_whose_list_of_packs_is_gone_is_asked_itself_and_if_it_cannot_tell_nothing_goes() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(200);
    let dropped = host.backup(&world.repository(), &body);
    noise.change(&mut body, 0..150);
    let kept = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&dropped.id).unwrap();
    let repo = world.root.path().join("repo");
    let list = repo.join("backups").join(&kept.id).join("packs");
    let mut forged = std::fs::read(&list).unwrap();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    for wrong in [None, Some(forged)] {
        match wrong {
            None => std::fs::remove_file(&list).unwrap(),
            Some(bytes) => std::fs::write(&list, bytes).unwrap(),
        }
        world.store.pass_hours(25);
        world.prune();
        assert!(world.restored(&kept.id) == body);
    }
    world.store.pass_hours(49);
    let ranges = repo.join("backups").join(&kept.id).join("files.ranges");
    std::fs::remove_file(ranges).unwrap();
    let before = world.files();
    let err = prune(&world.repository(), &world.options()).unwrap_err();
    assert!(
        err.to_string().contains(&kept.id) && err.to_string().contains("nothing is deleted"),
        "{err}"
    );
    let mut after = world.files();
    after.remove(&repo.join("reserve"));
    assert!(
        before
            .iter()
            .all(|(path, bytes)| path.ends_with("reserve") || after.get(path) == Some(bytes))
    );
}

#[test]
fn a_prune_that_does_not_wait_refuses_beside_a_run_and_deletes_at_once_without() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let body = noise.pages(200);
    let dropped = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&dropped.id).unwrap();
    let repository = world.repository();
    let under_way = repository
        .begin("20010909T000000Z-000001", host.state(), 3)
        .unwrap();
    world.store.pass_hours(2);
    let packs = world.packs();
    let err = world.prune_now().unwrap_err().to_string();
    let this = lifeboat::repository::host_name();
    assert!(
        err.contains("20010909T000000Z-000001")
            && err.contains(&this)
            && err.contains("120 minutes"),
        "{err}"
    );
    assert_eq!(world.packs(), packs);
    drop(under_way);
    let report = world.prune_now().unwrap();
    assert_eq!(report.deleted.packs, packs.len() as u64);
    assert!(world.packs().is_empty());
    assert!(world.store.list("locks").unwrap().is_empty());
    // A lock that was left behind holds backups up for a day and no longer.
    world.store.put("locks/gc", b"{}").unwrap();
    assert!(
        world
            .prune_now()
            .unwrap_err()
            .to_string()
            .contains("is being pruned")
    );
    world.store.pass_hours(24);
    let kept = host.backup(&world.repository(), &body);
    world.prune_now().unwrap();
    assert!(world.restored(&kept.id) == body);
}

#[test]
fn what_a_clock_that_was_ahead_left_behind_is_in_nobodys_way() {
    const YEARS: i64 = 10 * 365 * 24;
    let world = World::new();
    let (host, other) = (world.host("a"), world.host("b"));
    let mut noise = Noise(SEED);
    let body = noise.pages(200);
    let dropped = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&dropped.id).unwrap();
    world.store.pass_hours(YEARS);
    // A run and a prune that were killed then.
    let repository = world.repository();
    let killed = repository
        .begin("20350909T000000Z-000001", other.state(), 3)
        .unwrap();
    std::mem::forget(killed);
    world.store.put("locks/gc", b"{}").unwrap();
    world.store.pass_hours(-YEARS);

    let kept = host.backup(&world.repository(), &noise.pages(20));
    let report = world.prune_now().unwrap();
    assert!(report.deleted.packs > 0, "{report:?}");
    assert!(world.store.list("leases").unwrap().is_empty());
    assert!(world.store.list("locks").unwrap().is_empty());
    world.repository().manifest(&kept.id).unwrap();
    world.assert_good();
}

#[test]
fn a_run_that_sleeps_too_long_is_closed_and_cannot_commit() {
    let world = World::new();
    let (host, other) = (world.host("a"), world.host("b"));
    let mut noise = Noise(SEED);
    let body = noise.pages(200);
    let first = host.backup(&world.repository(), &body);
    // It refers to what the first one stored, and falls asleep right before it commits.
    let repository = world.repository();
    let pruning = Arc::new(world);
    let sleeper = Arc::clone(&pruning);
    pruning.store.before_put("manifest.json", move || {
        sleeper.repository().drop_backup(&first.id).unwrap();
        for _ in 0..3 {
            sleeper.store.pass_hours(49);
            sleeper.prune();
        }
        assert!(
            sleeper.packs().is_empty(),
            "nothing was deleted while it slept"
        );
    });
    let err = host.try_backup(&repository, &body).unwrap_err().to_string();
    assert!(err.contains("more than a day"), "{err}");
    let world = pruning;
    assert_eq!(world.repository().backups().unwrap(), Vec::<String>::new());
    let script = world.root.path().join("repo/RECOVER.sh");
    let listed = std::process::Command::new("sh")
        .arg(script)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
    // Its place stays taken, and nobody else is in the way of anything.
    let next = other.backup(&world.repository(), &body);
    world.prune_through();
    assert!(world.restored(&next.id) == body);
    let files = world.store.list("backups").unwrap();
    assert_eq!(
        files.iter().filter(|entry| entry.size == 5).count(),
        1,
        "{files:?}"
    );
    assert_eq!(files.len(), 4, "{files:?}");
    // A repack that sleeps as long moves nothing.
    world.assert_good();
}

#[test]
fn a_full_disk_gets_its_space_back() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let quota = 48 * 1024 * 1024;
    world.store.set_quota(quota);
    let mut body = noise.pages(1200);
    let first = host.backup(&world.repository(), &body);
    world.prune();
    assert!(world.store.open("reserve").is_ok(), "no reserve was made");
    let fill = |body: &mut Vec<u8>, noise: &mut Noise| {
        let mut made = Vec::new();
        loop {
            *body = noise.pages(1200);
            match host.try_backup(&world.repository(), body) {
                Ok(manifest) => made.push(manifest.id),
                Err(err) => {
                    assert!(err.to_string().contains("no storage space"), "{err}");
                    return made;
                }
            }
        }
    };
    let made = fill(&mut body, &mut noise);
    // To the last byte.
    world.store.set_quota(world.store.used_bytes());
    assert_eq!(world.store.free_bytes(), Some(0));
    world.repository().drop_backup(&first.id).unwrap();
    for id in &made {
        world.repository().drop_backup(id).unwrap();
    }
    let report = world.prune_now().unwrap();
    assert!(report.deleted.bytes > 3 * 1200 * 8192, "{report:?}");
    world.store.set_quota(quota);
    world.prune();
    assert!(world.store.open("reserve").is_ok(), "the reserve is gone");
    let again = host.backup(&world.repository(), &body);
    assert!(world.restored(&again.id) == body);
}

#[test]
fn what_the_store_refuses_to_delete_is_kept_and_said() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let body = noise.pages(200);
    let dropped = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&dropped.id).unwrap();
    world.store.pass_hours(25);
    world.prune();
    world.store.pass_hours(49);
    world.store.refuse_deletes(true);
    let packs = world.packs();
    let report = world.prune();
    assert_eq!(report.refused, packs.iter().cloned().collect::<Vec<_>>());
    assert_eq!(world.packs(), packs);
    // It stays in the trash: nobody refers to a pack that may go at any time.
    let kept = host.backup(&world.repository(), &body);
    assert!(kept.stored_bytes > 200 * 8192);
    world.store.refuse_deletes(false);
    let report = world.prune();
    assert_eq!(report.deleted.packs, packs.len() as u64);
    assert!(world.restored(&kept.id) == body);
}
