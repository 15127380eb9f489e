//! `kill -9` in the middle, and what the next start makes of it.

use super::extracts::{assert_clean, request};
use super::*;
use lifeboat::services::postgres::extract::Target;
use lifeboat::stack::StackService;

/// Not a test of its own: the process that is killed runs it.
#[test]
fn extract_for_another_test() {
    let Some(root) = std::env::var_os("KILLED_ROOT") else {
        return;
    };
    let place = Place::at(root.into());
    let text = std::fs::read_to_string(place.root().join("port")).unwrap();
    let (port, data) = text.split_once(' ').unwrap();
    let stack = stack(port.parse().unwrap(), Path::new(data));
    place
        .extract(&stack, &[], &request("app", &[], Target::Replace))
        .unwrap();
}

fn stack(port: u16, data: &Path) -> StackService {
    let mut stack = Cluster::empty().stack();
    stack.ports = vec![port];
    stack
        .environment
        .insert("PGDATA".to_owned(), data.to_str().unwrap().to_owned());
    data.clone_into(&mut stack.mounts[0].target);
    data.clone_into(&mut stack.mounts[0].local);
    stack
}

#[test]
fn an_extraction_killed_anywhere_leaves_nothing() {
    let cluster = Cluster::new();
    fill(&cluster);
    let place = Place::new();
    let mut service = Postgres::new(&config(&[]), &cluster.stack()).unwrap();
    place.backup(&mut service, || ()).unwrap();
    let then = digest(&cluster, "app");
    cluster
        .try_connect("app")
        .unwrap()
        .batch_execute("DELETE FROM notes")
        .unwrap();
    let now = digest(&cluster, "app");
    let names = databases(&cluster);
    let port = format!("{} {}", cluster.port, cluster.data.display());
    std::fs::write(place.root().join("port"), port).unwrap();

    let mut finished = 0;
    // While it unpacks, while the server recovers, and while the dump is loaded.
    for moment in ["unpacking", "recovering", "loading", "switching"] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::extract_for_another_test"])
            .env("KILLED_ROOT", place.root())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_mins(2);
        while !is_at(&cluster, &place, moment) && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{moment} did not come");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let undone = place.undo(cluster.stack(), &[]);
        assert_eq!(undone.open, [""; 0], "{moment}");
        assert_clean(&cluster, &place);
        assert_eq!(place.journal().pending().unwrap(), []);
        assert_eq!(databases(&cluster), names, "{moment}");
        let found = digest(&cluster, "app");
        // Either as before or as wanted, never anything else.
        assert!(found == now || found == then, "{moment}: {found}");
        finished += u32::from(found == then);
    }
    assert!(finished <= 1, "{finished} were not killed before their end");
}

/// Whether the process has come so far.
fn is_at(cluster: &Cluster, place: &Place, moment: &str) -> bool {
    let throwaway = |file: &str| {
        let entries = std::fs::read_dir(&cluster.data).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(".lifeboat-throwaway-"))
            .any(|path| path.join(file).exists())
    };
    let journalled = |what: &str| {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        std::fs::read_dir(place.root().join("state/journal"))
            .is_ok_and(|entries| entries.flatten().any(|e| text(&e.path()).contains(what)))
    };
    match moment {
        "unpacking" => throwaway("data/base"),
        "recovering" => throwaway("data/postmaster.pid"),
        "loading" => {
            cluster.number("SELECT count(*) FROM pg_database WHERE datname LIKE 'lifeboat_new_%'")
                > 0
        }
        _ => journalled("postgres-switched"),
    }
}
