//! The variables that AWS's own tools read.

use std::path::PathBuf;

use serde::Deserialize;

use super::Mistakes;
use crate::config::{S3Config, S3Credentials, Secret};

/// As text, one field a variable without its `AWS_`; envy fills it.
#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    session_token: Option<Secret>,
    region: Option<String>,
    endpoint_url: Option<String>,
    endpoint_url_s3: Option<String>,
    s3_force_path_style: Option<String>,
    ca_bundle: Option<PathBuf>,
    shared_credentials_file: Option<PathBuf>,
    profile: Option<String>,
    web_identity_token_file: Option<PathBuf>,
    role_arn: Option<String>,
    role_session_name: Option<String>,
    endpoint_url_sts: Option<String>,
    container_credentials_relative_uri: Option<String>,
    container_credentials_full_uri: Option<String>,
    container_authorization_token_file: Option<PathBuf>,
    ec2_metadata_service_endpoint: Option<String>,
}

pub(super) fn parse(mut raw: Raw, mistakes: &mut Mistakes) -> S3Config {
    let general = mistakes.url("AWS_ENDPOINT_URL", raw.endpoint_url.take());
    let endpoint = mistakes
        .url("AWS_ENDPOINT_URL_S3", raw.endpoint_url_s3.take())
        .or(general);
    S3Config {
        path_style: match raw.s3_force_path_style.take() {
            None => endpoint.is_some(),
            given => mistakes.yes_no("AWS_S3_FORCE_PATH_STYLE", given),
        },
        endpoint,
        region: raw.region.take(),
        ca_bundle: raw.ca_bundle.take(),
        credentials: credentials(raw, mistakes),
    }
}

/// The order is that of AWS's tools: keys, file, token, container, machine.
fn credentials(raw: Raw, mistakes: &mut Mistakes) -> S3Credentials {
    match (raw.access_key_id, raw.secret_access_key) {
        (Some(id), Some(secret)) => {
            return S3Credentials::Keys {
                id,
                secret,
                session_token: raw.session_token,
            };
        }
        (Some(_), None) => mistakes.0.push(
            "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not: set both or neither"
                .to_owned(),
        ),
        (None, Some(_)) => mistakes.0.push(
            "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not: set both or neither"
                .to_owned(),
        ),
        (None, None) => {}
    }
    if let Some(path) = raw.shared_credentials_file {
        return S3Credentials::File {
            path,
            profile: raw.profile.unwrap_or_else(|| "default".to_owned()),
        };
    }
    if raw.profile.is_some() {
        mistakes.0.push(
            "AWS_PROFILE is set and AWS_SHARED_CREDENTIALS_FILE is not: name the file that holds the profile"
                .to_owned(),
        );
    }
    let sts_endpoint = mistakes.url("AWS_ENDPOINT_URL_STS", raw.endpoint_url_sts);
    match (raw.web_identity_token_file, raw.role_arn) {
        (Some(token_file), Some(role_arn)) => {
            return S3Credentials::WebIdentity {
                token_file,
                role_arn,
                session_name: raw.role_session_name,
                sts_endpoint,
            };
        }
        (Some(_), None) => mistakes.0.push(
            "AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not: name the role that the token is for"
                .to_owned(),
        ),
        _ => {}
    }
    let metadata_endpoint = mistakes.url(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        raw.ec2_metadata_service_endpoint,
    );
    if let Some(relative_uri) = raw.container_credentials_relative_uri {
        return S3Credentials::Task { relative_uri };
    }
    match (
        raw.container_credentials_full_uri,
        raw.container_authorization_token_file,
    ) {
        (Some(full_uri), Some(token_file)) => S3Credentials::Pod {
            full_uri,
            token_file,
        },
        _ => S3Credentials::Machine {
            endpoint: metadata_endpoint,
        },
    }
}
