//! Points and their ids, as both protocols and the log see them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The name of a collection's only, unnamed vector.
pub const DEFAULT_VECTOR: &str = "";

pub type Payload = Map<String, Value>;
/// Vectors by name; a single unnamed one goes under [`DEFAULT_VECTOR`].
pub type Vectors = BTreeMap<String, Vec<f32>>;

/// A number or a UUID; numbers sort first, as the server scrolls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PointId {
    Num(u64),
    Uuid([u8; 16]),
}

/// One stored point. `version` is the operation that wrote it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub id: PointId,
    pub version: u64,
    pub vectors: Vectors,
    pub payload: Payload,
}

impl PointId {
    pub fn from_json(value: &Value) -> Result<Self> {
        match value {
            Value::Number(n) => n.as_u64().map(Self::Num),
            Value::String(s) => parse_uuid(s).map(Self::Uuid),
            _ => None,
        }
        .ok_or_else(|| {
            Error::BadRequest(format!(
                "value {value} is not a valid point ID, valid values are either an unsigned integer or a UUID"
            ))
        })
    }

    pub fn to_json(self) -> Value {
        match self {
            Self::Num(n) => Value::from(n),
            Self::Uuid(_) => Value::from(self.to_string()),
        }
    }

    /// Spreads points over shards. The server's hash ring differs; only that
    /// an id always meets the same shard matters.
    pub fn shard(self, shards: u32) -> u32 {
        let seed = match self {
            Self::Num(n) => n,
            Self::Uuid(bytes) => bytes
                .iter()
                .fold(0, |hash: u64, b| hash.wrapping_mul(31) + u64::from(*b)),
        };
        let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        u32::try_from(mixed % u64::from(shards.max(1))).unwrap_or(0)
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Num(n) => write!(f, "{n}"),
            Self::Uuid(bytes) => f.write_str(&format_uuid(bytes)),
        }
    }
}

impl Serialize for PointId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(&value).map_err(serde::de::Error::custom)
    }
}

/// A random (version 4) UUID for a new segment.
pub fn new_uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    format_uuid(&bytes)
}

fn format_uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    if hex.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
