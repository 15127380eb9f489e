//! What is remembered of backups changes what a prune reads, and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lifeboat::archive::{Cut, OnChange};
use lifeboat::repository::manifest::Manifest;
use lifeboat::repository::prune::{Options, Report, prune};
use lifeboat::repository::session::BackupNotes;

use super::world::{Noise, PAGE, World};
use super::{Kept, SEED};

const PAGES: usize = 120;

fn memory_in(state: &Path, world: &World) -> PathBuf {
    state.join(format!("pack-uses-1-{}.zst", world.repository().id()))
}

/// What a prune would do that has `state`, and of how many backups it reads the list of packs to know.
fn planned(world: &World, state: Option<&Path>) -> (Report, usize) {
    let options = Options {
        dry_run: true,
        state: state.map(Path::to_owned),
        ..world.options()
    };
    world.store.take_reads();
    let report = prune(&world.repository(), &options).unwrap();
    let reads: BTreeSet<String> = world.store.take_reads().into_iter().collect();
    let lists = reads
        .iter()
        .filter(|key| key.starts_with("backups/") && key.ends_with("/packs"));
    (report, lists.count())
}

/// The same with a state directory that holds nothing but `memory`.
fn planned_with(world: &World, memory: &[u8]) -> (Report, usize) {
    let state = tempfile::tempdir().unwrap();
    std::fs::write(memory_in(state.path(), world), memory).unwrap();
    planned(world, Some(state.path()))
}

/// Memories that must not be believed: torn, with a flipped bit, and written by somebody without the keys.
fn wrong(memory: &[u8], noise: &mut Noise) -> Vec<Vec<u8>> {
    let torn = memory[..noise.below(memory.len())].to_vec();
    let mut flipped = memory.to_vec();
    flipped[noise.below(memory.len())] ^= 1 << noise.below(8);
    let mut text = zstd::decode_all(memory).unwrap();
    // With the seal of what it was.
    let digits: Vec<usize> = (0..text.len())
        .filter(|at| text[*at].is_ascii_digit())
        .collect();
    let digit = digits[noise.below(digits.len())];
    text[digit] = if text[digit] == b'1' { b'2' } else { b'1' };
    let mut forged = zstd::encode_all(text.as_slice(), 3).unwrap();
    forged.extend_from_slice(&memory[memory.len() - 40..]);
    vec![Vec::new(), torn, flipped, forged]
}

#[test]
fn no_memory_changes_what_a_prune_decides() {
    let (world, other) = (World::new(), World::new());
    let hosts = [world.host("a"), world.host("b")];
    let mut noise = Noise(SEED);
    let mut bodies = [noise.pages(PAGES), noise.pages(PAGES)];
    other.host("a").backup(&other.repository(), &bodies[0]);
    other.store.pass_hours(25);
    other.prune();
    let foreign = std::fs::read(memory_in(other.root.path(), &other)).unwrap();
    let mut kept: Kept = Vec::new();
    let mut stale: Vec<Vec<u8>> = vec![foreign];
    let (mut repacked, mut spared) = (0, 0);
    for _ in 0..40 {
        match noise.below(3) {
            0 if kept.len() > 3 => {
                let (id, _) = kept.remove(noise.below(kept.len()));
                world.repository().drop_backup(&id).unwrap();
            }
            1 => {
                let hours = noise.below(60);
                world.store.pass_hours(i64::try_from(hours).unwrap());
                repacked += world.prune().repacked.packs;
            }
            _ => {
                let which = noise.below(2);
                let body = &mut bodies[which];
                let changed: Vec<usize> = (0..40).map(|_| noise.below(PAGES)).collect();
                noise.change(body, changed);
                let manifest = hosts[which].backup(&world.repository(), body);
                kept.push((manifest.id, body.clone()));
            }
        }
        let (honest, all_lists) = planned(&world, None);
        assert_eq!(all_lists, kept.len());
        let (report, lists) = planned(&world, Some(world.root.path()));
        assert_eq!(report, honest);
        spared += all_lists - lists;
        if let Ok(memory) = std::fs::read(memory_in(world.root.path(), &world)) {
            for bytes in wrong(&memory, &mut noise) {
                assert_eq!(planned_with(&world, &bytes), (honest.clone(), all_lists));
            }
            stale.push(memory);
        }
        // One of any age, of this repository or another.
        let any = &stale[noise.below(stale.len())];
        assert_eq!(planned_with(&world, any).0, honest);
    }
    assert!(repacked > 0, "no pack moved");
    assert!(spared > 50, "{spared} lists were not read");
    world.prune_through();
    for (id, body) in &kept {
        assert!(world.restored(id) == *body, "{id}");
    }
    world.assert_good();
}

#[test]
fn a_prune_reads_the_lists_that_are_new_and_no_others() {
    for backups in [4, 12] {
        let world = World::new();
        let host = world.host("a");
        let mut noise = Noise(SEED);
        let mut body = noise.pages(20);
        for night in 0..backups {
            noise.change(&mut body, [night]);
            host.backup(&world.repository(), &body);
            world.store.pass_hours(24);
        }
        let state = Some(world.root.path());
        assert_eq!(planned(&world, state).1, backups);
        assert_eq!(planned(&world, state).1, 0);
        // One that was just made could still be exchanged within the tick of a coarse clock.
        host.backup(&world.repository(), &body);
        assert_eq!(planned(&world, state).1, 1);
        assert_eq!(planned(&world, state).1, 1);
        world.store.pass_hours(1);
        assert_eq!(planned(&world, state).1, 1);
        assert_eq!(planned(&world, state).1, 0);
    }
}

/// A backup of a relation under an id that the test chooses.
fn backup_as(world: &World, id: &str, state: &Path, body: &[u8]) -> Manifest {
    let file = state.join("relation");
    std::fs::write(&file, body).unwrap();
    let repository = world.repository();
    let backup = repository.begin(id, state, 3).unwrap();
    let mut archive = backup.archive("files").unwrap();
    let pages = Cut::Pages(u32::try_from(PAGE).unwrap());
    archive
        .file("relation", &file, pages, OnChange::Repaired)
        .unwrap();
    let sealed = archive.seal().unwrap();
    let notes = super::world::notes();
    backup
        .commit(vec![(sealed, notes)], BackupNotes::default())
        .unwrap()
}

#[test]
fn a_backup_that_comes_back_under_an_old_id_is_another_one() {
    let world = World::new();
    let id = "20260101T030000Z-00000a";
    let mut noise = Noise(SEED);
    let (first, second) = (noise.pages(50), noise.pages(50));
    backup_as(&world, id, world.host("a").state(), &first);
    world.store.pass_hours(25);
    world.prune();
    // It is remembered, and nobody prunes between the drop and the return; its files have the same sizes.
    assert_eq!(planned(&world, Some(world.root.path())).1, 0);
    world.repository().drop_backup(id).unwrap();
    backup_as(&world, id, world.host("b").state(), &second);
    for _ in 0..3 {
        world.prune_through();
    }
    assert!(world.restored(id) == second);
    // Of the first one there is at most what both have.
    assert!(world.pack_bytes() < 60 * 8192);
    world.assert_good();
}
