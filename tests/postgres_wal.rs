//! The reader of the write-ahead log against what a real server wrote, and says of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "postgres_wal/recorded.rs"]
mod recorded;
#[path = "postgres_wal/recovery.rs"]
mod recovery;

use std::collections::BTreeMap;
use std::process::Command;

use cluster::bin;
use lifeboat::services::postgres::records::{
    End, Kind, Next, Record, find_restore_point, find_xid, first_after, first_at, last_commit,
};
use lifeboat::services::postgres::wal::Lsn;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use recorded::{Recorded, SEGMENT_BYTES};

fn all(recorded: &Recorded, start: Lsn) -> (Vec<Record>, End) {
    let mut reading = recorded.read(start);
    let records: Vec<Record> = reading.by_ref().map(Result::unwrap).collect();
    let last = records.last().unwrap();
    assert_eq!(last.start, recorded.last);
    assert!(matches!(last.kind, Kind::Checkpoint { .. }), "{last:?}");
    (records, reading.end().unwrap())
}

/// Without an error, for the searches.
fn each(records: &[Record]) -> impl Iterator<Item = Result<Record, ()>> {
    records.iter().cloned().map(Ok)
}

/// A record as `pg_waldump` prints it, without what it says of other sorts of records.
fn as_dumped(record: &Record) -> String {
    let manager = match record.resource_manager {
        0 => "XLOG",
        1 => "Transaction",
        2 => "Storage",
        3 => "CLOG",
        4 => "Database",
        5 => "Tablespace",
        6 => "MultiXact",
        7 => "RelMap",
        8 => "Standby",
        9 => "Heap2",
        10 => "Heap",
        11 => "Btree",
        12 => "Hash",
        13 => "Gin",
        14 => "Gist",
        15 => "Sequence",
        17 => "BRIN",
        18 => "CommitTs",
        19 => "ReplicationOrigin",
        21 => "LogicalMessage",
        other => panic!("what is {other}?"),
    };
    let time = |time: jiff::Timestamp| time.strftime("%Y-%m-%d %H:%M:%S.%6f UTC").to_string();
    let about = match &record.kind {
        Kind::Commit { time: at, .. } => format!("COMMIT {}", time(*at)),
        Kind::CommitPrepared { time: at, xid } => format!("COMMIT_PREPARED {xid}: {}", time(*at)),
        Kind::Abort { time: at, .. } => format!("ABORT {}", time(*at)),
        Kind::AbortPrepared { time: at, xid } => format!("ABORT_PREPARED {xid}: {}", time(*at)),
        Kind::Prepare => "PREPARE".to_owned(),
        Kind::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        Kind::Checkpoint {
            timeline,
            previous_timeline,
        } => format!("CHECKPOINT tli {timeline}; prev tli {previous_timeline}"),
        Kind::EndOfRecovery { timeline, .. } => format!("END_OF_RECOVERY tli {timeline}"),
        Kind::Switch => "SWITCH".to_owned(),
        Kind::Overwrite { lost } => format!("OVERWRITE_CONTRECORD lsn {lost}"),
        Kind::Other => String::new(),
    };
    let padded = |lsn: Lsn| format!("{:X}/{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
    format!(
        "{manager} {}/{} tx {} lsn {} prev {} {about}",
        record.bytes - record.image_bytes,
        record.bytes,
        record.xid,
        padded(record.start),
        padded(record.previous),
    )
}

/// The same of a line that `pg_waldump` printed.
fn of_dump(line: &str) -> String {
    let between = |from: &str, to: &str| {
        let (_, rest) = line.split_once(from).expect(line);
        rest.split_once(to).expect(line).0.trim().to_owned()
    };
    let about = between("desc: ", "\u{0}");
    let until = |text: &str, end: &str| text.split(end).next().unwrap().trim().to_owned();
    let manager = between("rmgr: ", " len");
    let about = match about.split(' ').next().unwrap() {
        "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED" => until(&about, " UTC") + " UTC",
        "PREPARE" => "PREPARE".to_owned(),
        "SWITCH" => "SWITCH".to_owned(),
        "RESTORE_POINT" => about,
        "CHECKPOINT_ONLINE" | "CHECKPOINT_SHUTDOWN" => {
            let fields: Vec<&str> = about.split("; ").collect();
            format!("CHECKPOINT {}; {}", fields[1], fields[2])
        }
        "END_OF_RECOVERY" | "OVERWRITE_CONTRECORD" => until(&about, ";"),
        _ => String::new(),
    };
    format!(
        "{manager} {} tx {} lsn {} prev {} {about}",
        between("len (rec/tot):", ", tx:").replace(' ', ""),
        between(", tx:", ","),
        between(", lsn: ", ","),
        between(", prev ", ","),
    )
}

#[test]
fn every_record_is_read_as_pg_waldump_reads_it() {
    let recorded = &Recorded::get();
    let program = bin().join("pg_waldump");
    let dump = Command::new(&program)
        .env("TZ", "UTC")
        .args(["-p"])
        .arg(&recorded.wal)
        .args(["-s", &recorded.start.to_string()])
        .output()
        .unwrap_or_else(|err| panic!("{} is needed for this test: {err}", program.display()));
    let lines: Vec<String> = String::from_utf8(dump.stdout)
        .unwrap()
        .lines()
        .map(|line| of_dump(&format!("{line}\u{0}")))
        .collect();
    let (records, end) = all(recorded, recorded.start);
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for (i, record) in records.iter().enumerate() {
        assert_eq!(as_dumped(record), lines[i], "record {i}: {record:?}");
        let kind = format!("{:?}", record.kind);
        *kinds
            .entry(kind.split(' ').next().unwrap().to_owned())
            .or_default() += 1;
    }
    assert_eq!(records.len(), lines.len());
    assert!(lines.len() > 10_000, "{}", lines.len());
    // It ends where pg_waldump can read no further.
    let complaint = String::from_utf8(dump.stderr).unwrap();
    assert!(
        matches!(end, End::At(at) if complaint.contains(&format!("invalid record length at {at}:"))),
        "{end:?}: {complaint}"
    );
    for kind in [
        "Commit",
        "CommitPrepared",
        "Abort",
        "AbortPrepared",
        "Prepare",
        "RestorePoint",
        "Checkpoint",
        "Switch",
        "Overwrite",
    ] {
        assert!(kinds.contains_key(kind), "{kind}: {kinds:?}");
    }
}

#[test]
fn every_end_of_a_transaction_is_the_one_the_server_knows() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    let mut ended = BTreeMap::new();
    for record in &records {
        let Some(ending) = record.ending() else {
            continue;
        };
        if ending.xid == 0 || ending.xid == recorded.asked_by {
            continue;
        }
        assert!(ended.insert(ending.xid, record).is_none(), "{record:?}");
        let fate = &recorded.fates[&ending.xid];
        assert_eq!(ending.committed, fate.committed, "{record:?}");
        if let Some(time) = fate.time {
            assert_eq!(ending.time.as_microsecond(), time, "{record:?}");
        }
    }
    for (xid, fate) in recorded.fates.iter().filter(|(_, fate)| fate.committed) {
        // A subtransaction's commit is in the record of its transaction.
        let itself = ended.contains_key(xid);
        let sibling = || {
            ended.values().any(|record| {
                let ending = record.ending().unwrap();
                ending.xid < *xid && Some(ending.time.as_microsecond()) == fate.time
            })
        };
        assert!(itself || sibling(), "{xid}: {fate:?}");
    }
    assert!(recorded.ledger.len() > 100);
    for commit in &recorded.ledger {
        let record = ended[&commit.xid];
        assert!(matches!(record.kind, Kind::Commit { .. }), "{record:?}");
        assert!(commit.before <= record.start && record.end <= commit.after);
    }
    for (xids, committed) in [(&recorded.prepared.0, true), (&recorded.prepared.1, false)] {
        assert_eq!(xids.len(), 12);
        for xid in xids {
            let kind = &ended[xid].kind;
            assert_eq!(
                matches!(kind, Kind::CommitPrepared { .. }),
                committed,
                "{kind:?}"
            );
            assert_eq!(
                matches!(kind, Kind::AbortPrepared { .. }),
                !committed,
                "{kind:?}"
            );
        }
    }
}

