//! A proxy between store and server that fails: what is retried, what is told, and what is never seen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::{Patience, S3Store, Store};
use tempfile::TempDir;

use super::proxy::{Action, Proxy, Seen};
use super::server::{self, Server};
use super::{LARGE, keys, noise, publish};

struct Line {
    /// Through the proxy.
    store: S3Store,
    /// Past it.
    direct: S3Store,
    proxy: Proxy,
    server: Arc<Server>,
    _dir: TempDir,
}

const LONG: Duration = Duration::from_mins(2);

/// Patient enough for a machine under load.
fn patient() -> Patience {
    Patience {
        first_contact: LONG,
        deadline: LONG,
        stall: LONG,
        attempt: LONG,
    }
}

fn line(
    name: &str,
    patience: Patience,
    judge: impl Fn(&Seen) -> Action + Send + Sync + 'static,
) -> Line {
    let server = Server::shared();
    let proxy = Proxy::start(server.address, judge);
    let dir = tempfile::tempdir().unwrap();
    let prefix = format!("faults/{name}");
    let mut options = server::options(&proxy.url(), &prefix, dir.path());
    options.patience = patience;
    Line {
        store: server::connect(options),
        direct: server::connect(server::options(&server.url(), &prefix, dir.path())),
        proxy,
        server,
        _dir: dir,
    }
}

/// How often each request was made.
#[derive(Default)]
struct Count(Mutex<HashMap<String, usize>>);

impl Count {
    /// The attempts before this one, of the same thing.
    fn of(&self, seen: &Seen) -> usize {
        // Upload ids differ; the part's number does not.
        let thing = format!("{} {}", seen.method, seen.target);
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(thing).or_default();
        *count += 1;
        *count - 1
    }
}

/// Everything a store does, with its outcome checked past the proxy.
fn exercise(line: &Line) {
    let (store, direct) = (&line.store, &line.direct);
    store.put("leases/a", b"lease").unwrap();
    assert_eq!(direct.get("leases/a", 10).unwrap(), b"lease");
    store.replace("config.json", b"old").unwrap();
    store.replace("config.json", b"new").unwrap();
    assert_eq!(direct.get("config.json", 10).unwrap(), b"new");
    for (key, length) in [("packs/aa/small", 100_000), ("packs/aa/large", LARGE)] {
        let bytes = noise(length, 7);
        publish(store, key, &bytes).unwrap();
        assert!(direct.get(key, length as u64).unwrap() == bytes);
        assert!(store.get(key, length as u64).unwrap() == bytes);
        for mut blob in [store.open(key).unwrap(), store.fetch(key).unwrap()] {
            let mut all = vec![0; length];
            blob.read_exact_at(&mut all, 0).unwrap();
            assert!(all == bytes);
        }
    }
    assert_eq!(keys(store, "packs"), keys(direct, "packs"));
    assert_eq!(keys(store, "packs").len(), 2);
    store.now().unwrap();
    store.check_writable().unwrap();
    store.delete("leases/a").unwrap();
    assert!(keys(direct, "leases").is_empty());
    assert!(matches!(
        store.put("config.json", b"third"),
        Err(RepositoryError::Exists(_))
    ));
    assert_eq!(direct.get("config.json", 10).unwrap(), b"new");
}

#[test]
fn errors_that_pass_are_waited_out() {
    let count = Count::default();
    exercise(&line("passing", patient(), move |seen| {
        match count.of(seen) {
            0 => Action::Answer(
                503,
                "<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>",
            ),
            1 => Action::Answer(500, ""),
            2 => Action::Answer(429, ""),
            _ => Action::Pass,
        }
    }));
}

#[test]
fn resets_in_the_middle_of_bodies_are_waited_out_both_ways() {
    let count = Count::default();
    exercise(&line("resets", patient(), move |seen| {
        match count.of(seen) {
            0 if seen.body_bytes > 0 => Action::ResetRequest,
            0 | 1 => Action::ResetAnswer(50_000),
            _ => Action::Pass,
        }
    }));
}

#[test]
fn a_body_that_ends_early_is_not_taken_for_the_whole() {
    let count = Count::default();
    exercise(&line("cut", patient(), move |seen| match count.of(seen) {
        0 => Action::CutAnswer(0),
        1 => Action::CutAnswer(60_000),
        _ => Action::Pass,
    }));
    let short = Patience {
        first_contact: Duration::from_millis(300),
        deadline: Duration::from_millis(300),
        ..patient()
    };
    let always = line("always-cut", short, |seen| {
        if seen.is("GET", "/packs/aa/x") {
            Action::CutAnswer(2_999)
        } else {
            Action::Pass
        }
    });
    publish(&always.direct, "packs/aa/x", &noise(3_000, 1)).unwrap();
    for err in [
        always.store.get("packs/aa/x", 3_000).unwrap_err(),
        always.store.fetch("packs/aa/x").err().unwrap(),
    ] {
        assert!(err.is_transient(), "{err}");
        assert!(err.to_string().contains("the answer broke off"), "{err}");
    }
    let mut blob = always.store.open("packs/aa/x").unwrap();
    assert!(blob.read_exact_at(&mut [0; 3_000], 0).is_err());
}

