//! A compose project of the test stack, the sidecar beside it, and the harness that knows the truth.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use tempfile::TempDir;

/// The image under test; `scripts/test` builds it.
const IMAGE: &str = "lifeboat-test/lifeboat:dev";

pub struct Project {
    pub name: String,
    dir: TempDir,
    layout: &'static str,
    writers: Vec<Child>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// Failed, with a sentence that holds each of the parts.
    #[track_caller]
    pub fn failed_with(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.err.contains(part), "\"{part}\" is not said: {self:#?}");
        }
    }
}

impl Project {
    /// Prepares a project directory; nothing runs yet.
    pub fn new(name: &str, layout: &'static str, database: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lifeboat-stack-")
            .tempdir()
            .unwrap();
        let project = Self {
            name: format!("lifeboat-{name}"),
            dir,
            layout,
            writers: Vec::new(),
        };
        let prepare = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/prepare");
        let output = Command::new(prepare)
            .arg(project.path())
            .args([&project.name, layout, database])
            .env("LIFEBOAT_IMAGE", IMAGE)
            .output()
            .unwrap();
        Said::of(&output).good();
        project.remove();
        project
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("project")
    }

    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn compose(&self, args: &[&str]) -> Said {
        // Whatever the command: the sidecar and Ollama belong to the project.
        let output = Command::new("docker")
            .args(["compose", "--profile", "cpu", "--profile", "backup"])
            .args(args)
            .current_dir(self.path())
            .output()
            .unwrap();
        Said::of(&output)
    }

    /// Adds a setting to the project's `.env`.
    pub fn set(&self, name: &str, value: &str) {
        let mut env = std::fs::OpenOptions::new()
            .append(true)
            .open(self.path().join(".env"))
            .unwrap();
        writeln!(env, "{name}={value}").unwrap();
    }

    pub fn up(&self) {
        self.compose(&["up", "-d", "--wait", "n8n", "ollama-cpu", "qdrant"])
            .good();
    }

    /// Starts the sidecar, or starts it anew with changed settings.
    pub fn sidecar_up(&self) {
        self.compose(&["up", "-d", "--no-deps", "lifeboat"]).good();
    }

    /// A command in the running sidecar.
    pub fn lifeboat(&self, args: &[&str]) -> Said {
        self.compose(&[&["exec", "-T", "lifeboat"], args].concat())
    }

    /// A command in a sidecar of its own, with other settings.
    pub fn lifeboat_with(&self, env: &[&str], args: &[&str]) -> Said {
        let mut all = vec!["run", "--rm", "-T", "--no-deps"];
        for pair in env {
            all.extend(["-e", pair]);
        }
        all.push("lifeboat");
        all.extend(args);
        self.compose(&all)
    }

    pub fn backup(&self) -> serde_json::Value {
        let out = self.lifeboat(&["backup", "--json"]).good();
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["manifest"].take()
    }

    pub fn harness(&self, args: &[&str]) -> Said {
        Said::of(&self.harness_command(args).output().unwrap())
    }

