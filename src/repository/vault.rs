//! The store as the rest of the repository sees it: plaintext in, plaintext out, whatever is stored.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::crypto::{Encrypting, Mode, Sealed, Secrets};
use super::store::{Blob, Spool, Store};
use super::{PackName, RepositoryError};

/// Ends a sealed text file.
const SEAL_LINE: &str = "# seal ";
/// Begins a skippable frame of zstd that ends a sealed file of frames.
const SEAL_FRAME: [u8; 8] = [0x51, 0x2A, 0x4D, 0x18, 32, 0, 0, 0];
const SEAL_BYTES: usize = 32;
/// How a zstd frame begins, and no text does.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// age's header and tags: what an encrypted small file may be longer than its plaintext.
const AGE_OVERHEAD_LIMIT_BYTES: u64 = 1024 * 1024;

/// A store, and the keys to it.
pub struct Vault {
    pub(super) store: Arc<dyn Store>,
    pub(super) mode: Mode,
    pub(super) secrets: Secrets,
    /// See `config.json`: only what was stored in this epoch is referred to.
    pub(super) epoch: AtomicU32,
}

impl Vault {
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// The store's own clock.
    pub fn now(&self) -> Result<Timestamp, RepositoryError> {
        self.store.now()
    }

    /// Whether this host holds a key that decrypts.
    pub fn can_read(&self) -> bool {
        self.mode.can_read()
    }

    /// The name under which a file of the repository that is encrypted lies in the store.
    pub fn key(&self, name: &str) -> String {
        format!("{name}{}", self.mode.suffix())
    }

    pub fn pack_key(&self, pack: PackName) -> String {
        self.key(&pack.key())
    }

    /// Stores a small file under a new name, encrypted.
    pub fn put(&self, name: &str, plain: &[u8]) -> Result<(), RepositoryError> {
        self.store.put(&self.key(name), &self.mode.encrypt(plain)?)
    }

    /// Reads a small file.
    pub fn get(&self, name: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        let key = self.key(name);
        let stored = self
            .store
            .get(&key, limit_bytes.saturating_add(AGE_OVERHEAD_LIMIT_BYTES))?;
        let plain = self.mode.decrypt(&key, stored, limit_bytes)?;
        if plain.len() as u64 > limit_bytes {
            return Err(RepositoryError::Invalid(format!(
                "{key} is larger than {limit_bytes} bytes: it is damaged"
            )));
        }
        Ok(plain)
    }

    /// Text with a last line that vouches for the rest.
    pub fn sealed_text(&self, what: Sealed<'_>, text: &str) -> String {
        let seal = self.secrets.seal(what, text.as_bytes());
        format!("{text}{SEAL_LINE}{seal}\n")
    }

    /// zstd frames, and a skippable one that vouches for them.
    pub fn sealed_frames(&self, what: Sealed<'_>, frames: &[u8]) -> Vec<u8> {
        let seal = self.secrets.seal(what, frames);
        [frames, SEAL_FRAME.as_slice(), seal.as_bytes()].concat()
    }

