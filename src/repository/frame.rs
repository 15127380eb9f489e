//! Frames: independent zstd frames with content size and checksum, the unit of compression.
//!
//! A frame is decoded again and compared before it leaves this module: an encoder's fault never reaches a
//! pack.

use std::io;

use super::RepositoryError;

/// Raw bytes a frame is closed at; a block is never split, so a frame may exceed it by one block.
pub const FRAME_RAW_BYTES: usize = 128 * 1024;
/// The same for model blobs, where economy of small changes does not matter.
pub const MODEL_FRAME_RAW_BYTES: usize = 1024 * 1024;
/// No valid frame is larger than this when decoded; a pack that says otherwise is refused.
pub const FRAME_RAW_LIMIT: usize = 4 * 1024 * 1024;

/// A fast level that still finds skewed bytes: for data that has just shown that it does not compress.
const LEVEL_INCOMPRESSIBLE: i32 = 1;
/// A frame saved less than 1/32: such data is not worth the level's time.
const POOR_SHARE: usize = 32;
/// How many frames are stored fast before the level is tried again.
const POOR_FRAMES: u32 = 31;

/// Raw bytes on their way to becoming a frame. The memory is used again for frame after frame, and zeroed once.
#[derive(Default)]
pub struct RawFrame {
    bytes: Vec<u8>,
    filled: usize,
}

impl RawFrame {
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    pub const fn len(&self) -> usize {
        self.filled
    }

    pub const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub const fn clear(&mut self) {
        self.filled = 0;
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// Room behind what it holds, to be read into; what is there counts when it is kept.
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.filled + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.filled..end).unwrap_or_default()
    }

    /// What was read into the room, by its place in the frame if all of the room were kept.
    pub fn beyond(&self, at: usize, length: usize) -> &[u8] {
        self.bytes.get(at..at + length).unwrap_or_default()
    }

    /// Keeps a piece of the room, behind what was kept before.
    pub fn keep(&mut self, at: usize, length: usize) {
        assert!(at >= self.filled && at + length <= self.bytes.len());
        if at != self.filled {
            self.bytes.copy_within(at..at + length, self.filled);
        }
        self.filled += length;
    }
}

/// Compresses frames of one stream; it adapts to data that does not compress.
pub struct Encoder {
    level: i32,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    check: Vec<u8>,
    fast_frames_left: u32,
}

impl Encoder {
    pub fn new(level: i32) -> Result<Self, RepositoryError> {
        let setup = || -> io::Result<_> {
            let mut compressor = zstd::bulk::Compressor::new(level)?;
            compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
            Ok((compressor, zstd::bulk::Decompressor::new()?))
        };
        let (compressor, decompressor) =
            setup().map_err(|e| RepositoryError::io("set up zstd", e))?;
        Ok(Self {
            level,
            compressor,
            decompressor,
            check: Vec::new(),
            fast_frames_left: 0,
        })
    }

    /// Compresses `raw` into one frame and proves that it decodes to `raw` again. What `frame` held is gone.
    pub fn encode(&mut self, raw: &[u8], frame: &mut Vec<u8>) -> Result<(), RepositoryError> {
        let fast = self.fast_frames_left > 0;
        let level = if fast {
            LEVEL_INCOMPRESSIBLE
        } else {
            self.level
        };
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.compressor
            .set_compression_level(level)
            .and_then(|()| self.compressor.compress_to_buffer(raw, frame))
            .map_err(|e| RepositoryError::io("compress a frame", e))?;
        if fast {
            self.fast_frames_left -= 1;
        }
        let poor = frame.len() + raw.len() / POOR_SHARE > raw.len();
        if !fast && poor {
            self.fast_frames_left = POOR_FRAMES;
        } else if fast && !poor {
            self.fast_frames_left = 0;
        }
        self.check.clear();
        self.check.reserve(raw.len());
        self.decompressor
            .decompress_to_buffer(frame, &mut self.check)
            .map_err(|e| RepositoryError::io("decode a frame that was just written", e))?;
        if self.check != raw {
            return Err(RepositoryError::Invalid(
                "a compressed frame does not decode to what went in: memory or the processor is faulty; nothing was stored".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Decodes frames; each carries its own checksum.
pub struct Decoder(zstd::bulk::Decompressor<'static>);

impl Decoder {
    pub fn new() -> io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Decodes one frame of exactly `raw_len` bytes into `out`.
    pub fn decode(&mut self, frame: &[u8], raw_len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if raw_len > FRAME_RAW_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame claims {raw_len} bytes"),
            ));
        }
        out.clear();
        out.reserve(raw_len);
        self.0.decompress_to_buffer(frame, out)?;
        if out.len() != raw_len {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a frame holds {} bytes instead of {raw_len}", out.len()),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_frame_decodes_to_what_went_in_whatever_compresses() {
        let text = b"the same line again and again\n".repeat(5000);
        let mut noise = vec![0u8; 200_000];
        let mut state = 1u64;
        for byte in &mut noise {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        let mut encoder = Encoder::new(3).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let (mut frame, mut out) = (Vec::new(), Vec::new());
        for raw in [&text, &noise, &noise, &text, &Vec::new()] {
            encoder.encode(raw, &mut frame).unwrap();
            decoder.decode(&frame, raw.len(), &mut out).unwrap();
            assert_eq!(&out, raw);
        }
        encoder.encode(&text, &mut frame).unwrap();
        assert!(frame.len() < text.len() / 50);
    }

    #[test]
    fn what_is_kept_of_a_room_lies_together() {
        let mut frame = RawFrame::default();
        frame.push(b"head");
        frame.room(9).copy_from_slice(b"aaabbbccc");
        frame.keep(4, 3);
        assert_eq!(frame.beyond(7, 3), b"bbb");
        frame.keep(10, 3);
        assert_eq!(frame.as_slice(), b"headaaaccc");
        frame.clear();
        frame.push(b"x");
        assert_eq!((frame.as_slice(), frame.len()), (b"x".as_slice(), 1));
    }

    #[test]
    fn a_flipped_bit_in_a_frame_is_an_error() {
        let raw = b"some content that is long enough to be compressed ".repeat(100);
        let mut decoder = Decoder::new().unwrap();
        let (mut frame, mut out) = (Vec::new(), Vec::new());
        Encoder::new(3).unwrap().encode(&raw, &mut frame).unwrap();
        for at in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            let result = decoder.decode(&damaged, raw.len(), &mut out);
            assert!(result.is_err() || out == raw, "byte {at}");
            // One bad frame does not spoil the next.
            decoder.decode(&frame, raw.len(), &mut out).unwrap();
        }
    }
}
