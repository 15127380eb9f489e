//! The two files that make a repository readable without this program.

pub(super) const SCRIPT: &str = include_str!("RECOVER.sh");
pub(super) const README: &str = include_str!("README.txt");
