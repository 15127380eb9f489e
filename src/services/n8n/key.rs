//! Whether a key is n8n's: proven by opening what the database holds under it.
//!
//! Formats by `n8n-core/dist/encryption` of n8n 2.41:
//! - `aes-256-cbc.js`: base64 of `Salted__`, an 8-byte salt and AES-256-CBC, key and IV derived as OpenSSL's
//!   `EVP_BytesToKey` with MD5. Credentials up to n8n 2, and all of them unless key rotation is switched on.
//! - `aes-256-gcm.js`: base64 of version 1, a 32-byte salt, the tag and AES-256-GCM, key and IV derived with
//!   HKDF-SHA256. Data encryption keys (`deployment_key`) under the SHA-256 of n8n's key (`cipher.js`).
//! - `<id of a data encryption key>:<either>`: credentials when key rotation is switched on.

use aes::Aes256;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyInit, KeyIvInit};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::Aead;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use sha2::Sha256;

use super::database::{DataKey, Findings};
use crate::services::support::hex;

/// A credential is small; more is not looked at.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// It opens this.
    Opens(&'static str),
    /// There is nothing encrypted yet.
    NothingToOpen,
    /// It opens nothing of what there is.
    OpensNothing,
}

/// Tries a key on what the database holds.
pub(super) fn prove(key: &str, findings: &Findings) -> Proof {
    let opened = |data: &&String| opens_credential(key, data, &findings.data_keys);
    if findings.credentials.iter().any(|data| opened(&data)) {
        return Proof::Opens("a stored credential");
    }
    let usable = findings
        .data_keys
        .iter()
        .any(|data_key| unwrap_data_key(key, data_key).is_some());
    match (usable, findings.credentials.is_empty()) {
        // Without credentials, n8n's own keys are what it needs at start.
        (true, true) => Proof::Opens("n8n's data encryption key"),
        (false, true) if findings.data_keys.is_empty() => Proof::NothingToOpen,
        _ => Proof::OpensNothing,
    }
}

/// Whether `key` opens `data`, a value in `credentials_entity.data` encrypted under the key itself.
pub fn proves_key(key: &str, data: &str) -> bool {
    open_cbc(data, key).is_some_and(|text| is_json_object(&text))
}

fn opens_credential(key: &str, data: &str, data_keys: &[DataKey]) -> bool {
    let Some((id, sealed)) = data.split_once(':') else {
        return proves_key(key, data);
    };
    data_keys
        .iter()
        .filter(|data_key| data_key.id == id)
        .filter_map(|data_key| Some((data_key, unwrap_data_key(key, data_key)?)))
        .any(|(data_key, secret)| {
            let text = match data_key.algorithm.as_str() {
                "aes-256-gcm" => open_gcm(sealed, &secret),
                _ => open_cbc(sealed, &secret),
            };
            text.is_some_and(|text| is_json_object(&text))
        })
}

/// A data encryption key in the clear; `None` when `key` is not the one it is wrapped with.
fn unwrap_data_key(key: &str, data_key: &DataKey) -> Option<String> {
    let text = open_gcm(&data_key.value, &hex(&Sha256::digest(key.as_bytes())))
        // Before `repairLegacyDataEncryptionKeys` ran, they were wrapped as credentials are.
        .or_else(|| open_cbc(&data_key.value, key))?;
    String::from_utf8(text).ok()
}

/// Tells one key from another without telling the key.
pub(super) fn fingerprint(key: &str) -> String {
    let digest = hex(&Sha256::digest(format!(
        "lifeboat n8n encryption key\n{key}"
    )));
    digest.chars().take(16).collect()
}

fn is_json_object(text: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
}

fn decode(data: &str) -> Option<Vec<u8>> {
    if data.len() > MAX_TEXT_BYTES {
        return None;
    }
    STANDARD.decode(data.trim()).ok()
}

fn open_cbc(data: &str, key: &str) -> Option<Vec<u8>> {
    let sealed = decode(data)?;
    let rest = sealed.strip_prefix(b"Salted__")?;
    let (salt, body) = rest.split_at_checked(8)?;
    let (key, iv) = bytes_to_key(key, salt);
    let mut body = body.to_vec();
    let text = cbc::Decryptor::<Aes256>::new(&key.into(), &iv.into())
        .decrypt_padded::<Pkcs7>(&mut body)
        .ok()?;
    Some(text.to_vec())
}

/// OpenSSL's `EVP_BytesToKey` with MD5 and one round. n8n reads the key as latin-1.
fn bytes_to_key(key: &str, salt: &[u8]) -> ([u8; 32], [u8; 16]) {
    let password: Vec<u8> = key
        .encode_utf16()
        .map(|unit| unit.to_le_bytes()[0])
        .chain(salt.iter().copied())
        .collect();
    let round = |before: &[u8]| -> [u8; 16] {
        let mut hash = Md5::new();
        hash.update(before);
        hash.update(&password);
        hash.finalize().into()
    };
    let first = round(&[]);
    let second = round(&first);
    let iv = round(&second);
    let mut key = [0; 32];
    let (low, high) = key.split_at_mut(16);
    low.copy_from_slice(&first);
    high.copy_from_slice(&second);
    (key, iv)
}

