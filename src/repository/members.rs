//! Finds the members of a tar inside an archive, and of tars inside that: the cuts of a Qdrant snapshot.
//!
//! Unchanged segment files are byte-identical from one Qdrant snapshot to the next but shifted by the tar
//! headers around them, so blocks start at each member's body. A stream that is no tar, or stops being one,
//! is cut into blocks of the same fixed size: cutting never fails.

const BLOCK: u64 = 16 * 1024;
const RECORD: u64 = 512;

/// The place in a possibly nested tar.
pub struct Members {
    /// The tars around the place, outermost first: bytes left of each.
    open: Vec<Tar>,
}

struct Tar {
    left: u64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// At a header, or at the zeros of the end.
    Header,
    /// In the extension records of a GNU sparse header.
    SparseExtension { body: u64 },
    /// In a plain member's body, padding included.
    Body { left: u64 },
    /// Not a tar, or not any more.
    Opaque,
}

impl Members {
    pub fn new(body_len: u64) -> Self {
        Self {
            open: vec![Tar {
                left: body_len,
                state: State::Header,
            }],
        }
    }

    /// Length of the next block at the front of `rest`; `None` when more bytes are needed to say.
    pub fn next_block(&mut self, rest: &[u8]) -> Option<usize> {
        while self.open.len() > 1 && self.open.last().is_some_and(|tar| tar.left == 0) {
            self.open.pop();
        }
        let tar = self.open.last_mut()?;
        let wanted = match tar.state {
            State::Header | State::SparseExtension { .. } => RECORD,
            State::Body { left } => left.min(BLOCK),
            State::Opaque => BLOCK,
        }
        .min(tar.left.max(1));
        let record = rest.get(..usize::try_from(wanted).ok()?)?;
        let inner = tar.advance(record);
        for outer in &mut self.open {
            outer.left = outer.left.saturating_sub(wanted);
        }
        if let Some(length) = inner {
            // The inner tar's bytes are the outer body's: its padding stays with the outer.
            let left = self.open.last().map_or(0, |tar| tar.left);
            self.open.push(Tar {
                left: length.min(left),
                state: State::Header,
            });
        }
        usize::try_from(wanted).ok()
    }
}

impl Tar {
    /// Moves over one block; returns the length of a tar that begins after it.
    fn advance(&mut self, record: &[u8]) -> Option<u64> {
        let length = record.len() as u64;
        match self.state {
            State::Opaque => None,
            State::Body { left } => {
                let left = left.saturating_sub(length);
                self.state = if left == 0 {
                    State::Header
                } else {
                    State::Body { left }
                };
                None
            }
            State::SparseExtension { body } => {
                let more = record.get(504).is_some_and(|flag| *flag != 0);
                self.state = if more {
                    State::SparseExtension { body }
                } else {
                    after_header(body)
                };
                None
            }
            State::Header => self.header(record),
        }
    }

    fn header(&mut self, record: &[u8]) -> Option<u64> {
        if record.iter().all(|byte| *byte == 0) {
            return None;
        }
        let Some(size) = checked_size(record) else {
            self.state = State::Opaque;
            return None;
        };
        let kind = record.get(156).copied().unwrap_or_default();
        let sparse_extension = kind == b'S' && record.get(482).is_some_and(|flag| *flag != 0);
        if sparse_extension {
            self.state = State::SparseExtension { body: size };
            return None;
        }
        let name = record.get(..100).unwrap_or_default();
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        let is_tar = name.get(..end).is_some_and(|name| name.ends_with(b".tar"));
        if is_tar && matches!(kind, b'0' | 0) && size > 0 {
            // The body is walked as a tar of its own; only its padding is left to this one.
            let padding = size.next_multiple_of(RECORD) - size;
            self.state = if padding == 0 {
                State::Header
            } else {
                State::Body { left: padding }
            };
            return Some(size);
        }
        self.state = after_header(size);
        None
    }
}

fn after_header(size: u64) -> State {
    match size.checked_next_multiple_of(RECORD) {
        Some(0) => State::Header,
        Some(left) => State::Body { left },
        None => State::Opaque,
    }
}

/// The size field of a header whose checksum is right.
fn checked_size(record: &[u8]) -> Option<u64> {
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field).ok()?;
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
    };
    let stated = octal(record.get(148..156)?)?;
    let actual: u64 = record
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    if stated != actual {
        return None;
    }
    let size = record.get(124..136)?;
    if size.first()? & 0x80 != 0 {
        // GNU base-256: the high bit marks it, the number is big endian.
        return size.get(4..12)?.try_into().ok().map(u64::from_be_bytes);
    }
    octal(size)
}
