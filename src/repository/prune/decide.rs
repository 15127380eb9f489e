//! What a prune decides, from what it saw: no clock and no store, so that a state-space search can ask the
//! same questions (`tests/prune_model.rs`).
//!
//! # Why nothing live is ever deleted
//!
//! 1. A pack is deleted only while a trash file names it. A run that began after the trash file was put sees
//!    it, and refers to no pack in it.
//! 2. A run that began before has its lease in the store until it commits or is given up. At the sweep every
//!    such lease is dead ([`is_dead`]), and a dead run is *fenced*: `void` is put under the one key that it
//!    would commit with. Puts never overwrite, so it has committed (and is seen, for backups are listed after
//!    leases) or never will.
//! 3. So a pack that a sweep finds dead stays dead, however long the sweep sleeps before it deletes it. The
//!    trash file goes last.
//!
//! The two waiting times only spare runs that are alive; no clock is needed for the argument, except that
//! the store's must not be set back by more than a lease's time beside a run that lasts for two days.
//!
//! What is dated later than now was put by a clock that was ahead. A lease or a lock that is ahead by as much as
//! makes another one old counts as old: nobody waits until that time comes, and its run is fenced like any other.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use jiff::SignedDuration;

/// How long a run may take from its lease to its commit.
pub const LEASE: SignedDuration = SignedDuration::from_hours(24);
/// How long a pack lies in the trash before it is deleted.
pub const GRACE: SignedDuration = SignedDuration::from_hours(48);
/// How old its lock may be when a prune that does not wait has put its trash file.
pub const LOCK_CHECK: SignedDuration = SignedDuration::from_hours(12);
/// From when a lock means nothing any more.
pub const LOCK_STALE: SignedDuration = SignedDuration::from_hours(24);
/// A pack with a smaller share of live bytes is repacked, in percent.
pub const REPACK_BELOW_PERCENT: u64 = 50;
/// While dead bytes in needed packs are more than this many percent of the live ones, packs with a smaller
/// share than the other are repacked, too.
pub const WASTE_PERCENT: u64 = 25;
pub const REPACK_ELSE_BELOW_PERCENT: u64 = 80;

/// One committed move, as far as everybody can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move<P, R> {
    /// Where the wanted pieces of a pack went.
    pub packs: BTreeMap<P, BTreeSet<P>>,
    /// The backups whose pieces were looked at. Another one may want a piece that was not moved.
    pub backups: BTreeSet<R>,
    /// Packs of which a repair did not find all that these backups want: what is left of the pack itself may
    /// be the only place of the rest, and the pack may come back.
    pub incomplete: BTreeSet<P>,
}

/// All moves by the pack that was moved.
pub struct Moves<'a, P, R>(HashMap<P, Vec<Away<'a, P, R>>>);

/// Where a run put a pack's pieces, and for which backups.
struct Away<'a, P, R> {
    run: &'a R,
    places: &'a BTreeSet<P>,
    backups: &'a BTreeSet<R>,
    is_complete: bool,
}

impl<'a, P: Ord + Hash + Copy, R: Ord> Moves<'a, P, R> {
    pub fn new(moves: impl IntoIterator<Item = (&'a R, &'a Move<P, R>)>) -> Self {
        let mut by_pack: HashMap<_, Vec<_>> = HashMap::new();
        for (run, one) in moves {
            let backups = &one.backups;
            for (pack, places) in &one.packs {
                by_pack.entry(*pack).or_default().push(Away {
                    run,
                    places,
                    backups,
                    is_complete: !one.incomplete.contains(pack),
                });
            }
        }
        Self(by_pack)
    }

    /// Whether no run moved any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any run moved the pack.
    pub fn holds(&self, pack: &P) -> bool {
        self.0.contains_key(pack)
    }

