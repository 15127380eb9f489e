use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Truth, presence};
use crate::ledger::{PointId, Write};
use crate::qdrant::{
    DOCS, DOCS_SIZE, IMAGES, LANGUAGES, OVERWRITTEN, Point, Qdrant, image_id, language, text,
    vector,
};
use crate::stack::{Service, Stack};
use crate::state::QdrantState;
use crate::table::Check;

const SERVICE: Service = Service::Qdrant;

pub fn compare(stack: &Stack, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let expected = truth.state.snapshot.qdrant.as_ref();
    let expected = expected.context("the state file says nothing of Qdrant")?;
    let qdrant = Qdrant::new(stack, Duration::from_mins(1))?;
    let names = |state: &[String]| state.join(", ");
    checks.push(Check::equal(
        SERVICE,
        "collections",
        &names(&expected.collections.keys().cloned().collect::<Vec<_>>()),
        &names(&qdrant.collection_names()?),
    ));
    checks.push(Check::equal(
        SERVICE,
        "aliases",
        &pairs(&expected.aliases),
        &pairs(&qdrant.aliases()?),
    ));
    for name in expected.collections.keys() {
        compare_collection(&qdrant, truth, expected, name, checks)?;
    }
    compare_languages(&qdrant, checks)?;
    compare_written(&qdrant, truth, checks)?;
    compare_overwritten(&qdrant, truth, checks)
}

/// Compares a collection's settings, its indexes and how many points it has.
fn compare_collection(
    qdrant: &Qdrant,
    truth: &Truth,
    expected: &QdrantState,
    name: &str,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let Some(expected) = expected.collections.get(name) else {
        return Ok(());
    };
    let found = qdrant.collection(name)?;
    let adds =
        |write: &Write| matches!(write, Write::Point { collection, .. } if collection == name);
    let since = truth.state.snapshot.at;
    let added = |must: bool| {
        let records = truth
            .of(SERVICE)
            .filter(|record| record.before > since && adds(&record.write));
        let end = truth.backup_end;
        let within = records.filter(|record| {
            if must {
                record.after < truth.backup_start
            } else {
                end.is_none_or(|end| record.before <= end)
            }
        });
        within.count() as u64
    };
    let (least, most) = (
        expected.points + added(true),
        expected.points + added(false),
    );
    checks.push(Check::new(
        SERVICE,
        format!("{name}: exact count"),
        if least == most {
            least.to_string()
        } else {
            format!("{least} to {most}")
        },
        found.points,
        (least..=most).contains(&found.points),
    ));
    checks.push(Check::equal(
        SERVICE,
        format!("{name}: payload indexes"),
        &pairs(&expected.payload_schema),
        &pairs(&found.payload_schema),
    ));
    checks.push(Check::new(
        SERVICE,
        format!("{name}: parameters"),
        "as before",
        if expected.params == found.params {
            "as before".to_owned()
        } else {
            found.params.to_string()
        },
        expected.params == found.params,
    ));
    let (sample, wrong) = match name {
        DOCS => sample_docs(qdrant, expected.points)?,
        IMAGES => sample_images(qdrant, truth.state.images.unwrap_or(0))?,
        _ => return Ok(()),
    };
    checks.push(presence(
        SERVICE,
        &format!("{name}: points of a sample with right payload and vector"),
        sample,
        sample - wrong,
    ));
    Ok(())
}

/// Counts through the keyword index; the points' numbers have no gaps, so the counts are known.
fn compare_languages(qdrant: &Qdrant, checks: &mut Vec<Check>) -> Result<()> {
    let points = qdrant.count(DOCS)?;
    let mut expected = BTreeMap::new();
    for id in 1..=points {
        *expected.entry(language(id)).or_insert(0_u64) += 1;
    }
    let expected = LANGUAGES.map(|lang| expected.get(lang).copied().unwrap_or(0).to_string());
    let found = LANGUAGES.map(|lang| Ok(qdrant.count_where(DOCS, "lang", lang)?.to_string()));
    let found = found.into_iter().collect::<Result<Vec<_>>>()?;
    let what = format!("{DOCS}: counts through the keyword index");
    checks.push(Check::equal(
        SERVICE,
        what,
        &expected.join(", "),
        &found.join(", "),
    ));
    Ok(())
}

