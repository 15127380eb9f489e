//! One segment as its tar of storage files: vectors in chunks, payloads,
//! ids and versions.
//!
//! Written: everything but the payload indexes' own data, of which only the
//! configuration goes in. Read: plain segments with a mutable id tracker, the
//! stand-in's and the real server's; optimised (HNSW, quantised) ones not.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use serde_json::{Value, json};
use tar::Builder;

use super::gridstore;
use super::tar_files::{append_file, append_sparse, read_all};
use crate::collection::state::Segment;
use crate::config::CollectionConfig;
use crate::error::{Error, Result};
use crate::model::{DEFAULT_VECTOR, Payload, Point, PointId, Vectors};

const ROOT: &str = "snapshot/files";
const CHUNK_BYTES: usize = 33_554_432;
const FLAGS_BYTES: usize = 1_048_576;
const STORAGE_VERSION: &str = "0.6.0";

/// The segment's tar. The same segment and schema give the same bytes.
pub fn write(
    segment: &Segment,
    config: &CollectionConfig,
    schema: &BTreeMap<String, Value>,
) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let modified = segment.modified;
    for (name, params) in config.vectors() {
        let dir = vector_dir(name);
        let on_disk = params.on_disk == Some(true);
        append_vectors(&mut tar, &dir, segment, name, params.size, !on_disk)?;
    }
    let indexes = json!({ "indexed_fields": schema }).to_string();
    let index_path = format!("{ROOT}/payload_index/config.json");
    append_file(&mut tar, &index_path, modified, indexes.as_bytes())?;
    let payloads = segment
        .slots
        .iter()
        .map(|slot| slot.as_ref().map(|point| &point.payload));
    gridstore::append(
        &mut tar,
        &format!("{ROOT}/payload_storage"),
        modified,
        payloads,
    )?;

    let (mappings, versions) = id_tracker(segment)?;
    let document = segment_document(segment, config).to_string();
    for (name, data) in [
        ("mutable_id_tracker.mappings", &mappings[..]),
        ("mutable_id_tracker.versions", &versions[..]),
        ("segment.json", document.as_bytes()),
        ("version.info", STORAGE_VERSION.as_bytes()),
    ] {
        append_file(&mut tar, &format!("{ROOT}/{name}"), modified, data)?;
    }
    tar.into_inner()
}

/// Reads a segment's tar. The first error is about the tar itself, the second
/// about what is in it.
pub fn read(id: String, modified: i64, tar: impl Read) -> io::Result<Result<Segment>> {
    let files = read_all(tar)?;
    Ok(parse(id, modified, &files))
}

fn parse(id: String, modified: i64, files: &BTreeMap<String, Vec<u8>>) -> Result<Segment> {
    let file = |name: &str| files.get(&format!("{ROOT}/{name}"));
    let document: Value = match file("segment.json") {
        Some(data) => serde_json::from_slice(data)?,
        None => return Err(Error::Internal(format!("segment {id} has no segment.json"))),
    };
    let vector_data = document
        .pointer("/config/vector_data")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::Internal(format!("segment {id} lists no vectors")))?;
    let (Some(mappings), Some(versions)) = (
        file("mutable_id_tracker.mappings"),
        file("mutable_id_tracker.versions"),
    ) else {
        return Err(Error::Internal(format!(
            "segment {id} is optimised: Lifeboat's test stand-in reads plain segments only"
        )));
    };
    let ids = read_ids(mappings)?;
    let points = versions.len() / 8;
    let mut payloads = gridstore::read(files, &format!("{ROOT}/payload_storage"), points)?;
    let mut vectors: Vec<Vectors> = vec![Vectors::new(); points];
    for (name, params) in vector_data {
        let size = params.get("size").and_then(Value::as_u64).unwrap_or(0);
        let size = usize::try_from(size).unwrap_or(0);
        read_vectors(files, name, size, &mut vectors)?;
    }
    let mut slots: Vec<Option<Arc<Point>>> = vec![None; points];
    for (point_id, offset) in ids {
        let (Some(slot), Some(payload), Some(vectors)) = (
            slots.get_mut(offset),
            payloads.get_mut(offset),
            vectors.get_mut(offset),
        ) else {
            return Err(Error::Internal(format!(
                "segment {id} maps point {point_id} to offset {offset}, past its end"
            )));
        };
        *slot = Some(Arc::new(Point {
            id: point_id,
            version: u64_at(versions, offset * 8),
            vectors: std::mem::take(vectors),
            payload: payload.take().unwrap_or_else(Payload::new),
        }));
    }
    let version = document.get("version").and_then(Value::as_u64);
    Ok(Segment {
        id,
        version: version.unwrap_or(0),
        modified,
        slots,
    })
}