    /// Every pack that a backup is read from, of those that its ranges name or that these lead to.
    ///
    /// A pack that moved as a whole is not needed itself by a backup that the move looked at. Of several such
    /// moves the one with the greatest name counts: which one that is may change when another commits, and
    /// never back. A damaged pack is kept, and all that was saved of it too; so is one of which a repair found
    /// only a part.
    pub fn reach<Q>(
        &self,
        backup: &Q,
        named: impl IntoIterator<Item = P>,
        damaged: &BTreeSet<P>,
    ) -> BTreeSet<P>
    where
        R: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let mut seen = BTreeSet::new();
        let mut needed = BTreeSet::new();
        let mut open: Vec<P> = named.into_iter().collect();
        while let Some(pack) = open.pop() {
            if !seen.insert(pack) {
                continue;
            }
            let (itself, away) = self.ways(backup, pack, damaged);
            open.extend(away.iter().flat_map(|away| away.places));
            if itself {
                needed.insert(pack);
            }
        }
        needed
    }

    /// Whether the backup needs the pack itself, and the runs whose pieces of it it needs.
    pub fn needs<Q>(&self, backup: &Q, pack: P, damaged: &BTreeSet<P>) -> (bool, Vec<&'a R>)
    where
        R: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (itself, away) = self.ways(backup, pack, damaged);
        (itself, away.iter().map(|away| away.run).collect())
    }

    fn ways<Q>(&self, backup: &Q, pack: P, damaged: &BTreeSet<P>) -> (bool, Vec<&Away<'a, P, R>>)
    where
        R: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let moved = self.0.get(&pack).map(Vec::as_slice).unwrap_or_default();
        if damaged.contains(&pack) {
            return (true, moved.iter().collect());
        }
        let covering = || moved.iter().filter(|away| away.backups.contains(backup));
        let complete = covering().filter(|away| away.is_complete);
        match complete.max_by_key(|away| away.run) {
            Some(away) => (false, vec![away]),
            None => (true, covering().collect()),
        }
    }
}

/// A lease this old, or this far ahead, guards nobody: its run cannot commit once it is fenced.
pub fn is_dead(lease_age: SignedDuration) -> bool {
    lease_age.abs() > LEASE
}

/// Whether the packs of a trash file may be deleted, given the leases that are left when the dead ones have
/// been fenced.
pub fn is_due(
    trash_age: SignedDuration,
    leases: impl IntoIterator<Item = SignedDuration>,
    waits: bool,
) -> bool {
    let waited = !waits || trash_age > GRACE;
    // The second half follows from the first, unless the store's clock was set: then nothing is deleted.
    waited && leases.into_iter().all(|age| age < trash_age)
}

/// Whether a prune that does not wait may go on after it has put its trash file: nobody can have ignored its
/// lock before.
pub fn lock_holds(own: bool, lock_age: SignedDuration) -> bool {
    own && lock_age.abs() < LOCK_CHECK
}

/// Whether a run that begins must stay back.
pub fn lock_is_heeded(lock_age: SignedDuration) -> bool {
    lock_age.abs() < LOCK_STALE
}

/// Whether a pack that no backup needs may still belong to a run under way, and is not trashed yet.
pub fn may_be_fresh(pack_age: SignedDuration, oldest_lease: Option<SignedDuration>) -> bool {
    // A run's lease may have been put after leases were listed, so a young pack is left alone in any case.
    pack_age <= oldest_lease.map_or(LEASE, |lease| lease.max(LEASE))
}

/// A pack's wanted bytes, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share<P> {
    pub pack: P,
    pub live_bytes: u64,
    pub raw_bytes: u64,
}

impl<P> Share<P> {
    fn is_below(&self, percent: u64) -> bool {
        self.live_bytes.saturating_mul(100) < self.raw_bytes.saturating_mul(percent)
    }

    /// Whether copying its wanted bytes gives anything back.
    pub fn is_worth_copying(&self) -> bool {
        self.live_bytes > 0 && self.is_below(REPACK_ELSE_BELOW_PERCENT)
    }
}