    fn harness_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(harness_binary());
        command.args([
            "--env",
            self.path().join(".env").to_str().unwrap(),
            "--project",
            &self.name,
        ]);
        command
            .args(["--state", &self.file("state.json")])
            .args(args);
        command
    }

    /// Starts the writer and the probe; returns when the writer has been acknowledged a few times.
    pub fn begin_load(&mut self) {
        let (ledger, stop) = (self.file("ledger.jsonl"), self.file("stop"));
        let log = |name: &str| std::fs::File::create(self.file(name)).unwrap();
        let mut write =
            self.harness_command(&["write", "--ledger", &ledger, "--until-file", &stop]);
        write.stdout(log("write.log")).stderr(log("write.err"));
        let report = self.file("probe.json");
        let mut probe =
            self.harness_command(&["probe", "--report", &report, "--until-file", &stop]);
        probe.stdout(log("probe.log")).stderr(log("probe.err"));
        self.writers = vec![write.spawn().unwrap(), probe.spawn().unwrap()];
        wait_for("the writer to be acknowledged", || {
            std::fs::read_to_string(&ledger).is_ok_and(|text| text.lines().count() > 40)
        });
    }

    /// Ends the load; asserts that no probe saw a failed request and no write failed.
    pub fn end_load(&mut self) {
        std::fs::write(self.file("stop"), "").unwrap();
        for (name, mut child) in ["write", "probe"]
            .into_iter()
            .zip(std::mem::take(&mut self.writers))
        {
            let good = child.wait().unwrap().success();
            let said =
                |end: &str| std::fs::read_to_string(self.file(&format!("{name}.{end}"))).unwrap();
            assert!(good, "{name}: {}{}", said("log"), said("err"));
        }
    }

    pub fn destroy(&self) {
        self.harness(&["destroy", "--layout", self.layout]).good();
    }

    /// Running containers of the project, by service.
    pub fn running(&self) -> Vec<String> {
        let out = self
            .compose(&["ps", "--services", "--status", "running"])
            .good();
        let mut services: Vec<String> = out.lines().map(str::to_owned).collect();
        services.sort_unstable();
        services
    }

    /// When a service's container was last started.
    pub fn started_at(&self, service: &str) -> String {
        let format = "{{.State.StartedAt}}";
        let container = format!("{}-{service}", self.name);
        let output = Command::new("docker")
            .args(["inspect", "--format", format, &container])
            .output()
            .unwrap();
        Said::of(&output).good()
    }

    pub fn sql(&self, sql: &str) -> String {
        self.compose(&[
            "exec", "-T", "postgres", "psql", "-U", "root", "-d", "n8n", "-Atc", sql,
        ])
        .good()
        .trim()
        .to_owned()
    }

    /// Starts a command in the running sidecar and does not wait for it.
    pub fn background(&self, args: &[&str]) -> Child {
        Command::new("docker")
            .args(["compose", "exec", "-T", "lifeboat"])
            .args(args)
            .current_dir(self.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    }

    pub fn kill_sidecar(&self) {
        self.compose(&["kill", "--signal", "KILL", "lifeboat"])
            .good();
    }

    /// Snapshots of all collections that the server holds.
    pub fn qdrant_snapshots(&self) -> usize {
        let port = self.compose(&["port", "qdrant", "6333"]).good();
        let get = |path: &str| -> serde_json::Value {
            let output = Command::new("curl")
                .args(["-sf", "-H", "api-key: lifeboat-test-key"])
                .arg(format!("http://{}{path}", port.trim()))
                .output()
                .unwrap();
            serde_json::from_str(&Said::of(&output).good()).unwrap()
        };
        let collections = get("/collections");
        let names = collections["result"]["collections"]
            .as_array()
            .unwrap()
            .iter();
        names
            .map(|c| {
                get(&format!(
                    "/collections/{}/snapshots",
                    c["name"].as_str().unwrap()
                ))
            })
            .map(|snapshots| snapshots["result"].as_array().unwrap().len())
            .sum()
    }

    /// The repository as the host sees it (bind layout and named volumes alike: ./backups).
    pub fn repository(&self) -> PathBuf {
        self.path().join("backups")
    }

    fn remove(&self) {
        let removed = self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "5"]);
        if removed.code != Some(0) {
            eprintln!("removing {} failed: {removed:?}", self.name);
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        for writer in &mut self.writers {
            // A test that failed leaves its load running.
            drop(writer.kill().and_then(|()| writer.wait()));
        }
        if std::thread::panicking() {
            let log = self.compose(&["logs", "--tail", "60"]);
            eprintln!("{}{}", log.out, log.err);
        }
        self.remove();
    }
}

/// Waits up to five minutes.
#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(5);
    while !done() {
        assert!(
            std::time::Instant::now() < deadline,
            "waited in vain for {what}"
        );
        std::thread::yield_now();
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

/// Built by the workspace's tests, two directories above this test's own binary.
fn harness_binary() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("harness");
    assert!(
        path.exists(),
        "{} is missing: run scripts/test",
        path.display()
    );
    path
}

pub fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}
