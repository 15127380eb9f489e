//! Tar headers: POSIX (PAX) records only where the plain header cannot hold a value.

use tokio_tar::{EntryType, Header};

use super::EntryMeta;

const RECORD: usize = 512;
/// What the plain header's fields hold.
const NAME_LIMIT: usize = 100;
const ID_LIMIT: u32 = 0o7_777_777;
const SIZE_LIMIT: u64 = 0o77_777_777_777;

/// What kind of entry a header announces.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    Directory,
    File { size: u64 },
    Symlink { target: &'a [u8] },
    HardLink { existing: &'a [u8] },
}

/// The header of one entry, with the PAX entry before it when one is needed.
pub fn encode(name: &[u8], meta: &EntryMeta, kind: Kind<'_>) -> Vec<u8> {
    let (entry_type, size, link) = match kind {
        Kind::Directory => (EntryType::Directory, 0, None),
        Kind::File { size } => (EntryType::Regular, size, None),
        Kind::Symlink { target } => (EntryType::Symlink, 0, Some(target)),
        Kind::HardLink { existing } => (EntryType::Link, 0, Some(existing)),
    };
    let mut name = name.to_vec();
    if matches!(kind, Kind::Directory) {
        name.push(b'/');
    }
    let mut out = Vec::with_capacity(RECORD);
    let records = pax_records(&name, meta, size, link);
    if !records.is_empty() {
        let mut header = plain(
            b"./PaxHeaders/entry",
            &EntryMeta {
                mode: 0o644,
                ..EntryMeta::default()
            },
            EntryType::XHeader,
        );
        header.set_size(records.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(RECORD), 0);
    }
    let mut header = plain(&name, meta, entry_type);
    header.set_size(if size > SIZE_LIMIT { 0 } else { size });
    if let (Some(link), Some(field)) = (link, header.as_ustar_mut().map(|h| &mut h.linkname)) {
        copy(field, link);
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out
}

fn plain(name: &[u8], meta: &EntryMeta, entry_type: EntryType) -> Header {
    let mut header = Header::new_ustar();
    if let Some(ustar) = header.as_ustar_mut() {
        copy(&mut ustar.name, name);
    }
    header.set_entry_type(entry_type);
    header.set_mode(meta.mode & 0o7777);
    header.set_uid(u64::from(if meta.uid > ID_LIMIT { 0 } else { meta.uid }));
    header.set_gid(u64::from(if meta.gid > ID_LIMIT { 0 } else { meta.gid }));
    header.set_mtime(u64::try_from(meta.mtime_secs).unwrap_or(0));
    header
}

fn copy(field: &mut [u8], value: &[u8]) {
    for (to, from) in field.iter_mut().zip(value) {
        *to = *from;
    }
}

/// `length key=value\n` records for everything the plain header would lose.
fn pax_records(name: &[u8], meta: &EntryMeta, size: u64, link: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > NAME_LIMIT {
        record(&mut out, "path", name);
    }
    if let Some(link) = link.filter(|link| link.len() > NAME_LIMIT) {
        record(&mut out, "linkpath", link);
    }
    if size > SIZE_LIMIT {
        record(&mut out, "size", size.to_string().as_bytes());
    }
    if meta.uid > ID_LIMIT {
        record(&mut out, "uid", meta.uid.to_string().as_bytes());
    }
    if meta.gid > ID_LIMIT {
        record(&mut out, "gid", meta.gid.to_string().as_bytes());
    }
    if meta.mtime_nanos > 0 || meta.mtime_secs < 0 {
        record(
            &mut out,
            "mtime",
            decimal_time(meta.mtime_secs, meta.mtime_nanos).as_bytes(),
        );
    }
    for (key, value) in &meta.xattrs {
        if value.is_empty() {
            // POSIX reads an empty value as "no value": it takes a key of its own.
            record(&mut out, &format!("LIFEBOAT.empty-xattr.{key}"), b"1");
        } else {
            record(&mut out, &format!("SCHILY.xattr.{key}"), value);
        }
    }
    out
}

/// Seconds with a fraction; times before 1970 count down from zero, as POSIX writes them.
fn decimal_time(secs: i64, nanos: u32) -> String {
    if secs < 0 && nanos > 0 {
        return format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos);
    }
    format!("{secs}.{nanos:09}")
}

/// The length counts itself.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}
