//! Names that come from the server, made fit for URLs, archives and messages.

use sha2::{Digest, Sha256};

use super::super::support::hex;

/// Longest file name that every file system a person may extract the archive to can hold.
const MAX_FILE_NAME_BYTES: usize = 200;
const TEMPORARY: &str = ".lifeboat-";
/// The server keeps an uploaded file under the name it came with: ours begin like this.
const UPLOAD: &str = "lifeboat-upload-";

/// Whether a collection or snapshot can really be called so.
///
/// The server turns both into names of directories and files, and refuses what could not be one
/// (`validate_collection_name` in `lib/common/validation` of Qdrant 1.18).
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !matches!(name, "." | "..")
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

/// One segment of a URL's path.
pub(super) fn segment(name: &str) -> String {
    encode(name, |byte| matches!(byte, b'-' | b'_' | b'.' | b'~'))
}

/// Where the archive keeps a collection's Qdrant snapshot.
pub(super) fn member(collection: &str) -> String {
    let mut file = encode(collection, |byte| matches!(byte, b'-' | b'_' | b'.'));
    if file.len() > MAX_FILE_NAME_BYTES {
        let digest = hex(&Sha256::digest(collection.as_bytes()));
        file.truncate(MAX_FILE_NAME_BYTES - digest.len() - 1);
        file = format!("{file}~{digest}");
    }
    format!("collections/{file}.snapshot")
}

/// The name under which a restore first brings a collection in.
pub(super) fn temporary(collection: &str, run_id: &str, number: usize) -> String {
    let mut end = collection.len().min(128);
    while !collection.is_char_boundary(end) {
        end -= 1;
    }
    let start = collection.get(..end).unwrap_or_default();
    format!("{start}{TEMPORARY}{run_id}-{number}")
}

pub(super) fn is_temporary(collection: &str) -> bool {
    collection.contains(TEMPORARY)
}

/// The file name of an upload.
pub(super) fn upload(run_id: &str, number: usize) -> String {
    format!("{UPLOAD}{run_id}-{number}.snapshot")
}

pub(super) fn is_upload(snapshot: &str) -> bool {
    snapshot.starts_with(UPLOAD)
}

/// Percent-encodes all but letters, digits and what is named; a dot in front too.
fn encode(name: &str, is_free: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(name.len());
    for (n, byte) in name.bytes().enumerate() {
        let is_hiding = byte == b'.' && n == 0;
        if byte.is_ascii_alphanumeric() || (is_free(byte) && !is_hiding) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.push_str(&hex(&[byte]).to_ascii_uppercase());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn untrusted_names_neither_leave_a_directory_nor_a_path() {
        assert_eq!(segment("a b/ä?#%"), "a%20b%2F%C3%A4%3F%23%25");
        assert_eq!(member("docs"), "collections/docs.snapshot");
        assert_eq!(member("../x"), "collections/%2E.%2Fx.snapshot");
        assert_eq!(member(".x~"), "collections/%2Ex%7E.snapshot");
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb"] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(is_plain("ä b"));
    }

    #[test]
    fn long_names_stay_apart_and_short_enough() {
        let (one, two) = ("ä".repeat(127), format!("{}x", "ä".repeat(126)));
        assert_ne!(member(&one), member(&two));
        assert!(member(&one).len() < 255);
        assert!(temporary(&one, "20261122T220129Z-abcdef", 9).len() <= 255);
        assert!(is_temporary(&temporary(&one, "r", 1)));
    }
}