#[test]
fn an_answer_that_comes_slowly_is_read_to_its_end() {
    let slow = line("slow", patient(), |seen| {
        if seen.method == "GET" {
            Action::Trickle(400, Duration::from_millis(10))
        } else {
            Action::Pass
        }
    });
    let bytes = noise(20_000, 3);
    slow.store.put("packs/aa/x", &bytes).unwrap();
    assert!(slow.store.get("packs/aa/x", 20_000).unwrap() == bytes);
    assert_eq!(keys(&slow.store, "packs").len(), 1);
}

#[test]
fn an_answer_that_would_take_forever_or_never_comes_is_an_error() {
    let hasty = |stall, attempt| Patience {
        first_contact: LONG,
        deadline: Duration::from_millis(1),
        stall,
        attempt,
    };
    for (name, patience, action, said) in [
        (
            "forever",
            hasty(LONG, Duration::from_secs(1)),
            Action::Trickle(1, Duration::from_millis(100)),
            "it took longer than 1s",
        ),
        (
            "between",
            hasty(Duration::from_secs(1), LONG),
            Action::Trickle(1, LONG),
            "no answer for 1s",
        ),
        (
            "silence",
            hasty(Duration::from_secs(1), LONG),
            Action::Silence,
            "no answer for 1s",
        ),
    ] {
        let line = line(name, patience, move |seen| {
            if seen.is("GET", "/packs/aa/x") {
                action.clone()
            } else {
                Action::Pass
            }
        });
        line.direct.put("packs/aa/x", &noise(90_000, 1)).unwrap();
        // So that the store counts as reachable, and the deadline holds.
        line.direct.put("config.json", b"{}").unwrap();
        while line.store.get("config.json", 10).is_err() {}
        let err = line.store.get("packs/aa/x", 90_000).unwrap_err();
        assert!(
            err.is_transient() && err.to_string().contains(said),
            "{err}"
        );
    }
}

#[test]
fn an_error_that_stays_is_a_sentence() {
    let short = Patience {
        first_contact: Duration::from_secs(1),
        ..patient()
    };
    let line = line("staying", short, |_| {
        Action::Answer(
            503,
            "<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>",
        )
    });
    let errors = [
        line.store.get("config.json", 10).unwrap_err(),
        line.store.put("leases/a", b"x").unwrap_err(),
        publish(&line.store, "packs/aa/x", &noise(LARGE, 1)).unwrap_err(),
        line.store.list("packs").unwrap_err(),
        line.store.delete("packs/aa/x").unwrap_err(),
        line.store.open("packs/aa/x").err().unwrap(),
    ];
    for err in errors {
        assert!(err.is_transient() && !err.is_refused(), "{err}");
        let text = err.to_string();
        for part in [
            "s3://lifeboat/faults/staying",
            "503",
            "attempts",
            "try again later",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert!(keys(&line.direct, "packs").is_empty());
}

/// A request that was carried out while its answer was lost must not look like somebody else's.
#[test]
fn a_write_whose_answer_is_lost_is_known_again() {
    for (name, loss) in [
        ("lost", Action::LoseAnswer),
        ("lost-500", Action::DoneBut(500)),
        ("lost-503", Action::DoneBut(503)),
    ] {
        let count = Count::default();
        let line = line(name, patient(), move |seen| {
            let writes = matches!(seen.method.as_str(), "PUT" | "POST" | "DELETE");
            // An upload that is begun twice is two uploads; the closing is what matters.
            if writes && !seen.target.contains("uploads") && count.of(seen) == 0 {
                loss.clone()
            } else {
                Action::Pass
            }
        });
        exercise(&line);
    }
}

/// The other way round: the key was taken before, so a doubt does not make it ours.
#[test]
fn a_taken_key_stays_taken_after_a_lost_answer() {
    let count = Count::default();
    let line = line("taken", patient(), move |seen| match count.of(seen) {
        0 if seen.method != "HEAD" => Action::DoneBut(500),
        _ => Action::Pass,
    });
    line.direct.put("locks/gc", b"same").unwrap();
    let err = line.store.put("locks/gc", b"same").unwrap_err();
    assert!(matches!(err, RepositoryError::Exists(_)), "{err}");
    // Taken while the parts are on their way: the closing request is the one that is refused.
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let closing = self::line("taken-late", patient(), move |seen| {
        if seen.is("POST", "uploadId") {
            assert!(seen.has("if-none-match"));
            Action::Hold(Arc::clone(&held))
        } else {
            Action::Pass
        }
    });
    std::thread::scope(|scope| {
        let late = scope.spawn(|| publish(&closing.store, "packs/aa/x", &noise(LARGE, 1)));
        wait_for(|| {
            closing
                .proxy
                .recorded()
                .iter()
                .any(|(seen, _)| seen.is("PUT", "partNumber=3"))
        });
        closing.direct.put("packs/aa/x", b"first").unwrap();
        gate.add_permits(10);
        let err = late.join().unwrap().unwrap_err();
        assert!(matches!(err, RepositoryError::Exists(_)), "{err}");
    });
    assert_eq!(closing.direct.get("packs/aa/x", 10).unwrap(), b"first");
}

#[test]
fn nothing_half_written_is_ever_visible() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let line = line("half", patient(), move |seen| {
        if seen.is("PUT", "partNumber=3") {
            Action::Hold(Arc::clone(&held))
        } else {
            Action::Pass
        }
    });
    let bytes = noise(LARGE, 4);
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| publish(&line.store, "packs/aa/x", &bytes));
        wait_for(|| {
            line.proxy
                .recorded()
                .iter()
                .any(|(seen, _)| seen.is("PUT", "partNumber=1"))
        });
        assert!(keys(&line.direct, "packs").is_empty());
        assert!(matches!(
            line.direct.open("packs/aa/x"),
            Err(RepositoryError::Missing(_))
        ));
        gate.add_permits(10);
        upload.join().unwrap().unwrap();
    });
    assert!(line.direct.get("packs/aa/x", LARGE as u64).unwrap() == bytes);
}