fn append_vectors(
    tar: &mut Builder<Vec<u8>>,
    dir: &str,
    segment: &Segment,
    name: &str,
    size: usize,
    populate: bool,
) -> io::Result<()> {
    let modified = segment.modified;
    let per_chunk = vectors_per_chunk(size);
    let chunk_bytes = per_chunk * size * 4;
    let mut data = Vec::with_capacity(segment.slots.len() * size * 4);
    let mut absent = vec![0_u8; segment.slots.len().div_ceil(8)];
    for (offset, slot) in segment.slots.iter().enumerate() {
        let vector = slot.as_ref().and_then(|point| point.vectors.get(name));
        match vector {
            Some(vector) => vector
                .iter()
                .for_each(|value| data.extend_from_slice(&value.to_le_bytes())),
            None => {
                data.resize(data.len() + size * 4, 0);
                absent[offset / 8] |= 1 << (offset % 8);
            }
        }
    }
    let config = json!({
        "chunk_size_bytes": chunk_bytes, "chunk_size_vectors": per_chunk,
        "dim": size, "populate": populate,
    });
    let count = (segment.slots.len() as u64).to_le_bytes();
    let path = |file: &str| format!("{dir}/{file}");
    append_file(
        tar,
        &path("vectors/config.json"),
        modified,
        config.to_string().as_bytes(),
    )?;
    append_file(tar, &path("vectors/status.dat"), modified, &count)?;
    let mut chunks: Vec<&[u8]> = data.chunks(chunk_bytes.max(1)).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    for (number, chunk) in chunks.into_iter().enumerate() {
        let chunk_path = path(&format!("vectors/chunk_{number}.mmap"));
        append_sparse(tar, &chunk_path, modified, chunk, chunk_bytes)?;
    }
    let mut deleted_status = count.to_vec();
    deleted_status.resize(16, 0);
    append_file(tar, &path("deleted/status.dat"), modified, &deleted_status)?;
    let flags_size = absent.len().next_power_of_two().max(FLAGS_BYTES);
    append_sparse(
        tar,
        &path("deleted/flags_a.dat"),
        modified,
        &absent,
        flags_size,
    )
}

fn read_vectors(
    files: &BTreeMap<String, Vec<u8>>,
    name: &str,
    size: usize,
    vectors: &mut [Vectors],
) -> Result<()> {
    let dir = vector_dir(name);
    let per_chunk = vectors_per_chunk(size);
    let deleted = files.get(&format!("{dir}/deleted/flags_a.dat"));
    for (offset, vectors) in vectors.iter_mut().enumerate() {
        let flags = deleted.and_then(|flags| flags.get(offset / 8));
        if flags.is_some_and(|flags| flags & (1 << (offset % 8)) != 0) {
            continue;
        }
        let (chunk, at) = (offset / per_chunk, offset % per_chunk * size * 4);
        let bytes = files
            .get(&format!("{dir}/vectors/chunk_{chunk}.mmap"))
            .and_then(|data| data.get(at..at + size * 4))
            .ok_or_else(|| {
                Error::Internal(format!(
                    "vector `{name}` of offset {offset} is not stored plainly"
                ))
            })?;
        let vector = bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        vectors.insert(name.to_string(), vector);
    }
    Ok(())
}

/// Mappings: a kind byte, the id, the offset. Versions: a u64 per offset.
fn id_tracker(segment: &Segment) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (mut mappings, mut versions) = (Vec::new(), Vec::new());
    for (offset, slot) in segment.slots.iter().enumerate() {
        let version = slot.as_ref().map_or(0, |point| point.version);
        versions.extend_from_slice(&version.to_le_bytes());
        let Some(point) = slot else { continue };
        match point.id {
            PointId::Num(id) => {
                mappings.push(1);
                mappings.extend_from_slice(&id.to_le_bytes());
            }
            PointId::Uuid(id) => {
                mappings.push(2);
                mappings.extend_from_slice(&id);
            }
        }
        let offset = u32::try_from(offset).map_err(io::Error::other)?;
        mappings.extend_from_slice(&offset.to_le_bytes());
    }
    Ok((mappings, versions))
}

/// Plays the mappings file back: 1 and 2 insert, 3 and 4 delete.
fn read_ids(mut bytes: &[u8]) -> Result<BTreeMap<PointId, usize>> {
    let mut ids = BTreeMap::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let cut = || Error::Internal("the id tracker's mappings are cut off".into());
        let width = if matches!(kind, 1 | 3) { 8 } else { 16 };
        let (id, rest) = rest.split_at_checked(width).ok_or_else(cut)?;
        let id = match <[u8; 16]>::try_from(id) {
            Ok(uuid) => PointId::Uuid(uuid),
            Err(_) => PointId::Num(u64_at(id, 0)),
        };
        bytes = match kind {
            1 | 2 => {
                let (offset, rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
                ids.insert(id, u32::from_le_bytes(*offset) as usize);
                rest
            }
            3 | 4 => {
                ids.remove(&id);
                rest
            }
            other => return Err(Error::Internal(format!("unknown id mapping {other}"))),
        };
    }
    Ok(ids)
}

fn segment_document(segment: &Segment, config: &CollectionConfig) -> Value {
    let vector_data: BTreeMap<&str, Value> = config
        .vectors()
        .iter()
        .map(|(name, params)| {
            let on_disk = params.on_disk == Some(true);
            let storage = if on_disk {
                "ChunkedMmap"
            } else {
                "InRamChunkedMmap"
            };
            let data = json!({
                "size": params.size, "distance": params.distance, "storage_type": storage,
                "index": {"type": "plain", "options": {}}, "quantization_config": null,
            });
            (name.as_str(), data)
        })
        .collect();
    json!({
        "initial_version": null, "version": segment.version,
        "config": {"vector_data": vector_data, "payload_storage_type": {"type": "mmap"}},
    })
}

fn vector_dir(name: &str) -> String {
    if name == DEFAULT_VECTOR {
        format!("{ROOT}/vector_storage")
    } else {
        format!("{ROOT}/vector_storage-{name}")
    }
}

fn vectors_per_chunk(size: usize) -> usize {
    (CHUNK_BYTES / (size * 4).max(1)).max(1)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
