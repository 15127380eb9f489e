//! The server's clock, and the program's, are set back: nothing is lost, and no moment is answered with another.

use lifeboat::services::postgres::pitr::Target;

use crate::cluster::{Cluster, PASSWORD};
use crate::faked::Clock;
use crate::site::{Site, clock};

#[test]
fn a_clock_that_is_set_back_costs_nothing() {
    let mut source = Cluster::new();
    let time = Clock::new(source.home.path());
    source.stop();
    source.set_environment(time.variables());
    source.start();
    source.sql("CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    let one = clock(&source);
    source.sql("INSERT INTO t VALUES (2)");
    site.step(&mut capture).unwrap();

    // More than a unit of WAL, so that the search for a moment does not come by it by chance.
    source.sql("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 40000)");
    time.set("-3600");
    let back = clock(&source);
    assert!(back < one, "{back} {one}");
    source.sql("INSERT INTO t VALUES (3)");
    site.step(&mut capture).unwrap();
    let rows = |target: &Target| {
        site.restore(target, &[])
            .number("SELECT coalesce(sum(10 ^ (id - 1)), 0)::bigint FROM t")
    };
    assert_eq!(rows(&Target::Latest), 111);
    let (_, replay) = site.choose(&Target::Time(one), None).unwrap();
    assert!(
        replay.said().contains("clock was set back"),
        "{}",
        replay.said()
    );
    assert_eq!(rows(&Target::Time(one)), 1);

    // A backup by that clock.
    let output = site
        .command(&["backup"])
        .envs(time.variables())
        .env("POSTGRES_HOST", "127.0.0.1")
        .env("POSTGRES_PORT", source.port.to_string())
        .env("POSTGRES_USER", "postgres")
        .env("POSTGRES_PASSWORD", PASSWORD)
        .env("POSTGRES_DATA", &source.data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("of a later time than now"), "{said}");
    source.sql("INSERT INTO t VALUES (4)");
    let four = clock(&source);
    source.sql("INSERT INTO t VALUES (5)");
    site.step(&mut capture).unwrap();
    assert_eq!(rows(&Target::Latest), 11111);
    assert_eq!(rows(&Target::Time(one)), 1);
    assert_eq!(rows(&Target::Time(four)), 1111);
}
