//! What a file is by its first bytes, whatever it is called.

/// How much of a file is looked at: one record of a tar.
pub const HEAD_BYTES: usize = 512;

/// How a tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(&[0x1F, 0x8B]) {
            return Self::Gzip;
        }
        let zstd = head.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]);
        // Skippable frames, with which parallel compressors begin: 184D2A50 to 184D2A5F, little-endian.
        let skippable =
            matches!(head, [first, 0x2A, 0x4D, 0x18, ..] if (0x50..=0x5F).contains(first));
        if zstd || skippable {
            return Self::Zstd;
        }
        Self::None
    }
}

/// What is taken for something else than a tar: how it begins, and what to do with it.
const OTHERS: [(&[u8], &str); 13] = [
    (
        b"BZh",
        "is compressed with bzip2: decompress it with bunzip2, and import the result",
    ),
    (
        b"\xFD7zXZ\0",
        "is compressed with xz: decompress it with unxz, and import the result",
    ),
    (
        b"\x04\x22\x4D\x18",
        "is compressed with lz4: decompress it with lz4 -d, and import the result",
    ),
    (
        b"PK\x03\x04",
        "is a zip file: unzip it into a directory, and import that directory",
    ),
    (
        b"7z\xBC\xAF\x27\x1C",
        "is a 7z file: unpack it into a directory, and import that directory",
    ),
    (
        b"age-encryption.org/",
        "is encrypted with age: decrypt it with age -d, and import the result",
    ),
    (
        b"-----BEGIN AGE",
        "is encrypted with age: decrypt it with age -d, and import the result",
    ),
    (
        b"-----BEGIN PGP",
        "is encrypted with PGP: decrypt it with gpg -d, and import the result",
    ),
    (
        b"PGDMP",
        "is a dump by pg_dump, and no copy of a data directory: restore it into the running server with pg_restore, and have `backup` make a backup",
    ),
    (
        b"--\n-- PostgreSQL database",
        "is an SQL dump, and no copy of a data directory: restore it into the running server with psql, and have `backup` make a backup",
    ),
    (
        b"SQLite format 3\0",
        "is an SQLite database by itself: put it into a directory as database.sqlite, with its -wal and n8n's config, and import that directory",
    ),
    (
        b"\x1F\x8B",
        "is compressed twice: decompress it once with gunzip, and import the result",
    ),
    (
        b"\x28\xB5\x2F\xFD",
        "is compressed twice: decompress it once with unzstd, and import the result",
    ),
];

/// Whether decompressed bytes begin a tar; `Err` says what they are taken for and what to do.
pub fn require_tar(head: &[u8]) -> Result<(), &'static str> {
    if head.is_empty() {
        return Err("is empty");
    }
    if is_tar(head) {
        return Ok(());
    }
    let other = OTHERS.iter().find(|(magic, _)| head.starts_with(magic));
    Err(other.map_or(
        "is no tar, neither plain nor compressed with gzip or zstd: unpack it into a directory, and import that directory",
        |(_, what)| what,
    ))
}

/// A header whose checksum is right, or the end mark of a tar with nothing in it.
fn is_tar(head: &[u8]) -> bool {
    let Some(record) = head.get(..HEAD_BYTES) else {
        return false;
    };
    if record.iter().all(|byte| *byte == 0) {
        return true;
    }
    // The checksum of a header counts its own field as spaces.
    let sum: u32 = record
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            u32::from(if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            })
        })
        .sum();
    let field = record.get(148..156).unwrap_or_default();
    let digits = String::from_utf8_lossy(field);
    let digits = digits.trim_matches(|c: char| c == ' ' || c == '\0');
    u32::from_str_radix(digits, 8).is_ok_and(|stored| stored == sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::process::Command;

    use super::*;

    fn tar(flags: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        let output = Command::new("tar")
            .args([flags, "-", "-C"])
            .arg(dir.path())
            .arg("a")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    #[test]
    fn compression_is_seen_by_the_bytes() {
        assert_eq!(Compression::of(&tar("-cf")), Compression::None);
        assert_eq!(Compression::of(&tar("-czf")), Compression::Gzip);
        let zstd = zstd::bulk::compress(b"x", 1).unwrap();
        assert_eq!(Compression::of(&zstd), Compression::Zstd);
        let skippable = [0x5A, 0x2A, 0x4D, 0x18, 4, 0, 0, 0];
        assert_eq!(Compression::of(&skippable), Compression::Zstd);
        assert_eq!(Compression::of(b""), Compression::None);
    }

    #[test]
    fn tars_are_seen_by_their_checksum() {
        let mut made = tar("-cf");
        assert_eq!(require_tar(&made), Ok(()));
        assert_eq!(require_tar(&[0; HEAD_BYTES]), Ok(()));
        made[0] ^= 1;
        assert!(require_tar(&made).unwrap_err().contains("is no tar"));
        assert!(require_tar(&made[..100]).unwrap_err().contains("is no tar"));
    }

    #[test]
    fn other_files_are_named_with_what_to_do() {
        for (head, said) in [
            (&b"BZh91AY"[..], "bunzip2"),
            (b"\xFD7zXZ\0\0", "unxz"),
            (b"PK\x03\x04\x14", "unzip"),
            (b"PGDMP\x01\x0e", "pg_restore"),
            (b"--\n-- PostgreSQL database cluster dump\n--\n", "psql"),
            (b"SQLite format 3\0\x10", "database.sqlite"),
            (b"\x1F\x8B\x08", "compressed twice"),
            (b"", "is empty"),
            (b"hello", "is no tar"),
        ] {
            let why = require_tar(head).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }
}
