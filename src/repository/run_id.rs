//! Names of runs, and of the backups that they make: by time, and unique among hosts.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

const FORM: &str = "%Y%m%dT%H%M%SZ";
/// More than the clocks of hosts differ that are set by the network.
const SAME_TIME: SignedDuration = SignedDuration::from_mins(2);

pub fn new_id(now: Timestamp) -> String {
    let unique = super::hex(&rand::random::<[u8; 3]>());
    format!("{}-{unique}", now.strftime(FORM))
}

/// When a run began, by its id.
pub fn begun(id: &str) -> Option<Timestamp> {
    let (time, _) = id.split_once('-')?;
    let time = DateTime::strptime(FORM, time).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// Whether a backup is of a later time than now: the clock was ahead then, or is behind now.
pub fn is_ahead(id: &str, now: Timestamp) -> bool {
    begun(id).is_some_and(|begun| begun > now + SAME_TIME)
}

/// What to say of backups that are of a later time than now; they are not taken for the newest.
pub fn told_of_the_future(ids: &[String], now: Timestamp) -> Option<String> {
    let ahead: Vec<&str> = ids
        .iter()
        .map(String::as_str)
        .filter(|id| is_ahead(id, now))
        .collect();
    (!ahead.is_empty()).then(|| {
        format!(
            "of a later time than now: {}. The clock was ahead then, or is behind now; `latest` means none of these. Look at this machine's clock, and when it is right, drop them with `forget`",
            ahead.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn an_id_tells_when_its_run_began() {
        let now = Timestamp::from_second(1_760_000_000).unwrap();
        assert_eq!(begun(&new_id(now)), Some(now));
        assert_eq!(begun("no id"), None);
        assert_eq!(begun("20260101T000000Z"), None);
    }

    #[test]
    fn a_backup_of_the_future_is_told_of_and_a_neighbour_whose_clock_is_a_little_ahead_is_not() {
        let now = Timestamp::from_second(1_760_000_000).unwrap();
        let of = |seconds| new_id(now + SignedDuration::from_secs(seconds));
        let ids = [of(-3600), of(100), of(3600)];
        let told = told_of_the_future(&ids, now).unwrap();
        assert!(told.contains(&ids[2]), "{told}");
        assert!(!told.contains(&ids[0]) && !told.contains(&ids[1]), "{told}");
        assert_eq!(told_of_the_future(&ids[..2], now), None);
    }
}
