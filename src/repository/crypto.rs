//! What keeps the repository secret and genuine.
//!
//! - **Secrecy**: files are encrypted with age to X25519 recipients, or kept as they are ([`Mode`]).
//! - **Genuineness**: age proves nothing about who wrote a file, for its recipients are public. So whatever
//!   a reader believes is sealed: keyed BLAKE3 under a key that only those who may write have. A manifest's
//!   seal covers the digests of its ranges, and those name packs by their SHA-256.
//!
//! Both keys come from the repository's **secret**, 32 random bytes: the id too, so that a repository whose
//! secret was exchanged is another repository.

use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use age::stream::{StreamReader, StreamWriter};
use age::x25519;

use super::store::Blob;
use super::{RepositoryError, hex};

const ID_BYTES: usize = 16;
const HEADER_BUFFER_BYTES: usize = 1024;

/// What a seal vouches for; a sealed file of one kind is none of another.
#[derive(Debug, Clone, Copy)]
pub enum Sealed<'a> {
    Config,
    Manifest(&'a str),
    Packs(&'a str),
    Index(&'a str),
    /// What a host remembers in its state directory, by the file's name.
    Memory(&'a str),
    Moved(&'a str),
    /// Write-ahead log and what belongs to it, by the file's name.
    Wal(&'a str),
}

impl Sealed<'_> {
    fn context(self) -> (&'static str, String) {
        let (kind, name) = match self {
            Self::Config => ("config", ""),
            Self::Manifest(id) => ("manifest", id),
            Self::Packs(id) => ("packs", id),
            Self::Index(writer) => ("index", writer),
            Self::Memory(name) => ("memory", name),
            Self::Moved(pack) => ("moved", pack),
            Self::Wal(name) => ("wal", name),
        };
        (kind, name.to_owned())
    }
}

/// The repository's secret and what is derived from it.
#[derive(Clone)]
pub struct Secrets {
    secret: [u8; 32],
    block_key: [u8; 32],
    seal_key: [u8; 32],
}

impl Secrets {
    pub fn generate() -> Self {
        Self::new(rand::random())
    }

    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            block_key: blake3::derive_key("lifeboat repository 1 block ids", &secret),
            seal_key: blake3::derive_key("lifeboat repository 1 seals", &secret),
        }
    }

    /// The secret itself as hexadecimal, for the one file it is kept in.
    pub fn to_hex(&self) -> String {
        hex(&self.secret)
    }

    /// The repository's id.
    pub fn id(&self) -> String {
        let id = blake3::derive_key("lifeboat repository 1 id", &self.secret);
        hex(id.get(..ID_BYTES).unwrap_or(&id))
    }

    pub fn block_hash(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.block_key, bytes)
    }

    pub fn seal(&self, what: Sealed<'_>, bytes: &[u8]) -> blake3::Hash {
        let (kind, name) = what.context();
        let mut hasher = blake3::Hasher::new_keyed(&self.seal_key);
        for part in [kind.as_bytes(), &[0], name.as_bytes(), &[0], bytes] {
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// Compares in constant time.
    pub fn is_sealed(&self, what: Sealed<'_>, bytes: &[u8], seal: &str) -> bool {
        // One spelling only: a changed file is a changed file.
        let spelt = !seal.bytes().any(|byte| byte.is_ascii_uppercase());
        spelt && blake3::Hash::from_hex(seal).is_ok_and(|seal| seal == self.seal(what, bytes))
    }
}

/// How files are kept.
pub enum Mode {
    Plain,
    Age {
        /// Who can read what is written now.
        recipients: Vec<x25519::Recipient>,
        /// What reads; none where only public keys were given.
        identities: Vec<x25519::Identity>,
    },
}

impl Mode {
    /// Ends the names of packs, manifests, ranges, index and move files.
    pub fn suffix(&self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Age { .. } => ".age",
        }
    }

    pub fn can_read(&self) -> bool {
        match self {
            Self::Plain => true,
            Self::Age { identities, .. } => !identities.is_empty(),
        }
    }

    /// A writer whose output is what is stored.
    pub fn writer<W: Write>(&self, out: W) -> Result<Encrypting<W>, RepositoryError> {
        match self {
            Self::Plain => Ok(Encrypting::Plain(out)),
            Self::Age { recipients, .. } => encryptor(recipients)?
                .wrap_output(out)
                .map(|stream| Encrypting::Age(Box::new(stream)))
                .map_err(|e| RepositoryError::io("begin to encrypt", e)),
        }
    }

    pub fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let mut out = self.writer(Vec::with_capacity(plain.len() + 512))?;
        out.write_all(plain)
            .and_then(|()| out.finish())
            .map_err(|e| RepositoryError::io("encrypt", e))
    }

    /// Decrypts a small file; at most `limit_bytes` of plaintext.
    pub fn decrypt(
        &self,
        what: &str,
        stored: Vec<u8>,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, RepositoryError> {
        let Self::Age { identities, .. } = self else {
            return Ok(stored);
        };
        let mut plain = Vec::with_capacity(stored.len());
        decryptor(BufReader::new(stored.as_slice()), identities, what)?
            .take(limit_bytes + 1)
            .read_to_end(&mut plain)
            .map_err(|e| not_whole(what, &e))?;
        if plain.len() as u64 > limit_bytes {
            return Err(RepositoryError::Invalid(format!(
                "{what} is larger than {limit_bytes} bytes: it is damaged"
            )));
        }
        Ok(plain)
    }

    /// The plaintext of a stored file, read at positions.
    pub fn open(
        &self,
        what: &str,
        stored: Box<dyn Blob>,
    ) -> Result<Box<dyn Blob>, RepositoryError> {
        let Self::Age { identities, .. } = self else {
            return Ok(stored);
        };
        let cursor = BlobCursor {
            blob: stored,
            at: 0,
        };
        let mut stream = decryptor(
            BufReader::with_capacity(HEADER_BUFFER_BYTES, cursor),
            identities,
            what,
        )?;
        let size = stream
            .seek(SeekFrom::End(0))
            .map_err(|e| not_whole(what, &e))?;
        Ok(Box::new(AgeBlob { stream, size }))
    }
}

fn not_whole(what: &str, err: &io::Error) -> RepositoryError {
    RepositoryError::Invalid(format!(
        "{what} does not decrypt to its end ({err}): it is damaged"
    ))
}

fn encryptor(recipients: &[x25519::Recipient]) -> Result<age::Encryptor, RepositoryError> {
    age::Encryptor::with_recipients(recipients.iter().map(|r| r as &dyn age::Recipient))
        .map_err(|e| RepositoryError::Invalid(format!("there is nobody to encrypt to: {e}")))
}

fn decryptor<R: io::BufRead>(
    input: R,
    identities: &[x25519::Identity],
    what: &str,
) -> Result<StreamReader<R>, RepositoryError> {
    if identities.is_empty() {
        return Err(RepositoryError::NoIdentity);
    }
    age::Decryptor::new_buffered(input)
        .and_then(|d| d.decrypt(identities.iter().map(|i| i as &dyn age::Identity)))
        .map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => RepositoryError::Invalid(format!(
                "{what} is encrypted to other keys than the ones given (AGE_PASSPHRASE, AGE_IDENTITY)"
            )),
            other => RepositoryError::Invalid(format!("{what} is damaged: {other}")),
        })
}

/// Encrypts, or passes through.
pub enum Encrypting<W: Write> {
    Plain(W),
    Age(Box<StreamWriter<W>>),
}

impl<W: Write> Encrypting<W> {
    /// Writes the end; without it the file does not decrypt.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Age(stream) => stream.finish(),
        }
    }
}

impl<W: Write> Write for Encrypting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(buf),
            Self::Age(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Age(stream) => stream.flush(),
        }
    }
}

struct AgeBlob {
    stream: StreamReader<BufReader<BlobCursor>>,
    size: u64,
}

impl Blob for AgeBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.stream.seek(SeekFrom::Start(offset))?;
        self.stream.read_exact(buf)
    }

    fn stream(&mut self) -> io::Result<Box<dyn Read + '_>> {
        self.stream.seek(SeekFrom::Start(0))?;
        Ok(Box::new(&mut self.stream))
    }
}

/// A blob as a file with a position.
struct BlobCursor {
    blob: Box<dyn Blob>,
    at: u64,
}

impl Read for BlobCursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size().saturating_sub(self.at);
        let count = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let Some(part) = buf.get_mut(..count).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        self.blob.read_exact_at(part, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for BlobCursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.blob.size().checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a position before the start")
        })?;
        Ok(self.at)
    }
}
