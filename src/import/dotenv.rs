//! The values of a `.env` file, as far as compose and this program agree on what they are.

/// The last value of a variable; `None` when it is not set or empty.
pub fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        line.strip_prefix(name)?.trim_start().strip_prefix('=')
    })?;
    let value = unquoted(line.trim());
    (!value.is_empty()).then_some(value)
}

/// Quotes end a value where they close; without them a comment does.
fn unquoted(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some((inner, _)) = value
            .strip_prefix(quote)
            .and_then(|rest| rest.split_once(quote))
        {
            return inner.to_owned();
        }
    }
    let end = value.find(" #").unwrap_or(value.len());
    value.get(..end).unwrap_or(value).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_compose_reads_them() {
        let text = "# N8N_ENCRYPTION_KEY=commented\nN8N_ENCRYPTION_KEY_FILE=/x\n\
            A=plain # why\nexport B = \"quo ted\" # why\nC='it#s'\nD=\nE=a#b\nA2=x\nE=last\r\n";
        for (name, expected) in [
            ("A", Some("plain")),
            ("B", Some("quo ted")),
            ("C", Some("it#s")),
            ("D", None),
            ("E", Some("last")),
            ("N8N_ENCRYPTION_KEY", None),
            ("N8N_ENCRYPTION_KEY_FILE", Some("/x")),
            ("missing", None),
        ] {
            assert_eq!(value(text, name).as_deref(), expected, "{name}");
        }
    }
}
