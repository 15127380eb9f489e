//! One step's work on files: the flushed WAL of `pg_wal`, into the repository.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use jiff::SignedDuration;

use super::super::guard::{Kept, Look};
use super::super::path::{Switch, parse_history};
use super::last::Last;
use super::{Gap, Line, Open, Step, StepError};
use crate::repository::wal::{STRETCH_BYTES, Seen, Stretch, WalList};
use crate::repository::{Repository, RepositoryError};
use crate::services::postgres::access::Access;
use crate::services::postgres::wal::{self, Expected, Lsn, SegmentError};
use crate::services::{ErrorKind, ServiceError};

/// While nothing is written, the repository is told this often that this is so.
const SEEN_EVERY: SignedDuration = SignedDuration::from_secs(60);

/// One step's work on files. Blocks.
pub(super) struct Fetch<'a> {
    pub access: &'a Access,
    pub repository: &'a Repository,
    pub look: Look,
    /// See [`Last`].
    pub last: PathBuf,
}

impl Fetch<'_> {
    /// Fetches one unit, or less where less is there. The step's end tells whether that was all.
    pub fn run(&self, open: &mut Open, kept: Kept) -> Result<Step, StepError> {
        self.stored(self.repository.check_present())?;
        let is_new = open
            .line
            .as_ref()
            .is_none_or(|line| line.timeline != self.look.timeline);
        let mut line = match open.line.take().filter(|_| !is_new) {
            Some(line) => line,
            None => self.line(open, &kept)?,
        };
        let (mut stored_bytes, mut gap) = (0, None);
        if line.end > self.look.flushed {
            return Err(self.contradicted(open, &line).into());
        }
        while line.end < self.look.flushed {
            let at = line.end;
            if let Some(bytes) = self.unit(open, &mut line)? {
                stored_bytes += bytes;
                break;
            }
            let found = self.resume_after(open, &line)?;
            tracing::error!(
                service = %self.access.service,
                "the server removed its WAL from {} on before it could be fetched: no moment between then and the next backup can be restored",
                Lsn(at)
            );
            gap = Some(Gap {
                from: at,
                to: found,
            });
            line.end = found;
            line.parts.clear();
        }
        if line.end >= self.look.flushed {
            self.note(open, &line, stored_bytes)?;
        }
        let step = Step {
            service: self.access.service.clone(),
            system: open.system,
            timeline: line.timeline,
            end: line.end,
            until: self.look.at,
            stored_bytes,
            kept,
            gap,
            is_new,
        };
        open.line = Some(line);
        Ok(step)
    }

    /// Where to go on: what the repository says, else where the WAL that is there begins.
    fn line(&self, open: &Open, kept: &Kept) -> Result<Line, StepError> {
        let timeline = self.look.timeline;
        let list = self.stored(self.repository.wal())?;
        let switches = self.histories(open, &list)?;
        let first_segment = switches
            .last()
            .map(|switch| open.size.segment_at(Lsn(switch.at)));
        let all: Vec<Stretch> = list.of(open.system, timeline).copied().collect();
        let mut line = Line {
            timeline,
            end: 0,
            first_segment,
            parts: Vec::new(),
        };
        let Some(newest) = all.iter().max_by_key(|stretch| stretch.end) else {
            line.end = self.beginning(open, &line, kept);
            return Ok(line);
        };
        line.end = newest.end;
        if line.end > self.look.flushed {
            return Err(self.contradicted(open, &line).into());
        }
        self.compare(open, &line, newest)?;
        let unit = unit_start(line.end);
        line.parts = all
            .into_iter()
            .filter(|s| s.start >= unit && s.end < unit + STRETCH_BYTES)
            .collect();
        Ok(line)
    }

    /// Stores the histories of the timeline and those before it; returns the newest one's.
    fn histories(&self, open: &Open, list: &WalList) -> Result<Vec<Switch>, StepError> {
        let mut of_this = Vec::new();
        let stored = list.histories.get(&open.system);
        for timeline in 2..=self.look.timeline {
            let path = open.directory.join(format!("{timeline:08X}.history"));
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                // Only those that lead to the present are there.
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => continue,
                Err(err) => return Err(self.unreadable(&path, &err).into()),
            };
            of_this = parse_history(&text).map_err(|why| {
                self.access
                    .error(ErrorKind::Damaged, format!("{}: {why}", path.display()))
            })?;
            let is_stored = stored.is_some_and(|all| all.contains(&timeline));
            if !is_stored {
                self.stored(
                    self.repository
                        .put_wal_history(open.system, timeline, &text),
                )?;
            } else if self.repository.vault().can_read() {
                let before = self.stored(self.repository.wal_history(open.system, timeline))?;
                if parse_history(&before).as_ref() != Ok(&of_this) {
                    let told = self.access.error(
                        ErrorKind::Setup,
                        format!(
                            "the server's timeline {timeline} is not the one that the repository has WAL of: its history differs, because two restores gave one number twice. Run `pitr forget --timeline {timeline} --system {}` to drop that WAL, then back up",
                            open.system
                        ),
                    );
                    return Err(told.into());
                }
            }
        }
        Ok(of_this)
    }

    /// The first position to fetch of a timeline that nothing is stored of: as far back as WAL is there, but not
    /// before the timeline began, nor before what the slot keeps.
    fn beginning(&self, open: &Open, line: &Line, kept: &Kept) -> u64 {
        let size = open.size;
        let kept_from = match kept {
            Kept::Slot { restart, .. } if *restart > 0 => (*restart).min(self.look.flushed),
            _ => self.look.flushed,
        };
        let mut segment = size.segment_at(Lsn(kept_from));
        let Some(first) = line.first_segment else {
            return size.start_of(segment).0;
        };
        while segment > first && check(open, line, segment - 1).is_ok() {
            segment -= 1;
        }
        size.start_of(segment).0
    }

    /// Fetches to the end of a unit, or as far as is flushed; `None` when the WAL is gone.
    fn unit(&self, open: &Open, line: &mut Line) -> Result<Option<u64>, StepError> {
        let start = line.end;
        let (unit, unit_end) = (unit_start(start), unit_start(start) + STRETCH_BYTES);
        let end = unit_end.min(self.look.flushed);
        let Some(bytes) = self.read(open, line, start, end)? else {
            return Ok(None);
        };
        let stretch = self.stretch(open, line, start, end);
        self.stored(self.repository.put_wal(&stretch, &bytes))?;
        self.remember(&stretch, &bytes)?;
        line.end = end;
        if end < unit_end {
            line.parts.push(stretch);
            return Ok(Some(bytes.len() as u64));
        }
        let first = line.parts.iter().map(|part| part.start).min();
        if let Some(first) = first.filter(|first| *first < start)
            && let Some(whole) = self.read(open, line, first.max(unit), end)?
        {
            let one = self.stretch(open, line, first.max(unit), end);
            self.stored(self.repository.put_wal(&one, &whole))?;
            for part in line.parts.iter().chain([&stretch]) {
                match self.repository.drop_wal(part) {
                    // It holds nothing that the whole does not.
                    Err(err) if err.is_refused() => tracing::debug!("{err}"),
                    other => self.stored(other)?,
                }
            }
        }
        line.parts.clear();
        Ok(Some(bytes.len() as u64))
    }

    fn stretch(&self, open: &Open, line: &Line, start: u64, end: u64) -> Stretch {
        Stretch {
            system: open.system,
            timeline: line.timeline,
            start,
            end,
            time: self.look.at.as_millisecond(),
        }
    }

    /// Reads flushed WAL of one segment; `None` when the server removed it.
    fn read(
        &self,
        open: &Open,
        line: &Line,
        start: u64,
        end: u64,
    ) -> Result<Option<Vec<u8>>, ServiceError> {
        let size = open.size;
        let mut all = Vec::new();
        let mut at = start;
        // Segments may be smaller than a unit.
        while at < end {
            let segment = size.segment_at(Lsn(at));
            let begin = size.start_of(segment).0;
            let until = end.min(begin + size.bytes());
            if !self.is_there(check(open, line, segment), open, line, segment)? {
                return Ok(None);
            }
            let path = open.directory.join(size.name(line.timeline, segment));
            let filled = all.len();
            all.resize(filled + usize::try_from(until - at).unwrap_or(0), 0);
            let read = File::open(&path).and_then(|file| {
                file.read_exact_at(all.get_mut(filled..).unwrap_or_default(), at - begin)
            });
            match read {
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(err) => return Err(self.unreadable(&path, &err)),
                Ok(()) => {}
            }
            // Without a slot it may have been recycled under the reader's hands.
            if !self.is_there(check(open, line, segment), open, line, segment)? {
                return Ok(None);
            }
            at = until;
        }
        Ok(Some(all))
    }

    fn is_there(
        &self,
        checked: Result<(), SegmentError>,
        open: &Open,
        line: &Line,
        segment: u64,
    ) -> Result<bool, ServiceError> {
        match checked {
            Ok(()) => Ok(true),
            // A recycled file holds what it held before, under a name of the future.
            Err(SegmentError::Foreign(_)) => Ok(false),
            Err(SegmentError::Read(err)) if err.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(SegmentError::Read(err)) => {
                let path = open.directory.join(open.size.name(line.timeline, segment));
                Err(self.unreadable(&path, &err))
            }
        }
    }

    /// The start of the first segment that is there after what is gone.
    fn resume_after(&self, open: &Open, line: &Line) -> Result<u64, ServiceError> {
        let last = open.size.segment_before(Lsn(self.look.flushed));
        let mut segment = open.size.segment_at(Lsn(line.end)) + 1;
        while segment <= last {
            if self.is_there(check(open, line, segment), open, line, segment)? {
                // A unit begins at a segment's start, or in it where segments are larger.
                return Ok(open.size.start_of(segment).0);
            }
            segment += 1;
        }
        Err(self.access.error(
            ErrorKind::Setup,
            format!(
                "the WAL segment {} that the server writes now is not in {}: is the right pg_wal mounted?",
                open.size.name(line.timeline, last),
                open.directory.display()
            ),
        ))
    }

    /// What is stored must be what the server has, where it still has it.
    fn compare(&self, open: &Open, line: &Line, newest: &Stretch) -> Result<(), StepError> {
        if !self.repository.vault().can_read() {
            return self.compare_remembered(open, line);
        }
        let Some(found) = self.read(open, line, newest.start, newest.end)? else {
            return Ok(());
        };
        let stored = self.stored(self.repository.read_wal(newest))?;
        if stored == found {
            Ok(())
        } else {
            Err(self.contradicted(open, line).into())
        }
    }

    /// The same where what is stored cannot be read.
    fn compare_remembered(&self, open: &Open, line: &Line) -> Result<(), StepError> {
        let of_line = |last: &Last| {
            (last.system, last.timeline, last.end) == (open.system, line.timeline, line.end)
        };
        let Some(last) = Last::load(&self.last).filter(of_line) else {
            return Ok(());
        };
        match self.read(open, line, last.start, last.end)? {
            Some(found) if !last.is_of(&found) => Err(self.contradicted(open, line).into()),
            _ => Ok(()),
        }
    }

    fn remember(&self, stretch: &Stretch, bytes: &[u8]) -> Result<(), ServiceError> {
        if self.repository.vault().can_read() {
            return Ok(());
        }
        Last::of(stretch, bytes).save(&self.last).map_err(|err| {
            let told = format!("what was stored cannot be remembered: {err}");
            self.access.error(ErrorKind::Io, told)
        })
    }

    fn contradicted(&self, open: &Open, line: &Line) -> ServiceError {
        self.access.error(
            ErrorKind::Setup,
            format!(
                "the server's WAL of timeline {} is not the one that is stored up to {}: its data directory was put back to an older state without a new timeline, and wrote on from there (it is at {} now). Run `pitr forget --timeline {} --system {}` to drop what is stored of it, then back up",
                line.timeline,
                Lsn(line.end),
                Lsn(self.look.flushed),
                line.timeline,
                open.system
            ),
        )
    }

    /// Tells the repository of this look, when the name of a stretch does not.
    fn note(&self, open: &mut Open, line: &Line, stored_bytes: u64) -> Result<(), StepError> {
        let now = self.look.at;
        let is_due = open
            .seen
            .is_none_or(|seen| now.duration_since(seen) >= SEEN_EVERY);
        if stored_bytes > 0 {
            open.seen = None;
        } else if is_due {
            let seen = Seen {
                timeline: line.timeline,
                end: line.end,
                at: now,
            };
            self.stored(self.repository.note_wal_seen(open.system, &seen))?;
            open.seen = Some(now);
        }
        Ok(())
    }

    fn stored<T>(&self, result: Result<T, RepositoryError>) -> Result<T, StepError> {
        result.map_err(|err| {
            let kind = if err.is_transient() {
                ErrorKind::Unreachable
            } else {
                ErrorKind::Io
            };
            let told = format!("the WAL cannot be stored: {err}");
            StepError::Repository(self.access.error(kind, told).with_source(err))
        })
    }

    fn unreadable(&self, path: &std::path::Path, err: &std::io::Error) -> ServiceError {
        let kind = if err.kind() == std::io::ErrorKind::PermissionDenied {
            ErrorKind::Denied
        } else {
            ErrorKind::Io
        };
        self.access
            .error(kind, format!("cannot read {}: {err}", path.display()))
    }
}

/// The start of the unit that a position lies in.
const fn unit_start(position: u64) -> u64 {
    position - position % STRETCH_BYTES
}

/// Looks at a segment's header.
fn check(open: &Open, line: &Line, segment: u64) -> Result<(), SegmentError> {
    let path = open.directory.join(open.size.name(line.timeline, segment));
    let mut expected = Expected {
        timeline: line.timeline,
        segment,
        size: open.size,
        system_identifier: open.system,
    };
    if line.first_segment == Some(segment)
        && let Some(timeline) = wal::first_timeline(&path)?.filter(|t| *t < line.timeline)
    {
        // Its first pages are those of the timeline before.
        expected.timeline = timeline;
    }
    wal::check_segment(&path, &expected)
}
