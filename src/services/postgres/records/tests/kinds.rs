//! What records say, and what is searched by it.

use jiff::Timestamp;

use super::log::{BASE, Log, V14, V15, V18, main_data};
use super::{complaint, starts};
use crate::services::postgres::records::*;
use crate::services::postgres::wal::Lsn;

/// 2026-11-23 09:00:00.000001 UTC, as PostgreSQL has it.
const TIME: i64 = 848_739_600_000_001;

fn time() -> Timestamp {
    "2026-11-23T09:00:00.000001Z".parse().unwrap()
}

/// The kind of a log's only record, or why it is none.
fn kind_of(magic: u16, manager: u8, info: u8, body: &[u8]) -> Result<Kind, String> {
    let mut log = Log::new();
    log.magic = magic;
    let at = log.record(manager, info, 9, body);
    let (mut records, next) = log.read();
    if let Some(record) = records.pop() {
        return Ok(record.kind);
    }
    let (place, why) = complaint(next);
    assert_eq!(place, at);
    Err(why)
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

#[test]
fn ends_of_transactions_have_their_time_and_xid() {
    let body = main_data(&TIME.to_ne_bytes());
    for magic in [V14, V15, V18] {
        let kind = |info| kind_of(magic, 1, info, &body).unwrap();
        let (time, xid) = (time(), 9);
        assert_eq!(kind(0x00), Kind::Commit { time, xid });
        assert_eq!(kind(0x20), Kind::Abort { time, xid });
        assert_eq!(kind(0x10), Kind::Prepare);
        // Assignments and invalidations.
        assert_eq!(kind(0x50), Kind::Other);
        assert_eq!(kind(0x60), Kind::Other);
    }
    // Another resource manager's numbers mean something else.
    assert_eq!(kind_of(V15, 10, 0x00, &body), Ok(Kind::Other));
}

/// The main data of a prepared transaction's end with all lists in it.
fn prepared(statistics_bytes: usize, count: u32) -> Vec<u8> {
    let mut flags = 0x1F | 0x20 | 0x80;
    if statistics_bytes > 0 {
        flags |= 0x100;
    }
    let mut data = TIME.to_ne_bytes().to_vec();
    data.extend(numbers(&[flags, 1, 2]));
    for item in [4, 12, statistics_bytes, 16] {
        if item > 0 {
            data.extend(count.to_ne_bytes());
            data.resize(data.len() + item * count as usize, 0xEE);
        }
    }
    data.extend(numbers(&[777]));
    data.extend(b"the name\0 and an origin");
    data
}

#[test]
fn a_prepared_transaction_has_its_own_xid_behind_lists_of_any_length() {
    for (magic, statistics_bytes) in [(V14, 0), (0xD106, 0), (V15, 12), (0xD116, 12), (V18, 16)] {
        for count in [0, 1, 300, 20_000] {
            let body = main_data(&prepared(statistics_bytes, count));
            let kind = |info| kind_of(magic, 1, info, &body).unwrap();
            let (time, xid) = (time(), 777);
            assert_eq!(kind(0xB0), Kind::CommitPrepared { time, xid });
            assert_eq!(kind(0xC0), Kind::AbortPrepared { time, xid });
        }
    }
}

#[test]
fn an_end_of_a_transaction_without_its_fields_is_damage() {
    let whole = prepared(12, 2);
    for length in [0, 7, 11, 14, 30, whole.len() - 27] {
        let why = kind_of(V15, 1, 0xB0, &main_data(&whole[..length])).unwrap_err();
        assert!(why.contains("shorter than its fields"), "{length}: {why}");
    }
    // No flags; none of a prepared transaction; lists of less than nothing, and of more than there is.
    let time = TIME.to_ne_bytes();
    for (info, fields) in [
        (0x30, vec![0x10, 1, 1, 1]),
        (0xB0, vec![0x01, 1, 1, 1]),
        (0xB0, vec![0x12, u32::MAX, 1, 1]),
        (0xB0, vec![0x12, i32::MAX as u32, 1, 1]),
    ] {
        let data = [time.as_slice(), &numbers(&fields)].concat();
        let why = kind_of(V15, 1, info, &main_data(&data)).unwrap_err();
        assert!(why.contains("shorter than its fields"), "{why}");
    }
    assert!(kind_of(V15, 1, 0x00, &main_data(&time[..7])).is_err());
}

#[test]
fn times_outside_of_the_calendar_are_its_ends() {
    for (microseconds, expected) in [(i64::MAX, Timestamp::MAX), (i64::MIN, Timestamp::MIN)] {
        let body = main_data(&microseconds.to_ne_bytes());
        let Ok(Kind::Commit { time, .. }) = kind_of(V15, 1, 0, &body) else {
            panic!("no commit");
        };
        assert_eq!(time, expected);
    }
}

#[test]
fn restore_points_checkpoints_and_promotions_are_told() {
    let mut data = TIME.to_ne_bytes().to_vec();
    data.extend("vor dem Essen äöü".as_bytes());
    data.resize(8 + 64, 0);
    let name = "vor dem Essen äöü".to_owned();
    let point = Kind::RestorePoint { time: time(), name };
    assert_eq!(kind_of(V15, 0, 0x70, &main_data(&data)), Ok(point));
    assert!(kind_of(V15, 0, 0x70, &main_data(&data[..71])).is_err());

    let data = numbers(&[1, 2, 7, 6, 5]);
    let (timeline, previous_timeline) = (7, 6);
    for info in [0x00, 0x10] {
        let checkpoint = Kind::Checkpoint {
            timeline,
            previous_timeline,
        };
        assert_eq!(kind_of(V18, 0, info, &main_data(&data)), Ok(checkpoint));
    }
    let promotion = Kind::EndOfRecovery {
        timeline,
        previous_timeline,
    };
    assert_eq!(kind_of(V18, 0, 0x90, &main_data(&data)), Ok(promotion));
    assert!(kind_of(V18, 0, 0x90, &main_data(&data[..12])).is_err());
    for other in [0x20, 0x30, 0x50, 0x60, 0x80, 0xA0, 0xB0, 0xE0] {
        assert_eq!(kind_of(V18, 0, other, &main_data(&data)), Ok(Kind::Other));
    }
}

const DATA: u8 = 0x20;
const IMAGE: u8 = 0x10;
const SAME: u8 = 0x80;

/// A block's header with an image of 100 bytes that says this of itself.
fn image(id: u8, about: u8, hole: bool) -> Vec<u8> {
    let mut header = vec![id, IMAGE, 0, 0, 100, 0, 50, 0, about];
    if hole {
        header.extend([1, 2]);
    }
    header.extend([9; 12 + 4]);
    header
}

/// A block's header with so much data.
fn block(id: u8, flags: u8, length: u8) -> Vec<u8> {
    let mut header = vec![id, flags, length, 0];
    let relation = if flags & SAME == 0 { 12 } else { 0 };
    header.resize(header.len() + relation + 4, 9);
    header
}

#[test]
fn the_main_data_is_found_behind_blocks_and_images() {
    let commit = TIME.to_ne_bytes();
    let mut body = block(0, DATA, 30);
    body.extend(block(1, SAME | DATA, 5));
    body.extend(image(7, 0x01, false));
    body.extend(block(32, SAME, 0));
    // Where it comes from, the transaction around, the length.
    body.extend([253, 1, 2, 252, 1, 2, 3, 4, 255, 8]);
    body.resize(body.len() + 30 + 5 + 100, 0xEE);
    body.extend(commit);
    let (time, xid) = (time(), 9);
    assert_eq!(kind_of(V15, 1, 0, &body), Ok(Kind::Commit { time, xid }));
    let mut log = Log::new();
    log.record(1, 0, 9, &body);
    let record = log.read().0.remove(0);
    assert_eq!(
        (record.image_bytes, record.bytes as usize),
        (100, 24 + body.len())
    );

    // All 33 blocks, with everything.
    let mut body: Vec<u8> = (0..=32).flat_map(|id| image(id, 0x05, true)).collect();
    body.extend([253, 1, 2, 252, 1, 2, 3, 4, 254, 8, 0, 0, 0]);
    body.resize(body.len() + 33 * 100, 0xEE);
    body.extend(commit);
    assert_eq!(kind_of(V15, 1, 0, &body), Ok(Kind::Commit { time, xid }));
}

#[test]
fn compressed_images_are_marked_otherwise_since_15() {
    // What it says of itself; whether the hole's length follows in 14, and in 15.
    for (about, in_14, in_15) in [
        (0x01, false, false),
        // 14: compressed; 15: to be applied.
        (0x03, true, false),
        (0x02, false, false),
        // 14: to be applied; 15: pglz.
        (0x05, false, true),
        (0x04, false, false),
        (0x09, false, true),
        (0x11, false, true),
    ] {
        for (magic, hole) in [(V14, in_14), (0xD106, in_14), (V15, in_15), (V18, in_15)] {
            let mut body = image(0, about, hole);
            body.extend([255, 8]);
            body.resize(body.len() + 100, 0xEE);
            body.extend(TIME.to_ne_bytes());
            let kind = kind_of(magic, 1, 0, &body).unwrap();
            assert!(
                matches!(kind, Kind::Commit { time: at, .. } if at == time()),
                "{about}"
            );
        }
    }
}

#[test]
fn parts_that_do_not_add_up_are_damage() {
    let too_many: Vec<u8> = [253, 0, 0].repeat(400);
    for (body, words) in [
        (vec![255], "ends within"),
        (vec![255, 3, 1, 2], "do not add up"),
        (vec![255, 1, 1, 2], "do not add up"),
        (vec![254, 255, 255, 255, 255, 1], "do not add up"),
        (vec![253], "ends within"),
        (vec![33, 0, 0, 0], "unknown sort"),
        (vec![251, 0, 0, 0], "unknown sort"),
        (block(0, SAME, 0), "of the relation of the one before"),
        (block(0, DATA, 1), "do not add up"),
        ([block(1, 0, 0), block(1, 0, 0)].concat(), "out of order"),
        ([block(1, 0, 0), block(0, 0, 0)].concat(), "out of order"),
        ([too_many, vec![255, 1, 1]].concat(), "ends within"),
    ] {
        let why = kind_of(V15, 10, 0, &body).unwrap_err();
        assert!(why.contains(words), "{body:?}: {why}");
    }
}

/// Ends of transactions and other records, with times that are not in order.
fn history() -> (Log, Vec<Lsn>) {
    let mut log = Log::new();
    let at = |seconds: i64| (TIME + seconds * 1_000_000).to_ne_bytes();
    let mut point = at(100).to_vec();
    point.extend(b"lunch");
    point.resize(8 + 64, 0);
    let prepared = [at(30).as_slice(), &numbers(&[0x10, 500])].concat();
    let starts = vec![
        log.record(1, 0x00, 501, &main_data(&at(10))),
        log.record(0, 0x70, 0, &main_data(&point)),
        log.record(1, 0x20, 502, &main_data(&at(20))),
        log.record(1, 0xB0, 503, &main_data(&prepared)),
        log.record(1, 0x00, 504, &main_data(&at(15))),
        log.record(0, 0x70, 0, &main_data(&point)),
        log.record(1, 0x20, 505, &main_data(&at(40))),
    ];
    (log, starts)
}

fn found(result: Result<Option<Record>, ReadError>) -> Option<Lsn> {
    result.unwrap().map(|record| record.start)
}

#[test]
fn a_time_is_found_by_ends_of_transactions_alone_and_in_the_order_of_the_log() {
    let (log, at) = history();
    assert_eq!(starts(&log.read().0), at);
    let after = |seconds: i64, nanoseconds: i64| {
        let wanted = time() + jiff::SignedDuration::from_secs(seconds);
        let wanted = wanted + jiff::SignedDuration::from_nanos(nanoseconds);
        found(first_after(
            Log::reader(Lsn(BASE)).read(log.bytes.as_slice()),
            wanted,
        ))
    };
    assert_eq!(after(9, 0), Some(at[0]));
    assert_eq!(after(10, -1), Some(at[0]));
    // Later, and not at the same time; the restore point says 100.
    assert_eq!(after(10, 0), Some(at[2]));
    assert_eq!(after(15, 0), Some(at[2]));
    assert_eq!(after(20, 0), Some(at[3]));
    assert_eq!(after(30, 0), Some(at[6]));
    assert_eq!(after(40, 0), None);
}

#[test]
fn transactions_restore_points_and_positions_are_found() {
    let (log, at) = history();
    let read = || Log::reader(Lsn(BASE)).read(log.bytes.as_slice());
    for (xid, expected) in [(501, 0), (502, 2), (500, 3), (505, 6)] {
        assert_eq!(found(find_xid(read(), xid)), Some(at[expected]));
    }
    // The session that ended another's transaction has not ended its own.
    assert_eq!(found(find_xid(read(), 503)), None);
    assert_eq!(found(find_restore_point(read(), "lunch")), Some(at[1]));
    assert_eq!(found(find_restore_point(read(), "lun")), None);
    assert_eq!(found(first_at(read(), at[4])), Some(at[4]));
    assert_eq!(found(first_at(read(), Lsn(at[4].0 + 1))), Some(at[5]));
    assert_eq!(found(first_at(read(), log.end())), None);
    // The one before the abort, though not the latest.
    assert_eq!(found(last_commit(read())), Some(at[4]));
}

#[test]
fn a_search_says_when_it_could_not_look() {
    let (mut log, at) = history();
    let broken = usize::try_from(at[3].0 - BASE).unwrap() + 30;
    log.bytes[broken] ^= 1;
    let read = || Log::reader(Lsn(BASE)).read(log.bytes.as_slice());
    assert_eq!(found(find_xid(read(), 502)), Some(at[2]));
    assert!(find_xid(read(), 505).is_err());
    assert!(last_commit(read()).is_err());
    assert!(first_after(read(), Timestamp::MAX).is_err());
}