    /// The frames before the seal, which must be right.
    pub fn unsealed_frames<'b>(
        &self,
        what: Sealed<'_>,
        key: &str,
        bytes: &'b [u8],
    ) -> Result<&'b [u8], RepositoryError> {
        bytes
            .split_last_chunk::<SEAL_BYTES>()
            .and_then(|(front, seal)| Some((front.strip_suffix(SEAL_FRAME.as_slice())?, seal)))
            .filter(|(frames, seal)| {
                blake3::Hash::from_bytes(**seal) == self.secrets.seal(what, frames)
            })
            .map(|(frames, _)| frames)
            .ok_or_else(|| RepositoryError::Forged(key.to_owned()))
    }

    /// Text as a sealed zstd frame.
    pub fn sealed_compressed(
        &self,
        what: Sealed<'_>,
        text: &str,
    ) -> Result<Vec<u8>, RepositoryError> {
        let frame = zstd::bulk::compress(text.as_bytes(), 3)
            .map_err(|e| RepositoryError::io("compress a list", e))?;
        Ok(self.sealed_frames(what, &frame))
    }

    /// Text that was sealed as a zstd frame, or as it is.
    pub fn unsealed_either(
        &self,
        what: Sealed<'_>,
        key: &str,
        bytes: Vec<u8>,
        limit_bytes: u64,
    ) -> Result<String, RepositoryError> {
        if !bytes.starts_with(&ZSTD_MAGIC) {
            return self.unsealed_text(what, key, bytes);
        }
        let damaged = |why: String| RepositoryError::Invalid(format!("{key} is damaged: {why}"));
        let frames = self.unsealed_frames(what, key, &bytes)?;
        let mut text = String::new();
        zstd::stream::Decoder::new(frames)
            .and_then(|plain| plain.take(limit_bytes + 1).read_to_string(&mut text))
            .map_err(|e| damaged(e.to_string()))?;
        if text.len() as u64 > limit_bytes {
            return Err(damaged(format!("it is longer than {limit_bytes} bytes")));
        }
        Ok(text)
    }

    /// The text without its seal, which must be right.
    pub fn unsealed_text(
        &self,
        what: Sealed<'_>,
        key: &str,
        bytes: Vec<u8>,
    ) -> Result<String, RepositoryError> {
        let mut text = String::from_utf8(bytes)
            .map_err(|_| RepositoryError::Invalid(format!("{key} is not text: it is damaged")))?;
        let end = text
            .strip_suffix('\n')
            .and_then(|text| text.rfind('\n').map(|at| at + 1))
            .unwrap_or(0);
        let seal = text
            .get(end..)
            .and_then(|line| line.strip_prefix(SEAL_LINE))
            .map(str::trim_end);
        if !seal.is_some_and(|seal| {
            self.secrets
                .is_sealed(what, text.as_bytes().get(..end).unwrap_or_default(), seal)
        }) {
            return Err(RepositoryError::Forged(key.to_owned()));
        }
        text.truncate(end);
        Ok(text)
    }

    /// A pack to write; what it is named shows when it is complete.
    pub(super) fn pack_spool(&self) -> Result<Encrypting<HashedSpool>, RepositoryError> {
        self.mode.writer(HashedSpool {
            spool: self.store.spool()?,
            hash: Sha256::new(),
            written: 0,
        })
    }

    /// Opens a pack for reading at positions. With `genuine` its SHA-256 is compared with its name first.
    pub(super) fn open_pack(
        &self,
        pack: PackName,
        genuine: bool,
    ) -> Result<(Box<dyn Blob>, u64), RepositoryError> {
        let key = self.pack_key(pack);
        let stored = if genuine {
            let mut stored = self.store.fetch(&key)?;
            check_name(pack, stored.as_mut())?;
            stored
        } else {
            self.store.open(&key)?
        };
        let stored_bytes = stored.size();
        let plain = self.mode.open(&key, stored).map_err(|e| match e {
            RepositoryError::Invalid(why) => RepositoryError::Damaged { pack, why },
            other => other,
        })?;
        Ok((plain, stored_bytes))
    }
}

/// SHA-256 of a pack's file equals its name.
pub(super) fn check_name(pack: PackName, stored: &mut dyn Blob) -> Result<(), RepositoryError> {
    let damaged = |why: String| RepositoryError::Damaged { pack, why };
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut stream = stored.stream().map_err(|e| damaged(e.to_string()))?;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hash.update(buffer.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(damaged(e.to_string())),
        }
    }
    let found = PackName(hash.finalize().into());
    if found == pack {
        Ok(())
    } else {
        Err(damaged(format!("its SHA-256 is {found}")))
    }
}

/// A spool that knows the digest and the length of what it was given.
pub struct HashedSpool {
    spool: Box<dyn Spool>,
    hash: Sha256,
    written: u64,
}

impl HashedSpool {
    /// Publishes the pack under the name that `key` makes of its digest.
    pub(super) fn publish(
        self,
        key: impl FnOnce(PackName) -> String,
    ) -> Result<(PackName, u64), RepositoryError> {
        let name = PackName(self.hash.finalize().into());
        self.spool.publish(&key(name))?;
        Ok((name, self.written))
    }
}

impl Write for HashedSpool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.spool.write(buf)?;
        self.hash.update(buf.get(..count).unwrap_or_default());
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}
