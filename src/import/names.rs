//! Names of archives: distinct, and such as an archive can have.

use std::collections::BTreeSet;

/// Leaves room for what makes a name distinct.
const MAX_BYTES: usize = 80;

/// The names that are taken.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// The wanted name, of `[a-z0-9._-]`, with a number behind it when it is taken.
    pub fn distinct(&mut self, wanted: &str) -> String {
        let wanted = wanted.get(..MAX_BYTES).unwrap_or(wanted);
        let mut name = wanted.to_owned();
        let mut number = 2;
        while !self.0.insert(name.clone()) {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::session::is_archive_name;

    #[test]
    fn names_are_distinct_and_not_too_long() {
        let mut names = Names::default();
        let long = "x".repeat(255);
        let made = ["pg", "pg", "pg-2", "pg", &long, &long].map(|name| names.distinct(name));
        assert_eq!(
            made.iter().take(4).collect::<Vec<_>>(),
            ["pg", "pg-2", "pg-2-2", "pg-3"]
        );
        assert!(made.iter().all(|name| is_archive_name(name)), "{made:?}");
        assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len());
    }
}
