//! Stretches of WAL: what their names tell, and which positions they lead to without a gap.

use jiff::Timestamp;
use serde::Serialize;

use super::ROOT;

/// The longest stretch: a segment of the usual size.
pub const STRETCH_BYTES: u64 = 16 * 1024 * 1024;

/// Some of a timeline's WAL, as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stretch {
    pub system: u64,
    pub timeline: u32,
    pub start: u64,
    pub end: u64,
    /// In milliseconds: the server had flushed up to `end` at least, and so everything that it had acknowledged.
    pub time: i64,
}

impl Stretch {
    pub fn at(&self) -> Timestamp {
        Timestamp::from_millisecond(self.time).unwrap_or(Timestamp::MIN)
    }

    /// Its file's name, without what tells that it is encrypted.
    pub fn name(&self) -> String {
        format!(
            "{ROOT}/{:016x}/{:08x}/{:016x}-{:016x}-{}.zst",
            self.system, self.timeline, self.start, self.end, self.time
        )
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        if parts.next()? != ROOT {
            return None;
        }
        let system = hexadecimal(parts.next()?, 16)?;
        let timeline = u32::try_from(hexadecimal(parts.next()?, 8)?).ok()?;
        let file = parts.next()?.strip_suffix(".zst")?;
        let mut fields = file.splitn(3, '-');
        let stretch = Self {
            system,
            timeline,
            start: hexadecimal(fields.next()?, 16)?,
            end: hexadecimal(fields.next()?, 16)?,
            time: fields.next()?.parse().ok()?,
        };
        let length = stretch.end.checked_sub(stretch.start)?;
        let plausible = parts.next().is_none()
            && (1..=STRETCH_BYTES).contains(&length)
            && Timestamp::from_millisecond(stretch.time).is_ok();
        // One spelling only.
        (plausible && stretch.name() == name).then_some(stretch)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

pub(super) fn hexadecimal(text: &str, digits: usize) -> Option<u64> {
    (text.len() == digits)
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

/// WAL without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    pub start: u64,
    pub end: u64,
    /// When the server was looked at for the first and for the last time in it.
    pub first: Timestamp,
    pub last: Timestamp,
}

/// Where stretches of one timeline lie without a gap, in order.
pub fn spans<'a>(stretches: impl IntoIterator<Item = &'a Stretch>) -> Vec<Span> {
    let mut sorted: Vec<&Stretch> = stretches.into_iter().collect();
    sorted.sort_unstable_by_key(|stretch| (stretch.start, stretch.end));
    let mut spans: Vec<Span> = Vec::new();
    for stretch in sorted {
        let at = stretch.at();
        match spans.last_mut() {
            Some(span) if stretch.start <= span.end => {
                span.end = span.end.max(stretch.end);
                span.first = span.first.min(at);
                span.last = span.last.max(at);
            }
            _ => spans.push(Span {
                start: stretch.start,
                end: stretch.end,
                first: at,
                last: at,
            }),
        }
    }
    spans
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::repository::wal::{history_name, history_of};

    pub fn stretch(start: u64, end: u64, time: i64) -> Stretch {
        Stretch {
            system: 7_100_000_000_000_000_042,
            timeline: 1,
            start,
            end,
            time,
        }
    }

    #[test]
    fn a_name_has_one_spelling() {
        let one = stretch(0x0100_0000, 0x0100_4000, 1_763_900_000_123);
        let name = one.name();
        assert_eq!(Stretch::parse(&name), Some(one));
        for other in [
            name.to_uppercase(),
            name.replace("-1763900000123", "-01763900000123"),
            name.replace("-1763900000123", ""),
            name.replace(".zst", ""),
            format!("{name}/x"),
            stretch(5, 5, 1).name(),
            stretch(6, 5, 1).name(),
            stretch(0, STRETCH_BYTES + 1, 1).name(),
            history_name(1, 2),
        ] {
            assert_eq!(Stretch::parse(&other), None, "{other}");
        }
        assert_eq!(history_of(&history_name(9, 0x1F)), Some((9, 0x1F)));
    }

    #[test]
    fn spans_end_where_a_stretch_is_missing() {
        let all = [
            stretch(30, 40, 9),
            stretch(10, 20, 3),
            stretch(0, 10, 1),
            stretch(5, 12, 2),
            stretch(41, 50, 7),
        ];
        let found: Vec<_> = spans(&all)
            .iter()
            .map(|s| {
                (
                    s.start,
                    s.end,
                    s.first.as_millisecond(),
                    s.last.as_millisecond(),
                )
            })
            .collect();
        assert_eq!(found, [(0, 20, 1, 3), (30, 40, 9, 9), (41, 50, 7, 7)]);
        assert_eq!(spans(&[]), []);
    }
}
