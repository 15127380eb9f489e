//! Copies from a source that is pruned, and into a target that is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat::repository::copy::{CopyReport, copy, reencrypt};
use lifeboat::repository::keys::Keys;
use lifeboat::repository::moved::Moved;
use lifeboat::repository::prune::prune;
use lifeboat::repository::ranges::Range;
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{Repository, RepositoryError};

use crate::repo::{Place, noise};
use crate::store::TestStore;
use crate::world::{Noise, World, archive_of};

const SEED: u64 = 0x5EED_0002;

/// A pruned source and its target.
struct Pair {
    source: Arc<World>,
    target: TestStore,
    state: PathBuf,
    _root: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["target", "state"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        Self {
            source: Arc::new(World::new()),
            target: TestStore::new(LocalStore::new(root.path().join("target"))),
            state: root.path().join("state"),
            _root: root,
        }
    }

    fn copy(&self, source: &Repository) -> Result<CopyReport, RepositoryError> {
        let target = Arc::new(self.target.clone());
        copy(source, target, &Keys::none(), &self.state, |_, _| {})
    }

    fn repository(&self) -> Repository {
        Repository::open(Arc::new(self.target.clone()), &Keys::none()).unwrap()
    }

    fn assert_same(&self) {
        let (from, to) = (self.source.repository(), self.repository());
        assert_eq!(from.backups().unwrap(), to.backups().unwrap());
        for id in from.backups().unwrap() {
            assert!(archive_of(&from, &id) == archive_of(&to, &id), "{id}");
        }
        assert_good(&to);
        assert_eq!(self.target.list("leases").unwrap(), []);
    }

    fn prune(&self) {
        let options = self.source.options();
        prune(&self.repository(), &options).unwrap();
    }

    /// Puts what is dead into the trash and empties it.
    fn prune_through(&self) {
        self.target.pass_hours(25);
        self.prune();
        self.target.pass_hours(49);
        self.prune();
    }
}

