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

/// What to say when a backup is there already that is of a later time: it stays the newest one until then.
pub fn told_of_the_future(newest: &str, now: Timestamp) -> Option<String> {
    let ahead = begun(newest)?;
    (ahead > now + SAME_TIME).then(|| {
        format!(
            "backup {newest} is of a later time than now: the clock was ahead then, or is behind now. Until {ahead:.0} it is taken for the newest one, so say the backup that you mean to restore; look at this machine's clock, and when it is right, run `forget {newest}`"
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

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
        let ahead = |seconds| new_id(now + SignedDuration::from_secs(seconds));
        let told = told_of_the_future(&ahead(3600), now).unwrap();
        assert!(told.contains("2025-10-09T09:53:20Z"), "{told}");
        assert_eq!(told_of_the_future(&ahead(100), now), None);
        assert_eq!(told_of_the_future(&ahead(-3600), now), None);
    }
}