/// The packs to copy the wanted part of, the deadest first: those that are mostly dead, and while all packs
/// together hold too much dead weight, the next ones.
pub fn sparse<P: Copy>(mut packs: Vec<Share<P>>) -> Vec<Share<P>> {
    let live: u64 = packs.iter().map(|pack| pack.live_bytes).sum();
    let raw: u64 = packs.iter().map(|pack| pack.raw_bytes).sum();
    let mut waste = raw.saturating_sub(live);
    packs.retain(Share::is_worth_copying);
    packs.sort_by_key(|pack| pack.live_bytes.saturating_mul(10_000) / pack.raw_bytes.max(1));
    packs
        .into_iter()
        .take_while(|pack| {
            let too_much = waste.saturating_mul(100) > live.saturating_mul(WASTE_PERCENT);
            waste = waste.saturating_sub(pack.raw_bytes.saturating_sub(pack.live_bytes));
            too_much || pack.is_below(REPACK_BELOW_PERCENT)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<T: Ord + Copy>(items: &[T]) -> BTreeSet<T> {
        items.iter().copied().collect()
    }

    fn one(from: u8, to: &[u8], backups: &[&'static str]) -> Move<u8, &'static str> {
        Move {
            packs: BTreeMap::from([(from, set(to))]),
            backups: set(backups),
            incomplete: BTreeSet::new(),
        }
    }

    #[test]
    fn a_moved_pack_is_needed_only_by_backups_that_the_move_did_not_see() {
        let moves = [
            ("m", one(1, &[2, 3], &["a", "b"])),
            ("l", one(1, &[5], &["a"])),
            ("n", one(2, &[4], &["a"])),
        ];
        let moves = Moves::new(moves.iter().map(|(run, one)| (run, one)));
        let named = set(&[1, 9]);
        let reach = |backup: &&str, damaged: &[u8]| -> BTreeSet<u8> {
            moves.reach(backup, named.clone(), &set(damaged))
        };
        assert_eq!(reach(&"a", &[]), set(&[3, 4, 9]));
        assert_eq!(reach(&"b", &[]), set(&[2, 3, 9]));
        assert_eq!(reach(&"c", &[]), set(&[1, 9]));
        assert_eq!(reach(&"c", &[1]), set(&[1, 2, 3, 5, 9]));
    }

    #[test]
    fn a_pack_that_moved_in_part_is_needed_beside_its_pieces_until_all_of_it_moved() {
        let part = |from, to: &[u8], backups: &[&'static str]| Move {
            incomplete: set(&[from]),
            ..one(from, to, backups)
        };
        let mut moves = vec![
            ("m", part(1, &[2], &["a", "b"])),
            ("n", part(1, &[3], &["a"])),
        ];
        let reach = |moves: &[(&'static str, Move<u8, &'static str>)], backup| {
            let moves = Moves::new(moves.iter().map(|(run, one)| (run, one)));
            moves.reach::<&str>(&backup, [1], &set(&[]))
        };
        assert_eq!(reach(&moves, "a"), set(&[1, 2, 3]));
        assert_eq!(reach(&moves, "b"), set(&[1, 2]));
        assert_eq!(reach(&moves, "c"), set(&[1]));
        moves.push(("l", one(1, &[4], &["a"])));
        assert_eq!(reach(&moves, "a"), set(&[4]));
    }

    #[test]
    fn moves_in_a_circle_end() {
        let moves = [("m", one(1, &[2], &["a"])), ("n", one(2, &[1], &["a"]))];
        let moves = Moves::new(moves.iter().map(|(run, one)| (run, one)));
        let reached = moves.reach(&"a", [1], &set(&[]));
        assert_eq!(reached, BTreeSet::new());
    }

    #[test]
    fn trash_is_due_after_two_days_and_never_beside_an_older_living_lease() {
        let hours = SignedDuration::from_hours;
        assert!(!is_due(hours(48), [], true));
        assert!(is_due(hours(49), [hours(23)], true));
        assert!(is_due(hours(0), [], false));
        assert!(!is_due(hours(49), [hours(50)], true));
        assert!(!is_due(hours(1), [hours(2)], false));
        assert!(!is_dead(hours(24)) && is_dead(hours(25)) && !is_dead(hours(-5)));
    }

    #[test]
    fn what_a_clock_that_was_ahead_left_behind_holds_nobody_up() {
        let hours = SignedDuration::from_hours;
        assert!(is_dead(hours(-24 * 3650)));
        assert!(!lock_is_heeded(hours(-24 * 3650)) && lock_is_heeded(hours(-5)));
        assert!(!lock_holds(true, hours(-13)) && lock_holds(true, hours(-1)));
    }

    #[test]
    fn fresh_packs_are_left_to_the_runs_that_may_own_them() {
        let hours = SignedDuration::from_hours;
        assert!(may_be_fresh(hours(1), None));
        assert!(!may_be_fresh(hours(25), None));
        assert!(may_be_fresh(hours(25), Some(hours(26))));
        assert!(!may_be_fresh(hours(25), Some(hours(1))));
    }

    #[test]
    fn mostly_dead_packs_are_repacked_and_others_while_there_is_too_much_waste() {
        let chosen = |shares: &[(u64, u64)]| -> Vec<usize> {
            let packs = shares.iter().enumerate();
            let packs = packs.map(|(pack, (live_bytes, raw_bytes))| Share {
                pack,
                live_bytes: *live_bytes,
                raw_bytes: *raw_bytes,
            });
            sparse(packs.collect())
                .iter()
                .map(|share| share.pack)
                .collect()
        };
        assert_eq!(chosen(&[(49, 100), (50, 100), (0, 100), (1000, 1000)]), [0]);
        // 120 of 100 live are dead, then 40, then 20.
        assert_eq!(chosen(&[(60, 80), (20, 100), (20, 40)]), [1, 2]);
        assert_eq!(chosen(&[(81, 100), (81, 100)]), [0usize; 0]);
        assert_eq!(chosen(&[]), [0usize; 0]);
    }
}
