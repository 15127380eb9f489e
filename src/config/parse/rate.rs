//! What backups may take of the machine: a number of bytes a second, as people write it, and a priority.

use super::Mistakes;
use crate::config::Priority;

/// Slower, a backup of anything would not end.
const LEAST: u64 = 64 * 1024;

impl Mistakes {
    /// `None` for no limit.
    pub(super) fn rate(&mut self, name: &str, value: Option<String>) -> Option<u64> {
        let value = value?;
        match bytes(&value) {
            Some(0) => None,
            Some(rate) if rate >= LEAST => Some(rate),
            _ => {
                let fault = "not a number of bytes a second, at least 64KB, or 0 for no limit";
                self.wrong(name, &value, fault);
                None
            }
        }
    }

    pub(super) fn priority(&mut self, name: &str, value: Option<String>) -> Priority {
        match self.one_of(name, value, &["low", "normal"]).as_str() {
            "normal" => Priority::Normal,
            _ => Priority::Low,
        }
    }
}

/// `50MB`, `50 MiB` or `50M`: prefixes are powers of 1024, as in PostgreSQL's settings.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("/s").unwrap_or(&text);
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let factor: u64 = match unit.trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_people_write_them() {
        for (text, expected) in [
            ("50MB", Some(50 << 20)),
            (" 50 mib/s ", Some(50 << 20)),
            ("1g", Some(1 << 30)),
            ("131072", Some(131_072)),
            ("0", Some(0)),
            ("", None),
            ("MB", None),
            ("-5MB", None),
            ("1.5MB", None),
            ("5 horses", None),
            ("99999999999999999999", None),
            ("99999999999GB", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn rates_that_would_never_end_are_mistakes() {
        let mut mistakes = Mistakes::default();
        let mut rate = |text: &str| mistakes.rate("BACKUP_RATE_LIMIT", Some(text.to_owned()));
        assert_eq!(rate("64KB"), Some(65536));
        assert_eq!(rate("0"), None);
        assert_eq!(rate("10"), None);
        assert_eq!(rate("fast"), None);
        assert_eq!(mistakes.0.len(), 2, "{:?}", mistakes.0);
    }
}
