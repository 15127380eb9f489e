#![allow(clippy::unwrap_used)]
use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn backup(text: &str) -> Candidate {
    Candidate {
        damaged: false,
        id: text.to_owned(),
        finished: at(text),
        raw_bytes: 1000,
        counts: BTreeMap::new(),
        machine: None,
    }
}

fn none() -> RetentionPolicy {
    RetentionPolicy {
        shrink_limit_percent: 50,
        ..RetentionPolicy::default()
    }
}

/// In UTC, and nobody agreed to a shrink.
fn decide_at(policy: &RetentionPolicy, backups: &[Candidate], now: &str) -> Decision {
    decide(policy, backups, None, at(now), &TimeZone::UTC)
}

fn kept(decision: &Decision) -> Vec<&str> {
    decision.keep.iter().map(|(id, _)| id.as_str()).collect()
}

#[test]
fn the_newest_backup_stays_whatever_the_policy_says() {
    let policy = RetentionPolicy {
        within_days: Some(1),
        ..none()
    };
    let old = [
        backup("2026-01-01T03:00:00Z"),
        backup("2026-01-02T03:00:00Z"),
    ];
    let decision = decide_at(&policy, &old, "2026-11-22T00:00:00Z");
    assert_eq!(kept(&decision), ["2026-01-02T03:00:00Z"]);
}

#[test]
fn without_any_rule_everything_stays() {
    let old = [
        backup("2025-01-01T03:00:00Z"),
        backup("2026-01-02T03:00:00Z"),
    ];
    assert!(
        decide_at(&none(), &old, "2026-11-22T00:00:00Z")
            .drop
            .is_empty()
    );
}

#[test]
fn days_weeks_and_months_keep_the_newest_of_each_that_has_any() {
    let policy = RetentionPolicy {
        daily: Some(2),
        weekly: Some(2),
        monthly: Some(2),
        ..none()
    };
    let all = [
        "2026-09-30T03:00:00Z",
        "2026-10-31T03:00:00Z",
        "2026-11-12T03:00:00Z",
        "2026-11-13T03:00:00Z",
        "2026-11-20T02:00:00Z",
        "2026-11-20T03:00:00Z",
    ];
    let backups: Vec<_> = all.iter().map(|t| backup(t)).collect();
    let decision = decide_at(&policy, &backups, "2026-11-22T00:00:00Z");
    assert_eq!(
        kept(&decision),
        [
            "2026-11-20T03:00:00Z",
            "2026-11-13T03:00:00Z",
            "2026-10-31T03:00:00Z"
        ]
    );
}

#[test]
fn a_late_run_does_not_cost_a_day_and_missed_days_cost_nothing() {
    let policy = RetentionPolicy {
        daily: Some(3),
        ..none()
    };
    let backups: Vec<_> = [
        "2026-11-01T03:00:00Z",
        "2026-11-05T03:00:00Z",
        "2026-11-20T03:00:00Z",
    ]
    .map(backup)
    .into();
    assert!(
        decide_at(&policy, &backups, "2026-11-22T00:00:00Z")
            .drop
            .is_empty()
    );
}

#[test]
fn days_are_those_of_the_time_zone() {
    let policy = RetentionPolicy {
        daily: Some(1),
        ..none()
    };
    // 23:30 and 00:30 in Berlin: two days there, one in UTC.
    let backups: Vec<_> = ["2026-11-19T22:30:00Z", "2026-11-19T23:30:00Z"]
        .map(backup)
        .into();
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let both = RetentionPolicy {
        daily: Some(2),
        ..none()
    };
    assert_eq!(
        decide_at(&policy, &backups, "2026-11-20T00:00:00Z")
            .keep
            .len(),
        1
    );
    assert_eq!(
        decide_at(&both, &backups, "2026-11-20T00:00:00Z")
            .keep
            .len(),
        1
    );
    assert_eq!(
        decide(&both, &backups, None, at("2026-11-20T00:00:00Z"), &berlin)
            .keep
            .len(),
        2
    );
}

#[test]
fn damaged_backups_take_no_good_ones_place_and_go_in_their_turn() {
    let policy = RetentionPolicy {
        last: Some(2),
        ..none()
    };
    let days = ["11", "12", "13", "14", "15", "16"].map(|day| format!("2026-11-{day}T03:00:00Z"));
    let damaged = |day: &String| Candidate {
        damaged: true,
        raw_bytes: 1,
        ..backup(day)
    };
    let decided = |backups: &[Candidate]| {
        let now = "2026-11-20T00:00:00Z";
        let mut decision = decide_at(&policy, backups, now);
        assert_eq!(decision.frozen, None);
        decision.drop.sort();
        decision.drop
    };
    // Newer than every good one: the good ones stay, however many there are.
    let [first, second, third, fourth, fifth, sixth] = &days;
    let all = [
        backup(first),
        backup(second),
        backup(third),
        damaged(fourth),
        damaged(fifth),
        damaged(sixth),
    ];
    assert_eq!(decided(&all), [first.clone(), fourth.clone()]);
    // Older than a good one, and wanted by no rule.
    let daily = RetentionPolicy {
        within_days: Some(1),
        ..none()
    };
    let decision = decide_at(
        &daily,
        &[damaged(first), backup(second)],
        "2026-11-20T00:00:00Z",
    );
    assert_eq!(&decision.drop, std::slice::from_ref(first));
    assert_eq!(decision.keep.len(), 1);
}

