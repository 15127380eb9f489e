//! Any moment of PostgreSQL, through the sidecar: a mark before an upgrade, the end of the log after a disaster,
//! and a time on a timeline that was left.

use crate::project::{Project, wait_for};

/// A table whose rows are commits, in order.
struct Commits<'a>(&'a Project);

impl<'a> Commits<'a> {
    fn on(project: &'a Project) -> Self {
        project.sql("CREATE TABLE commits (number int PRIMARY KEY)");
        Self(project)
    }

    /// Commits each number on its own.
    fn add(&self, numbers: std::ops::RangeInclusive<u32>) {
        for number in numbers {
            self.0
                .sql(&format!("INSERT INTO commits VALUES ({number})"));
        }
    }

    fn all(&self) -> String {
        self.0
            .sql("SELECT string_agg(number::text, ' ' ORDER BY number) FROM commits")
    }
}

/// What n8n keeps of its workflows.
fn workflows(project: &Project) -> String {
    project.sql(
        "SELECT count(*) || ' ' || md5(string_agg(id || name || nodes::text, ' ' ORDER BY id)) FROM workflow_entity",
    )
}

fn json(project: &Project, args: &[&str]) -> serde_json::Value {
    let out = project.lifeboat(&[args, &["--json"]].concat()).good();
    serde_json::from_str(&out).unwrap()
}

/// Fetches what is committed; on which timeline.
fn fetch(project: &Project) -> u64 {
    json(project, &["pitr", "now"])[0]["timeline"]
        .as_u64()
        .unwrap()
}

/// Marks this moment; on which timeline.
fn mark(project: &Project, name: &str) -> u64 {
    json(project, &["mark", name])["marks"][0]["timeline"]
        .as_u64()
        .unwrap()
}

/// How far the sidecar says that the log is stored.
fn stored(project: &Project) -> Option<String> {
    let status = json(project, &["pitr", "status"]);
    Some(status["notes"].get(0)?["end"].as_str()?.to_owned())
}

#[test]
fn a_mark_the_end_and_a_time_come_back_and_every_new_timeline_is_kept_again() {
    let project = Project::new("moments", "volumes", "postgres");
    project.set("PITR", "on");
    project.set("PITR_INTERVAL", "1s");
    project.up();
    project.harness(&["seed", "--rows", "5000"]).good();
    project.sidecar_up();
    let commits = Commits::on(&project);
    commits.add(1..=3);
    project.backup();
    commits.add(4..=6);
    project.harness(&["snapshot-state"]).good();
    let (running, before) = (project.running(), workflows(&project));
    assert_eq!(mark(&project, "before-upgrade"), 1);

    // An upgrade that was none.
    project.sql("UPDATE workflow_entity SET name = name || ' (upgraded)'");
    project.sql("DELETE FROM commits WHERE number < 3");
    let upgraded = workflows(&project);
    commits.add(7..=9);
    let moment = project.sql(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
    );
    commits.add(10..=12);
    assert_eq!(fetch(&project), 1);
    project
        .lifeboat(&["restore", "--mark", "before-upgrade", "--yes"])
        .good();
    assert_eq!(commits.all(), "1 2 3 4 5 6");
    assert_eq!(workflows(&project), before);
    assert_eq!(project.running(), running);
    project.harness(&["compare"]).good();

    // All data is lost; what was fetched is not.
    commits.add(20..=22);
    assert_eq!(fetch(&project), 2);
    project.destroy();
    project
        .lifeboat(&["restore", "--at", "latest", "--yes"])
        .good();
    assert_eq!(commits.all(), "1 2 3 4 5 6 20 21 22");
    assert_eq!(workflows(&project), before);
    assert_eq!(project.running(), running);
    project.harness(&["compare"]).good();

    // A moment of the timeline that was left, PostgreSQL alone.
    commits.add(30..=31);
    assert_eq!(mark(&project, "after-disaster"), 3);
    project
        .lifeboat(&[
            "restore",
            "--at",
            &moment,
            "--timeline",
            "1",
            "--only",
            "postgres",
            "--yes",
        ])
        .good();
    assert_eq!(commits.all(), "3 4 5 6 7 8 9");
    assert_eq!(workflows(&project), upgraded);
    assert_eq!(project.running(), running);

    // The sidecar goes on by itself, and what came after the mark is there to be gone back to.
    commits.add(40..=41);
    let written = project.sql("SELECT pg_current_wal_flush_lsn()");
    wait_for("the sidecar to fetch the new timeline", || {
        stored(&project).is_some_and(|end| {
            project.sql(&format!("SELECT '{end}'::pg_lsn >= '{written}'::pg_lsn")) == "t"
        })
    });
    assert_eq!(mark(&project, "afterwards"), 4);
    project
        .lifeboat(&["restore", "--mark", "after-disaster", "--yes"])
        .good();
    assert_eq!(commits.all(), "1 2 3 4 5 6 20 21 22 30 31");
    assert_eq!(workflows(&project), before);
    project.harness(&["compare"]).good();
    let plan = project
        .lifeboat(&["restore", "--mark", "afterwards", "--dry-run"])
        .good();
    assert!(plan.contains("along timeline 4"), "{plan}");
    project
        .lifeboat(&["restore", "--mark", "never-made", "--yes"])
        .failed_with(1, &["never-made", "before-upgrade", "afterwards"]);
    assert_eq!(project.running(), running);
}
