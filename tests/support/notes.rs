//! What an adapter would say of its archive, where a test has no service.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat::repository::session::ArchiveNotes;
use lifeboat::services::{PointInTime, ServiceKind, ServiceReport};

pub fn notes() -> ArchiveNotes {
    ArchiveNotes {
        kind: ServiceKind::Volume,
        container: None,
        point: PointInTime::at(Timestamp::UNIX_EPOCH),
        report: ServiceReport {
            version: "1".into(),
            counts: BTreeMap::new(),
            facts: serde_json::Value::Null,
            warnings: vec![],
        },
    }
}