fn assert_good(repository: &Repository) {
    let report = verify(repository, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
    assert!(report.is_good(), "{report:?}");
}

/// A source with a pack that is mostly dead, and the backup that wants the rest of it.
fn sparse_source(pair: &Pair) -> String {
    let world = &pair.source;
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(120);
    let first = host.backup(&world.repository(), &body);
    noise.change(&mut body, 0..80);
    let second = host.backup(&world.repository(), &body);
    world.repository().drop_backup(&first.id).unwrap();
    second.id
}

#[test]
fn packs_that_were_moved_before_are_copied_with_their_moves() {
    let pair = Pair::new();
    sparse_source(&pair);
    let swept = pair.source.prune_through();
    assert!(
        swept.repacked.packs > 0 && swept.deleted.packs > 0,
        "{swept:?}"
    );
    let report = pair.copy(&pair.source.repository()).unwrap();
    assert_eq!((report.copied.len(), report.faults.len()), (1, 0));
    pair.assert_same();
    assert!(!pair.target.list("moved").unwrap().is_empty());
    pair.prune_through();
    pair.assert_same();
    let again = pair.copy(&pair.source.repository()).unwrap();
    assert_eq!((again.there, again.packs), (1, 0), "{again:?}");
    // That the source moved a pack says nothing of what the target has.
    for key in keys(&pair.target) {
        pair.target.delete(&key).unwrap();
        let again = pair.copy(&pair.source.repository()).unwrap();
        assert_eq!((again.there, again.packs), (1, 1), "{again:?}");
        pair.assert_same();
    }
}

#[test]
fn packs_that_move_while_they_are_copied_are_found_where_they_went() {
    for anew in [false, true] {
        let pair = Pair::new();
        let id = sparse_source(&pair);
        let source = pair.source.repository();
        if anew {
            Repository::open_or_init(Arc::new(pair.target.clone()), &Keys::none()).unwrap();
        }
        // The source was looked at, and nothing was copied yet.
        let pruning = Arc::clone(&pair.source);
        pair.target.before_put(&format!("leases/{id}"), move || {
            let swept = pruning.prune_through();
            assert!(
                swept.repacked.packs > 0 && swept.deleted.packs > 0,
                "{swept:?}"
            );
        });
        let report = if anew {
            reencrypt(&source, &pair.repository(), &pair.state, 3, |_, _| {}).unwrap()
        } else {
            pair.copy(&source).unwrap()
        };
        assert_eq!(report.copied, std::slice::from_ref(&id), "{report:?}");
        pair.assert_same();
    }
}

#[test]
fn a_backup_that_is_dropped_while_it_is_copied_is_no_damage() {
    let pair = Pair::new();
    let id = sparse_source(&pair);
    let pruning = Arc::clone(&pair.source);
    let dropped = id.clone();
    pair.target.before_put(&format!("leases/{id}"), move || {
        pruning.repository().drop_backup(&dropped).unwrap();
        pruning.prune_through();
    });
    let report = pair.copy(&pair.source.repository()).unwrap();
    assert_eq!(report, CopyReport::default());
    pair.assert_same();
}

#[test]
fn a_prune_of_the_target_leaves_the_moves_of_a_copy_under_way() {
    for end in ["/packs", "/manifest.json"] {
        let pair = Pair::new();
        sparse_source(&pair);
        pair.source.prune_through();
        let (target, options) = (pair.target.clone(), pair.source.options());
        // Right before the moves count, and right before the backup does.
        pair.target.before_put(end, move || {
            let repository = Repository::open(Arc::new(target), &Keys::none()).unwrap();
            prune(&repository, &options).unwrap();
        });
        let report = pair.copy(&pair.source.repository()).unwrap();
        assert_eq!(report.copied.len(), 1, "{report:?}");
        pair.assert_same();
        pair.prune_through();
        pair.assert_same();
    }
}

#[test]
fn what_the_target_moved_itself_is_not_sent_again_and_what_it_lost_is() {
    let pair = Pair::new();
    let world = &pair.source;
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut body = noise.pages(120);
    let first = host.backup(&world.repository(), &body);
    noise.change(&mut body, 0..80);
    host.backup(&world.repository(), &body);
    pair.copy(&world.repository()).unwrap();
    // The target drops what the source drops, and is pruned; the source is not.
    world.repository().drop_backup(&first.id).unwrap();
    pair.repository().drop_backup(&first.id).unwrap();
    pair.prune_through();
    assert!(!pair.target.list("moved").unwrap().is_empty());
    let again = pair.copy(&world.repository()).unwrap();
    assert_eq!((again.there, again.packs), (1, 0), "{again:?}");
    pair.assert_same();
    // The place that pieces moved to is lost: the pack itself is at hand.
    let places: BTreeSet<String> = keys(&pair.target);
    let own: BTreeSet<String> = world.packs();
    let place = places.difference(&own).next().unwrap();
    pair.target.delete(place).unwrap();
    assert_eq!(pair.copy(&world.repository()).unwrap().packs, 1);
    pair.assert_same();
}

fn keys(store: &TestStore) -> BTreeSet<String> {
    let packs = store.list("packs").unwrap();
    packs.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn what_lies_in_the_trash_is_waited_for_and_nothing_else_is_held_up() {
    let pair = Pair::new();
    let world = &pair.source;
    let (host, other) = (world.host("a"), world.host("b"));
    let mut noise = Noise(SEED);
    let first = host.backup(&world.repository(), &noise.pages(20));
    pair.copy(&world.repository()).unwrap();
    pair.repository().drop_backup(&first.id).unwrap();
    pair.target.pass_hours(25);
    pair.prune();
    // A prune died when it had deleted the packs, and before it deleted the trash file.
    let trashed: Vec<String> = keys(&pair.target).into_iter().collect();
    assert!(!trashed.is_empty());
    pair.target.pass_hours(49);
    for key in &trashed {
        pair.target.delete(key).unwrap();
    }
    // Nothing of it is known to the other host.
    std::fs::remove_dir_all(world.root.path().join("repo/index")).unwrap();
    let later = other.backup(&world.repository(), &noise.pages(20));
    let report = pair.copy(&world.repository()).unwrap();
    assert_eq!(report.copied, std::slice::from_ref(&later.id), "{report:?}");
    assert!(
        report.waiting[0].contains(&first.id) && report.waiting[0].contains("trash"),
        "{report:?}"
    );
    assert_eq!(report.faults, [""; 0]);
    pair.prune();
    assert_eq!(pair.copy(&world.repository()).unwrap().copied, [first.id]);
    pair.assert_same();
}

#[test]
fn a_move_is_copied_also_when_another_of_its_places_is_gone_because_nobody_needed_it() {
    let place = Place::plain();
    let store_anew = |seed: u64| {
        std::fs::remove_dir_all(place.path("state")).unwrap();
        std::fs::create_dir(place.path("state")).unwrap();
        std::fs::remove_dir_all(place.path("repo/index")).ok();
        let before = place.packs();
        let manifest = place.files(&[("a", &noise(9_000, seed))]);
        let new = place.packs().into_iter().find(|p| !before.contains(p));
        (manifest.id, new.unwrap())
    };
    // The same bytes in two packs each; a run moved the first of them to the second.
    let (kept, from) = store_anew(1);
    let (twin, to) = store_anew(1);
    let (dropped, other_from) = store_anew(2);
    let (other_twin, other_to) = store_anew(2);
    let repository = place.repository();
    let all = |pack| {
        let mut moved = Moved::default();
        let length = repository.manifest(&kept).unwrap().raw_bytes;
        let (offset, length) = (0, length);
        moved.push(
            0,
            Range {
                pack,
                offset,
                length,
            },
        );
        moved
    };
    let moved = BTreeMap::from([(from, all(to)), (other_from, all(other_to))]);
    let backups = BTreeSet::from([kept.clone(), dropped.clone()]);
    let run = "20260101T000000Z-00000f";
    let vault = repository.vault();
    vault
        .commit_moves(run, &moved, BTreeSet::new(), backups)
        .unwrap();
    for id in [&twin, &dropped, &other_twin] {
        repository.drop_backup(id).unwrap();
    }
    for pack in [from, other_from, other_to] {
        std::fs::remove_file(place.pack_path(pack)).unwrap();
    }
    std::fs::create_dir(place.path("second")).unwrap();
    let second: Arc<dyn Store> = Arc::new(LocalStore::new(place.path("second")));
    let state = place.path("state");
    let send = || {
        copy(
            &repository,
            Arc::clone(&second),
            &place.keys,
            &state,
            |_, _| {},
        )
        .unwrap()
    };
    let report = send();
    assert_eq!((report.copied.len(), report.packs), (1, 1), "{report:?}");
    let target = Repository::open(Arc::clone(&second), &place.keys).unwrap();
    assert_good(&target);
    assert!(archive_of(&target, &kept) == archive_of(&repository, &kept));
    assert_eq!(send().there, 1);
}

#[test]
fn a_sweep_that_slept_deletes_nothing_that_a_copy_has_brought_back() {
    let pair = Arc::new(Pair::new());
    let world = &pair.source;
    let host = world.host("a");
    let mut noise = Noise(SEED);
    let mut made = Vec::new();
    for _ in 0..2 {
        made.push(host.backup(&world.repository(), &noise.pages(20)).id);
    }
    pair.copy(&world.repository()).unwrap();
    for id in &made {
        pair.repository().drop_backup(id).unwrap();
    }
    pair.target.pass_hours(25);
    pair.prune();
    pair.target.pass_hours(49);
    // It sleeps before its first deletion; another one empties the trash, and a copy brings everything back.
    let others = Arc::clone(&pair);
    pair.target.before_delete("packs/", move || {
        others.prune();
        let copied = others.copy(&others.source.repository()).unwrap().copied;
        assert_eq!(copied.len(), 2);
        // It may cost the one pack that the sweep was at; the next copy brings it back.
        assert!(others.repository().backups().unwrap().len() == 2);
    });
    pair.prune();
    assert!(keys(&pair.target).len() + 1 >= world.packs().len());
    assert!(pair.copy(&world.repository()).unwrap().packs <= 1);
    pair.assert_same();
}

#[test]
fn nothing_is_committed_when_a_pack_went_away_in_the_last_moment() {
    let pair = Pair::new();
    sparse_source(&pair);
    let target = pair.target.clone();
    pair.target.before_put("/packs", move || {
        let pack = keys(&target).into_iter().next().unwrap();
        target.delete(&pack).unwrap();
    });
    let report = pair.copy(&pair.source.repository()).unwrap();
    assert!(
        report.copied.is_empty() && report.waiting[0].contains("copy again"),
        "{report:?}"
    );
    assert_eq!(pair.repository().backups().unwrap(), [""; 0]);
    assert_eq!(
        pair.copy(&pair.source.repository()).unwrap().copied.len(),
        1
    );
    pair.assert_same();
}

#[test]
fn a_copy_whose_lease_is_another_runs_commits_nothing_and_leaves_the_lease() {
    let pair = Pair::new();
    let id = sparse_source(&pair);
    let (target, lease) = (pair.target.clone(), format!("leases/{id}"));
    pair.target.before_put("/packs", move || {
        target.replace(&format!("leases/{id}"), b"{}").unwrap();
    });
    let refused = pair.copy(&pair.source.repository()).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("another run has taken its place"),
        "{refused}"
    );
    assert_eq!(pair.repository().backups().unwrap(), [""; 0]);
    assert_eq!(pair.target.get(&lease, 10).unwrap(), b"{}");
}

#[test]
fn a_damaged_part_of_the_index_is_not_copied() {
    let pair = Pair::new();
    let id = sparse_source(&pair);
    let index = pair.source.root.path().join("repo/index");
    for part in std::fs::read_dir(index).unwrap() {
        let part = part.unwrap().path();
        if part.to_str().unwrap().contains(&id) {
            std::fs::write(part, "nonsense").unwrap();
        }
    }
    let report = pair.copy(&pair.source.repository()).unwrap();
    assert_eq!((report.copied.len(), report.faults.len()), (1, 0));
    pair.assert_same();
}

#[test]
fn a_newer_configuration_in_the_target_stays() {
    let identities = [(); 2].map(|()| age::x25519::Identity::generate());
    let public = |n: usize| identities[n].to_public().to_string();
    let mut place = Place::plain();
    place.keys.public_keys = vec![public(0)];
    place.files(&[("a", b"one")]);
    std::fs::create_dir(place.path("second")).unwrap();
    let second: Arc<dyn Store> = Arc::new(LocalStore::new(place.path("second")));
    let state = place.path("state");
    let send = |keys: &Keys| {
        copy(
            &place.repository(),
            Arc::clone(&second),
            keys,
            &state,
            |_, _| {},
        )
        .unwrap()
    };
    assert_eq!(send(&place.keys).notes, [""; 0]);
    // Somebody goes on with the copy, for one reader more.
    let more = Keys {
        public_keys: vec![public(0), public(1)],
        ..place.keys.clone()
    };
    let target = Repository::open(Arc::clone(&second), &more).unwrap();
    crate::repo::backup(&target, &state, |_| {});
    let newer = second.get("config.json", 10_000).unwrap();
    let report = send(&place.keys);
    assert!(
        report.notes.iter().any(|note| note.contains("newer")),
        "{report:?}"
    );
    assert_eq!(second.get("config.json", 10_000).unwrap(), newer);
}
