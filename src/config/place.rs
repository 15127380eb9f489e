//! Where the repository is.

use std::fmt;
use std::path::{Path, PathBuf};

/// A directory, or a prefix of an S3 bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryPlace {
    Directory(PathBuf),
    S3 { bucket: String, prefix: String },
}

impl RepositoryPlace {
    /// The directory, when it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(dir) => Some(dir),
            Self::S3 { .. } => None,
        }
    }

    /// Understands a place as `LIFEBOAT_REPOSITORY` gives it; else says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("s3://") else {
            return match text.split_once("://") {
                Some((scheme, _)) => Err(format!(
                    "{scheme}:// is not known here, only a directory or s3://bucket/prefix"
                )),
                None => Ok(Self::Directory(PathBuf::from(text))),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(fits) {
            return Err(format!(
                "\"{}\" cannot name a bucket",
                bucket.escape_debug()
            ));
        }
        let prefix = prefix.trim_matches('/');
        let plain = |part: &str| {
            !matches!(part, "" | "." | "..") && part.chars().all(|c| fits(c) || "=+@,~".contains(c))
        };
        if !prefix.is_empty() && !prefix.split('/').all(plain) {
            return Err(format!(
                "\"{}\" cannot be a prefix: letters, digits and ._-=+@,~ between single slashes can",
                prefix.escape_debug()
            ));
        }
        Ok(Self::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for RepositoryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}
