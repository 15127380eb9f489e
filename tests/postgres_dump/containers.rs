//! The server in a real container, with its own tools in it; images as in n8n's tests, made by `scripts/setup`.

use super::extracts::request;
use super::*;
use lifeboat::services::ServiceKind;
use lifeboat::services::postgres::access::Access;
use lifeboat::services::postgres::extract::Target;
use lifeboat::services::postgres::throwaway::Ground;
use lifeboat::stack::engine::{DEFAULT_HOST, Engine, Exec, Limits};
use lifeboat::stack::{ContainerRef, SharedMount, Stack, StackService, undo};

const IMAGE: &str = "lifeboat-test/postgres:17";
const ENGINE: (&str, &str) = ("DOCKER_HOST", DEFAULT_HOST);

struct Container {
    name: String,
    data: tempfile::TempDir,
}

impl Container {
    fn start() -> Self {
        let data = tempfile::Builder::new()
            .prefix("pgc")
            .tempdir_in("/var/tmp")
            .unwrap();
        let name = data.path().file_name().unwrap().to_str().unwrap();
        let name = format!("lifeboat-dump-{}", name.trim_start_matches('.'));
        let mount = format!("{}:/var/lib/postgresql/data", data.path().display());
        let password = format!("POSTGRES_PASSWORD={PASSWORD}");
        cluster::run(Command::new("docker").args([
            "run", "-d", "--name", &name, "-v", &mount, "-e", &password, IMAGE,
        ]));
        let container = Self { name, data };
        let deadline = Instant::now() + Duration::from_mins(2);
        // The entrypoint's first server listens on its socket only.
        while container.connect("postgres").is_err() {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(100));
        }
        container
    }

    fn inspect(&self, format: &str) -> String {
        let out =
            cluster::run(Command::new("docker").args(["inspect", "--format", format, &self.name]));
        out.trim().to_owned()
    }

    fn address(&self) -> String {
        self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    }

    fn connect(&self, database: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host(&self.address())
            .user("postgres")
            .password(PASSWORD)
            .dbname(database)
            .connect_timeout(Duration::from_secs(5))
            .connect(postgres::NoTls)
    }

    fn number(&self, database: &str, query: &str) -> i64 {
        let mut client = self.connect(database).unwrap();
        client.query_one(query, &[]).unwrap().get(0)
    }

    fn stack(&self) -> StackService {
        StackService {
            kind: ServiceKind::Postgres,
            name: "db".to_owned(),
            container: Some(ContainerRef {
                id: self.inspect("{{.Id}}"),
                name: self.name.clone(),
                image: IMAGE.to_owned(),
                image_digest: String::new(),
                running: true,
                stop_timeout: None,
                has_healthcheck: false,
            }),
            environment: [("POSTGRES_PASSWORD".to_owned(), PASSWORD.to_owned())].into(),
            mounts: vec![SharedMount {
                target: "/var/lib/postgresql/data".into(),
                local: self.data.path().to_owned(),
                read_only: false,
            }],
            all_mount_targets: vec!["/var/lib/postgresql/data".to_owned()],
            hosts: vec![self.address()],
            ports: vec![5432],
            depends_on: Vec::new(),
        }
    }

    fn fill(&self) {
        let mut client = self.connect("postgres").unwrap();
        client.batch_execute("CREATE DATABASE app").unwrap();
        self.connect("app")
            .unwrap()
            .batch_execute(
                "CREATE TABLE rows AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 60000) n; \
                 CREATE TABLE few (id int PRIMARY KEY); INSERT INTO few SELECT generate_series(1, 7)",
            )
            .unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let removed = Command::new("docker")
            .args(["rm", "--force", "--volumes", &self.name])
            .output();
        if !removed.is_ok_and(|out| out.status.success()) {
            eprintln!("container {} is left", self.name);
        }
    }
}

/// Takes the one small table back into its place.
fn take_few_back(place: &Place, container: &Container) {
    let few = request("app", &["few"], Target::Replace);
    let done = place.extract(&container.stack(), &[ENGINE], &few).unwrap();
    assert_eq!(done.tables, ["public.few"]);
    assert_eq!(container.number("app", "SELECT count(*) FROM few"), 7);
}

