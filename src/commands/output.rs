//! Text for people: sizes, durations, times, tables, progress.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::repository::session::Session;

pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Prints `value` as JSON, or else what `text` makes of it.
pub fn print<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let out = if json {
        format!("{}\n", serde_json::to_string_pretty(value)?)
    } else {
        text(value)
    };
    super::print(&out)
}

/// Bytes with a unit, such as `1.4 GB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut tenths = u128::from(n) * 10;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths = (tenths + 500) / 1000;
        unit += 1;
    }
    format!(
        "{}.{} {}",
        tenths / 10,
        tenths % 10,
        UNITS.get(unit).unwrap_or(&"TB")
    )
}

/// A duration a person can read, such as `1m 4s` or `0.3 s`.
pub fn duration(d: Duration) -> String {
    let secs = d.as_secs();
    match secs {
        0..60 => format!("{secs}.{} s", d.subsec_millis() / 100),
        60..3600 => format!("{}m {}s", secs / 60, secs % 60),
        _ => format!("{}h {}m", secs / 3600, secs / 60 % 60),
    }
}

/// A time in the configured zone.
pub fn time(t: Timestamp, zone: &str) -> String {
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    t.to_zoned(zone)
        .strftime("%Y-%m-%d %H:%M:%S %Z")
        .to_string()
}

/// Columns aligned by their widest cell; `right` marks columns of numbers.
pub fn table(header: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, width), right) in cells.zip(&widths).zip(right) {
            if !out.is_empty() {
                out.push_str("  ");
            }
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if *right {
                out.extend([&gap, cell]);
            } else {
                out.extend([cell, &gap]);
            }
        }
        format!("{}\n", out.trim_end())
    };
    let mut out = line(&mut header.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// A bar on a terminal that follows a backup; nothing elsewhere.
pub struct BackupBar {
    bar: Option<ProgressBar>,
    ticker: Option<tokio::task::JoinHandle<()>>,
}

impl BackupBar {
    pub const fn hidden() -> Self {
        Self {
            bar: None,
            ticker: None,
        }
    }

    /// Whether there is somebody to see it.
    pub fn is_wanted(json: bool) -> bool {
        !json && stderr_is_terminal()
    }

    pub fn start(session: Arc<Session>, estimate_bytes: u64) -> Self {
        let bar = ProgressBar::new(estimate_bytes.max(1));
        if let Ok(style) = ProgressStyle::with_template(
            "{msg:10} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {elapsed}",
        ) {
            bar.set_style(style);
        }
        let follow = bar.clone();
        let ticker = tokio::spawn(async move {
            loop {
                let done = session.progress.raw_bytes();
                follow.set_length(estimate_bytes.max(done).max(1));
                follow.set_position(done);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Self {
            bar: Some(bar),
            ticker: Some(ticker),
        }
    }

    pub fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }
}

impl Drop for BackupBar {
    fn drop(&mut self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_well() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_449_000, "1.4 MB"),
            (999_960_000, "1.0 GB"),
            (2_000_000_000_000, "2.0 TB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(duration(Duration::from_millis(350)), "0.3 s");
        assert_eq!(duration(Duration::from_secs(64)), "1m 4s");
        assert_eq!(duration(Duration::from_mins(121)), "2h 1m");
    }
}
