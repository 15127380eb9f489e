#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

fn parsed(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

#[test]
fn an_empty_environment_is_a_working_configuration() {
    let config = parsed(&[]).unwrap();
    assert_eq!(
        config.repository,
        RepositoryPlace::Directory(PathBuf::from("/backup"))
    );
    assert_eq!(config.schedule.cron, "0 3 * * *");
    assert_eq!(config.retention.last, Some(3));
    assert!(config.warnings.is_empty());
}

#[test]
fn every_mistake_is_named_at_once_with_an_example() {
    let err = parsed(&[
        ("BACKUP_CRON_EXPRESSION", "at night"),
        ("BACKUP_JITTER", "soon"),
        ("TZ", "Mars/Olympus"),
        ("POSTGRES_PORT", "70000"),
        ("QDRANT_URL", "qdrant:6333"),
        ("BACKUP_ON_START", "perhaps"),
        ("DOCKER_HOST", "ssh://elsewhere"),
        ("BACKUP_EXCLUDE_REGEXP", "("),
    ])
    .unwrap_err();
    assert_eq!(err.0.len(), 8, "{err}");
    let text = err.to_string();
    for part in [
        "8 settings are wrong",
        "POSTGRES_PORT is \"70000\": not a whole number from 1 to 65535, for example POSTGRES_PORT=5432",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_empty_value_is_not_set() {
    assert_eq!(
        parsed(&[("POSTGRES_PORT", ""), ("TZ", " ")])
            .unwrap()
            .schedule
            .time_zone,
        "UTC"
    );
}

#[test]
fn a_file_gives_a_value_without_its_newline() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret \n").unwrap();
    let config = parsed(&[("POSTGRES_PASSWORD_FILE", file.path().to_str().unwrap())]).unwrap();
    assert_eq!(config.postgres.password.unwrap().reveal(), "s3cret ");
}

#[test]
fn an_unreadable_file_or_both_forms_are_errors() {
    let err = parsed(&[
        ("POSTGRES_PASSWORD_FILE", "/nowhere/at/all"),
        ("QDRANT_API_KEY", "a"),
        ("QDRANT_API_KEY_FILE", "/b"),
    ])
    .unwrap_err();
    assert_eq!(err.0.len(), 2, "{err}");
    assert!(
        err.to_string()
            .contains("POSTGRES_PASSWORD_FILE names /nowhere/at/all, which cannot be read"),
        "{err}"
    );
    assert!(
        err.to_string()
            .contains("QDRANT_API_KEY and QDRANT_API_KEY_FILE are both set"),
        "{err}"
    );
}

#[test]
fn names_that_people_already_have_are_understood() {
    assert_eq!(
        parsed(&[("SCHEDULE", "@hourly")]).unwrap().schedule.cron,
        "@hourly"
    );
    let err = parsed(&[
        ("SCHEDULE", "@hourly"),
        ("BACKUP_CRON_EXPRESSION", "@daily"),
    ])
    .unwrap_err();
    assert!(
        err.to_string().contains("mean the same and differ"),
        "{err}"
    );
}

#[test]
fn a_misspelt_name_is_pointed_out() {
    let config = parsed(&[
        ("BACKUP_CRON_EXPRESION", "@daily"),
        ("LIFEBOAT_NETWORK", "demo"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(
        config.warnings,
        ["BACKUP_CRON_EXPRESION is not a setting: did you mean BACKUP_CRON_EXPRESSION?"]
    );
}

#[test]
fn secrets_do_not_show_themselves() {
    let config = parsed(&[
        ("POSTGRES_PASSWORD", "hunter2"),
        ("QDRANT_API_KEY", "hunter2"),
        ("N8N_ENCRYPTION_KEY", "hunter2"),
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_SESSION_TOKEN", "hunter2"),
    ])
    .unwrap();
    assert!(matches!(config.s3.credentials, S3Credentials::Keys { .. }));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_repository_is_a_directory_or_a_place_in_a_bucket() {
    let place = |text: &str| parsed(&[("LIFEBOAT_REPOSITORY", text)]).map(|c| c.repository);
    assert_eq!(
        place("backups/here").unwrap().directory(),
        Some(Path::new("backups/here"))
    );
    for (text, bucket, prefix) in [
        ("s3://my-bucket", "my-bucket", ""),
        ("s3://my-bucket/", "my-bucket", ""),
        ("s3://my.bucket/hosts/one/", "my.bucket", "hosts/one"),
    ] {
        let found = place(text).unwrap();
        let wanted = RepositoryPlace::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        assert_eq!(found, wanted);
        assert_eq!(found.to_string(), text.trim_end_matches('/'));
    }
    for (text, fault) in [
        ("s3://", "\"\" cannot name a bucket"),
        ("s3://a bucket/x", "cannot name a bucket"),
        ("s3://bucket/a//b", "cannot be a prefix"),
        ("s3://bucket/../b", "cannot be a prefix"),
        ("sftp://host/x", "sftp:// is not known here"),
    ] {
        let err = place(text).unwrap_err().to_string();
        assert!(err.contains(fault), "{err}");
    }
}

#[test]
fn credentials_for_s3_are_whole_or_named_as_missing() {
    let s3 = |vars: &[(&str, &str)]| parsed(vars).map(|c| c.s3);
    let custom = s3(&[
        ("AWS_ENDPOINT_URL", "http://general:1"),
        ("AWS_ENDPOINT_URL_S3", "http://minio:9000/"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
    ])
    .unwrap();
    assert_eq!(custom.endpoint.as_deref(), Some("http://minio:9000"));
    assert_eq!(custom.region.as_deref(), Some("eu-central-1"));
    assert!(custom.path_style);
    assert!(matches!(
        custom.credentials,
        S3Credentials::Machine { endpoint: None }
    ));
    assert!(!s3(&[]).unwrap().path_style);
    let file = s3(&[("AWS_SHARED_CREDENTIALS_FILE", "/run/secrets/aws")]).unwrap();
    assert!(
        matches!(&file.credentials, S3Credentials::File { profile, .. } if profile == "default")
    );
    for (name, missing) in [
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is not"),
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID is not"),
        ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE is not"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN is not"),
    ] {
        let err = s3(&[(name, "value")]).unwrap_err().to_string();
        assert!(err.contains(missing) && !err.contains("\"value\""), "{err}");
    }
}

#[test]
fn the_readme_holds_the_generated_table() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    assert!(
        readme.contains(&markdown_table()),
        "README.md is out of date: paste the output of `lifeboat variables` between its markers"
    );
}
