//! The steps of prunes: mark, sweep, and the one that does not wait.

use lifeboat::repository::prune::decide;

use super::protocol::{Breach, DONE, Turn};
use super::world::{AGED, Commit, TRASHES, Trash, age, bits};

impl Turn<'_> {
    pub fn mark(&mut self, trash: u8) {
        match self.step() {
            0 => {
                self.note(0, self.world.present() & !self.world.trashed());
                self.go(self.list_moves(1));
            }
            1 => {
                self.note(1, self.world.moves());
                self.go(2);
            }
            2 => {
                let dead = self.seen(0) & !self.world.live(self.world.backups(), self.seen(1));
                self.note(1, 0);
                self.note(0, dead);
                self.go(if dead == 0 { DONE } else { 3 });
            }
            _ => {
                let packs = self.seen(0);
                self.put_trash(trash, packs);
                self.go(DONE);
            }
        }
    }

    fn put_trash(&mut self, trash: u8, packs: u8) {
        self.world.trashes[usize::from(trash)] = Trash {
            age: Some(0),
            packs,
        };
    }

    /// Notes the trash files that are due, and what is in them.
    fn note_trash(&mut self, due: impl Fn(u8) -> bool) -> bool {
        let mut files = 0;
        for at in 0..TRASHES {
            let trash = self.world.trashes[at];
            if trash.age.is_some_and(&due) {
                files |= 1 << at;
                self.note(5 + at, trash.packs);
            }
        }
        self.note(0, files);
        files != 0
    }

    pub fn sweep(&mut self) {
        let last = !self.breaks(Breach::ListsBackupsFirst);
        let early = self.breaks(Breach::SweepsEarly);
        match self.step() {
            0 => {
                let due = |ticks| (early && ticks > 1) || decide::is_due(age(ticks), [], true);
                if self.note_trash(due) {
                    self.go(1);
                }
            }
            1 => {
                self.note(1, self.world.present());
                self.go(if last { 2 } else { self.list_moves(5) });
            }
            2 => {
                let (living, dead) = self.leases();
                self.note(2, dead);
                if !early {
                    self.keep_guarded(&living);
                }
                self.go(match (self.seen(0), dead) {
                    (0, _) => DONE,
                    (_, 0) if last => self.list_moves(5),
                    (_, 0) => 7,
                    _ => 3,
                });
            }
            3 | 4 => self.fence(if last { self.list_moves(5) } else { 7 }),
            5 => {
                self.note(3, self.world.moves());
                self.go(6);
            }
            6 => {
                self.condemn();
                self.go(if last { 7 } else { 2 });
            }
            _ => self.delete(7, DONE),
        }
    }

    /// Ages of living leases, and the runs whose leases are dead.
    fn leases(&self) -> (Vec<u8>, u8) {
        let (mut living, mut dead) = (Vec::new(), 0);
        for (run, lease) in self.world.leases.iter().enumerate() {
            match lease {
                Some(ticks) if decide::is_dead(age(*ticks)) => dead |= 1 << run,
                Some(ticks) => living.push(*ticks),
                None => {}
            }
        }
        (living, dead)
    }

    /// Trash that is not older than a living lease is left alone.
    fn keep_guarded(&mut self, living: &[u8]) {
        let mut files = self.seen(0);
        for at in bits(files) {
            // A file that another sweep has deleted meanwhile is as old as any.
            let ticks = self.world.trashes[usize::from(at)].age.unwrap_or(AGED);
            if !decide::is_due(age(ticks), living.iter().map(|lease| age(*lease)), true) {
                files &= !(1 << at);
                self.note(5 + usize::from(at), 0);
            }
        }
        self.note(0, files);
    }

    /// One dead run at a time: step 3 puts `void`, step 4 deletes the lease.
    fn fence(&mut self, then: u8) {
        let dead = self.seen(2);
        let run = u8::try_from(dead.trailing_zeros()).unwrap();
        if self.step() == 3 {
            // The same key would hold a backup's manifest or a repack's move.
            let left_open = if usize::from(run) < super::MOVING_RUNS_FROM {
                self.breaks(Breach::ClosesNoBackup) || self.breaks(Breach::LooksAfterCommit)
            } else {
                self.breaks(Breach::ClosesNoRepack)
            };
            if !left_open {
                self.commit(run, Commit::Void);
            }
            self.go(4);
            return;
        }
        self.delete_lease(run);
        self.note(2, dead & !(1 << run));
        self.go(if self.seen(2) == 0 { then } else { 3 });
    }

    /// Notes the packs to delete: trashed, there, and not live.
    fn condemn(&mut self) {
        let live = self.world.live(self.world.backups(), self.seen(3));
        let trashed = (0..TRASHES).fold(0, |mask, at| mask | self.seen(5 + at));
        let there = self.seen(1);
        self.note(1, there & trashed & !live);
        self.note(3, 0);
        for at in 0..TRASHES {
            self.note(5 + at, 0);
        }
    }

    /// Deletes a pack, or a trash file, at a time.
    fn delete(&mut self, step: u8, then: u8) {
        let (files, packs) = (self.seen(0), self.seen(1));
        let packs_first = !self.breaks(Breach::TrashGoesFirst);
        if packs != 0 && (packs_first || files == 0) {
            let pack = packs.trailing_zeros();
            self.world.packs[pack as usize].there = false;
            self.note(1, packs & !(1 << pack));
        } else if files != 0 {
            let file = files.trailing_zeros();
            self.world.trashes[file as usize] = Trash::default();
            self.note(0, files & !(1 << file));
        }
        let left = self.seen(0) | self.seen(1);
        self.go(if left == 0 { then } else { step });
    }

    pub fn now(&mut self, trash: u8) {
        let me = u8::try_from(self.number).unwrap();
        match self.step() {
            0 | 1 if self.world.lock.is_none() => {
                self.world.lock = Some((me, 0));
                self.go(2);
            }
            // A stale one is taken over: deleted, then put.
            0 if !self.lock_is_heeded() => {
                self.world.lock = None;
                self.go(1);
            }
            0 => {}
            2 => {
                let (living, dead) = self.leases();
                self.note(2, dead);
                self.go(match (living.is_empty(), dead) {
                    (false, _) => 20,
                    (true, 0) => 5,
                    (true, _) => 3,
                });
            }
            3 | 4 => self.fence(5),
            5 => {
                self.note(1, self.world.present() & !self.world.trashed());
                self.go(self.list_moves(6));
            }
            6 | 12 => {
                self.note(3, self.world.moves());
                let next = self.step() + 1;
                self.go(next);
            }
            7 => {
                let dead = self.seen(1) & !self.world.live(self.world.backups(), self.seen(3));
                self.note(3, 0);
                self.note(1, dead);
                self.go(if dead == 0 { 9 } else { 8 });
            }
            8 => {
                let packs = self.seen(1);
                self.note(1, 0);
                self.put_trash(trash, packs);
                self.go(9);
            }
            // Listed before the lock is looked at: a file that comes later may be of a prune that lost it.
            9 => {
                let any = self.note_trash(|ticks| decide::is_due(age(ticks), [], false));
                self.go(if any { 10 } else { 20 });
            }
            10 => {
                let (own, ticks) = self
                    .world
                    .lock
                    .map_or((false, 0), |(owner, ticks)| (owner == me, ticks));
                let holds = decide::lock_holds(own, age(ticks));
                self.go(if holds || self.breaks(Breach::TrustsLock) {
                    11
                } else {
                    20
                });
            }
            11 => {
                self.note(1, self.world.present());
                self.go(self.list_moves(12));
            }
            13 => {
                self.condemn();
                self.go(14);
            }
            14 => self.delete(14, 20),
            20 if self.world.lock.is_some_and(|(owner, _)| owner == me) => self.go(21),
            1 | 20 => self.go(DONE),
            _ => {
                self.world.lock = None;
                self.go(DONE);
            }
        }
    }
}
