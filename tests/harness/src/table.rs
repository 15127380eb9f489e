//! Plain text tables and the checks that fill them.

use std::fmt::Display;

use serde::Serialize;

use crate::stack::Service;

/// One comparison of what should be there with what is.
#[derive(Serialize)]
pub struct Check {
    pub service: Service,
    pub what: String,
    pub expected: String,
    pub found: String,
    pub ok: bool,
}

impl Check {
    /// Compares two values by equality.
    pub fn equal<T: Display + PartialEq>(
        service: Service,
        what: impl Into<String>,
        expected: &T,
        found: &T,
    ) -> Self {
        Self::new(service, what, expected, found, expected == found)
    }

    pub fn new(
        service: Service,
        what: impl Into<String>,
        expected: impl Display,
        found: impl Display,
        ok: bool,
    ) -> Self {
        Self {
            service,
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
            ok,
        }
    }

    /// States that a check could not even be made.
    pub fn failed(service: Service, what: impl Into<String>, error: &anyhow::Error) -> Self {
        Self::new(service, what, "an answer", format!("{error:#}"), false)
    }
}

/// Lays out checks as a table with a summary line.
pub fn render_checks(checks: &[Check]) -> String {
    let rows = checks.iter().map(|check| {
        let ok = if check.ok { "ok" } else { "MISMATCH" };
        vec![
            check.service.to_string(),
            check.what.clone(),
            check.expected.clone(),
            check.found.clone(),
            ok.to_owned(),
        ]
    });
    let wrong = checks.iter().filter(|check| !check.ok).count();
    let text = render(&["service", "what", "expected", "found", "ok"], rows);
    let verdict = match wrong {
        0 => format!("all {} checks agree\n", checks.len()),
        n => format!("{n} of {} checks do not agree\n", checks.len()),
    };
    text + &verdict
}

/// Lays out rows in columns as wide as their longest cell, up to 72 characters.
pub fn render(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    const WIDEST: usize = 72;
    let header = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count().min(WIDEST))
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_laid_out_in_columns_with_a_verdict() {
        let checks = [
            Check::equal(Service::Postgres, "rows", &10, &10),
            Check::equal(Service::Qdrant, "points", &5, &4),
        ];
        let text = render_checks(&checks);
        assert!(text.contains("postgres  rows    10        10     ok\n"));
        assert!(text.contains("qdrant    points  5         4      MISMATCH\n"));
        assert!(text.ends_with("1 of 2 checks do not agree\n"));
    }
}
