//! Schedules, and clocks that are wrong.

use super::*;

#[test]
fn the_scheduler_backs_up_at_its_start_and_on_schedule_and_stops_when_told() {
    let place = Place::new();
    let mut child = place
        .command(&["run"])
        .env("BACKUP_ON_START", "yes")
        .env("BACKUP_CRON_EXPRESSION", "*/2 * * * * *")
        .env("BACKUP_KEEP_LAST", "2")
        .env("BACKUP_KEEP_DAYS", "0")
        .env("BACKUP_KEEP_WEEKS", "0")
        .env("BACKUP_KEEP_MONTHS", "0")
        .env("TZ", "Europe/Berlin")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 4 {
        assert!(
            std::time::Instant::now() < deadline,
            "the scheduler made {seen:?} only"
        );
        let backups = std::fs::read_dir(place.path("repo/backups"))
            .into_iter()
            .flatten();
        seen.extend(backups.map(|entry| entry.unwrap().file_name()));
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // Retention kept as many as it was told to; the space comes back with a prune.
    let list: serde_json::Value = serde_json::from_str(&place.good(&["list", "--json"])).unwrap();
    let kept = list.as_array().unwrap().len();
    assert!((2..=3).contains(&kept), "{kept} backups are left");
    assert!(place.good(&["verify", "--full"]).contains("all good"));
}

#[test]
fn latest_is_no_backup_of_the_future_and_none_of_another_project() {
    let place = Place::new();
    let time = clock::Clock::new(place.root.path());
    time.set("+34560000");
    let output = place.command(&["backup"]).envs(time.variables()).output();
    assert!(output.unwrap().status.success());
    let ahead = place.latest();
    std::fs::write(place.path("data/notes/a.txt"), "second\n").unwrap();
    place.good(&["backup"]);
    let shown = place.run(&["show", "latest", "--json"]);
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(
        said.contains(&ahead) && said.contains("`latest` means none of these"),
        "{said}"
    );
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_ne!(shown["id"].as_str().unwrap(), ahead);

    let other = place
        .command(&["backup"])
        .env("LIFEBOAT_PROJECT", "other")
        .output();
    assert!(other.unwrap().status.success());
    for args in [
        &["forget", "latest", "--yes"][..],
        &["export", "latest", "notes"],
    ] {
        failed(&place.run(args), 1, &["several projects", "say an id"]);
    }
}

#[test]
fn a_backup_that_was_missed_is_made_at_the_next_start() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("state")).unwrap();
    let record = place.path("state/record.json");
    std::fs::write(&record, r#"{"next_run":"2026-01-01T03:00:00Z"}"#).unwrap();
    failed(
        &place.run(&["status"]),
        1,
        &["2026-01-01T03:00:00Z has not run"],
    );
    let mut sidecar = place
        .command(&["run"])
        .env("BACKUP_CRON_EXPRESSION", "0 3 1 1 *")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let is_made = || {
        let text = std::fs::read_to_string(&record).unwrap();
        // It is replaced as a whole.
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["last_good_backup"].is_object()
    };
    while !is_made() {
        assert!(Instant::now() < deadline, "it was not made");
        std::thread::sleep(Duration::from_millis(50));
    }
    place.good(&["status"]);
    let pid = rustix::process::Pid::from_child(&sidecar);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(sidecar.wait().unwrap().success());
    place.latest();
}

#[test]
fn a_schedule_follows_a_clock_that_is_set_back() {
    let place = Place::new();
    let time = clock::Clock::new(place.root.path());
    let mut sidecar = place
        .command(&["run"])
        .env("BACKUP_CRON_EXPRESSION", "0 3 * * *")
        .envs(time.variables())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let record = place.path("state/record.json");
    let next = || {
        let text = std::fs::read_to_string(&record).ok()?;
        let record: serde_json::Value = serde_json::from_str(&text).ok()?;
        record["next_run"].as_str()?.parse::<jiff::Timestamp>().ok()
    };
    let (now, day) = (jiff::Timestamp::now(), jiff::SignedDuration::from_hours(24));
    let deadline = Instant::now() + Duration::from_mins(1);
    let wait_for = |is_right: &dyn Fn(jiff::Timestamp) -> bool| {
        while !next().is_some_and(is_right) {
            assert!(
                Instant::now() < deadline,
                "the next backup is at {:?}",
                next()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for(&|due| due > now);
    // Had it been ahead by ten days, none would be made until then.
    time.set("-864000");
    wait_for(&|due| due < now - day * 8);
    let pid = rustix::process::Pid::from_child(&sidecar);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(sidecar.wait().unwrap().success());
}