#[test]
fn an_upload_that_fails_takes_its_parts_back() {
    // A server of its own: others' uploads are not counted.
    let server = Server::alone();
    let proxy = Proxy::start(server.address, |seen| {
        if seen.is("PUT", "partNumber=2") {
            Action::Answer(403, "<Error><Code>AccessDenied</Code></Error>")
        } else {
            Action::Pass
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let store = server::connect(server::options(&proxy.url(), "failing", dir.path()));
    let err = publish(&store, "packs/aa/x", &noise(LARGE, 1)).unwrap_err();
    assert!(err.to_string().contains("allow s3:GetObject"), "{err}");
    let seen = proxy.recorded();
    assert!(seen.iter().any(|(seen, _)| seen.is("POST", "uploads")));
    assert!(seen.iter().any(|(seen, _)| seen.is("DELETE", "uploadId")));
    assert_eq!(server.open_uploads(), 0);
    assert!(keys(&store, "packs").is_empty());
}

#[test]
fn a_stale_listing_does_not_let_a_file_be_overwritten() {
    let stale: Arc<Mutex<Option<Arc<Vec<u8>>>>> = Arc::default();
    let replayed = Arc::new(AtomicUsize::new(0));
    let (answer, count) = (Arc::clone(&stale), Arc::clone(&replayed));
    let line = line("stale", patient(), move |seen| {
        match answer.lock().unwrap().clone() {
            Some(old) if seen.is("GET", "list-type=2") => {
                count.fetch_add(1, Ordering::Relaxed);
                Action::Replay(old)
            }
            _ => Action::Pass,
        }
    });
    line.store.put("leases/before", b"x").unwrap();
    assert_eq!(keys(&line.store, "leases").len(), 1);
    let recorded = line.proxy.recorded();
    let (_, old) = recorded
        .iter()
        .find(|(seen, _)| seen.is("GET", "list-type=2"))
        .unwrap();
    *stale.lock().unwrap() = Some(Arc::new(old.clone()));
    line.direct.put("leases/after", b"theirs").unwrap();
    assert_eq!(keys(&line.store, "leases").len(), 1, "the listing is stale");
    let err = line.store.put("leases/after", b"ours").unwrap_err();
    assert!(matches!(err, RepositoryError::Exists(_)), "{err}");
    assert_eq!(line.direct.get("leases/after", 10).unwrap(), b"theirs");
    assert_eq!(replayed.load(Ordering::Relaxed), 1);
    assert!(line.server.url().starts_with("http://"));
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "it does not happen");
        std::thread::yield_now();
    }
}
