//! Where the server itself stops when it recovers the same log, against where the searches say it does.

use std::path::Path;
use std::process::Command;

use lifeboat::services::postgres::records::{
    Kind, Record, Records, find_restore_point, find_xid, first_after, first_at,
};
use lifeboat::services::postgres::wal::Lsn;

use super::cluster::{Cluster, own, run};
use super::recorded::Recorded;
use super::{all, each};

/// Recovers to a target on top of the copy that was made before the log; returns the stopped cluster.
fn recover(recorded: &Recorded, settings: &str) -> Cluster {
    let mut cluster = Cluster::empty();
    let copy = |from: &Path, to: &Path| run(Command::new("cp").arg("-a").args([from, to]));
    copy(&recorded.base.join("."), &cluster.data);
    copy(&recorded.wal.join("."), &cluster.data.join("pg_wal"));
    let pg_wal = cluster.data.join("pg_wal");
    own(&pg_wal, 0o700);
    for entry in std::fs::read_dir(&pg_wal).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            own(&path, 0o600);
        }
    }
    let auto = cluster.data.join("postgresql.auto.conf");
    let settings = format!(
        "restore_command = 'false'\nrecovery_target_action = promote\nlog_timezone = 'UTC'\n\
         recovery_target_timeline = '1'\nmax_prepared_transactions = 10\nwal_level = logical\n\
         wal_keep_size = 1GB\nautovacuum = off\n{settings}\n"
    );
    std::fs::write(&auto, settings).unwrap();
    own(&auto, 0o600);
    let signal = cluster.data.join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    own(&signal, 0o600);
    cluster.start();
    cluster.wait_for_zero("SELECT count(*) FROM (SELECT 1 WHERE pg_is_in_recovery()) AS still");
    cluster.kill();
    cluster
}

/// That the new timeline branches off right before or behind a record of the old one.
fn assert_branched(cluster: &Cluster, kept: &[Record]) {
    let size = Recorded::size();
    let last = kept.last().unwrap();
    // The segment that holds the branch, or the one after it behind a switch.
    let segment = size.segment_at(last.end);
    let bytes = std::fs::read(cluster.data.join("pg_wal").join(size.name(2, segment))).unwrap();
    let start = size.start_of(segment);
    let mut reading = Records::new(start, size, 2, None).read(bytes.as_slice());
    let old = kept.iter().filter(|record| record.start >= start);
    for record in old {
        assert_eq!(&reading.next().unwrap().unwrap(), record);
    }
    let first = reading.next().unwrap().unwrap();
    assert_eq!(first.previous, last.start);
    let (timeline, previous_timeline) = (2, 1);
    assert_eq!(
        first.kind,
        Kind::Checkpoint {
            timeline,
            previous_timeline
        }
    );
}

fn assert_said(cluster: &Cluster, words: &str) {
    let log = cluster.log_text();
    assert!(log.contains(words), "\"{words}\" is not in: {log}");
}

fn of(records: &[Record], wanted: &Record) -> usize {
    records.iter().position(|record| record == wanted).unwrap()
}

#[test]
fn recovery_stops_before_the_first_end_of_a_transaction_after_a_time() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);
    let ends = records.iter().filter(|record| record.ending().is_some());
    let kinds = ends.clone().collect::<Vec<_>>();
    // Up to a commit, up to an abort of a prepared transaction, and past what was lost in the crash.
    let before_prepared = kinds
        .windows(2)
        .find(|pair| matches!(pair[1].kind, Kind::AbortPrepared { .. }));
    for wanted in [
        kinds[50],
        before_prepared.unwrap()[0],
        kinds[kinds.len() - 30],
    ] {
        let time = wanted.ending().unwrap().time;
        // "Z" is not known yet when this setting is read.
        let target = time.strftime("%Y-%m-%d %H:%M:%S.%6f+00");
        let stop = first_after(each(&records), time).unwrap().unwrap();
        let ending = stop.ending().unwrap();
        let cluster = recover(recorded, &format!("recovery_target_time = '{target}'"));
        assert_said(
            &cluster,
            &format!(
                "recovery stopping before {} of transaction {}, time {}",
                if ending.committed { "commit" } else { "abort" },
                ending.xid,
                ending
                    .time
                    .strftime("%Y-%m-%d %H:%M:%S.%6f")
                    .to_string()
                    .trim_end_matches('0')
            ),
        );
        assert_branched(&cluster, &records[..of(&records, &stop)]);
    }
}

#[test]
fn recovery_stops_after_a_transaction_a_restore_point_and_a_position() {
    let recorded = &Recorded::get();
    let (records, _) = all(recorded, recorded.start);

    for xid in [recorded.prepared.0[3], recorded.prepared.1[8]] {
        let stop = find_xid(each(&records), xid).unwrap().unwrap();
        let cluster = recover(recorded, &format!("recovery_target_xid = '{xid}'"));
        let what = if stop.ending().unwrap().committed {
            "commit"
        } else {
            "abort"
        };
        assert_said(
            &cluster,
            &format!("recovery stopping after {what} of transaction {xid},"),
        );
        assert_branched(&cluster, &records[..=of(&records, &stop)]);
    }

    let stop = find_restore_point(each(&records), "zwölf Uhr")
        .unwrap()
        .unwrap();
    let cluster = recover(recorded, "recovery_target_name = 'zwölf Uhr'");
    assert_said(&cluster, "recovery stopping at restore point \"zwölf Uhr\"");
    assert_branched(&cluster, &records[..=of(&records, &stop)]);

    // Within a record: the next one counts.
    let inside = Lsn(records[5000].start.0 + 8);
    let stop = first_at(each(&records), inside).unwrap().unwrap();
    assert_eq!(stop, records[5001]);
    let cluster = recover(recorded, &format!("recovery_target_lsn = '{inside}'"));
    assert_said(
        &cluster,
        &format!(
            "recovery stopping after WAL location (LSN) \"{}\"",
            stop.start
        ),
    );
    assert_branched(&cluster, &records[..=of(&records, &stop)]);
}
