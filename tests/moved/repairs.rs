//! Repairs after prunes, and prunes after repairs.

use std::time::Duration;

use lifeboat::repository::lease::usable_packs;
use lifeboat::repository::prune::{Options, prune};
use lifeboat::repository::repair::{heal, rebuild_index};
use lifeboat::repository::store::Store;
use lifeboat::repository::verify::Depth;

use crate::repo::{Place, noise, read};
use crate::world::{Noise, World};

const SEED: u64 = 0x5EED_0003;

#[test]
fn a_repair_after_a_repack_leaves_every_backup_readable_through_the_next_prunes() {
    let world = World::new();
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let old = noise.pages(120);
    let first = host.backup(&world.repository(), &old);
    let mut body = old.clone();
    noise.change(&mut body, 0..80);
    let second = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&first.id).unwrap();
    // A part of the index stays while any pack is there that it names: it tells what the others held.
    let parts = world.store.list("index").unwrap();
    let parts = parts
        .into_iter()
        .map(|part| (world.store.get(&part.key, 1 << 20).unwrap(), part.key));
    let parts: Vec<(Vec<u8>, String)> = parts.collect();
    let swept = world.prune_through();
    assert!(
        swept.repacked.packs == 1 && swept.deleted.packs == 1,
        "{swept:?}"
    );
    for (bytes, key) in parts {
        world.store.replace(&key, &bytes).unwrap();
    }
    // The pages that nobody wanted and that went with the pack are stored again: they can be found.
    let third = host.backup(&world.repository(), &old);
    // Of two moves the one of the later second counts.
    std::thread::sleep(Duration::from_millis(1100));
    let healed = heal(&world.repository(), false, |_, _| {}).unwrap();
    world.repository().drop_backup(&third.id).unwrap();
    for _ in 0..3 {
        world.prune_through();
        assert!(world.restored(&second.id) == body);
    }
    world.assert_good();
    assert!(healed.is_empty(), "nothing was damaged: {healed:?}");
}

/// Prunes until nothing is left to do; every file of the repository grows old meanwhile.
fn prune_through(place: &Place) {
    let options = Options {
        dry_run: false,
        now: true,
        state: Some(place.path("state")),
        level: 3,
    };
    for _ in 0..2 {
        prune(&place.repository(), &options).unwrap();
    }
}

#[test]
fn a_pack_that_was_healed_in_part_and_comes_back_is_kept() {
    for was_gone in [false, true] {
        let place = Place::plain();
        let (shared, lost) = (noise(300_000, 1), noise(300_000, 2));
        let first = place.files(&[("a", &shared), ("b", &lost)]);
        let stream = read(&place.repository(), &first).unwrap();
        let pack = place.packs()[0];
        let bytes = std::fs::read(place.pack_path(pack)).unwrap();
        if was_gone {
            std::fs::remove_file(place.pack_path(pack)).unwrap();
        } else {
            place.flip(pack, 450_000);
            assert!(!place.verify(Depth::Full).is_good());
        }
        // A part of what it held is stored again.
        place.files(&[("a", &shared)]);
        let healed = heal(&place.repository(), false, |_, _| {}).unwrap();
        assert!(
            healed[0].lost_bytes > 0 && healed[0].found_bytes > 200_000,
            "{healed:?}"
        );
        assert!(read(&place.repository(), &first).is_err());
        prune_through(&place);
        // Somebody finds the file in another copy, and puts it back.
        std::fs::write(place.pack_path(pack), &bytes).unwrap();
        let again = heal(&place.repository(), false, |_, _| {}).unwrap();
        assert_eq!(again.iter().any(|pack| pack.is_whole), !was_gone);
        prune_through(&place);
        assert!(
            usable_packs(place.repository().vault())
                .unwrap()
                .contains(&pack)
        );
        assert!(read(&place.repository(), &first).unwrap() == stream);
        assert!(place.verify(Depth::Full).is_good());
    }
}

#[test]
fn what_two_repairs_found_is_kept_together() {
    let place = Place::plain();
    let (one, two) = (noise(300_000, 3), noise(300_000, 4));
    let first = place.files(&[("a", &one), ("b", &two)]);
    let stream = read(&place.repository(), &first).unwrap();
    std::fs::remove_file(place.pack_path(place.packs()[0])).unwrap();
    let mut made = Vec::new();
    for body in [&one, &two] {
        std::fs::remove_dir_all(place.path("state")).unwrap();
        std::fs::create_dir(place.path("state")).unwrap();
        made.push(if made.is_empty() {
            place.files(&[("a", body)])
        } else {
            place.files(&[("b", body)])
        });
        heal(&place.repository(), false, |_, _| {}).unwrap();
    }
    assert!(read(&place.repository(), &first).unwrap() == stream);
    for manifest in made {
        place.repository().drop_backup(&manifest.id).unwrap();
    }
    prune_through(&place);
    assert!(read(&place.repository(), &first).unwrap() == stream);
    assert!(place.verify(Depth::Full).is_good());
}

#[test]
fn a_part_of_the_index_that_cannot_be_read_for_now_is_kept() {
    let world = World::new();
    let host = world.host("a");
    host.backup(&world.repository(), &Noise(SEED).pages(20));
    let repository = world.repository();
    world.store.set_unreadable(Some("index/"));
    let repaired = rebuild_index(&repository, false, |_, _| {}).unwrap();
    world.store.set_unreadable(None);
    assert_eq!(repaired.parts_removed, [""; 0]);
    assert!(repaired.packs_added > 0, "{repaired:?}");
    assert_eq!(world.store.list("index").unwrap().len(), 2);
    world.assert_good();
}
