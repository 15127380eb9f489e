//! `backup_manifest`, by which PostgreSQL's own `pg_verifybackup` checks an unpacked backup ("Backup Manifest
//! Format" in its manual).
//!
//! A line a file is spooled to disk as the file is archived, because a cluster may have more files than memory
//! should hold lines of. WAL and the list itself are not in it, by the format's own rules.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::wal::Lsn;
use crate::archive::FileSum;

/// What the file is called, at the root of the data directory.
pub const NAME: &str = "backup_manifest";

/// The list of one backup's files, while it grows.
pub struct Listing {
    spool: BufWriter<File>,
    /// Of all that is spooled: the last line tells it.
    hash: Sha256,
    has_files: bool,
}

impl Listing {
    /// Begins a list in an unnamed file below `scratch`.
    pub fn begin(scratch: &Path, major: u32, system_identifier: u64) -> io::Result<Self> {
        let mut listing = Self {
            spool: BufWriter::new(tempfile::tempfile_in(scratch)?),
            hash: Sha256::new(),
            has_files: false,
        };
        // From 17 on a list tells which cluster it is of.
        let head = if major >= 17 {
            format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_identifier},\n"
            )
        } else {
            "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned()
        };
        listing.write(&head)?;
        listing.write("\"Files\": [")?;
        Ok(listing)
    }

    /// Adds a file by its name in the archive.
    pub fn add(&mut self, name: &str, sum: &FileSum) -> io::Result<()> {
        let separator = if self.has_files { ",\n" } else { "\n" };
        self.has_files = true;
        let name = serde_json::to_string(name)?;
        let modified = Timestamp::from_second(sum.mtime_secs)
            .unwrap_or_default()
            .strftime("%Y-%m-%d %H:%M:%S GMT");
        // The server writes the sum as it lies in its memory.
        let checksum = crate::repository::hex(&sum.crc32c.to_ne_bytes());
        self.write(&format!(
            "{separator}{{ \"Path\": {name}, \"Size\": {}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}",
            sum.bytes
        ))
    }

    /// Adds a file that is written from memory.
    pub fn add_bytes(&mut self, name: &str, mtime_secs: i64, body: &[u8]) -> io::Result<()> {
        let sum = FileSum {
            bytes: body.len() as u64,
            mtime_secs,
            crc32c: crc32c::crc32c(body),
        };
        self.add(name, &sum)
    }

    /// Ends the list with the WAL that the backup needs; the file holds all of it.
    pub fn finish(&mut self, timeline: u32, start: Lsn, stop: Lsn) -> io::Result<&mut File> {
        self.write(&format!(
            "\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n],\n"
        ))?;
        let hash = std::mem::take(&mut self.hash).finalize();
        self.write(&format!(
            "\"Manifest-Checksum\": \"{}\"}}\n",
            crate::repository::hex(&hash)
        ))?;
        self.spool.flush()?;
        Ok(self.spool.get_mut())
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.hash.update(text);
        self.spool.write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::io::{Read as _, Seek as _};

    use super::*;

    fn written(major: u32, names: &[&str]) -> String {
        let scratch = tempfile::tempdir().unwrap();
        let mut listing = Listing::begin(scratch.path(), major, u64::MAX).unwrap();
        for name in names {
            listing
                .add_bytes(name, 1_700_000_000, b"123456789")
                .unwrap();
        }
        let file = listing
            .finish(3, Lsn(0x1_0000_0028), Lsn(0x1_0000_0100))
            .unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        text
    }

    #[test]
    fn a_list_has_the_servers_form() {
        let text = written(16, &["base/1/1259", "od\"d\n"]);
        // The checksum that the CRC catalogues give for these nine digits, least significant byte first.
        let expected = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"base/1/1259\", \"Size\": 9, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"839206e3\" },\n\
            { \"Path\": \"od\\\"d\\n\", \"Size\": 9, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"839206e3\" }\n],\n\
            \"WAL-Ranges\": [\n{ \"Timeline\": 3, \"Start-LSN\": \"1/28\", \"End-LSN\": \"1/100\" }\n],\n";
        let rest = text.strip_prefix(expected).unwrap();
        let sum = crate::repository::hex(&Sha256::digest(expected));
        assert_eq!(rest, format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
    }

    #[test]
    fn from_17_on_a_list_names_its_cluster() {
        let text = written(17, &[]);
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["PostgreSQL-Backup-Manifest-Version"], 2);
        assert_eq!(list["System-Identifier"], u64::MAX);
        assert_eq!(list["Files"], serde_json::json!([]));
    }
}
