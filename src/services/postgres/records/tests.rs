//! Pages made by hand: how records are put together out of them, and where the log ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod kinds;
mod log;

use std::io::Read;

use self::log::{BASE, Log, SEGMENT, V14, V18, in_pieces, record};
use super::*;

fn starts(records: &[Record]) -> Vec<Lsn> {
    records.iter().map(|record| record.start).collect()
}

/// The sentence of an error, and its place.
fn complaint(next: Result<Next, Damaged>) -> (Lsn, String) {
    let damaged = next.unwrap_err();
    (damaged.at, damaged.to_string())
}

#[test]
fn records_are_put_together_across_pages_and_segments_in_pieces_of_any_length() {
    let mut log = Log::new();
    let mut written = Vec::new();
    // A header of a record has 24 bytes: 8, 16 and 24 of them on a page, and one that ends with it.
    for left in [8, 16, 24, 32, 0] {
        log.fill_page_up_to(left);
        written.push(log.previous);
        written.push(log.filler(50));
    }
    written.push(log.filler(100_000));
    written.push(log.filler(2_500_000));
    written.push(log.record(10, 0, 3, &[]));
    let (records, next) = log.read();
    assert_eq!((starts(&records), next), (written, Ok(Next::NeedMore)));
    for pair in records.windows(2) {
        assert_eq!(pair[1].previous, pair[0].start);
        assert!(pair[0].end <= pair[1].start);
    }
    assert_eq!(records.last().unwrap().end, log.end());
    for length in [1, 7, 23, 4096, 8191] {
        assert_eq!(
            in_pieces(Log::reader(Lsn(BASE)), &log.bytes, length).0,
            records
        );
    }
}

#[test]
fn the_page_length_is_the_one_the_log_says() {
    for page in [1024, 4096, 65536] {
        let mut log = Log::new();
        log.page = page;
        let written = [log.filler(3000), log.filler(200_000), log.filler(40)];
        assert_eq!(starts(&log.read().0), written);
    }
}

#[test]
fn reading_begins_at_a_record_or_at_a_page_behind_the_rest_of_one() {
    let mut log = Log::new();
    log.filler(100);
    let exact = log.filler(20_000);
    let second = log.filler(3 * 1024 * 1024);
    let last = log.filler(100);
    assert_eq!(starts(&log.read_from(exact).0), [exact, second, last]);
    // The rest of the second goes through whole segments.
    let page = Lsn(BASE + 8192 * 3);
    for start in [page, Lsn(BASE + SEGMENT), Lsn(BASE + 2 * SEGMENT), last] {
        let (records, next) = log.read_from(start);
        assert_eq!((starts(&records), next), (vec![last], Ok(Next::NeedMore)));
    }
    // A rest that ends with its page.
    let mut log = Log::new();
    log.filler(8192 - 40 + 8192 - 24);
    let next = log.filler(100);
    assert_eq!(next.0 % 8192, 24);
    assert_eq!(starts(&log.read_from(Lsn(BASE + 8192)).0), [next]);
}

#[test]
fn a_start_where_no_record_begins_is_refused() {
    let mut log = Log::new();
    log.filler(20_000);
    let end = log.filler(100);
    for (start, words) in [
        (BASE + 3, "no record can begin"),
        (u64::MAX - 7, "no record can begin"),
        (BASE + 8, "no record begins here"),
        (BASE + 8192 + 8, "no record begins here"),
        // The rest of the first begins there, and runs through.
        (BASE + 8192 + 24, "no record begins here"),
        (end.0 - 8, "no record begins here"),
    ] {
        let mut reader = Log::reader(Lsn(start));
        let (at, why) = complaint(reader.next(&mut log.bytes.as_slice()));
        assert_eq!(at, Lsn(start));
        assert!(
            why.contains(words) && why.contains(&at.to_string()),
            "{why}"
        );
        // And so it stays.
        assert_eq!(complaint(reader.next(&mut [].as_slice())).1, why);
    }
    log.finish_page();
    log.zeroes(8192);
    let beyond = Lsn(log.end().0 - 8);
    let (at, why) = complaint(log.read_from(beyond).1);
    assert!(at == beyond && why.contains("written only up to"), "{why}");
}

#[test]
fn zeroes_end_the_log() {
    let mut log = Log::new();
    log.filler(100);
    let end = log.end();
    log.finish_page();
    let (records, next) = log.read();
    assert_eq!((records.len(), next), (1, Ok(Next::End(end))));
    assert_eq!(log.read_from(end).1, Ok(Next::End(end)));

    // With the page.
    let mut log = Log::new();
    log.fill_page_up_to(0);
    log.zeroes(8192);
    assert_eq!(log.read().1, Ok(Next::End(Lsn(BASE + 8192))));

    // Within a record: it is none.
    let mut log = Log::new();
    log.filler(100);
    let cut = log.filler(20_000);
    log.bytes.truncate(8192);
    log.zeroes(8192);
    let (records, next) = log.read();
    assert_eq!((records.len(), next), (1, Ok(Next::End(cut))));

    let mut nothing = Log::new();
    nothing.zeroes(SEGMENT);
    assert_eq!(nothing.read().1, Ok(Next::End(Lsn(BASE))));
    assert_eq!(
        in_pieces(Log::reader(Lsn(BASE)), &[], 1).1,
        Ok(Next::NeedMore)
    );
}

