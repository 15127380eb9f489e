//! Packs: concatenated frames with a trailer that describes them; a plain `.zst` file.
//!
//! ```text
//! frame*                                     zstd frames, the archive's bytes in order
//! skippable 0x184D2A50: 16 random bytes, then the block table, zstd-compressed, see `table`
//! skippable 0x184D2A5E: zstd's seek table    (compressed u32, decompressed u32)* , one entry for each
//!     frame and one (with 0) for the block table; then count u32, descriptor 0, magic 0x8F92EAB1
//! ```
//! The name is the SHA-256 of the file as it is stored, encrypted or not. `zstd -d` skips the trailer, so a
//! decoded pack is its frames' bytes. The random bytes make every pack's name its own: a pack that is being
//! deleted can never be taken for one that was just written.

use std::io::{self, Write};

use super::crypto::Encrypting;
use super::frame::{Decoder, FRAME_RAW_LIMIT};
use super::store::Blob;
use super::table::BlockTable;
use super::vault::{HashedSpool, Vault, check_name};
use super::{PackName, RepositoryError};

/// Bytes of frames a pack is closed at.
pub const PACK_BYTES: u64 = 16 * 1024 * 1024;
pub const MODEL_PACK_BYTES: u64 = 64 * 1024 * 1024;
/// Decoded bytes a pack is closed at however well they compress: keeps offsets and tables bounded.
pub const PACK_RAW_LIMIT: u64 = 512 * 1024 * 1024;
/// Blocks a pack is closed at however small they are: its table is in memory until then.
pub const PACK_BLOCKS: usize = 64 * 1024;

const TABLE_MAGIC: u32 = 0x184D_2A50;
const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const SEEK_FOOTER_BYTES: usize = 9;
const SKIPPABLE_HEADER_BYTES: u64 = 8;
const NONCE_BYTES: usize = 16;
/// More frames than a pack of tiny ones could hold.
const FRAME_COUNT_LIMIT: u64 = 4 * 1024 * 1024;
const TABLE_RAW_LIMIT: usize = 256 * 1024 * 1024;

/// A pack being written to a spool.
pub struct PackWriter {
    out: Encrypting<HashedSpool>,
    frames: Vec<(u32, u32)>,
    /// Before encryption.
    written: u64,
}

/// A published pack.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    pub name: PackName,
    pub stored_bytes: u64,
}

impl PackWriter {
    pub fn new(vault: &Vault) -> Result<Self, RepositoryError> {
        Ok(Self {
            out: vault.pack_spool()?,
            frames: Vec::new(),
            written: 0,
        })
    }

    /// Appends a frame; returns the pack's size so far.
    pub fn append(&mut self, frame: &[u8], raw_len: usize) -> Result<u64, RepositoryError> {
        let entry = (as_u32(frame.len())?, as_u32(raw_len)?);
        self.write(frame)?;
        self.frames.push(entry);
        Ok(self.written)
    }

    /// Writes the trailer and publishes the pack under its name.
    pub fn publish(
        mut self,
        vault: &Vault,
        table: &BlockTable,
    ) -> Result<Published, RepositoryError> {
        let raw: u64 = self.frames.iter().map(|(_, raw)| u64::from(*raw)).sum();
        if raw != table.raw_bytes() {
            return Err(RepositoryError::Invalid(format!(
                "a pack's frames hold {raw} bytes and its table names {}: nothing was published",
                table.raw_bytes()
            )));
        }
        let mut encoded = rand::random::<[u8; NONCE_BYTES]>().to_vec();
        encoded.extend(
            zstd::bulk::compress(&table.encode(), 3)
                .map_err(|e| RepositoryError::io("compress a block table", e))?,
        );
        self.skippable(TABLE_MAGIC, &encoded)?;
        self.frames
            .push((as_u32(encoded.len())? + as_u32(SKIPPABLE_HEADER_BYTES)?, 0));
        let mut seek = Vec::with_capacity(self.frames.len() * 8 + 9);
        for (stored, raw) in &self.frames {
            seek.extend_from_slice(&stored.to_le_bytes());
            seek.extend_from_slice(&raw.to_le_bytes());
        }
        seek.extend_from_slice(&as_u32(self.frames.len())?.to_le_bytes());
        seek.push(0);
        seek.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        self.skippable(SEEK_TABLE_MAGIC, &seek)?;
        let spool = self
            .out
            .finish()
            .map_err(|e| RepositoryError::io("write a pack", e))?;
        let (name, stored_bytes) = spool.publish(|name| vault.pack_key(name))?;
        Ok(Published { name, stored_bytes })
    }