fn throwaways() -> String {
    cluster::run(Command::new("docker").args(["ps", "-aq", "--filter", "label=lifeboat.spare"]))
}

#[test]
fn a_server_in_a_container_is_dumped_and_restored_by_its_own_tools() {
    let container = Container::start();
    container.fill();
    let place = Place::new();
    let stack = container.stack();
    let config = place.config(&[ENGINE]);
    let mut service = PostgresDump::new(&config, &stack).unwrap();
    for check in place.block_on(service.check()) {
        let found = check.outcome.unwrap();
        assert!(
            !check.subject.contains("tools") || found.contains(" 17."),
            "{found}"
        );
    }
    let manifest = place.backup(&mut service, || ()).unwrap();
    let facts = DumpFacts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert!(facts.unwrap().database("app").unwrap().parts >= 2);
    let mut app = container.connect("app").unwrap();
    app.batch_execute("DELETE FROM rows WHERE n > 5; DROP TABLE few")
        .unwrap();

    take_few_back(&place, &container);
    assert_eq!(container.number("app", "SELECT count(*) FROM rows"), 5);
    place
        .extract(&stack, &[ENGINE], &request("app", &[], Target::Replace))
        .unwrap();
    assert_eq!(container.number("app", "SELECT count(*) FROM rows"), 60_000);

    // The password is in no process's arguments, and nobody is left at work.
    let top =
        cluster::run(Command::new("docker").args(["top", &container.name, "-eo", "pid,args"]));
    assert!(!top.contains(PASSWORD) && !top.contains("pg_"), "{top}");
}

#[test]
fn dumps_of_an_older_server_go_into_a_newer_one() {
    let source = Cluster::new();
    fill(&source);
    let place = Place::new();
    place.backup(&mut dumps(&source), || ()).unwrap();
    let container = Container::start();
    let major = container.number(
        "postgres",
        "SELECT current_setting('server_version_num')::bigint / 10000",
    );
    assert!(
        major > i64::from(cluster::major()),
        "the image is to be of a later version"
    );
    let (mut restore, run) = place
        .apply_to(&container.stack(), &place.config(&[ENGINE]), false)
        .unwrap();
    lifeboat::restore::swap::commit(&run).unwrap();
    place.block_on(restore.finish()).unwrap();
    let mut client = container.connect("app").unwrap();
    let found: String = client.query_one(&digest_query(), &[]).unwrap().get(0);
    assert_eq!(found, digest(&source, "app"));
    for name in HOSTILE {
        let mut client = container.connect(name).unwrap();
        let here: String = client
            .query_one("SELECT name FROM here", &[])
            .unwrap()
            .get(0);
        assert_eq!(here, name);
    }
}

#[test]
fn a_table_comes_out_of_a_physical_backup_through_a_container() {
    let container = Container::start();
    container.fill();
    let place = Place::new();
    let stack = container.stack();
    let config = place.config(&[ENGINE]);
    let mut service = Postgres::new(&config, &stack).unwrap();
    let manifest = place.backup(&mut service, || ()).unwrap();
    let mut app = container.connect("app").unwrap();
    app.batch_execute("DROP TABLE few; DELETE FROM rows")
        .unwrap();
    take_few_back(&place, &container);
    let done = place
        .extract(&stack, &[ENGINE], &request("app", &[], Target::Beside))
        .unwrap();
    assert_eq!(
        container.number(&done.database, "SELECT count(*) FROM rows"),
        60_000
    );
    assert_eq!(container.number("app", "SELECT count(*) FROM rows"), 0);
    assert_eq!(throwaways(), "");

    // Killed while such a server runs: the next start removes it and its data.
    let record = manifest.archive("db").unwrap();
    let run = place.run();
    let engine = place.block_on(async {
        let access = Access::new(&config, &stack);
        let ground = Ground::prepare(&config, &access, &run, record.raw_bytes)
            .await
            .unwrap();
        let archive = place.repository().archive(&manifest, record).unwrap();
        let restore = PostgresRestore::new(&config, &stack).unwrap();
        unpack(
            archive.into_async(),
            &ground.data(),
            &restore.unpack_options(),
        )
        .await
        .unwrap();
        let settings =
            "restore_command = 'false'\nrecovery_target_action = 'promote'\nhot_standby = 'off'\n";
        let started = ground.start(Some(settings), (999, 999), 17).await.unwrap();
        std::mem::forget(started);
        Engine::connect(DEFAULT_HOST, Limits::default())
            .await
            .unwrap()
    });
    assert_ne!(throwaways(), "");
    let stack = Stack {
        services: vec![stack],
        ..Stack::default()
    };
    let undone = place
        .block_on(undo::undo_all(&config, &run.journal, Some(&engine), &stack))
        .unwrap();
    assert_eq!(undone.open, [""; 0]);
    assert_eq!(throwaways(), "");
    let left = std::fs::read_dir(place.root().join("state")).unwrap();
    let left: Vec<_> = left
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".lifeboat-throwaway"))
        .collect();
    assert_eq!(left, [""; 0]);
}