/// n8n's sealed form: version 1, salt, tag, text; AES-256-GCM under key and nonce that HKDF-SHA256 gives.
fn open_gcm(data: &str, hex_key: &str) -> Option<Vec<u8>> {
    const INFO: &[u8] = b"n8n-encryption-v1";
    let secret = crate::services::support::sha256_from_hex(hex_key)?;
    let sealed = decode(data)?;
    let rest = sealed.strip_prefix(&[1])?;
    let (salt, rest) = rest.split_at_checked(32)?;
    let (tag, body) = rest.split_at_checked(16)?;
    let mut derived = [0; 44];
    hkdf::Hkdf::<Sha256>::new(Some(salt), &secret)
        .expand(INFO, &mut derived)
        .ok()?;
    let (key, nonce) = derived.split_first_chunk::<32>()?;
    let nonce: [u8; 12] = nonce.try_into().ok()?;
    // The crate wants the tag behind the text.
    let text = [body, tag].concat();
    Aes256Gcm::new(&(*key).into())
        .decrypt(&nonce.into(), text.as_slice())
        .ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    // Written by n8n 2.41.1 for a throw-away instance.
    const KEY: &str = "zu60KadMkDONtWwkJWd7/s42ASKCAJfk";
    const LEGACY_DATA_KEY: &str = "Af+nIWtGhUevh5vrWE23f2tcvKRQHq0pvFoLCTFUvIk8E0GG6+rqRLNc/4OySebJIkGiDEWE816FM/GIsC5uys0NuJc4mGLBL8N4ZiIgbhmd";
    const DATA_KEY: &str = "Afz9dt6JPYb8yidU1/xGhMiN1DxFZsfv/cNZK8K7Zhsb37lp8o/khMyHP8Ca1OtlAWOpHihjAZ4SoskLIaJPqOF5bzNhspIUiEE3b5qtz5QK5Zdy+FyJhfLgYn5KKmMwunU+2mf8nK0hF47Hwwhu/Ps=";
    const PREFIXED: &str = "HtxHowLZUo8myVtk:AZVPDQTHihblt3Y075Mb3QluFSj2mtZOwxcIHJcGuYEJ+4FkBBcrnNUpWlehs6N4JAoNudN7N+GjOaCTjiABOZErzb6Ffom8fZkYHVw1saBrlA==";
    const PLAIN: &str =
        "U2FsdGVkX1+kdq3XHLnBwZWPgmqBk1NqzG39yZSzeTzUorXUiMs6IE3xC7R3nsAZBegHgwaFu7T3tij0RNGoBA==";

    fn data_key(id: &str, value: &str, algorithm: &str) -> DataKey {
        DataKey {
            id: id.into(),
            value: value.into(),
            algorithm: algorithm.into(),
        }
    }

    fn findings(credentials: &[&str]) -> Findings {
        Findings {
            credentials: credentials.iter().map(|&c| c.to_owned()).collect(),
            data_keys: vec![
                data_key("AO8OIlH64AsqBSDX", LEGACY_DATA_KEY, "aes-256-cbc"),
                data_key("HtxHowLZUo8myVtk", DATA_KEY, "aes-256-gcm"),
            ],
            ..Findings::default()
        }
    }

    #[test]
    fn right_key_opens_credentials_of_both_formats_and_the_data_keys() {
        assert!(proves_key(KEY, PLAIN));
        for credential in [PLAIN, PREFIXED] {
            assert_eq!(
                prove(KEY, &findings(&[credential])),
                Proof::Opens("a stored credential")
            );
        }
        assert_eq!(
            prove(KEY, &findings(&[])),
            Proof::Opens("n8n's data encryption key")
        );
        let legacy = data_key("x", LEGACY_DATA_KEY, "aes-256-cbc");
        assert_eq!(unwrap_data_key(KEY, &legacy).as_deref(), Some(KEY));
    }

    #[test]
    fn wrong_key_opens_nothing() {
        for key in ["", "zu60KadMkDONtWwkJWd7/s42ASKCAJfK", "ü€"] {
            for credentials in [&[PLAIN][..], &[PREFIXED], &[]] {
                assert_eq!(prove(key, &findings(credentials)), Proof::OpensNothing);
            }
        }
        assert_eq!(prove(KEY, &Findings::default()), Proof::NothingToOpen);
    }

    #[test]
    fn damaged_texts_prove_nothing() {
        for data in ["", "x", "U2FsdGVkX18=", "AQ==", "AAAA", &PLAIN[..40]] {
            assert!(!proves_key(KEY, data), "{data}");
        }
        let mut tampered = DATA_KEY.to_owned();
        tampered.replace_range(80..81, "B");
        assert_eq!(
            unwrap_data_key(KEY, &data_key("x", &tampered, "aes-256-gcm")),
            None
        );
    }

    #[test]
    fn fingerprints_tell_keys_apart() {
        assert_eq!(fingerprint(KEY).len(), 16);
        assert_ne!(fingerprint(KEY), fingerprint("another"));
    }
}