    fn skippable(&mut self, magic: u32, payload: &[u8]) -> Result<(), RepositoryError> {
        self.write(&magic.to_le_bytes())?;
        self.write(&as_u32(payload.len())?.to_le_bytes())?;
        self.write(payload)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.out
            .write_all(bytes)
            .map_err(|e| RepositoryError::io("write a pack", e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn as_u32(n: impl TryInto<u32>) -> Result<u32, RepositoryError> {
    n.try_into()
        .map_err(|_| RepositoryError::Invalid("a pack's part is larger than 4 GiB".to_owned()))
}

/// A frame's place in its pack.
#[derive(Debug, Clone, Copy)]
struct FramePlace {
    raw_start: u64,
    raw_len: u32,
    stored_start: u64,
    stored_len: u32,
}

/// One frame as it is stored.
pub(super) struct StoredFrame {
    pub pack: PackName,
    /// Where its decoded bytes begin in the pack's.
    pub start: u64,
    raw_len: u32,
    stored_start: u64,
    bytes: Vec<u8>,
}

impl StoredFrame {
    /// Length of its decoded bytes.
    pub fn raw_len(&self) -> u64 {
        u64::from(self.raw_len)
    }

    pub fn decode(&self, decoder: &mut Decoder, out: &mut Vec<u8>) -> Result<(), RepositoryError> {
        decoder
            .decode(&self.bytes, self.raw_len as usize, out)
            .map_err(|e| RepositoryError::Damaged {
                pack: self.pack,
                why: format!("the frame at byte {}: {e}", self.stored_start),
            })
    }
}

/// A pack open for reading.
pub struct PackReader {
    name: PackName,
    blob: Box<dyn Blob>,
    frames: Vec<FramePlace>,
    table_at: (u64, u32),
    raw_bytes: u64,
    stored_bytes: u64,
}

impl PackReader {
    /// Opens a pack. With `genuine` its SHA-256 must be its name: what is read from it then is what was
    /// written.
    pub fn open(vault: &Vault, name: PackName, genuine: bool) -> Result<Self, RepositoryError> {
        let (mut blob, stored_bytes) = vault.open_pack(name, genuine)?;
        let damaged = |why: String| RepositoryError::Damaged { pack: name, why };
        let frames =
            read_seek_table(blob.as_mut()).map_err(|e| damaged(format!("its seek table: {e}")))?;
        let (last, data) = frames
            .split_last()
            .ok_or_else(|| damaged("it has no frames".to_owned()))?;
        Ok(Self {
            name,
            raw_bytes: last.raw_start,
            table_at: (last.stored_start, last.stored_len),
            frames: data.to_vec(),
            stored_bytes,
            blob,
        })
    }

    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Where the frame begins that holds `offset`.
    pub(super) fn frame_start(&self, offset: u64) -> Option<u64> {
        let after = self
            .frames
            .partition_point(|f| f.raw_start + u64::from(f.raw_len) <= offset);
        self.frames.get(after).map(|frame| frame.raw_start)
    }

    /// Reads the frame that holds `offset`.
    pub(super) fn stored_frame(&mut self, offset: u64) -> Result<StoredFrame, RepositoryError> {
        let after = self
            .frames
            .partition_point(|f| f.raw_start + u64::from(f.raw_len) <= offset);
        let place = self.frames.get(after).copied();
        let place = place.ok_or_else(|| self.damaged(format!("it ends before byte {offset}")))?;
        self.read(place)
    }

    /// Decodes the frame that holds `offset` into `out`; returns where the frame begins.
    pub fn frame_at(
        &mut self,
        offset: u64,
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<u64, RepositoryError> {
        let frame = self.stored_frame(offset)?;
        frame.decode(decoder, out)?;
        Ok(frame.start)
    }

    /// Visits every frame in order: as it is stored, and decoded.
    pub(super) fn each_frame(
        &mut self,
        decoder: &mut Decoder,
        raw: &mut Vec<u8>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        for place in self.frames.clone() {
            let stored = self.read(place)?;
            stored.decode(decoder, raw)?;
            visit(&stored.bytes, raw)?;
        }
        Ok(())
    }

    /// Decodes every frame in order.
    pub fn decode_all(&mut self, decoder: &mut Decoder) -> Result<(), RepositoryError> {
        let mut out = Vec::new();
        for place in self.frames.clone() {
            self.read(place)?.decode(decoder, &mut out)?;
        }
        Ok(())
    }

    /// The block table.
    pub fn table(&mut self) -> Result<BlockTable, RepositoryError> {
        let (start, len) = self.table_at;
        let header = SKIPPABLE_HEADER_BYTES + NONCE_BYTES as u64;
        let body = u64::from(len).saturating_sub(header);
        let mut bytes = vec![0; usize::try_from(body).unwrap_or(0)];
        let table = self
            .blob
            .read_exact_at(&mut bytes, start + header)
            .and_then(|()| zstd::bulk::decompress(&bytes, TABLE_RAW_LIMIT))
            .map_err(|e| self.damaged(format!("its block table: {e}")))?;
        let table = BlockTable::decode(&table)?;
        if table.raw_bytes() != self.raw_bytes {
            return Err(self.damaged("its block table does not match its frames".to_owned()));
        }
        Ok(table)
    }

    /// Compares the SHA-256 of a pack's file with its name.
    pub fn verify_name(vault: &Vault, name: PackName) -> Result<(), RepositoryError> {
        check_name(name, vault.store.fetch(&vault.pack_key(name))?.as_mut())
    }

    fn read(&mut self, place: FramePlace) -> Result<StoredFrame, RepositoryError> {
        let mut bytes = vec![0; place.stored_len as usize];
        self.blob
            .read_exact_at(&mut bytes, place.stored_start)
            .map_err(|e| self.damaged(format!("the frame at byte {}: {e}", place.stored_start)))?;
        Ok(StoredFrame {
            pack: self.name,
            start: place.raw_start,
            raw_len: place.raw_len,
            stored_start: place.stored_start,
            bytes,
        })
    }

    fn damaged(&self, why: String) -> RepositoryError {
        RepositoryError::Damaged {
            pack: self.name,
            why,
        }
    }
}

/// Reads and checks the seek table; the last entry is the block table's.
fn read_seek_table(blob: &mut dyn Blob) -> io::Result<Vec<FramePlace>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let size = blob.size();
    let footer_at = size
        .checked_sub(SEEK_FOOTER_BYTES as u64)
        .ok_or_else(|| invalid("the file is too short"))?;
    let mut footer = [0u8; SEEK_FOOTER_BYTES];
    blob.read_exact_at(&mut footer, footer_at)?;
    let [c0, c1, c2, c3, descriptor, magic @ ..] = footer;
    if u32::from_le_bytes(magic) != SEEKABLE_MAGIC || descriptor != 0 {
        return Err(invalid("the file does not end with a seek table"));
    }
    let count = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
    let entries_at = footer_at
        .checked_sub(count * 8)
        .filter(|at| *at >= SKIPPABLE_HEADER_BYTES);
    let entries_at = entries_at
        .filter(|_| count <= FRAME_COUNT_LIMIT)
        .ok_or_else(|| invalid("it names too many frames"))?;
    let mut entries =
        vec![0u8; usize::try_from(count * 8).map_err(|_| invalid("it names too many frames"))?];
    blob.read_exact_at(&mut entries, entries_at)?;
    let mut places = Vec::with_capacity(entries.len() / 8);
    let (mut stored_start, mut raw_start) = (0u64, 0u64);
    for [stored_len, raw_len] in entries.as_chunks::<4>().0.as_chunks::<2>().0 {
        let (stored_len, raw_len) = (
            u32::from_le_bytes(*stored_len),
            u32::from_le_bytes(*raw_len),
        );
        // The last entry, the block table's, has no raw bytes and may be larger.
        if raw_len as usize > FRAME_RAW_LIMIT
            || (raw_len > 0 && stored_len as usize > 2 * FRAME_RAW_LIMIT)
        {
            return Err(invalid("it names a frame that is too large"));
        }
        places.push(FramePlace {
            raw_start,
            raw_len,
            stored_start,
            stored_len,
        });
        stored_start += u64::from(stored_len);
        raw_start += u64::from(raw_len);
    }
    if stored_start + SKIPPABLE_HEADER_BYTES != entries_at {
        return Err(invalid("its frames do not fill the file"));
    }
    Ok(places)
}
