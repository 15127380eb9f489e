#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn listed(id: u64, second: i64) -> Committed {
    let seen = Seen {
        size: 100 + id,
        modified: Timestamp::from_second(second).unwrap(),
    };
    Committed {
        id: format!("{id:04}"),
        manifest: seen,
        packs: Some(seen),
    }
}

fn uses(named: &Named) -> Uses {
    let lines = named.iter().map(|(pack, bytes)| format!("{pack} {bytes}"));
    let text: Vec<String> = ["# lifeboat packs 1".to_owned()]
        .into_iter()
        .chain(lines)
        .collect();
    Uses::decode(&text.join("\n")).unwrap()
}

fn nothing_known<'a>() -> PackUses<'a> {
    PackUses {
        memory: None,
        names: names(),
        known: Vec::new(),
        ends: None,
        is_changed: false,
    }
}

/// Packs that are there: what does not matter, as long as they begin differently.
fn names() -> Names {
    Names::of((0..=255).map(|pack| PackName([pack; 32]))).unwrap()
}

#[allow(clippy::unnecessary_wraps)]
fn mark(backup: &Committed) -> Result<u64, RepositoryError> {
    Ok(backup.id.parse::<u64>().unwrap() + 1000)
}

/// Written and read back.
fn reopened(memory: &PackUses<'_>) -> PackUses<'static> {
    let text = serde_json::to_string(&Written::encode(&memory.known, mark).unwrap()).unwrap();
    let written: Written = serde_json::from_str(&text).unwrap();
    let marks = memory
        .known
        .iter()
        .map(|one| (mark(&one.backup).unwrap(), &one.backup));
    let marks = marks.collect();
    PackUses {
        known: written.decode(&names(), &marks).unwrap(),
        ..nothing_known()
    }
}

fn assert_same(memory: &PackUses<'_>, kept: &BTreeMap<u64, Named>) {
    let found: BTreeMap<u64, Named> = memory
        .of_each(|_| true)
        .into_iter()
        .map(|(id, named)| (id.parse().unwrap(), named))
        .collect();
    assert_eq!(&found, kept);
    // All at once tells the same as one by one.
    let most = |uses: Vec<(PackName, u64)>| {
        let mut most = Named::new();
        for (pack, bytes) in uses {
            let known = most.entry(pack).or_default();
            *known = bytes.max(*known);
        }
        most
    };
    assert_eq!(
        most(memory.named().collect()),
        most(kept.values().flatten().map(|(p, b)| (*p, *b)).collect())
    );
}

proptest! {
    /// Backups of several lineages come and go in any order, and the memory is closed and opened between.
    #[test]
    fn what_is_remembered_is_what_the_lists_said(
        steps in proptest::collection::vec(
            (0u8..4, any::<prop::sample::Index>(), 0usize..3, proptest::collection::vec((0u8..12, 0u64..4), 0..4)),
            1..60,
        ),
    ) {
        let mut memory = nothing_known();
        let mut lineages = [Named::new(), Named::new(), Named::new()];
        let mut kept: BTreeMap<u64, Named> = BTreeMap::new();
        for (id, (step, which, lineage, changes)) in (0u64..).zip(steps) {
            if step == 0 && !kept.is_empty() {
                let gone = *which.get(&kept.keys().copied().collect::<Vec<_>>());
                kept.remove(&gone);
                let left: Vec<Committed> = kept.keys().map(|id| listed(*id, 0)).collect();
                memory = reopened(&memory);
                memory.forget_all_but(&left);
            } else {
                let named = lineages.get_mut(lineage).unwrap();
                for (pack, bytes) in changes {
                    // None of its bytes: it is not named any more.
                    let pack = PackName([pack; 32]);
                    if bytes == 0 { named.remove(&pack); } else { named.insert(pack, bytes); }
                }
                memory.learn(&listed(id, 0), &uses(named), NOW);
                kept.insert(id, named.clone());
            }
            assert_same(&memory, &kept);
            assert_same(&reopened(&memory), &kept);
        }
    }
}

#[test]
fn a_backup_is_told_by_the_one_that_it_is_most_like() {
    let mut memory = nothing_known();
    for id in 0..40 {
        // Two hosts in turn: each names a hundred packs of its own, one of them new.
        let own = u8::try_from(id % 2).unwrap() * 128;
        let mut named: Named = (0..100).map(|n| (PackName([own + n; 32]), 7)).collect();
        named.insert(PackName([own + 101; 32]), id);
        memory.learn(&listed(id, 0), &uses(&named), NOW);
    }
    let changes: usize = memory.known.iter().map(|one| one.changes.len()).sum();
    assert!(changes <= 2 * 101 + 38, "{changes} differences");
}

#[test]
fn a_base_that_goes_leaves_nothing_of_itself() {
    let mut memory = nothing_known();
    for id in 0..50 {
        // A pack for a night, beside one that stays.
        let night = u8::try_from(id).unwrap();
        let named = Named::from([(PackName([200; 32]), 5), (PackName([night; 32]), 1)]);
        memory.learn(&listed(id, 0), &uses(&named), NOW);
        // The first and the newest three are kept.
        let left: Vec<Committed> = (0..=id)
            .filter(|other| *other == 0 || other + 3 > id)
            .map(|id| listed(id, 0))
            .collect();
        memory.forget_all_but(&left);
    }
    let changes: usize = memory.known.iter().map(|one| one.changes.len()).sum();
    assert!(changes <= 10, "{changes} differences of four backups");
}

#[test]
fn only_the_very_files_that_were_read_are_believed() {
    let named = Named::from([(PackName([1; 32]), 5)]);
    let second = NOW.as_second();
    let mut memory = nothing_known();
    // Too young: another list could come in its place within the tick of a clock.
    memory.learn(&listed(1, second - 3), &uses(&named), NOW);
    assert!(memory.ids().is_empty());
    let no_list = Committed {
        packs: None,
        ..listed(1, 0)
    };
    memory.learn(&no_list, &uses(&named), NOW);
    assert!(memory.ids().is_empty());
    let old = listed(1, second - 4);
    let other = |seen: Seen| {
        let size = seen.size + 1;
        let modified = seen.modified + jiff::SignedDuration::from_nanos(1);
        [Seen { size, ..seen }, Seen { modified, ..seen }]
    };
    let mut others = vec![no_list];
    for seen in other(old.manifest) {
        let (manifest, packs) = (seen, Some(seen));
        others.push(Committed {
            manifest,
            ..old.clone()
        });
        others.push(Committed {
            packs,
            ..old.clone()
        });
    }
    for changed in others {
        memory.learn(&old, &uses(&named), NOW);
        memory.forget_all_but(std::slice::from_ref(&old));
        assert_eq!(memory.ids(), BTreeSet::from(["0001"]));
        memory.forget_all_but(&[changed]);
        assert!(memory.ids().is_empty());
    }
}

#[test]
fn what_does_not_fit_together_is_not_used() {
    let fits = |packs: &[u64], base: Option<usize>, number: usize| {
        let backup = WrittenBackup {
            mark: 1001,
            base,
            changes: vec![(number, Some(1))],
        };
        let written = Written {
            packs: packs.to_vec(),
            backups: vec![backup],
        };
        written.decode(&names(), &BTreeMap::new()).is_some()
    };
    assert!(fits(&[1], None, 0));
    assert!(!fits(&[1], None, 1));
    assert!(!fits(&[1], Some(0), 0));
}

#[test]
fn packs_that_begin_alike_are_never_mistaken_for_each_other() {
    let mut other = [7; 32];
    other[31] = 8;
    let alike = [PackName([7; 32]), PackName(other)];
    assert!(Names::of(alike).is_none());
    assert!(Names::of([alike[0], alike[0]]).is_some());
    // One that is not there is none that is.
    let names = names();
    let [there, gone] = alike.map(|pack| names.complete(short(pack)));
    assert_eq!((there, gone), (alike[0], alike[0]));
    let gone = Names::default().complete(short(alike[0]));
    assert!(gone != alike[0] && gone != alike[1]);
}
