//! Ollama: model directories as the server writes them, and the server itself in a container.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "adapters/place.rs"]
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat::restore::{Restore, Way};
use lifeboat::services::ollama::{Ollama, OllamaRestore};
use lifeboat::services::{ErrorKind, Service, ServiceKind};
use lifeboat::stack::StackService;
use place::{Place, files_below, mount, service, wait_for};
use sha2::{Digest, Sha256};

const IMAGE: &str = "lifeboat-test/ollama:0.33";

fn sha256(bytes: &[u8]) -> String {
    lifeboat::repository::hex(&Sha256::digest(bytes))
}

/// A minimal GGUF: magic, version 3, no tensors, one key.
fn gguf(name: &str) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    for (key, value) in [("general.architecture", "llama"), ("general.name", name)] {
        text(&mut out, key);
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    out
}

/// An `.ollama` directory.
struct Models(PathBuf);

impl Models {
    fn new(place: &Place) -> Self {
        let home = place.path("data/ollama");
        std::fs::create_dir_all(home.join("models/blobs")).unwrap();
        for key in ["id_ed25519", "id_ed25519.pub", "history"] {
            std::fs::write(home.join(key), format!("{key} of this server")).unwrap();
        }
        Self(home)
    }

    fn blob(&self, bytes: &[u8]) -> (String, usize) {
        let digest = sha256(bytes);
        let path = self.0.join(format!("models/blobs/sha256-{digest}"));
        std::fs::write(path, bytes).unwrap();
        (digest, bytes.len())
    }

    fn manifest_path(&self, model: &str) -> PathBuf {
        self.0
            .join("models/manifests/registry.ollama.ai/library")
            .join(model.replace(':', "/"))
    }

