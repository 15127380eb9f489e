//! The outer archive of a collection snapshot.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tar::{Archive, Builder};

use super::segment;
use super::tar_files::{append_generated, append_sparse};
use crate::collection::state::{Frozen, Segment};
use crate::config::CollectionConfig;
use crate::error::{Error, Result};

const WAL_BYTES: usize = 33_554_432;
const COLLECTION_VERSION: &str = "0.4.2";
/// The stand-in's log is elsewhere; its archives have the files in their place.
const WAL_NOTE: &[u8] = b"lifeboat qdrant-standin: no write-ahead log is kept here\n";

/// Writes the archive of a frozen collection.
pub fn write<W: Write>(frozen: &Frozen, peer_id: u64, out: W) -> std::io::Result<W> {
    let mut tar = Builder::new(out);
    for (shard, segments) in &frozen.shards {
        for segment in segments {
            let data = segment::write(segment, &frozen.config, &frozen.schema)?;
            append_generated(
                &mut tar,
                &format!("{shard}/segments/{}.tar", segment.id),
                &data,
            )?;
        }
        let modified = segments.iter().map(|s| s.modified).max().unwrap_or(0);
        for file in ["open-1", "open-2"] {
            append_sparse(
                &mut tar,
                &format!("{shard}/wal/{file}"),
                modified,
                WAL_NOTE,
                WAL_BYTES,
            )?;
        }
        let peers = BTreeMap::from([(peer_id.to_string(), "Active")]);
        let replica = json!({"is_local": true, "this_peer_id": peer_id, "peers": peers});
        let replica_path = format!("{shard}/replica_state.json");
        append_generated(&mut tar, &replica_path, replica.to_string().as_bytes())?;
        let shard_config = br#"{"type":"ReplicaSet"}"#;
        append_generated(
            &mut tar,
            &format!("{shard}/shard_config.json"),
            shard_config,
        )?;
    }
    let config = frozen.config.snapshot_document().to_string();
    let schema = json!({"schema": frozen.schema}).to_string();
    for (path, data) in [
        ("version.info", COLLECTION_VERSION),
        ("config.json", &config),
        ("shard_key_mapping.json", "[]"),
        ("payload_index.json", &schema),
    ] {
        append_generated(&mut tar, path, data.as_bytes())?;
    }
    tar.into_inner()
}

/// Reads an archive. `unpack_dir` is the folder the server would unpack into:
/// its error texts name it.
pub fn read<R: Read>(input: R, unpack_dir: &Path) -> Result<Frozen> {
    let mut shards: BTreeMap<u32, Vec<Arc<Segment>>> = BTreeMap::new();
    let mut documents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut archive = Archive::new(input);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let failed = |_| {
            let target = unpack_dir.join(&path);
            Error::Internal(format!(
                "File IO error: failed to unpack `{}`",
                target.display()
            ))
        };
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            [shard, "segments", name] => {
                let shard: u32 = shard.parse().map_err(|_| {
                    Error::Internal(format!("the snapshot has a shard named `{shard}`"))
                })?;
                let id = name.strip_suffix(".tar").unwrap_or(name).to_string();
                // Whole first: an inner tar that ends well before its entry
                // does would hide that the rest of the file is missing.
                let mut data = Vec::new();
                entry.read_to_end(&mut data).map_err(failed)?;
                if (data.len() as u64) < entry.size() {
                    return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
                }
                let modified = inner_mtime(&data);
                let segment = segment::read(id, modified, &data[..]).map_err(failed)??;
                shards.entry(shard).or_default().push(Arc::new(segment));
            }
            [name] => {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).map_err(failed)?;
                documents.insert(name.to_string(), data);
            }
            // Logs and replica states are the server's own business.
            _ => {}
        }
    }
    let document = |name: &str| -> Result<Value> {
        let data = documents
            .get(name)
            .ok_or_else(|| Error::Internal(format!("File IO error: the snapshot has no {name}")))?;
        Ok(serde_json::from_slice(data)?)
    };
    let config = CollectionConfig::try_from(document("config.json")?)?;
    let schema = document("payload_index.json")?;
    let schema = schema.get("schema").cloned().unwrap_or_default();
    for shard in 0..config.shard_number() {
        shards.entry(shard).or_default();
    }
    Ok(Frozen {
        config,
        schema: serde_json::from_value(schema)?,
        shards,
    })
}

/// A restored segment keeps its files' time, so that the next snapshot of it
/// is byte for byte the same.
fn inner_mtime(tar: &[u8]) -> i64 {
    let mut archive = Archive::new(tar);
    archive
        .entries()
        .ok()
        .and_then(|mut entries| entries.next())
        .and_then(std::result::Result::ok)
        .and_then(|entry| entry.header().mtime().ok())
        .and_then(|time| i64::try_from(time).ok())
        .unwrap_or(0)
}