/// Returns how many points were looked at and how many were not as they were made.
fn sample_docs(qdrant: &Qdrant, points: u64) -> Result<(usize, usize)> {
    let ids: Vec<u64> = spread(OVERWRITTEN + 1, points);
    let asked: Vec<PointId> = ids.iter().copied().map(PointId::Number).collect();
    let found = qdrant.points(DOCS, &asked)?;
    let wrong = ids.iter().filter(|id| {
        let is_right = |point: &Point| {
            point.payload.get("lang") == Some(&json!(language(**id)))
                && point.payload.get("n") == Some(&json!(**id))
                && point.payload.get("text") == Some(&json!(text(**id)))
                && point.has_vector("", &vector(**id, DOCS_SIZE))
        };
        !found.get(&PointId::Number(**id)).is_some_and(is_right)
    });
    Ok((ids.len(), wrong.count()))
}

/// Looks at the seeded images; the writer's are compared with the ledger.
fn sample_images(qdrant: &Qdrant, seeded: u64) -> Result<(usize, usize)> {
    let numbers: Vec<u64> = spread(1, seeded);
    let id = |n: u64| PointId::Uuid(image_id(n));
    let asked: Vec<PointId> = numbers.iter().copied().map(id).collect();
    let found = qdrant.points(IMAGES, &asked)?;
    let wrong = numbers.iter().filter(|n| {
        let is_right = |point: &Point| {
            point.payload.get("k") == Some(&json!(**n))
                && point.has_vector("img", &vector(**n, 4))
                && point.has_vector("txt", &vector(**n + 1, 4))
        };
        !found.get(&id(**n)).is_some_and(is_right)
    });
    Ok((numbers.len(), wrong.count()))
}

/// Compares every point the ledger has with what is there.
fn compare_written(qdrant: &Qdrant, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let mut found: BTreeMap<&str, HashMap<PointId, Point>> = BTreeMap::new();
    for name in [DOCS, IMAGES] {
        let ids: Vec<PointId> = truth
            .of(SERVICE)
            .filter_map(|record| match &record.write {
                Write::Point { collection, id, .. } if collection == name => Some(id.clone()),
                _ => None,
            })
            .collect();
        found.insert(name, qdrant.points(name, &ids)?);
    }
    let is_there = |write: &&Write| match write {
        Write::Point {
            collection,
            id,
            nonce,
        } => found
            .get(collection.as_str())
            .and_then(|points| points.get(id))
            .is_some_and(|point| point.payload.get("nonce") == Some(&json!(nonce))),
        _ => false,
    };
    let is_point = |write: &&Write| matches!(write, Write::Point { .. });
    let acknowledged: Vec<&Write> = truth.acknowledged(SERVICE).filter(is_point).collect();
    checks.push(presence(
        SERVICE,
        "points acknowledged before the backup",
        acknowledged.len(),
        acknowledged.iter().filter(|write| is_there(write)).count(),
    ));
    // In a collection of one shard the points written one after the other end at one instant.
    let mut numbered: Vec<(u64, bool)> = truth
        .of(SERVICE)
        .filter_map(|record| match &record.write {
            write @ Write::Point {
                id: PointId::Number(id),
                ..
            } => Some((*id, is_there(&write))),
            _ => None,
        })
        .collect();
    numbered.sort_unstable();
    let last = numbered
        .iter()
        .rposition(|(_, there)| *there)
        .map_or(0, |last| last + 1);
    let there = numbered.iter().filter(|(_, there)| *there).count();
    checks.push(presence(
        SERVICE,
        "points acknowledged up to the restored end",
        last,
        there,
    ));
    if truth.backup_end.is_some() {
        let there = truth.too_late(SERVICE).filter(is_there).count();
        checks.push(presence(SERVICE, "points from after the backup", 0, there));
    }
    Ok(())
}

/// Compares the points that are written again and again: none may have gone back.
fn compare_overwritten(qdrant: &Qdrant, truth: &Truth, checks: &mut Vec<Check>) -> Result<()> {
    let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
    for write in truth.acknowledged(SERVICE) {
        if let Write::Overwrite { id, revision, .. } = write {
            expected.insert(*id, *revision);
        }
    }
    let ids: Vec<PointId> = expected.keys().copied().map(PointId::Number).collect();
    let found = qdrant.points(DOCS, &ids)?;
    let kept = expected.iter().filter(|(id, revision)| {
        let point = found.get(&PointId::Number(**id));
        let there = point.and_then(|point| point.payload.get("revision")?.as_u64());
        there.is_some_and(|there| there >= **revision)
    });
    checks.push(presence(
        SERVICE,
        "overwritten points at their last revision or later",
        expected.len(),
        kept.count(),
    ));
    Ok(())
}

/// Up to a hundred numbers, evenly between the first and the last.
fn spread(first: u64, last: u64) -> Vec<u64> {
    let step = (last.saturating_sub(first) / 100).max(1);
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    (first..=last).step_by(step).collect()
}

fn pairs(map: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    match pairs.as_slice() {
        [] => "none".to_owned(),
        pairs => pairs.join(", "),
    }
}
