//! Several hosts and one repository.

use std::sync::atomic::{AtomicUsize, Ordering};

use age::secrecy::ExposeSecret;
use lifeboat::config::Secret;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::prune::prune;

use super::world::{self, Host, Noise, World, distinct_bytes};
use super::{Kept, SEED};

#[test]
fn an_encrypted_repository_is_pruned_by_a_host_that_cannot_read_it() {
    let identity = age::x25519::Identity::generate();
    let state = tempfile::tempdir().unwrap();
    let write_only = Keys {
        public_keys: vec![identity.to_public().to_string()],
        state: Some(state.path().to_owned()),
        ..Keys::none()
    };
    let all = Keys {
        identity: Some(Secret::new(identity.to_string().expose_secret())),
        ..write_only.clone()
    };
    let world = World::with_keys(write_only.clone());
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(400);
    let first = host.backup(&world.repository(), &body);
    noise.change(&mut body, 0..300);
    let second = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&first.id).unwrap();
    // The reader repacks, the writer deletes what was moved away, and both find their way.
    let reader = world.repository_with(&all);
    world.store.pass_hours(25);
    let report = prune(&world.repository(), &world.options()).unwrap();
    assert_eq!(report.repacked.packs, 0);
    assert!(
        report.notes[0].contains("cannot decrypt"),
        "{:?}",
        report.notes
    );
    let report = prune(&reader, &world.options()).unwrap();
    assert_eq!(report.repacked.packs, 1, "{report:?}");
    world.store.pass_hours(49);
    let report = world.prune();
    assert_eq!(report.deleted.packs, 1, "{report:?}");
    assert!(world::restored(&reader, &second.id) == body);
    assert!(world.pack_bytes() < 420 * 8192);
    let again = host.backup(&world.repository(), &body);
    assert!(world::restored(&reader, &again.id) == body);
}

#[test]
fn two_hosts_back_up_while_prunes_run_without_a_pause() {
    let seed = std::env::var("LIFEBOAT_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::random::<u64>() | 1);
    eprintln!("LIFEBOAT_SEED={seed}");
    let world = World::new();
    let done = AtomicUsize::new(0);
    let kept: Vec<(Host, Kept)> = std::thread::scope(|scope| {
        let hosts: Vec<_> = ["a", "b"]
            .into_iter()
            .enumerate()
            .map(|(number, name)| {
                let (world, done) = (&world, &done);
                let mut noise = Noise(seed ^ (number as u64 + 1) << 40);
                scope.spawn(move || {
                    let kept = back_up_and_drop(world, name, &mut noise);
                    done.fetch_add(1, Ordering::SeqCst);
                    kept
                })
            })
            .collect();
        let mut noise = Noise(seed.wrapping_mul(3) | 1);
        while done.load(Ordering::SeqCst) < hosts.len() {
            if noise.below(8) == 0 {
                world.store.pass_hours(1);
            }
            if noise.below(4) == 0 {
                // Beside a run it refuses, and when its lock grew old meanwhile; both are told by a sentence.
                if let Err(err) = world.prune_now() {
                    let said = err.to_string();
                    assert!(
                        said.contains("nobody may be at work")
                            || said.contains("nothing was deleted"),
                        "{said}"
                    );
                }
            } else {
                world.prune();
            }
        }
        hosts.into_iter().map(|host| host.join().unwrap()).collect()
    });
    let committed: usize = kept.iter().map(|(_, kept)| kept.len()).sum();
    assert!(committed > 0, "no backup was committed");
    world.prune_through();
    world.prune_through();
    for (id, body) in kept.iter().flat_map(|(_, kept)| kept) {
        assert!(world.restored(id) == *body, "{id}");
    }
    world.assert_good();
    // Where a run began in the very moment of a repack, something lies there twice while both want it: no backup
    // that is made now does.
    let mut newest = Vec::new();
    for (host, kept) in kept {
        let Some((_, body)) = kept.last().cloned() else {
            continue;
        };
        let again = host.backup(&world.repository(), &body);
        for (id, _) in kept {
            world.repository().drop_backup(&id).unwrap();
        }
        newest.push((again.id, body));
    }
    world.prune_through();
    world.prune_through();
    let (stored, live) = (
        world.pack_bytes(),
        distinct_bytes(newest.iter().map(|(_, body)| body)),
    );
    assert!(stored * 10 <= live * 13, "stored {stored}, live {live}");
    for (id, body) in newest {
        assert!(world.restored(&id) == body, "{id}");
    }
}

/// Backs a changing relation up, and keeps the last three that were committed.
fn back_up_and_drop(world: &World, name: &str, noise: &mut Noise) -> (Host, Kept) {
    let host = world.host(name);
    let mut body = noise.pages(150);
    let mut kept = Vec::new();
    for _ in 0..12 {
        let changed: Vec<usize> = (0..30).map(|_| noise.below(150)).collect();
        noise.change(&mut body, changed);
        match host.try_backup(&world.repository(), &body) {
            Ok(manifest) => {
                kept.push((manifest.id, body.clone()));
            }
            Err(err) => assert!(err.to_string().contains("nothing was committed"), "{err}"),
        }
        // The other host's run may now be over before it comes to commit.
        world
            .store
            .pass_hours(i64::try_from(noise.below(20)).unwrap());
        while kept.len() > 3 {
            let (oldest, _) = kept.remove(0);
            world.repository().drop_backup(&oldest).unwrap();
        }
    }
    (host, kept)
}