#[test]
fn marks_are_where_the_server_set_them() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    let points: Vec<(String, Lsn)> = records
        .iter()
        .filter_map(|record| match &record.kind {
            Kind::RestorePoint { name, .. } => Some((name.clone(), record.end)),
            _ => None,
        })
        .collect();
    assert_eq!(points, recorded.restore_points);
    let switches: Vec<&Record> = records
        .iter()
        .filter(|record| record.kind == Kind::Switch)
        .collect();
    assert_eq!(switches.len(), recorded.switches.len());
    for (record, returned) in switches.iter().zip(&recorded.switches) {
        // The server returns the end of the record, without the empty rest.
        assert_eq!(Lsn(record.start.0 + u64::from(record.bytes)), *returned);
        assert_eq!(record.end.0 % SEGMENT_BYTES, 0);
    }
}

#[test]
fn a_record_whose_end_was_lost_is_passed_over() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    let overwritten: Vec<(usize, Lsn)> = records
        .iter()
        .enumerate()
        .filter_map(|(i, record)| match record.kind {
            Kind::Overwrite { lost } => Some((i, lost)),
            _ => None,
        })
        .collect();
    let [(i, lost)] = overwritten[..] else {
        panic!("{overwritten:?}");
    };
    // It began in that page, and the record in its place is in the segment that was taken away.
    assert!(lost >= recorded.lost_after && lost < Lsn(recorded.lost_after.0 + 8192));
    assert_eq!(
        records[i].start.0,
        (lost.0 / SEGMENT_BYTES + 2) * SEGMENT_BYTES + 40
    );
    assert_eq!(records[i].previous, records[i - 1].start);
    assert!(records[i - 1].end <= lost);
    // So does a reader that comes upon the rest first.
    let rest = Lsn((lost.0 / SEGMENT_BYTES + 1) * SEGMENT_BYTES);
    assert_eq!(all(recorded, rest).0, records[i..]);
}

