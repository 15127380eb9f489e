//! Copies to a second repository and repairs, killed at every call.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use lifeboat::repository::repair::heal;
use lifeboat::repository::verify::{Depth, Scope, VerifyReport, verify};

use crate::schedule::Chance;
use crate::world::{Content, Run, Steady, World, readable};
use crate::{Job, kill_at_each_call, settled_world, world_to_prune};

/// A world whose second repository has an old copy, of which a backup was dropped there.
pub fn copied_world(encrypted: bool, steady: &Steady) -> World {
    let mut world = settled_world(encrypted, steady);
    world.copy_all();
    let oldest = world.ids().remove(0);
    world.drop_copy(&oldest);
    world.wait(25);
    world
}

/// What goes on in the second repository while the first one is worked on.
pub fn chains(chance: &mut Chance) -> Vec<Vec<Job>> {
    let mut chains = Vec::new();
    let copies = 1 + chance.below(2);
    chains.push(vec![Job::Copy("c"); copies]);
    if chance.one_in(3) {
        chains.push(vec![Job::Copy("d")]);
    }
    if chance.one_in(2) {
        chains.push(vec![Job::PruneSecond; 1 + chance.below(2)]);
    }
    chains
}

/// A world whose packs were moved by a repack, so that the old ones are gone.
fn moved_world(encrypted: bool, steady: &Steady) -> World {
    let world = world_to_prune(encrypted, steady);
    world.prune();
    world.wait(49);
    let swept = world.prune();
    assert!(swept.deleted.packs > 1, "{swept:?}");
    let moved = fs::read_dir(world.path("repo/moved")).unwrap();
    assert!(moved.count() > 0, "nothing was moved");
    world
}

fn kill_each_copy(encrypted: bool) {
    let steady = Steady::new();
    let goes_on = |world: &mut World, number: usize| {
        world.check();
        world.check_second();
        // At once: who was killed knows which leases are its own.
        let report = world.copy_once();
        assert!(report.waiting.is_empty(), "{report:?}");
        world.check_second();
        let there = world.copy_once();
        assert!(there.copied.is_empty() && there.packs == 0, "{there:?}");
        if number.is_multiple_of(8) {
            world.check_second_collected();
        }
    };
    let mut world = moved_world(encrypted, &steady);
    let copy = Job::Copy("c");
    let calls = kill_at_each_call(&world, &copy, &steady, goes_on);
    assert!(calls > 30, "only {calls} calls of a first copy were cut");
    world.copy_all();
    let mut chance = Chance::new(11);
    world.backup(&Run::new(50, "b", &mut chance), &steady);
    // A pack that the target lost is sent once more.
    let lost = pack_files(&world.path("second")).remove(0);
    fs::remove_file(lost).unwrap();
    let calls = kill_at_each_call(&world, &copy, &steady, |world, number| {
        let report = world.copy_once();
        assert!(report.waiting.is_empty(), "{report:?}");
        goes_on(world, number);
    });
    assert!(calls > 12, "only {calls} calls of a second copy were cut");
}

#[test]
fn no_crash_of_a_copy_costs_a_backup_in_either_repository_and_the_next_one_goes_on() {
    kill_each_copy(false);
}

#[test]
fn no_crash_of_a_copy_of_an_encrypted_repository_costs_a_backup_in_either() {
    kill_each_copy(true);
}

#[test]
fn no_crash_of_a_copy_with_other_keys_costs_a_backup_in_either_repository() {
    let steady = Steady::new();
    let mut world = moved_world(false, &steady);
    let goes_on = |world: &mut World, number: usize| {
        world.check();
        world.check_second();
        let report = world.copy_anew_once();
        assert!(report.waiting.is_empty(), "{report:?}");
        world.check_second();
        let there = world.copy_anew_once();
        assert!(there.copied.is_empty() && there.packs == 0, "{there:?}");
        if number.is_multiple_of(8) {
            world.check_second_collected();
        }
    };
    // How a repository is made is killed with a first backup.
    world.copy_anew_once();
    world.backup(&Run::new(50, "b", &mut Chance::new(12)), &steady);
    let calls = kill_at_each_call(&world, &Job::CopyAnew, &steady, goes_on);
    assert!(calls > 10, "only {calls} calls of a copy were cut");
}