#[test]
fn pages_of_an_earlier_use_of_the_file_end_the_log() {
    let mut old = Log::new();
    old.filler(2_000_000);
    // Of the second record no page remains, or all of it, or its beginning.
    let page = Lsn(BASE + 8192);
    for (length, whole, end) in [
        (100, 1, page),
        (8192 - 24, 2, Lsn(page.0 + 8192)),
        (20_000, 1, Lsn(page.0 + 24)),
    ] {
        let mut log = Log::new();
        log.filler(8192 - 40);
        log.filler(length);
        log.bytes.truncate(log.bytes.len() / 8192 * 8192);
        // The rest is as it was, at another position.
        log.bytes.extend(&old.bytes[..8192]);
        let (records, next) = log.read();
        assert_eq!((records.len(), next), (whole, Ok(Next::End(end))));
    }
}

#[test]
fn no_changed_bit_of_a_record_goes_unnoticed() {
    let mut log = Log::new();
    log.filler(60);
    let changed = log.filler(60);
    let end = log.end();
    log.filler(60);
    for at in (changed.0 - BASE)..(end.0 - BASE - 4) {
        for bit in 0..8 {
            let mut bytes = log.bytes.clone();
            bytes[usize::try_from(at).unwrap()] ^= 1 << bit;
            let (records, next) = in_pieces(Log::reader(Lsn(BASE)), &bytes, usize::MAX);
            assert_eq!(records.len(), 1, "byte {at}");
            // A length that has grown makes it wait.
            assert!(
                !matches!(next, Ok(Next::Record(_) | Next::End(_))),
                "{next:?}"
            );
        }
    }
    log.bytes[usize::try_from(end.0 - BASE - 5).unwrap()] ^= 1;
    let (at, why) = complaint(log.read().1);
    assert!(at == changed && why.contains("checksum is wrong"), "{why}");
}

#[test]
fn a_record_that_does_not_follow_the_one_before_it_is_damage() {
    let mut log = Log::new();
    log.filler(60);
    log.previous = Lsn(BASE);
    let odd = log.filler(60);
    let (at, why) = complaint(log.read().1);
    assert!(at == odd && why.contains("links back to 0/500000"), "{why}");

    // Of the first it is only known that it looks back.
    let mut log = Log::new();
    log.previous = Lsn(BASE + 40);
    log.filler(60);
    assert!(complaint(log.read().1).1.contains("links back"));

    let mut log = Log::new();
    log.filler(60);
    let short = log.next_start();
    log.put(&23_u32.to_ne_bytes(), 4);
    let (at, why) = complaint(log.read().1);
    assert!(at == short && why.contains("23 is no length"), "{why}");
}

#[test]
fn pages_must_continue_what_the_last_one_began() {
    // The rest is missing: another record begins.
    let mut log = Log::new();
    log.filler(20_000);
    log.bytes.truncate(8192);
    log.filler(100);
    let (at, why) = complaint(log.read().1);
    assert!(
        at == Lsn(BASE + 8192) && why.contains("should follow"),
        "{why}"
    );

    // A rest without its beginning.
    let mut log = Log::new();
    log.fill_page_up_to(0);
    log.put(&[1; 100], 100);
    let (at, why) = complaint(log.read().1);
    assert!(
        at == Lsn(BASE + 8192) && why.contains("the page says 100"),
        "{why}"
    );
}

#[test]
fn a_lost_rest_is_passed_over_when_the_log_says_so() {
    let broken = |says: Lsn| {
        let mut log = Log::new();
        let first = log.filler(100);
        let lost = log.filler(20_000);
        log.bytes.truncate(8192 * 2);
        log.flags = 0x0008;
        log.previous = first;
        let body = [says.0.to_ne_bytes(), [1; 8]].concat();
        log.record(0, 0xD0, 0, &log::main_data(&body));
        log.filler(100);
        (log, lost)
    };
    let (_, lost) = broken(Lsn(0));
    let (log, _) = broken(lost);
    let (records, next) = log.read();
    assert_eq!((records.len(), next), (3, Ok(Next::NeedMore)));
    assert_eq!(records[1].kind, Kind::Overwrite { lost });
    // Also from within what was lost, and from what stands in its place.
    for start in [Lsn(BASE + 8192), records[1].start] {
        assert_eq!(log.read_from(start).0, records[1..]);
    }

    let (log, _) = broken(Lsn(lost.0 + 8));
    let (at, why) = complaint(log.read().1);
    assert_eq!(at, Lsn(BASE + 8192 * 2 + 24));
    assert!(
        why.contains(&format!("the record of {lost} was lost")),
        "{why}"
    );
}

