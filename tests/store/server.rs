//! A real S3 server: built by `scripts/s3-server`, started on a free port, gone with the last test that uses it.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use lifeboat::config::{S3Config, S3Credentials, Secret};
use lifeboat::repository::store::{Patience, S3Options, S3Store};
use tempfile::TempDir;

pub const BUCKET: &str = "lifeboat";
pub const USER: &str = "lifeboat";
pub const PASSWORD: &str = "lifeboat-secret";

/// Ends the server when the line to the test breaks, however the test ended.
const KEEPER: &str = r#""$@" >"$LOG" 2>&1 & server=$!; read -r _; kill "$server"; wait "$server""#;

pub struct Server {
    pub address: SocketAddr,
    pub certificate: Option<PathBuf>,
    dir: TempDir,
    keeper: Child,
}

impl Server {
    /// The server that the tests of this process share.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(None));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A server that no other test uses.
    pub fn alone() -> Self {
        Self::start(None)
    }

    /// A server that speaks TLS with a certificate of its own.
    pub fn with_certificate() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=lifeboat test", "-addext"])
            .args(["subjectAltName=IP:127.0.0.1", "-addext"])
            .args(["basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(dir.path().join("private.key"))
            .arg("-out")
            .arg(dir.path().join("public.crt"))
            .output()
            .expect("openssl is there (scripts/setup installs it)");
        assert!(done.status.success(), "{done:?}");
        Self::start(Some(&dir))
    }

    fn start(certs: Option<&TempDir>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // Buckets are directories to it.
        std::fs::create_dir_all(data.join(BUCKET)).unwrap();
        let certs_dir = dir.path().join("certs");
        std::fs::create_dir(&certs_dir).unwrap();
        if let Some(certs) = certs {
            for name in ["private.key", "public.crt"] {
                std::fs::copy(certs.path().join(name), certs_dir.join(name)).unwrap();
            }
        }
        let address = free_address();
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(binary())
            .args(["server", "--quiet", "--anonymous", "--address"])
            .arg(address.to_string())
            .arg("--certs-dir")
            .arg(&certs_dir)
            .arg(&data)
            .env("LOG", dir.path().join("log"))
            .env("HOME", dir.path())
            .env("MINIO_ROOT_USER", USER)
            .env("MINIO_ROOT_PASSWORD", PASSWORD)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let server = Self {
            address,
            certificate: certs.map(|_| certs_dir.join("public.crt")),
            dir,
            keeper,
        };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        // What needs keys is refused once it is up; before, it is not ready.
        let begun = Instant::now();
        loop {
            let answer = Command::new("curl")
                .args(["--silent", "--insecure", "--output", "/dev/null"])
                .args([
                    "--retry",
                    "100",
                    "--retry-connrefused",
                    "--retry-delay",
                    "1",
                ])
                .args([
                    "--retry-max-time",
                    "60",
                    "--write-out",
                    "%{http_code}",
                    &self.url(),
                ])
                .output()
                .unwrap();
            if answer.stdout == b"403" {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_mins(2),
                "the S3 server does not get ready: {}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// Uploads that were begun and neither closed nor given up.
    pub fn open_uploads(&self) -> usize {
        let dir = self.dir.path().join("data/.minio.sys/multipart");
        let Ok(hashes) = std::fs::read_dir(dir) else {
            return 0;
        };
        hashes
            .map(|hash| std::fs::read_dir(hash.unwrap().path()).map_or(0, Iterator::count))
            .sum()
    }

    /// Keys that may do everything in the bucket but delete.
    pub fn keys_without_delete(&self) -> S3Credentials {
        let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject",
            "s3:ListBucket","s3:AbortMultipartUpload"],"Resource":["arn:aws:s3:::lifeboat","arn:aws:s3:::lifeboat/*"]}]}"#;
        let answer = Command::new("curl")
            .args([
                "--silent",
                "--fail-with-body",
                "--aws-sigv4",
                "aws:amz:us-east-1:sts",
            ])
            .args(["--user", &format!("{USER}:{PASSWORD}")])
            .args(["--data", "Action=AssumeRole&Version=2011-06-15"])
            .args(["--data-urlencode", &format!("Policy={policy}"), &self.url()])
            .output()
            .unwrap();
        let text = String::from_utf8(answer.stdout).unwrap();
        let tag = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>")).expect(&text);
            rest.split_once("</").unwrap().0.to_owned()
        };
        S3Credentials::Keys {
            id: tag("AccessKeyId"),
            secret: Secret::new(tag("SecretAccessKey")),
            session_token: Some(Secret::new(tag("SessionToken"))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
    }
}

/// What a store at this address is opened with; change what the test is about.
pub fn options(endpoint: &str, prefix: &str, scratch: &Path) -> S3Options {
    S3Options {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        access: S3Config {
            endpoint: Some(endpoint.to_owned()),
            path_style: true,
            credentials: S3Credentials::Keys {
                id: USER.to_owned(),
                secret: Secret::new(PASSWORD),
                session_token: None,
            },
            ..S3Config::default()
        },
        scratch: scratch.to_owned(),
        patience: Patience::default(),
    }
}

pub fn connect(options: S3Options) -> S3Store {
    S3Store::connect(options).unwrap()
}

fn binary() -> PathBuf {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/s3-server"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut path = String::new();
    BufReader::new(script.stdout.take().unwrap())
        .read_line(&mut path)
        .unwrap();
    assert!(
        script.wait().unwrap().success(),
        "scripts/s3-server failed: see above"
    );
    PathBuf::from(path.trim_end())
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