#[test]
fn searches_find_what_recovery_would_stop_at() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    for commit in recorded.ledger.iter().step_by(7) {
        let record = find_xid(each(&records), commit.xid).unwrap().unwrap();
        let ending = record.ending().unwrap();
        assert_eq!(ending.xid, commit.xid);
        // Only one session ended transactions, so their times are in order.
        let next = first_after(each(&records), ending.time).unwrap().unwrap();
        assert!(next.start > record.start && next.ending().unwrap().time > ending.time);
        let between = records
            .iter()
            .filter(|r| r.start > record.start && r.start < next.start);
        assert_eq!(between.filter_map(Record::ending).count(), 0);
        let at = first_at(each(&records), Lsn(record.start.0 - 1)).unwrap();
        assert_eq!(at, Some(record));
    }
    let (name, at) = &recorded.restore_points[0];
    let point = find_restore_point(each(&records), name).unwrap().unwrap();
    assert_eq!(point.end, *at);
    assert_eq!(find_restore_point(each(&records), "supper").unwrap(), None);
    let last = last_commit(each(&records)).unwrap().unwrap();
    assert_eq!(last.xid, recorded.asked_by);
    let time = last.ending().unwrap().time;
    assert_eq!(first_after(each(&records), time).unwrap(), None);
    assert_eq!(
        first_at(each(&records), Lsn(recorded.last.0 + 8)).unwrap(),
        None
    );
}

#[test]
fn reading_can_begin_at_every_segment_and_record() {
    let recorded = &Recorded::get();
    let (records, end) = all(recorded, recorded.start);
    let from = |lsn: Lsn| &records[records.partition_point(|record| record.start < lsn)..];
    let mut crossed = 0;
    let segment = SEGMENT_BYTES;
    for start in (recorded.start.0 / segment + 1)..=(recorded.last.0 / segment) {
        let start = Lsn(start * segment);
        crossed += u32::from(records.iter().any(|r| r.start < start && start < r.end));
        assert_eq!(all(recorded, start), (from(start).to_vec(), end), "{start}");
    }
    assert!(crossed > 5, "{crossed}");
    for record in records.iter().step_by(997) {
        assert_eq!(all(recorded, record.start).0, from(record.start));
    }
    // Within a record nothing begins.
    let long = records
        .iter()
        .find(|record| record.bytes > 100_000)
        .unwrap();
    for inside in [(long.start.0 / 8192 + 3) * 8192 + 4096, long.end.0 - 8] {
        let first = recorded.read(Lsn(inside)).next().unwrap();
        assert!(first.is_err(), "{first:?}");
    }
    let page = Lsn((long.start.0 / 8192 + 3) * 8192);
    assert_eq!(all(recorded, page).0, from(page));
}

#[test]
fn the_log_ends_with_the_last_whole_record_wherever_it_is_cut() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    let bytes = recorded.bytes_from(recorded.start);
    let base = recorded.reader(recorded.start).position().0;
    for record in records.iter().step_by(211) {
        for cut in [record.start.0, record.end.0 - 8, record.end.0] {
            let length = usize::try_from(cut - base).unwrap();
            let mut reading = recorded.reader(recorded.start).read(&bytes[..length]);
            let read = reading.by_ref().map(Result::unwrap).count();
            let whole = records.partition_point(|record| last_byte(record) < cut);
            assert_eq!(read, whole, "{record:?} at {cut}");
            // Padded, as the segment that the server is writing to: to the end of this page, then pages.
            let boundary = length.next_multiple_of(8192);
            let mut padded = bytes[..boundary].to_vec();
            // Behind a switch, to the end of the segment.
            padded.resize(boundary.next_multiple_of(1 << 20) + 8192, 0);
            let mut reading = recorded.reader(recorded.start).read(padded.as_slice());
            let read = reading.by_ref().map(Result::unwrap).count();
            assert!(read >= whole);
            assert!(
                matches!(reading.end(), Some(End::At(_))),
                "{:?}",
                reading.end()
            );
        }
    }
}

