//! Stored WAL of one timeline as a stream of bytes.

use std::io::{self, Read};

use crate::repository::Repository;
use crate::repository::wal::{Stretch, WalList};

/// The bytes between two positions; an error where some are missing.
pub struct Stream<'a> {
    repository: &'a Repository,
    stretches: Vec<Stretch>,
    at: u64,
    end: u64,
    current: Option<(Stretch, Vec<u8>)>,
}

impl<'a> Stream<'a> {
    pub fn new(
        repository: &'a Repository,
        list: &WalList,
        (system, timeline): (u64, u32),
        start: u64,
        end: u64,
    ) -> Self {
        let stretches = list
            .of(system, timeline)
            .filter(|s| s.end > start && s.start < end);
        Self {
            repository,
            stretches: stretches.copied().collect(),
            at: start,
            end,
            current: None,
        }
    }

    /// The stretch that leads furthest from here.
    fn next(&self) -> io::Result<Stretch> {
        self.stretches
            .iter()
            .filter(|s| s.start <= self.at && s.end > self.at)
            .max_by_key(|s| s.end)
            .copied()
            .ok_or_else(|| {
                io::Error::other(format!(
                    "the WAL from {} on is not in the repository",
                    super::super::wal::Lsn(self.at)
                ))
            })
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.end || buf.is_empty() {
            return Ok(0);
        }
        let is_over = self
            .current
            .as_ref()
            .is_none_or(|(stretch, _)| stretch.end <= self.at);
        if is_over {
            let stretch = self.next()?;
            let bytes = self
                .repository
                .read_wal(&stretch)
                .map_err(io::Error::other)?;
            self.current = Some((stretch, bytes));
        }
        let Some((stretch, bytes)) = &self.current else {
            return Ok(0);
        };
        let skip = usize::try_from(self.at - stretch.start).unwrap_or(usize::MAX);
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let rest = bytes.get(skip..).unwrap_or_default();
        let count = rest.len().min(left).min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at += count as u64;
        Ok(count)
    }
}