    fn manifest(config: &(String, usize), layers: &[&(String, usize)]) -> String {
        let layer = |media: &str, (digest, size): &(String, usize)| serde_json::json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": size});
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": layer("application/vnd.docker.container.image.v1+json", config),
            "layers": layers.iter().enumerate().map(|(n, l)| layer(
                if n == 0 { "application/vnd.ollama.image.model" } else { "application/vnd.ollama.image.params" },
                l,
            )).collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn add(&self, model: &str, weights: &[u8], params: &str) {
        let config = self.blob(
            format!(r#"{{"model_format":"gguf","model_family":"llama","name":"{model}"}}"#)
                .as_bytes(),
        );
        let weights = self.blob(weights);
        let params = self.blob(params.as_bytes());
        let path = self.manifest_path(model);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, Self::manifest(&config, &[&weights, &params])).unwrap();
    }

    fn service(&self) -> StackService {
        let mut found = service(ServiceKind::Ollama, "ollama");
        found.mounts = vec![mount("/root/.ollama", &self.0)];
        found
    }

    fn state(&self) -> BTreeMap<String, Vec<u8>> {
        files_below(&self.0.join("models"))
    }
}

/// Two models that share their weights, and what no backup keeps.
fn two_models(place: &Place) -> Models {
    let models = Models::new(place);
    let shared = gguf("shared");
    models.add("tiny:latest", &shared, r#"{"num_ctx":1}"#);
    models.add("tiny:second", &shared, r#"{"num_ctx":2}"#);
    let blobs = models.0.join("models/blobs");
    std::fs::write(
        blobs.join(format!("sha256-{}-partial-0", "0".repeat(64))),
        "x",
    )
    .unwrap();
    models.blob(b"referenced by nothing");
    models
}

/// The real server on a directory; removed at the end.
struct Server {
    id: String,
    url: String,
}

impl Server {
    async fn start(home: &Path) -> Self {
        let volume = format!("{}:/root/.ollama", home.display());
        let out = Command::new("docker")
            .args(["run", "-d", "-p", "127.0.0.1::11434", "-v", &volume, IMAGE])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.success(),
            "cannot start {IMAGE} (scripts/setup builds it): {said}"
        );
        let id = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        let mut server = Self {
            id,
            url: String::new(),
        };
        let port = Command::new("docker")
            .args(["port", &server.id, "11434/tcp"])
            .output()
            .unwrap();
        server.url = format!(
            "http://{}",
            String::from_utf8(port.stdout)
                .unwrap()
                .lines()
                .next()
                .unwrap()
        );
        wait_for("Ollama's first answer", async || {
            reqwest::get(format!("{}/api/tags", server.url))
                .await
                .is_ok_and(|r| r.status().is_success())
        })
        .await;
        server
    }

    async fn digests(&self) -> BTreeMap<String, String> {
        let tags: serde_json::Value = reqwest::get(format!("{}/api/tags", self.url))
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        tags["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (text(&m["name"]), text(&m["digest"])))
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let removed = Command::new("docker")
            .args(["rm", "-fv", &self.id])
            .output();
        assert!(removed.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_holds_each_models_blobs_once_with_manifests_after_them() {
    let place = Place::new();
    let models = two_models(&place);
    let config = place.config(&[]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    assert!(ollama.estimate().await > 0);
    let manifest = place.backup(&mut ollama).await.unwrap();

    let report = &manifest.archives[0].report;
    assert_eq!(
        report.counts,
        [("models".to_owned(), 2), ("blobs".to_owned(), 5)].into()
    );
    assert_eq!(report.warnings.len(), 1, "it says that no server was asked");
    let (mut reader, _) = place.archive(&manifest);
    let mut tar = Vec::new();
    std::io::copy(&mut reader, &mut tar).unwrap();
    place.extract(&manifest, &place.path("out"));
    let names: Vec<_> = files_below(&place.path("out")).into_keys().collect();
    assert_eq!(names.len(), 2 + 5 + 2);
    assert!(names.contains(&"id_ed25519".to_owned()));
    assert!(
        !names
            .iter()
            .any(|n| n.contains("history") || n.contains("partial"))
    );
    let first = |needle: &[u8]| tar.windows(needle.len()).position(|w| w == needle).unwrap();
    let last_blob = tar
        .windows(13)
        .rposition(|w| w == b"models/blobs/")
        .unwrap();
    assert!(first(b"models/manifests/") > last_blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_server_offers_the_same_digests_after_all_models_were_lost() {
    let place = Place::new();
    let models = two_models(&place);
    let server = Server::start(&models.0).await;
    let config = place.config(&[("OLLAMA_URL", &server.url)]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    for check in ollama.check().await {
        check.outcome.unwrap();
    }
    let manifest = place.backup(&mut ollama).await.unwrap();
    assert!(manifest.archives[0].report.warnings.is_empty());
    assert!(manifest.archives[0].report.version.starts_with("0."));
    let before = server.digests().await;
    assert_eq!(before.len(), 2);
    let wanted = files_below(&models.0.join("models/manifests"));

    std::fs::remove_dir_all(models.0.join("models")).unwrap();
    assert!(server.digests().await.is_empty());
    let (reader, record) = place.archive(&manifest);
    let mut restore = OllamaRestore::new(&config, &models.service()).unwrap();
    assert_eq!(restore.way(), Way::Online);
    for check in restore.preflight(&record).await {
        check.outcome.unwrap();
    }
    let run = place.run();
    restore.apply(reader, &record, &run).await.unwrap();
    restore.settle(&record, &run).await.unwrap();
    restore.finish().await.unwrap();
    assert_eq!(server.digests().await, before);
    assert_eq!(files_below(&models.0.join("models/manifests")), wanted);
    let blobs = files_below(&models.0.join("models/blobs"));
    assert_eq!(blobs.len(), 5, "only what a model needs comes back");
    for (name, bytes) in blobs {
        assert_eq!(name, format!("sha256-{}", sha256(&bytes)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_of_another_server_is_refused() {
    let place = Place::new();
    let models = two_models(&place);
    let server = Server::start(&models.0).await;
    let elsewhere = place.path("data/other");
    std::fs::create_dir_all(elsewhere.join("models/manifests")).unwrap();
    let mut found = service(ServiceKind::Ollama, "ollama");
    found.mounts = vec![mount("/root/.ollama", &elsewhere)];
    let config = place.config(&[("OLLAMA_URL", &server.url)]);
    let mut ollama = Ollama::new(&config, &found).unwrap();
    let error = place.backup(&mut ollama).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Setup);
    assert!(error.message.contains("does not hold it"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_down_is_an_error_that_says_where() {
    let place = Place::new();
    let models = two_models(&place);
    let config = place.config(&[("OLLAMA_URL", "http://user:pass-word@127.0.0.1:9")]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    let error = place.backup(&mut ollama).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.message.contains("http://127.0.0.1:9"), "{error}");
    assert!(!error.message.contains("pass-word"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_blobs_fail_the_backup_and_name_the_model() {
    for damage in ["flip", "remove"] {
        let place = Place::new();
        let models = two_models(&place);
        let blob = models.0.join(format!(
            "models/blobs/sha256-{}",
            sha256(br#"{"num_ctx":2}"#)
        ));
        match damage {
            "flip" => std::fs::write(&blob, r#"{"num_ctx":3}"#).unwrap(),
            _ => std::fs::remove_file(&blob).unwrap(),
        }
        let mut ollama = Ollama::new(&place.config(&[]), &models.service()).unwrap();
        let error = place.backup(&mut ollama).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Damaged, "{damage}");
        assert!(error.message.contains("tiny:second"), "{error}");
        assert!(error.message.contains("ollama pull"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_that_is_replaced_during_the_backup_is_kept_whole() {
    let place = Place::new();
    let models = two_models(&place);
    let config = models.blob(br#"{"model_format":"gguf"}"#);
    let versions: Vec<String> = (0..2)
        .map(|n| {
            let weights = models.blob(&vec![n; 100_000]);
            Models::manifest(&config, &[&weights])
        })
        .collect();
    let path = models.manifest_path("tiny:moving");
    std::fs::write(&path, &versions[0]).unwrap();
    let stop = AtomicBool::new(false);
    let manifest = std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                // In place, as the server does.
                std::fs::write(&path, &versions[n % 2]).unwrap();
                n += 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let mut ollama = Ollama::new(&place.config(&[]), &models.service()).unwrap();
        let handle = tokio::runtime::Handle::current();
        let made = tokio::task::block_in_place(|| handle.block_on(place.backup(&mut ollama)));
        stop.store(true, Ordering::Relaxed);
        made.unwrap()
    });
    place.extract(&manifest, &place.path("out"));
    let kept = files_below(&place.path("out/models"));
    let moving = &kept["manifests/registry.ollama.ai/library/tiny/moving"];
    let text = String::from_utf8(moving.clone()).unwrap();
    assert!(versions.contains(&text), "{text}");
    for digest in text.split("sha256:").skip(1) {
        assert!(kept.contains_key(&format!("blobs/sha256-{}", &digest[..64])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_adds_skips_what_is_there_and_rolls_back_to_what_was() {
    let place = Place::new();
    let models = two_models(&place);
    let config = place.config(&[]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    let manifest = place.backup(&mut ollama).await.unwrap();

    // Since then: one model replaced, one deleted with its blob, one added, and another key.
    std::fs::remove_file(models.manifest_path("tiny:latest")).unwrap();
    std::fs::remove_file(models.0.join(format!(
        "models/blobs/sha256-{}",
        sha256(br#"{"num_ctx":1}"#)
    )))
    .unwrap();
    models.add("tiny:second", &gguf("newer"), r#"{"num_ctx":4}"#);
    models.add("extra:latest", &gguf("extra"), "{}");
    std::fs::write(models.0.join("id_ed25519"), "another").unwrap();
    let present = models.state();

    let (reader, record) = place.archive(&manifest);
    let mut restore = OllamaRestore::new(&config, &models.service()).unwrap();
    let run = place.run();
    restore.apply(reader, &record, &run).await.unwrap();
    restore.settle(&record, &run).await.unwrap();
    let restored = models.state();
    assert!(restored.contains_key("manifests/registry.ollama.ai/library/extra/latest"));
    assert!(restored.contains_key("manifests/registry.ollama.ai/library/tiny/latest"));
    let key = || std::fs::read_to_string(models.0.join("id_ed25519")).unwrap();
    assert_eq!(key(), "id_ed25519 of this server");

    restore.rollback().await.unwrap();
    assert_eq!(models.state(), present);
    assert_eq!(key(), "another");
    let (_, again) = place.archive(&manifest);
    assert!(restore.settle(&again, &run).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_files_belong_to_the_owner_of_the_directory() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let models = two_models(&place);
    let config = place.config(&[]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    let manifest = place.backup(&mut ollama).await.unwrap();

    let empty = place.path("data/empty");
    std::fs::create_dir(&empty).unwrap();
    std::os::unix::fs::chown(&empty, Some(1234), Some(4321)).unwrap();
    let mut found = service(ServiceKind::Ollama, "ollama");
    found.mounts = vec![mount("/root/.ollama", &empty)];
    let (reader, record) = place.archive(&manifest);
    let mut restore = OllamaRestore::new(&config, &found).unwrap();
    restore.apply(reader, &record, &place.run()).await.unwrap();
    let mut open = vec![empty.clone()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 4321), "{}", path.display());
        seen += 1;
        if stat.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    assert!(seen > 12);
}

/// The restore's refusal of a directory that the server prepared; it must come soon.
async fn refusal(prepare: impl FnOnce(&Models, &Path)) -> String {
    let place = Place::new();
    let models = two_models(&place);
    let config = place.config(&[]);
    let mut ollama = Ollama::new(&config, &models.service()).unwrap();
    let manifest = place.backup(&mut ollama).await.unwrap();
    let outside = place.path("outside");
    std::fs::create_dir(&outside).unwrap();
    prepare(&models, &outside);
    let (reader, record) = place.archive(&manifest);
    let mut restore = OllamaRestore::new(&config, &models.service()).unwrap();
    let run = place.run();
    let applied = restore.apply(reader, &record, &run);
    let error = tokio::time::timeout(std::time::Duration::from_secs(20), applied)
        .await
        .unwrap()
        .unwrap_err();
    assert!(files_below(&outside).is_empty(), "nothing is written there");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    error.message
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_place_of_the_servers_directories_are_refused_and_not_written_through() {
    for dir in ["models", "models/blobs", "models/manifests"] {
        let said = refusal(|models, outside| {
            let path = models.0.join(dir);
            if dir == "models" {
                std::fs::rename(path.join("blobs"), models.0.join("blobs")).unwrap();
            }
            std::fs::remove_dir_all(&path).unwrap();
            std::os::unix::fs::symlink(outside, &path).unwrap();
        })
        .await;
        assert!(
            said.contains(&format!("ollama/{dir} is a symbolic link")),
            "{said}"
        );
    }
    let said = refusal(|models, outside| {
        let path = models.0.join("models/manifests/registry.ollama.ai/library");
        std::fs::remove_dir_all(&path).unwrap();
        std::os::unix::fs::symlink(outside, &path).unwrap();
    })
    .await;
    assert!(said.contains("library is a symbolic link"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_and_links_in_place_of_the_servers_files_are_refused_at_once() {
    let blob = format!("models/blobs/sha256-{}", sha256(br#"{"num_ctx":1}"#));
    let manifest = "models/manifests/registry.ollama.ai/library/tiny/latest";
    for file in [blob.as_str(), manifest, "id_ed25519"] {
        for target in ["", "/dev/zero"] {
            let said = refusal(|models, _| {
                let path = models.0.join(file);
                std::fs::remove_file(&path).unwrap();
                if target.is_empty() {
                    assert!(
                        Command::new("mkfifo")
                            .arg(&path)
                            .status()
                            .unwrap()
                            .success()
                    );
                } else {
                    std::os::unix::fs::symlink(target, &path).unwrap();
                }
            })
            .await;
            assert!(
                said.contains(file) && said.contains("no regular file"),
                "{said}"
            );
        }
    }
}