/// Where a record's last byte is.
fn last_byte(record: &Record) -> u64 {
    let length = u64::from(record.bytes);
    match record.kind {
        // It is within one page, and its end that of the segment.
        Kind::Switch => record.start.0 + length - 1,
        // Padding follows; page headers in between are multiples of 8.
        _ => record.end.0 - (length.next_multiple_of(8) - length) - 1,
    }
}

/// The records of one segment's bytes, fed in pieces of these lengths.
fn in_pieces(recorded: &Recorded, start: Lsn, bytes: &[u8], pieces: &[usize]) -> Vec<Record> {
    let mut reader = recorded.reader(start);
    let mut records = Vec::new();
    let mut rest = bytes;
    for length in pieces.iter().cycle() {
        let (mut piece, after) = rest.split_at((*length).min(rest.len()));
        rest = after;
        loop {
            match reader.next(&mut piece) {
                Ok(Next::Record(record)) => records.push(record),
                Ok(Next::NeedMore) => break,
                Ok(Next::End(at)) => {
                    assert_eq!(reader.next(&mut piece), Ok(Next::End(at)));
                    return records;
                }
                Err(damaged) => {
                    assert_eq!(reader.next(&mut piece), Err(damaged));
                    return records;
                }
            }
        }
        assert!(piece.is_empty());
        if rest.is_empty() {
            return records;
        }
    }
    records
}

/// Whether a record's checksum is right, by the bytes alone.
fn checksum_is_right(base: u64, bytes: &[u8], record: &Record) -> bool {
    let mut at = usize::try_from(record.start.0 - base).unwrap();
    let mut whole = Vec::new();
    while whole.len() < record.bytes as usize {
        if at % 8192 == 0 {
            at += if at == 0 { 40 } else { 24 };
        }
        let length = (record.bytes as usize - whole.len()).min(8192 - at % 8192);
        whole.extend_from_slice(&bytes[at..at + length]);
        at += length;
    }
    let stored = u32::from_ne_bytes(whole[20..24].try_into().unwrap());
    crc32c::crc32c_append(crc32c::crc32c(&whole[24..]), &whole[..20]) == stored
}

/// Reads one segment after these bytes of it have been changed.
fn check_changed(
    recorded: &Recorded,
    segment: u64,
    changes: &[(usize, u8, usize)],
    pieces: &[usize],
) -> Result<(), TestCaseError> {
    let base = (recorded.start.0 / SEGMENT_BYTES + segment) * SEGMENT_BYTES;
    let original = &recorded.bytes_from(Lsn(base))[..1 << 20];
    let mut bytes = original.to_vec();
    for (at, value, length) in changes {
        let end = (at + length).min(bytes.len());
        bytes[*at..end].fill(*value);
    }
    let first = (0..bytes.len()).find(|i| bytes[*i] != original[*i]);
    let first = base + first.unwrap_or(bytes.len()) as u64;
    let written = in_pieces(recorded, Lsn(base), original, &[1 << 20]);
    let read = in_pieces(recorded, Lsn(base), &bytes, pieces);
    for record in &read {
        prop_assert!(checksum_is_right(base, &bytes, record), "{:?}", record);
    }
    let before = written
        .iter()
        .take_while(|record| last_byte(record) < first);
    let before = before.count();
    let same = read.iter().zip(&written).take_while(|(a, b)| a == b);
    let same = same.count();
    prop_assert!(same >= before, "{} < {}", same, before);
    Ok(())
}

#[test]
fn no_change_of_the_bytes_makes_a_record_that_was_not_written() {
    use proptest::collection::vec;

    let recorded = &Recorded::get();
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let change = (0_usize..1 << 20, any::<u8>(), 1_usize..40);
    let cases = (1_u64..8, vec(change, 0..6), vec(1_usize..50_000, 1..5));
    TestRunner::new(config)
        .run(&cases, |(segment, changes, pieces)| {
            check_changed(recorded, segment, &changes, &pieces)
        })
        .unwrap();
}