/// What reads as it was backed up.
fn whole(world: &World) -> BTreeMap<String, Content> {
    let repository = world.open();
    let ids = repository.backups().unwrap().into_iter();
    ids.filter_map(|id| Some((id.clone(), readable(&repository, &id)?)))
        .collect()
}

fn look(world: &World) -> VerifyReport {
    verify(&world.open(), &Scope::Everything, Depth::Full, |_, _| {}).unwrap()
}

fn pack_files(root: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for shard in fs::read_dir(root.join("packs")).unwrap() {
        let shard = shard.unwrap();
        if shard.file_type().unwrap().is_dir() {
            let files = fs::read_dir(shard.path()).unwrap();
            found.extend(files.map(|file| file.unwrap().path()));
        }
    }
    found.sort();
    found
}

/// The largest pack is damaged in its middle, another one is gone, and so is a part of the index that names
/// none of them. With `again` a later backup has stored everything that is lost.
fn damaged_world(encrypted: bool, again: bool, steady: &Steady) -> World {
    let mut chance = Chance::new(21);
    let mut world = World::new(encrypted);
    let large = Run::new(1, "a", &mut chance).with_large_file(5);
    world.backup(&large, steady);
    let of_first = pack_files(&world.root());
    let second = Run::new(2, "b", &mut chance).with_lasting_header();
    world.backup(&second, steady);
    let gone = pack_files(&world.root());
    let gone = gone.iter().find(|path| !of_first.contains(path)).unwrap();
    let third = Run::new(3, "a", &mut chance).with_most_pages_changed(77);
    world.backup(&third, steady);
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let largest = of_first.iter().max_by_key(|path| size(path)).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, bytes).unwrap();
    fs::remove_file(gone).unwrap();
    let index = fs::read_dir(world.path("repo/index")).unwrap();
    let part = index
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains(&third.id));
    fs::remove_file(part.unwrap()).unwrap();
    assert!(!look(&world).is_good());
    if again {
        for host in ["a", "b"] {
            fs::remove_dir_all(world.path(host)).unwrap();
            fs::create_dir(world.path(host)).unwrap();
        }
        world.backup(&large.again(5, "a"), steady);
        world.backup(&second.again(6, "b"), steady);
    }
    world
}

fn kill_each_repair(encrypted: bool) {
    let steady = Steady::new();
    for again in [true, false] {
        let world = damaged_world(encrypted, again, &steady);
        let before = whole(&world);
        let undisturbed = world.copy();
        let process = crate::Process::new(&undisturbed.root(), None, None);
        Job::Repair
            .perform(&process, &undisturbed, &steady)
            .unwrap();
        let healed = whole(&undisturbed);
        let left = look(&undisturbed).damage;
        assert_eq!(left.is_empty(), again, "{left:?}");
        assert!(healed.len() > before.len() || !again);
        let calls = kill_at_each_call(&world, &Job::Repair, &steady, |world, _| {
            let now = whole(world);
            for (id, content) in &before {
                assert!(now.get(id) == Some(content), "{id} is worse than before");
            }
            let process = crate::Process::new(&world.root(), None, None);
            Job::Repair.perform(&process, world, &steady).unwrap();
            for prunes in 0..3 {
                assert!(
                    whole(world) == healed,
                    "not all is healed, {prunes} prunes later"
                );
                let found = look(world).damage;
                let (found, left) = (faults(&found), faults(&left));
                assert!(found == left, "{found:?} instead of {left:?}");
                world.wait(49);
                world.prune();
            }
            let again = heal(&world.open(), false, |_, _| {}).unwrap();
            assert!(
                again.iter().all(|pack| pack.saved_bytes == 0),
                "something was left to save: {again:?}"
            );
        });
        assert!(calls > 5, "only {calls} calls of a repair were cut");
    }
}

/// What is lost, without the names of new packs.
fn faults(damage: &[lifeboat::repository::verify::Damage]) -> Vec<Vec<String>> {
    let mut faults: Vec<Vec<String>> = damage.iter().map(|one| one.files.clone()).collect();
    faults.sort();
    faults
}

#[test]
fn no_crash_of_a_repair_makes_anything_worse_and_the_next_one_heals_all_that_can_be() {
    kill_each_repair(false);
}

#[test]
fn no_crash_of_a_repair_of_an_encrypted_repository_makes_anything_worse() {
    kill_each_repair(true);
}