/// Has the image's `pg_verifybackup` look at an unpacked backup; what it said, when it accepts it.
fn verified(data: &Path) -> Result<String, String> {
    let mount = format!("{}:/restored:ro", data.display());
    let output = Command::new("docker")
        .args(["run", "--rm", "--network=none", "-v", &mount, IMAGE])
        .args(["pg_verifybackup", "/restored"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(said.into_owned())
    } else {
        Err(said.into_owned())
    }
}

#[test]
fn the_list_of_files_is_as_the_servers_own_tool_wants_it() {
    let container = Container::start();
    container.fill();
    let place = Place::new();
    let (stack, config) = (container.stack(), place.config(&[ENGINE]));
    let mut service = Postgres::new(&config, &stack).unwrap();
    let manifest = place.backup(&mut service, || ()).unwrap();
    let record = manifest.archive("db").unwrap();
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let restore = PostgresRestore::new(&config, &stack).unwrap();
    place.block_on(async {
        let archive = place.repository().archive(&manifest, record).unwrap();
        unpack(archive.into_async(), &data, &restore.unpack_options())
            .await
            .unwrap();
    });

    let list = std::fs::read_to_string(data.join("backup_manifest")).unwrap();
    assert!(
        list.starts_with("{ \"PostgreSQL-Backup-Manifest-Version\": 2,"),
        "{list}"
    );
    // Names, sizes, sums, the cluster's identifier, and the WAL.
    let said = verified(&data).unwrap();
    assert!(said.contains("successfully verified"), "{said}");
    let other = list.replace("\"System-Identifier\": ", "\"System-Identifier\": 1");
    assert_ne!(other, list);
    std::fs::write(data.join("backup_manifest"), other).unwrap();
    let said = verified(&data).unwrap_err();
    assert!(said.contains("manifest checksum mismatch"), "{said}");
    std::fs::write(data.join("backup_manifest"), list).unwrap();
    std::fs::write(data.join("PG_VERSION"), "18\n").unwrap();
    let said = verified(&data).unwrap_err();
    assert!(said.contains("\"PG_VERSION\""), "{said}");
}

#[test]
fn a_command_in_a_container_streams_without_end_and_tells_how_it_ended() {
    let container = Container::start();
    let place = Place::new();
    place.block_on(async {
        let engine = Engine::connect(DEFAULT_HOST, Limits::default())
            .await
            .unwrap();
        // More than any buffer between here and there, through the command and back.
        let bytes: Vec<u8> = (0..20_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut input, mut output) = (bytes.as_slice(), Vec::new());
        let script = "cat; echo said >&2; exit 3";
        let exec = Exec::new(["sh", "-c", script]);
        let ended = engine
            .exec_streaming(&container.name, exec, Some(&mut input), &mut output)
            .await
            .unwrap();
        assert_eq!(
            (ended.exit_code, ended.stderr.as_slice()),
            (3, b"said\n".as_slice())
        );
        assert!(output == bytes, "{} bytes came back", output.len());
        // One that reads nothing has its own end.
        let mut input = bytes.as_slice();
        let exec = Exec::new(["false"]);
        let ended = engine
            .exec_streaming(
                &container.name,
                exec,
                Some(&mut input),
                &mut tokio::io::sink(),
            )
            .await
            .unwrap();
        assert_eq!(ended.exit_code, 1);
    });
}
