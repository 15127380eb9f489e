//! A throwaway compose project on the real engine.

use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat::stack::engine::{DEFAULT_HOST, Engine, Limits};
use serde_json::Value;
use tempfile::TempDir;

pub const IMAGE: &str = "lifeboat-test/debian:trixie";
const HINT: &str =
    "run scripts/setup, which installs and starts the engine and makes the base image";
/// Before the line that [`hand_out`] writes: the test harness writes lines of its own.
const MARK: &str = "handed out: ";

/// Goes before every compose file.
const HEAD: &str = r"
x-sleeper: &sleeper
  image: ${IMAGE}
  command: sleep infinity
  init: true
";

/// A project that is up; down and gone when dropped.
pub struct Project {
    pub name: String,
    dir: TempDir,
}

impl Project {
    pub fn up(compose: &str) -> Self {
        let image = Command::new("docker")
            .args(["image", "inspect", IMAGE])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            image.is_ok_and(|status| status.success()),
            "no Docker engine with the image {IMAGE} answers: {HINT}"
        );
        let dir = tempfile::tempdir().unwrap();
        let id: String = dir.path().to_string_lossy().chars().rev().take(6).collect();
        let name = format!("lbt-{}-{}", std::process::id(), id.to_ascii_lowercase());
        std::fs::write(dir.path().join("compose.yml"), format!("{HEAD}{compose}")).unwrap();
        for sub in ["n8n", "uploads", "backup"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        let project = Self { name, dir };
        project.compose(&["up", "--detach", "--quiet-pull"]);
        project
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The name of a service's container.
    pub fn container(&self, service: &str) -> String {
        format!("{}-{service}-1", self.name)
    }

    fn compose(&self, args: &[&str]) {
        let output = Command::new("docker")
            .args(["compose", "--project-name", &self.name])
            .args(args)
            .current_dir(self.dir.path())
            .env("IMAGE", IMAGE)
            .env("NAME", &self.name)
            .output()
            .unwrap();
        assert!(
            output.status.success() || std::thread::panicking(),
            "docker compose {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.compose(&["down", "--volumes", "--timeout", "0", "--remove-orphans"]);
    }
}

pub fn docker_host() -> String {
    std::env::var("DOCKER_HOST").unwrap_or_else(|_| DEFAULT_HOST.to_owned())
}

pub async fn connect() -> Engine {
    match Engine::connect(&docker_host(), Limits::default()).await {
        Ok(engine) => engine,
        Err(err) => panic!("{err}: {HINT}"),
    }
}

pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "docker {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs an ignored test of this program in a container; what it hands out.
pub fn inside(container: &str, user: &str, test: &str) -> Value {
    let program = std::env::current_exe().unwrap();
    docker(&[
        "cp",
        program.to_str().unwrap(),
        &format!("{container}:/test"),
    ]);
    let told = docker(&[
        "exec",
        "--user",
        user,
        container,
        "/test",
        "--exact",
        test,
        "--ignored",
        "--nocapture",
    ]);
    let line = told.lines().find_map(|line| line.split_once(MARK));
    serde_json::from_str(line.expect(&told).1).unwrap()
}

/// Gives a value to the [`inside`] that waits for it.
#[allow(clippy::print_stdout)]
pub fn hand_out(value: &Value) {
    println!("{MARK}{value}");
}
