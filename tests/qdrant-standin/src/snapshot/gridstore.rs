//! The payload store's files: values in 128-byte blocks of 32 MiB pages, a
//! tracker with a pointer per point, a bitmask and gap table of the blocks.
//! Values are JSON, LZ4-compressed with a length in front.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;
use tar::Builder;

use super::tar_files::{append_file, append_sparse};
use crate::error::{Error, Result};
use crate::model::Payload;

const PAGE_BYTES: usize = 33_554_432;
const BLOCK_BYTES: usize = 128;
const REGION_BLOCKS: usize = 8192;
const TRACKER_BYTES: usize = 1_048_576;
const POINTER_BYTES: usize = 16;
const PAGE_BLOCKS: usize = PAGE_BYTES / BLOCK_BYTES;

/// Appends the store of one segment; `payloads` in the order of their offsets.
pub fn append<'a, W: Write>(
    tar: &mut Builder<W>,
    dir: &str,
    modified: i64,
    payloads: impl Iterator<Item = Option<&'a Payload>>,
) -> io::Result<()> {
    let mut pages = Vec::new();
    let mut pointers = Vec::new();
    let mut points: u32 = 0;
    for payload in payloads {
        points += 1;
        let Some(payload) = payload else {
            pointers.extend_from_slice(&[0; POINTER_BYTES]);
            continue;
        };
        let value = lz4_flex::compress_prepend_size(&serde_json::to_vec(payload)?);
        let block = pages.len() / BLOCK_BYTES;
        for field in [1, block / PAGE_BLOCKS, block % PAGE_BLOCKS, value.len()] {
            let field = u32::try_from(field).map_err(io::Error::other)?;
            pointers.extend_from_slice(&field.to_le_bytes());
        }
        pages.extend_from_slice(&value);
        pages.resize(pages.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    let mut tracker = points.to_le_bytes().to_vec();
    tracker.extend_from_slice(&pointers);

    let tracker_size = tracker.len().next_power_of_two().max(TRACKER_BYTES);
    append_sparse(
        tar,
        &format!("{dir}/tracker.dat"),
        modified,
        &tracker,
        tracker_size,
    )?;
    let page_count = pages.len().div_ceil(PAGE_BYTES).max(1);
    for page in 0..page_count {
        let start = page * PAGE_BYTES;
        let data = &pages[start..pages.len().min(start + PAGE_BYTES)];
        append_sparse(
            tar,
            &format!("{dir}/page_{page}.dat"),
            modified,
            data,
            PAGE_BYTES,
        )?;
    }
    let config = json!({
        "page_size_bytes": PAGE_BYTES, "block_size_bytes": BLOCK_BYTES,
        "region_size_blocks": REGION_BLOCKS, "compression": "LZ4",
    });
    append_file(
        tar,
        &format!("{dir}/config.json"),
        modified,
        config.to_string().as_bytes(),
    )?;
    let used = pages.len() / BLOCK_BYTES;
    let bitmask_size = page_count * PAGE_BLOCKS / 8;
    append_sparse(
        tar,
        &format!("{dir}/bitmask.dat"),
        modified,
        &bits(used),
        bitmask_size,
    )?;
    append_file(
        tar,
        &format!("{dir}/gaps.dat"),
        modified,
        &gaps(used, page_count),
    )
}

/// Reads the payload of each of `points` offsets; `None` where none is stored.
pub fn read(
    files: &BTreeMap<String, Vec<u8>>,
    dir: &str,
    points: usize,
) -> Result<Vec<Option<Payload>>> {
    let file = |name: &str| files.get(&format!("{dir}/{name}"));
    let Some(config) = file("config.json") else {
        return Ok(vec![None; points]);
    };
    let config: serde_json::Value = serde_json::from_slice(config)?;
    let number = |key: &str| {
        let number = config.get(key).and_then(serde_json::Value::as_u64);
        number
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| Error::Internal(format!("payload storage config lacks `{key}`")))
    };
    let (page_bytes, block_bytes) = (number("page_size_bytes")?, number("block_size_bytes")?);
    let compressed = config.get("compression").and_then(|c| c.as_str()) == Some("LZ4");
    let tracker = file("tracker.dat").map(Vec::as_slice).unwrap_or_default();

    let mut payloads = Vec::with_capacity(points);
    for point in 0..points {
        let Some(entry) = tracker.get(4 + point * POINTER_BYTES..4 + (point + 1) * POINTER_BYTES)
        else {
            payloads.push(None);
            continue;
        };
        let [present, page, block, len] = [0, 4, 8, 12].map(|at| u32_at(entry, at) as usize);
        if present == 0 {
            payloads.push(None);
            continue;
        }
        // A value may run over into the next page.
        let mut value = Vec::with_capacity(len);
        let mut position = page * page_bytes + block * block_bytes;
        while value.len() < len {
            let (page, at) = (position / page_bytes, position % page_bytes);
            let take = (len - value.len()).min(page_bytes - at);
            let chunk = file(&format!("page_{page}.dat"))
                .and_then(|data| data.get(at..at + take))
                .ok_or_else(|| Error::Internal(format!("payload of offset {point} is cut off")))?;
            value.extend_from_slice(chunk);
            position += take;
        }
        if compressed {
            value = lz4_flex::decompress_size_prepended(&value)
                .map_err(|e| Error::Internal(format!("payload of offset {point}: {e}")))?;
        }
        payloads.push(Some(serde_json::from_slice(&value)?));
    }
    Ok(payloads)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// The first `count` bits set, lowest bit first.
fn bits(count: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; count / 8];
    if !count.is_multiple_of(8) {
        bytes.push((1 << (count % 8)) - 1);
    }
    bytes
}

/// Per region the longest, the leading and the trailing run of free blocks,
/// where the first `used` blocks are taken.
fn gaps(used: usize, pages: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for region in 0..pages * PAGE_BLOCKS / REGION_BLOCKS {
        let taken = used
            .saturating_sub(region * REGION_BLOCKS)
            .min(REGION_BLOCKS);
        let free = REGION_BLOCKS - taken;
        let leading = if taken == 0 { free } else { 0 };
        for run in [free, leading, free] {
            table.extend_from_slice(&u16::try_from(run).unwrap_or(0).to_le_bytes());
        }
    }
    table
}
