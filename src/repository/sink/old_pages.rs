//! What the parent backup holds of a file that is cut into pages.

use crate::archive::cache::{CachedFile, PackRef};
use crate::repository::ranges::{Range, RangeList};
use crate::repository::table::PageId;

/// The parent's pages of a file, walked in step with the new ones.
pub struct OldPages<'a> {
    unit: u64,
    ids: std::slice::Iter<'a, PageId>,
    ranges: std::slice::Iter<'a, Range<PackRef>>,
    /// What is left of the range the walk is in.
    current: Option<Range<PackRef>>,
}

impl<'a> OldPages<'a> {
    pub fn none() -> Self {
        Self {
            unit: 0,
            ids: [].iter(),
            ranges: [].iter(),
            current: None,
        }
    }

    pub fn new(unit: usize, file: &'a CachedFile, ids: &'a [PageId]) -> Self {
        let mut pages = Self {
            unit: unit as u64,
            ids: ids.iter(),
            ranges: file.ranges.as_slice().iter(),
            current: None,
        };
        pages.advance(file.header_bytes, |_| {});
        pages
    }

    /// Moves one page on; when it is `id`, its place is added to `out`.
    pub(super) fn next_is(&mut self, id: PageId, out: &mut RangeList<PackRef>) -> bool {
        let Some(old) = self.ids.next() else {
            return false;
        };
        let same = *old == id;
        self.advance(self.unit, |piece| {
            if same {
                out.push(piece);
            }
        });
        same
    }

    fn advance(&mut self, mut bytes: u64, mut visit: impl FnMut(Range<PackRef>)) {
        while bytes > 0 {
            let Some(range) = self.current.take().or_else(|| self.ranges.next().copied()) else {
                return;
            };
            let taken = range.length.min(bytes);
            visit(Range {
                length: taken,
                ..range
            });
            if taken < range.length {
                self.current = Some(Range {
                    offset: range.offset + taken,
                    length: range.length - taken,
                    ..range
                });
            }
            bytes -= taken;
        }
    }
}
