//! Keys that are not in the settings: exchanged for a token, or asked of what the machine or the container has a role
//! from. None of these is here, so they are answered by the proxy; the keys they give are the server's own.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat::config::S3Credentials;
use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::Store as _;

use super::proxy::{Action, Proxy, Seen};
use super::server::{self, Server};

/// Keys with the right to everything but to delete, so that they can be told from those of the settings.
struct Keys {
    id: String,
    secret: String,
    token: String,
}

impl Keys {
    fn of(server: &Server) -> Self {
        let S3Credentials::Keys {
            id,
            secret,
            session_token,
        } = server.keys_without_delete()
        else {
            panic!("no keys");
        };
        Self {
            id,
            secret: secret.reveal().to_owned(),
            token: session_token.unwrap().reveal().to_owned(),
        }
    }

    /// As containers' and machines' roles are told.
    fn json(&self, until: Timestamp) -> String {
        serde_json::json!({
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": self.id,
            "SecretAccessKey": self.secret,
            "Token": self.token,
            "Expiration": format!("{until:.0}"),
        })
        .to_string()
    }

    /// As the token service tells them.
    fn xml(&self) -> String {
        format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <SessionToken>{}</SessionToken><SecretAccessKey>{}</SecretAccessKey>\
             <Expiration>2999-01-01T00:00:00Z</Expiration><AccessKeyId>{}</AccessKeyId>\
             </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
            self.token, self.secret, self.id
        )
    }
}

fn good(body: &str) -> Action {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    Action::Replay((head + body).into_bytes().into())
}

fn far() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(6)
}

/// A role of the proxy's, and what is refused with it and without.
fn works(proxy: &Proxy, credentials: S3Credentials, prefix: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = server::options(&proxy.url(), prefix, dir.path());
    options.access.credentials = credentials;
    let store = server::connect(options);
    store.put("leases/a", b"lease").unwrap();
    assert_eq!(store.list("leases").unwrap().len(), 1);
    assert!(store.delete("leases/a").unwrap_err().is_refused());
}

/// What the first attempt with credentials says.
fn told(proxy: &Proxy, credentials: S3Credentials) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut options = server::options(&proxy.url(), "told", dir.path());
    options.access.credentials = credentials;
    let failed: RepositoryError = server::connect(options).list("leases").unwrap_err();
    failed.to_string()
}

#[test]
fn keys_are_had_for_a_token_and_their_absence_is_told() {
    let server = Server::shared();
    let answer = good(&Keys::of(&server).xml());
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "a.web.token").unwrap();
    let start = |action: Action| {
        Proxy::start(server.address, move |seen| {
            if seen.target.contains("AssumeRoleWithWebIdentity") {
                action.clone()
            } else {
                Action::Pass
            }
        })
    };
    let credentials = |proxy: &Proxy| S3Credentials::WebIdentity {
        token_file: token_file.clone(),
        role_arn: "arn:aws:iam::123456789012:role/backup".to_owned(),
        session_name: Some("lifeboat".to_owned()),
        sts_endpoint: Some(proxy.url()),
    };
    let proxy = start(answer);
    works(&proxy, credentials(&proxy), "token");
    let unknown = "<Error><Code>NoSuchEntity</Code></Error>";
    let proxy = start(Action::Answer(404, unknown));
    let text = told(&proxy, credentials(&proxy));
    assert!(
        text.contains("NoSuchEntity") && text.contains("settings of the role"),
        "{text}"
    );
}

#[test]
fn a_containers_role_is_asked_for_with_its_token() {
    let server = Server::shared();
    let keys = Keys::of(&server);
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "of-the-pod").unwrap();
    let answer = good(&keys.json(far()));
    let proxy = Proxy::start(server.address, move |seen| {
        match (seen.is("GET", "/role/keys"), value(seen, "authorization")) {
            (true, Some("of-the-pod")) => answer.clone(),
            (true, _) => Action::Answer(403, "not with this token"),
            (false, _) => Action::Pass,
        }
    });
    let credentials = S3Credentials::Pod {
        full_uri: format!("{}/role/keys", proxy.url()),
        token_file: token_file.clone(),
    };
    works(&proxy, credentials.clone(), "pod");
    std::fs::write(&token_file, "of-another").unwrap();
    let text = told(&proxy, credentials);
    assert!(text.contains("settings of the role"), "{text}");
}

#[test]
fn a_machines_role_is_asked_for_and_asked_again_before_its_keys_expire() {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let server = Server::shared();
    let keys = Keys::of(&server);
    let start = |until: Timestamp| {
        let answer = good(&keys.json(until));
        Proxy::start(server.address, move |seen| {
            if seen.is("PUT", "/latest/api/token") {
                return good("of-the-session");
            }
            let Some(role) = seen.target.strip_prefix(ROLES) else {
                return Action::Pass;
            };
            match (value(seen, "x-aws-ec2-metadata-token"), role) {
                (Some("of-the-session"), "") => good("backup"),
                (Some("of-the-session"), "backup") => answer.clone(),
                _ => Action::Answer(401, "not without a session"),
            }
        })
    };
    let credentials = |proxy: &Proxy| S3Credentials::Machine {
        endpoint: Some(proxy.url()),
    };
    let asked = |proxy: &Proxy| {
        let all = proxy.recorded();
        all.iter()
            .filter(|(seen, _)| seen.target == format!("{ROLES}backup"))
            .count()
    };
    let proxy = start(far());
    works(&proxy, credentials(&proxy), "machine");
    assert_eq!(asked(&proxy), 1);

    // They hold for another minute, which is too short for a large upload.
    let proxy = start(Timestamp::now() + SignedDuration::from_mins(1));
    let dir = tempfile::tempdir().unwrap();
    let mut options = server::options(&proxy.url(), "machine", dir.path());
    options.access.credentials = credentials(&proxy);
    let store = server::connect(options);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut often = 0;
    // Not for every request, though.
    while often < 2 {
        assert!(Instant::now() < deadline, "asked {often} times");
        store.list("leases").unwrap();
        often += asked(&proxy);
    }
}

fn value<'s>(seen: &'s Seen, header: &str) -> Option<&'s str> {
    let mut fields = seen.head.lines().filter_map(|line| line.split_once(": "));
    let found = fields.find(|(name, _)| name.eq_ignore_ascii_case(header));
    found.map(|(_, value)| value)
}
