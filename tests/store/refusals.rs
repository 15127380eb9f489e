//! Servers that say no, and sentences that say what to do.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use lifeboat::config::{Config, S3Credentials, Secret};
use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::{self, S3Options, S3Store, Store};

use super::proxy::{Action, Proxy};
use super::server::{self, PASSWORD, Server, USER};
use super::{LARGE, keys, noise, publish};

/// What the first look for a repository says.
fn told(options: S3Options) -> String {
    let secret = match &options.access.credentials {
        S3Credentials::Keys { secret, .. } => secret.reveal().to_owned(),
        _ => PASSWORD.to_owned(),
    };
    let text = match S3Store::connect(options) {
        Err(err) => err.to_string(),
        Ok(store) => {
            let err = store.get("config.json", 100).unwrap_err();
            assert!(
                !matches!(err, RepositoryError::Missing(_)),
                "an error must not look like an empty place: {err}"
            );
            err.to_string()
        }
    };
    assert!(!text.contains(&secret), "{text}");
    text
}

#[test]
fn wrong_settings_are_told_with_what_to_do() {
    let server = Server::shared();
    let dir = tempfile::tempdir().unwrap();
    let good = || server::options(&server.url(), "refusals", dir.path());
    let with_keys = |id: &str, secret: &str| {
        let mut options = good();
        options.access.credentials = S3Credentials::Keys {
            id: id.to_owned(),
            secret: Secret::new(secret),
            session_token: None,
        };
        options
    };
    let text = told(with_keys(USER, "not the secret"));
    assert!(text.contains("check AWS_SECRET_ACCESS_KEY"), "{text}");
    let text = told(with_keys("nobody", "not-the-secret"));
    assert!(text.contains("check AWS_ACCESS_KEY_ID"), "{text}");
    let mut elsewhere = good();
    elsewhere.bucket = "no-such-bucket".to_owned();
    let text = told(elsewhere);
    assert!(text.contains("create the bucket no-such-bucket"), "{text}");
    let mut stale = good();
    stale.access.credentials = S3Credentials::Keys {
        id: USER.to_owned(),
        secret: Secret::new(PASSWORD),
        session_token: Some(Secret::new("not-a-token")),
    };
    let text = told(stale);
    assert!(text.contains("AWS_SESSION_TOKEN"), "{text}");
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{nobody}");
    let mut options = server::options(&url, "refusals", dir.path());
    options.patience.first_contact = Duration::from_millis(500);
    let text = told(options);
    for part in ["refused", "attempts", &url, "the right address"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn an_unknown_certificate_is_refused_and_a_named_one_is_trusted() {
    let server = Server::with_certificate();
    let dir = tempfile::tempdir().unwrap();
    let mut options = server::options(&server.url(), "tls", dir.path());
    let text = told(options.clone());
    assert!(text.contains("AWS_CA_BUNDLE"), "{text}");
    options.access.ca_bundle.clone_from(&server.certificate);
    let store = server::connect(options.clone());
    publish(&store, "packs/aa/x", &noise(LARGE, 1)).unwrap();
    assert!(store.get("packs/aa/x", LARGE as u64).unwrap() == noise(LARGE, 1));
    std::fs::write(dir.path().join("empty.pem"), "none here\n").unwrap();
    for (name, said) in [
        ("empty.pem", "holds no certificate"),
        ("missing.pem", "cannot be read"),
    ] {
        options.access.ca_bundle = Some(dir.path().join(name));
        let text = told(options.clone());
        assert!(
            text.contains(said) && text.contains("AWS_CA_BUNDLE"),
            "{text}"
        );
    }
}

#[test]
fn keys_that_may_not_delete_can_do_all_the_rest() {
    let server = Server::shared();
    let dir = tempfile::tempdir().unwrap();
    let mut options = server::options(&server.url(), "kept", dir.path());
    let owner = server::connect(options.clone());
    options.access.credentials = server.keys_without_delete();
    let store = server::connect(options);
    store.check_writable().unwrap();
    store.now().unwrap();
    store.put("leases/a", b"lease").unwrap();
    publish(&store, "packs/aa/x", &noise(LARGE, 1)).unwrap();
    store.replace("config.json", b"{}").unwrap();
    let err = store.delete("leases/a").unwrap_err();
    assert!(err.is_refused(), "{err}");
    assert!(err.to_string().contains("leases/a was kept"), "{err}");
    store.remove_abandoned().unwrap();
    assert_eq!(keys(&owner, "leases").len(), 1);
    assert!(owner.get("packs/aa/x", LARGE as u64).unwrap() == noise(LARGE, 1));
    // Nor is a wrong key taken for a refusal.
    let mut wrong = server::options(&server.url(), "kept", dir.path());
    wrong.access.credentials = S3Credentials::Keys {
        id: USER.to_owned(),
        secret: Secret::new("wrong"),
        session_token: None,
    };
    let err = server::connect(wrong).delete("leases/a").unwrap_err();
    assert!(!err.is_refused(), "{err}");
    owner.delete("leases/a").unwrap();
}

#[test]
fn refusals_are_told_from_failures() {
    for (name, status, body, refused) in [
        (
            "no-right",
            403,
            "<Error><Code>AccessDenied</Code></Error>",
            true,
        ),
        (
            "not-allowed",
            405,
            "<Error><Code>MethodNotAllowed</Code></Error>",
            true,
        ),
        (
            "locked",
            400,
            "<Error><Code>InvalidRequest</Code><Message>Object is WORM protected</Message></Error>",
            true,
        ),
        (
            "bad-key",
            403,
            "<Error><Code>SignatureDoesNotMatch</Code></Error>",
            false,
        ),
        (
            "bad-request",
            400,
            "<Error><Code>InvalidRequest</Code></Error>",
            false,
        ),
    ] {
        let server = Server::shared();
        let proxy = Proxy::start(server.address, move |seen| {
            if seen.method == "DELETE" {
                Action::Answer(status, body)
            } else {
                Action::Pass
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let prefix = format!("refusals/{name}");
        let store = server::connect(server::options(&proxy.url(), &prefix, dir.path()));
        store.put("packs/aa/x", b"x").unwrap();
        let err = store.delete("packs/aa/x").unwrap_err();
        assert_eq!(err.is_refused(), refused, "{name}: {err}");
        assert_eq!(store.get("packs/aa/x", 1).unwrap(), b"x");
    }
}

#[test]
fn a_server_without_conditional_writes_is_not_written_to() {
    for (answer, said) in [
        (Action::Answer(200, ""), "overwrites files"),
        (
            Action::Answer(501, "<Error><Code>NotImplemented</Code></Error>"),
            "conditional writes",
        ),
    ] {
        let server = Server::shared();
        let proxy = Proxy::start(server.address, move |seen| {
            if seen.method == "PUT" && seen.has("if-none-match") {
                answer.clone()
            } else {
                Action::Pass
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let store = server::connect(server::options(&proxy.url(), "plain", dir.path()));
        let err = store.check_writable().unwrap_err();
        assert!(err.to_string().contains(said), "{err}");
    }
}

#[test]
fn a_bucket_elsewhere_and_a_full_one_are_told() {
    for (status, body, said) in [
        (
            301,
            "<Error><Code>PermanentRedirect</Code></Error>",
            "correct AWS_REGION",
        ),
        (
            507,
            "<Error><Code>XMinioStorageFull</Code></Error>",
            "it is full",
        ),
        (
            403,
            "<Error><Code>RequestTimeTooSkewed</Code></Error>",
            "this machine's clock",
        ),
        (
            400,
            "<Error><Code>ExpiredToken</Code></Error>",
            "get new temporary keys",
        ),
    ] {
        let server = Server::shared();
        let proxy = Proxy::start(server.address, move |_| Action::Answer(status, body));
        let dir = tempfile::tempdir().unwrap();
        let text = told(server::options(&proxy.url(), "told", dir.path()));
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn the_environment_alone_leads_into_the_bucket() {
    let server = Server::shared();
    let dir = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(dir.path().join("credentials")).unwrap();
    write!(
        file,
        "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n\
         [backup]\naws_access_key_id = {USER}\naws_secret_access_key = {PASSWORD}\n"
    )
    .unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
    let file = dir.path().join("credentials");
    let state = dir.path().join("state");
    let (file, secret) = (file.to_str().unwrap(), secret.to_str().unwrap());
    for (name, credentials) in [
        (
            "file",
            [
                ("AWS_SHARED_CREDENTIALS_FILE", file),
                ("AWS_PROFILE", "backup"),
            ],
        ),
        (
            "keys",
            [
                ("AWS_ACCESS_KEY_ID", USER),
                ("AWS_SECRET_ACCESS_KEY_FILE", secret),
            ],
        ),
    ] {
        let vars = [
            (
                "LIFEBOAT_REPOSITORY",
                format!("s3://lifeboat/environment/{name}"),
            ),
            ("LIFEBOAT_STATE", state.to_str().unwrap().to_owned()),
            ("AWS_ENDPOINT_URL", server.url()),
        ];
        let vars = vars
            .into_iter()
            .chain(credentials.map(|(k, v)| (k, v.to_owned())))
            .map(|(k, v)| (k.to_owned(), v));
        let config = Config::from_vars(vars).unwrap();
        let store = store::connect(&config).unwrap();
        assert_eq!(
            store.describe(),
            format!("s3://lifeboat/environment/{name}")
        );
        publish(&*store, "packs/aa/x", b"bytes").unwrap();
        assert_eq!(keys(&*store, "packs").len(), 1);
    }
    // Scratch files have no names.
    assert_eq!(std::fs::read_dir(state.join("spool")).unwrap().count(), 0);
}
