//! Settings of point-in-time recovery.

use std::time::Duration;

use super::Mistakes;
use crate::config::PitrConfig;

const INTERVAL: Duration = Duration::from_secs(10);
const MAX_WAL_BYTES: u64 = 4 << 30;

pub(super) fn parse(
    mistakes: &mut Mistakes,
    on: Option<String>,
    interval: Option<String>,
    keep_days: Option<String>,
    max_wal: Option<String>,
) -> PitrConfig {
    let given = interval.clone().unwrap_or_default();
    let mut every = mistakes.duration("PITR_INTERVAL", interval, INTERVAL);
    if !(Duration::from_secs(1)..=Duration::from_hours(1)).contains(&every) {
        mistakes.wrong("PITR_INTERVAL", &given, "not between 1s and 1h");
        every = INTERVAL;
    }
    PitrConfig {
        on: mistakes.yes_no("PITR", on),
        interval: every,
        keep_days: mistakes.within("PITR_KEEP_DAYS", keep_days, 7, 1, 3660),
        max_wal_bytes: max_wal.map_or(MAX_WAL_BYTES, |given| {
            size(&given).unwrap_or_else(|| {
                mistakes.wrong("PITR_MAX_WAL", &given, "not a size such as 512MB or 4GB");
                MAX_WAL_BYTES
            })
        }),
    }
}

/// Bytes, with a unit as PostgreSQL takes it: powers of 1024.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_or_none() {
        for (text, bytes) in [
            ("17", 17),
            ("4GB", 4 << 30),
            ("512 mb", 512 << 20),
            ("1k", 1024),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "GB", "4 GBs", "-1", "1.5GB", "99999999999TB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