#[test]
fn pages_of_another_log_are_refused() {
    let log = |change: &dyn Fn(&mut Log)| {
        let mut log = Log::new();
        log.fill_page_up_to(0);
        change(&mut log);
        log.filler(100);
        log
    };
    // A promotion within the segment; then the one that it is read as.
    for timeline in [2, 3] {
        assert_eq!(log(&|log| log.timeline = timeline).read().0.len(), 2);
    }
    for (log, words) in [
        (log(&|log| log.timeline = 4), "timeline 4, after 3"),
        (
            log(&|log| log.timeline = 0),
            "timeline 0, the one before it to 1",
        ),
        (
            log(&|log| log.magic = V18),
            "format D118, those before it D110",
        ),
        (log(&|log| log.magic = 1), "no page of the log begins"),
        (log(&|log| log.flags = 0x20), "no page of the log begins"),
        (log(&|log| log.flags = 0x02), "wrong length"),
        (log(&|log| log.flags = 0x01), "with no bytes"),
    ] {
        let (at, why) = complaint(log.read().1);
        assert!(at == Lsn(BASE + 8192) && why.contains(words), "{why}");
    }
    let first = |at: usize, bytes: &[u8]| {
        let mut log = Log::new();
        log.filler(100);
        log.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        complaint(log.read().1).1
    };
    assert!(first(0, &0xD119_u16.to_ne_bytes()).contains("none of PostgreSQL 13 to 18"));
    assert!(first(8, &(BASE + SEGMENT).to_ne_bytes()).contains("that of 0/600000"));
    assert!(first(24, &43_u64.to_ne_bytes()).contains("cluster 43 instead of 42"));
    assert!(first(32, &(2_u32 << 20).to_ne_bytes()).contains("segments of 2097152"));
    for page in [0, 512, 8000, 1 << 17] {
        assert!(first(36, &u32::to_ne_bytes(page)).contains("the page says that it has"));
    }
    // Without the cluster's number the first page gives it.
    let mut log = Log::new();
    log.filler(1_500_000);
    let open = || Records::new(Lsn(BASE), Log::size(), 1, None);
    assert_eq!(in_pieces(open(), &log.bytes, usize::MAX).0.len(), 1);
    log.bytes[(1 << 20) + 24] ^= 1;
    let (_, why) = complaint(in_pieces(open(), &log.bytes, usize::MAX).1);
    assert!(why.contains("cluster 43 instead of 42"), "{why}");
}

#[test]
fn the_rest_of_a_segment_is_passed_over_after_a_switch() {
    let mut log = Log::new();
    log.magic = V14;
    let switch = log.record(0, 0x40, 0, &[]);
    let mut rest = log.bytes.len();
    // Whatever is there.
    while rest < 1 << 20 {
        log.bytes.push(u8::try_from(rest % 251).unwrap());
        rest += 1;
    }
    let next = log.filler(100);
    let (records, _) = log.read();
    assert_eq!(starts(&records), [switch, next]);
    assert_eq!(records[0].kind, Kind::Switch);
    assert_eq!(records[0].end, Lsn(BASE + SEGMENT));
    assert_eq!(next, Lsn(BASE + SEGMENT + 40));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the disk is on fire"))
    }
}

#[test]
fn a_source_is_read_until_it_the_log_or_the_reader_ends() {
    let mut log = Log::new();
    let first = log.filler(300_000);
    let second = log.filler(300_000);
    let bytes = log.bytes.as_slice();
    let mut reading = Log::reader(Lsn(BASE)).read(bytes);
    assert_eq!(reading.end(), None);
    assert_eq!(
        reading
            .by_ref()
            .map(|r| r.unwrap().start)
            .collect::<Vec<_>>(),
        [first, second]
    );
    assert_eq!(reading.end(), Some(End::NeedMore(log.end())));

    let mut reading = Log::reader(Lsn(BASE)).read(bytes[..500_000].chain(Broken));
    assert_eq!(reading.next().unwrap().unwrap().start, first);
    let err = reading.next().unwrap().unwrap_err();
    assert!(err.to_string().contains("on fire"), "{err}");
    assert!(reading.next().is_none() && reading.end().is_none());
    assert_eq!(reading.valid_until(), Lsn(second.0));

    log.finish_page();
    let mut reading = Log::reader(Lsn(BASE)).read(log.bytes.as_slice());
    assert_eq!(reading.by_ref().count(), 2);
    let end = reading.end().unwrap();
    assert_eq!(
        (end, end.lsn()),
        (End::At(reading.valid_until()), reading.valid_until())
    );

    log.bytes[200] ^= 1;
    let mut reading = Log::reader(Lsn(BASE)).read(log.bytes.as_slice());
    let err = reading.next().unwrap().unwrap_err();
    assert!(matches!(err, ReadError::Damaged(_)), "{err}");
    assert!(
        err.to_string()
            .starts_with("the write-ahead log is damaged at 0/500028"),
        "{err}"
    );
    assert!(reading.next().is_none());
    // A stray record, to be sure that the helper makes one.
    assert_eq!(record(0, 0, 0, Lsn(0), &[]).len(), 24);
}
