//! When to run.

use jiff::{Timestamp, tz::TimeZone};

/// A cron expression in a time zone.
#[derive(Debug, Clone)]
pub struct Cron(croner::Cron);

impl Cron {
    /// Five fields, six with seconds, or a nickname such as `@daily`.
    pub fn parse(expression: &str) -> Result<Self, String> {
        croner::parser::CronParser::new()
            .parse(expression)
            .map(Self)
            .map_err(|err| err.to_string())
    }

    /// The first match after `after`; `None` when the expression never matches again.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.0
            .find_next_occurrence(&after.to_zoned(zone.clone()), false)
            .ok()
            .map(|next| next.timestamp())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn next(expression: &str, after: &str, zone: &str) -> String {
        let zone = TimeZone::get(zone).unwrap();
        Cron::parse(expression)
            .unwrap()
            .next_after(after.parse().unwrap(), &zone)
            .unwrap()
            .to_string()
    }

    #[test]
    fn a_night_is_the_time_zones() {
        assert_eq!(
            next("0 3 * * *", "2026-11-22T12:00:00Z", "UTC"),
            "2026-11-23T03:00:00Z"
        );
        assert_eq!(
            next("0 3 * * *", "2026-11-22T12:00:00Z", "Europe/Berlin"),
            "2026-11-23T02:00:00Z"
        );
        assert_eq!(
            next("@hourly", "2026-11-22T12:30:00Z", "UTC"),
            "2026-11-22T13:00:00Z"
        );
    }

    #[test]
    fn an_hour_that_summer_time_skips_costs_no_backup() {
        // On 2026-03-29 there is no 02:30 in Berlin.
        let found = next("30 2 * * *", "2026-03-28T12:00:00Z", "Europe/Berlin");
        assert!(found.starts_with("2026-03-29T0"), "{found}");
    }

    #[test]
    fn what_is_no_expression_is_said() {
        assert!(Cron::parse("at night").is_err());
    }
}