#[test]
fn a_backup_that_shrank_or_lost_counts_freezes_retention() {
    let policy = RetentionPolicy {
        last: Some(1),
        ..none()
    };
    let old = Candidate {
        counts: BTreeMap::from([("qdrant: points".to_owned(), 100)]),
        ..backup("2026-11-19T03:00:00Z")
    };
    let now = "2026-11-22T00:00:00Z";
    let good = Candidate {
        counts: old.counts.clone(),
        ..backup("2026-11-20T03:00:00Z")
    };
    assert_eq!(
        decide_at(&policy, &[old.clone(), good.clone()], now).drop,
        ["2026-11-19T03:00:00Z"]
    );
    let small = Candidate {
        raw_bytes: 499,
        ..good.clone()
    };
    let emptied = Candidate {
        counts: BTreeMap::new(),
        ..good
    };
    for bad in [small, emptied] {
        let decision = decide_at(&policy, &[old.clone(), bad], now);
        assert!(
            decision.drop.is_empty() && decision.frozen.is_some(),
            "{decision:?}"
        );
    }
}

#[test]
fn a_freeze_lasts_until_a_person_agrees() {
    let policy = RetentionPolicy {
        last: Some(1),
        ..none()
    };
    let small = |text: &str| Candidate {
        raw_bytes: 10,
        ..backup(text)
    };
    let backups = [
        backup("2026-11-18T03:00:00Z"),
        small("2026-11-19T03:00:00Z"),
        small("2026-11-20T03:00:00Z"),
    ];
    let now = "2026-11-22T00:00:00Z";
    let decision = decide_at(&policy, &backups, now);
    assert!(
        decision.drop.is_empty() && decision.frozen.is_some(),
        "{decision:?}"
    );
    let decision = decide(
        &policy,
        &backups,
        Some("2026-11-19T03:00:00Z"),
        at(now),
        &TimeZone::UTC,
    );
    assert_eq!(
        decision.drop,
        ["2026-11-19T03:00:00Z", "2026-11-18T03:00:00Z"]
    );
}

#[test]
fn backups_from_the_future_are_kept_and_take_nobodys_place() {
    let policy = RetentionPolicy {
        last: Some(1),
        ..none()
    };
    let backups = [
        "2027-06-01T03:00:00Z",
        "2026-11-20T03:00:00Z",
        "2026-11-19T03:00:00Z",
    ]
    .map(backup);
    let decision = decide_at(&policy, &backups, "2026-11-22T00:00:00Z");
    assert_eq!(
        kept(&decision),
        ["2026-11-20T03:00:00Z", "2027-06-01T03:00:00Z"]
    );
}

#[test]
fn one_backup_by_a_clock_that_is_far_ahead_makes_the_others_no_older() {
    let policy = RetentionPolicy {
        within_days: Some(30),
        ..none()
    };
    let nights = [
        backup("2026-11-01T03:00:00Z"),
        backup("2026-11-02T03:00:00Z"),
        backup("2026-11-03T03:00:00Z"),
        backup("2035-01-01T03:00:00Z"),
    ];
    let now = "2035-01-01T03:05:00Z";
    assert_eq!(decide_at(&policy, &nights, now).drop, [""; 0]);
    // It was right: the next one brings the age.
    let mut all = nights.to_vec();
    all.push(backup("2035-01-02T03:00:00Z"));
    let decision = decide_at(&policy, &all, "2035-01-02T03:05:00Z");
    assert_eq!(decision.drop.len(), 3);
}

#[test]
fn machines_that_take_turns_under_one_name_do_not_drop_each_others() {
    let policy = RetentionPolicy {
        last: Some(1),
        ..none()
    };
    let nights = |machines: &str| -> Vec<Candidate> {
        let night = |(day, machine): (usize, char)| Candidate {
            machine: Some(machine.to_string()),
            ..backup(&format!("2026-11-{:02}T03:00:00Z", day + 1))
        };
        machines.chars().enumerate().map(night).collect()
    };
    let decided = |machines: &str| decide_at(&policy, &nights(machines), "2026-11-28T00:00:00Z");
    let decision = decided("ababab");
    assert!(decision.frozen.unwrap().contains("LIFEBOAT_PROJECT"));
    assert_eq!(decision.drop, [""; 0]);
    // One that moved, and one whose neighbour has had another name for a while.
    for alone in ["aaabbb", "aaaaab", "abaaaaaa"] {
        let decision = decided(alone);
        assert_eq!(decision.frozen, None, "{alone}");
        assert_eq!(decision.keep.len(), 1, "{alone}");
    }
}
