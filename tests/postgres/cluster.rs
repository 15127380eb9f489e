//! A real PostgreSQL server in a temporary directory.
//!
//! Its programs are looked for in `LIFEBOAT_TEST_POSTGRES_BIN`, else in the newest `/usr/lib/postgresql/*/bin`;
//! pgbench and pg_amcheck in the latter. The server refuses to run as root: then it runs as `postgres`.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lifeboat::config::Config;
use lifeboat::services::ServiceKind;
use lifeboat::stack::{SharedMount, StackService};
use postgres::{Client, NoTls};

pub const PASSWORD: &str = "only for tests";

pub struct Cluster {
    /// Holds the data directory, sockets and tablespaces.
    pub home: tempfile::TempDir,
    pub data: PathBuf,
    pub port: u16,
    options: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    server: Option<Child>,
}

impl Cluster {
    /// `initdb` and start.
    pub fn new() -> Self {
        Self::with(&[], &[])
    }

    pub fn with(initdb: &[&str], options: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        own(home.path(), 0o755);
        let data = home.path().join("data");
        let password = home.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        own(&password, 0o600);
        let mut command = as_server_user(&bin().join("initdb"));
        command
            .args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"])
            .args(["--locale=C", "-D"])
            .arg(&data)
            .arg("--pwfile")
            .arg(&password)
            .args(initdb);
        run(&mut command);
        let mut cluster = Self {
            home,
            data,
            port: free_port(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            environment: Vec::new(),
            server: None,
        };
        cluster.start();
        cluster
    }

    /// A server that is not started yet, with an empty data directory.
    pub fn empty() -> Self {
        let home = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        own(home.path(), 0o755);
        let data = home.path().join("data");
        std::fs::create_dir(&data).unwrap();
        own(&data, 0o700);
        Self {
            home,
            data,
            port: free_port(),
            options: Vec::new(),
            environment: Vec::new(),
            server: None,
        }
    }

    /// Settings for the command line of the next start; not every test has some.
    #[allow(dead_code)]
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|o| (*o).to_owned()).collect();
    }

    /// Variables for the server from the next start on.
    #[allow(dead_code)]
    pub fn set_environment(&mut self, variables: Vec<(&'static str, PathBuf)>) {
        self.environment = variables;
    }

    /// Starts the server without waiting for it.
    pub fn launch(&mut self) {
        let log = std::fs::File::create(self.log()).unwrap();
        // For the server alone, and not for what starts it.
        let mut command = as_server_user(Path::new("env"));
        command
            .args(
                self.environment
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.display())),
            )
            .arg(bin().join("postgres"))
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k"])
            .arg(self.home.path())
            .args(["-c", "fsync=off", "-c", "max_wal_size=64MB"])
            .args(self.options.iter().flat_map(|o| ["-c", o]))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.server = Some(command.spawn().unwrap());
    }

    pub fn start(&mut self) {
        self.launch();
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.try_connect("postgres").is_err() {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the server does not start: {}",
                self.log_text()
            );
            std::thread::yield_now();
        }
    }

    /// Starts a server that ends by itself; what it said.
    pub fn refuses_to_start(&mut self) -> String {
        self.launch();
        let ended = self.server.take().unwrap().wait().unwrap();
        assert!(!ended.success());
        self.log_text()
    }

    /// A fast shutdown.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// As after a power cut.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::QUIT);
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself.
            if server.try_wait().unwrap().is_none() {
                let pid = rustix::process::Pid::from_child(&server);
                rustix::process::kill_process(pid, signal).unwrap();
                server.wait().unwrap();
            }
        }
    }

    pub fn connect(&self) -> Client {
        self.try_connect("postgres").unwrap()
    }

    pub fn try_connect(&self, database: &str) -> Result<Client, postgres::Error> {
        let (port, database) = (self.port, database.to_owned());
        postgres::Config::new()
            .host("127.0.0.1")
            .port(port)
            .user("postgres")
            .password(PASSWORD)
            .dbname(&database)
            .connect(NoTls)
    }

    /// Past the network.
    #[allow(dead_code)]
    pub fn connect_inside(&self) -> Client {
        postgres::Config::new()
            .host_path(self.home.path())
            .port(self.port)
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect(NoTls)
            .unwrap()
    }

    /// Runs statements, each in a transaction of its own; none of them may have a semicolon inside.
    pub fn sql(&self, statements: &str) {
        let mut client = self.connect();
        for statement in statements.split(';') {
            client.batch_execute(statement).unwrap();
        }
    }

    pub fn number(&self, query: &str) -> i64 {
        self.connect().query_one(query, &[]).unwrap().get(0)
    }

    pub fn text(&self, query: &str) -> String {
        self.connect().query_one(query, &[]).unwrap().get(0)
    }

    /// Waits until a query that counts returns zero.
    pub fn wait_for_zero(&self, query: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.number(query) != 0 {
            assert!(Instant::now() < deadline, "still not 0: {query}");
            std::thread::yield_now();
        }
    }

    pub fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A directory that the server can make a tablespace in.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir(&path).unwrap();
        own(&path, 0o700);
        path
    }

    /// The service, as discovery would find it.
    pub fn stack(&self) -> StackService {
        let mount = |path: &Path| SharedMount {
            target: path.to_owned(),
            local: path.to_owned(),
            read_only: false,
        };
        StackService {
            kind: ServiceKind::Postgres,
            name: "db".to_owned(),
            container: None,
            environment: [
                ("POSTGRES_USER", "postgres"),
                ("POSTGRES_PASSWORD", PASSWORD),
                ("PGDATA", self.data.to_str().unwrap()),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            mounts: vec![mount(&self.data)],
            all_mount_targets: Vec::new(),
            hosts: vec!["127.0.0.1".to_owned()],
            ports: vec![self.port],
            depends_on: Vec::new(),
        }
    }

    pub fn client_tool(&self, name: &str) -> Command {
        let mut command = Command::new(client_program(name));
        command
            .env("PGPASSWORD", PASSWORD)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn config(vars: &[(&str, &str)]) -> Config {
    Config::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap()
}

pub fn bin() -> PathBuf {
    std::env::var_os("LIFEBOAT_TEST_POSTGRES_BIN").map_or_else(newest_installed, PathBuf::from)
}

/// A program that comes with a whole installation.
pub fn client_program(name: &str) -> PathBuf {
    newest_installed().join(name)
}

/// The major version of the server under test.
pub fn major() -> u32 {
    major_of(&bin())
}

fn major_of(bin: &Path) -> u32 {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let version = text.split_whitespace().nth(2).unwrap();
    version.split('.').next().unwrap().parse().unwrap()
}

/// Which major version the whole installation is of.
pub fn newest_installed_major() -> u32 {
    major_of(&newest_installed())
}

fn newest_installed() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is needed for this test: install the package postgresql")
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().expect("no PostgreSQL server is installed").1
}

/// What the server runs as.
fn as_server_user(program: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "--",
        ])
        .arg(program);
    command
}

/// Gives a path to the user that the server runs as.
pub fn own(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    if rustix::process::getuid().is_root() {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let fields: Vec<&str> = users
            .lines()
            .find_map(|line| line.strip_prefix("postgres:"))
            .expect("there is no user postgres")
            .split(':')
            .collect();
        let id = |i: usize| fields[i].parse().ok();
        chown(path, id(1), id(2)).unwrap();
    }
}

pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
