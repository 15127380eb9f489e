//! `backup_label` and `tablespace_map`, as `pg_backup_stop` returns them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::wal::Lsn;

/// What the label says; the text itself goes into the archive byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay has to begin.
    pub start: Lsn,
    pub timeline: u32,
    pub from_standby: bool,
}

impl BackupLabel {
    /// Takes the label apart; `Err` names the line that is missing or odd.
    ///
    /// The lines are those of `build_backup_content` in `xlogbackup.c` (15 and later) and of
    /// `do_pg_start_backup` in `xlog.c` (14 and before).
    pub fn parse(text: &str) -> Result<Self, String> {
        let (start, timeline) = start_of(text)?;
        let method = field(text, "BACKUP METHOD")?;
        if method.trim() != "streamed" {
            return Err(format!("its backup method is \"{method}\""));
        }
        Ok(Self {
            start,
            timeline,
            // 13 says "master" of a primary.
            from_standby: field(text, "BACKUP FROM")?.trim() == "standby",
        })
    }
}

/// Where replay begins and on which timeline, of a label that any program may have had written.
pub fn start_of(text: &str) -> Result<(Lsn, u32), String> {
    let start = field(text, "START WAL LOCATION")?;
    let start = start
        .split_whitespace()
        .next()
        .and_then(Lsn::parse)
        .ok_or_else(|| format!("its start location is \"{start}\""))?;
    let timeline = field(text, "START TIMELINE")?;
    let timeline = timeline
        .trim()
        .parse()
        .map_err(|_| format!("its start timeline is \"{timeline}\""))?;
    Ok((start, timeline))
}

fn field<'t>(text: &'t str, key: &str) -> Result<&'t str, String> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        .ok_or_else(|| format!("it has no line \"{key}\""))
}

/// One line of `tablespace_map`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tablespace {
    pub oid: u32,
    /// Where the server sees it.
    pub location: PathBuf,
}

/// Takes the map apart: `<oid> <path>` lines, line ends and backslashes in a path escaped by a backslash.
pub fn parse_map(text: &str) -> Result<Vec<Tablespace>, String> {
    let mut lines = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let (c, ends_line) = match c {
            '\\' => (chars.next().unwrap_or('\\'), false),
            '\n' | '\r' => (c, true),
            _ => (c, false),
        };
        if ends_line {
            lines.push(String::new());
        } else if let Some(line) = lines.last_mut() {
            line.push(c);
        }
    }
    lines
        .iter()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (oid, location) = line
                .split_once(' ')
                .ok_or_else(|| format!("it has the line \"{line}\""))?;
            Ok(Tablespace {
                oid: oid
                    .parse()
                    .map_err(|_| format!("it has the line \"{line}\""))?,
                location: PathBuf::from(location),
            })
        })
        .collect()
}

/// The map's text for these tablespaces; the reverse of [`parse_map`].
pub fn render_map(tablespaces: &[Tablespace]) -> String {
    let mut text = String::new();
    for tablespace in tablespaces {
        // Writing to a String cannot fail.
        writeln!(text, "{} {}", tablespace.oid, escape(&tablespace.location)).ok();
    }
    text
}

fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, '\n' | '\r' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    /// As PostgreSQL 15 and 17 wrote them.
    const LABEL: &str = "START WAL LOCATION: 1/2A000028 (file 00000003000000010000002A)\n\
        CHECKPOINT LOCATION: 1/2A000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-22 23:03:33 UTC\nLABEL: lifeboat START TIMELINE: 9\nSTART TIMELINE: 3\n";

    #[test]
    fn a_label_tells_where_replay_begins() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!(label.start, Lsn(0x1_2A00_0028));
        assert_eq!(label.timeline, 3);
        assert!(!label.from_standby);
        let old = BackupLabel::parse(&LABEL.replace("primary", "master")).unwrap();
        assert_eq!(old, label);
        assert!(
            BackupLabel::parse(&LABEL.replace("primary", "standby"))
                .unwrap()
                .from_standby
        );
    }

    #[test]
    fn an_incomplete_label_is_refused_with_the_line() {
        for (line, word) in [
            ("START WAL LOCATION: 1/2A000028", "START WAL LOCATION"),
            ("BACKUP METHOD: streamed", "BACKUP METHOD"),
            ("BACKUP FROM: primary", "BACKUP FROM"),
        ] {
            let err = BackupLabel::parse(&LABEL.replace(line, "X")).unwrap_err();
            assert!(err.contains(word), "{err}");
        }
        assert!(BackupLabel::parse("").is_err());
        let err = BackupLabel::parse(&LABEL.replace("streamed", "pg_start_backup")).unwrap_err();
        assert!(err.contains("pg_start_backup"), "{err}");
    }

    #[test]
    fn a_tablespace_map_survives_the_round_trip() {
        let text = "16384 /srv/fast disk\n16385 /srv/od\\\nd\\\\x\n";
        let map = parse_map(text).unwrap();
        assert_eq!(map.len(), 2);
        assert_eq!(map[0].location, Path::new("/srv/fast disk"));
        assert_eq!(map[1].location, Path::new("/srv/od\nd\\x"));
        assert_eq!(render_map(&map), text);
        assert_eq!(parse_map("\n").unwrap(), []);
        assert!(parse_map("nonsense\n").unwrap_err().contains("nonsense"));
    }
}
