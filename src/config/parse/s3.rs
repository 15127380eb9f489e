//! The variables that AWS's own tools read.

use std::path::PathBuf;

use serde::Deserialize;

use super::Mistakes;
use crate::config::{S3Config, S3Credentials, Secret};

/// As text, one field a variable; envy fills it.
#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    aws_access_key_id: Option<String>,
    aws_secret_access_key: Option<Secret>,
    aws_session_token: Option<Secret>,
    aws_region: Option<String>,
    aws_endpoint_url: Option<String>,
    aws_endpoint_url_s3: Option<String>,
    aws_s3_force_path_style: Option<String>,
    aws_ca_bundle: Option<PathBuf>,
    aws_shared_credentials_file: Option<PathBuf>,
    aws_profile: Option<String>,
    aws_web_identity_token_file: Option<PathBuf>,
    aws_role_arn: Option<String>,
    aws_role_session_name: Option<String>,
    aws_endpoint_url_sts: Option<String>,
    aws_container_credentials_relative_uri: Option<String>,
    aws_container_credentials_full_uri: Option<String>,
    aws_container_authorization_token_file: Option<PathBuf>,
}

pub(super) fn parse(mut raw: Raw, mistakes: &mut Mistakes) -> S3Config {
    let general = mistakes.url("AWS_ENDPOINT_URL", raw.aws_endpoint_url.take());
    let endpoint = mistakes
        .url("AWS_ENDPOINT_URL_S3", raw.aws_endpoint_url_s3.take())
        .or(general);
    S3Config {
        path_style: match raw.aws_s3_force_path_style.take() {
            None => endpoint.is_some(),
            given => mistakes.yes_no("AWS_S3_FORCE_PATH_STYLE", given),
        },
        endpoint,
        region: raw.aws_region.take(),
        ca_bundle: raw.aws_ca_bundle.take(),
        credentials: credentials(raw, mistakes),
    }
}

/// The order is that of AWS's tools: keys, file, token, container, machine.
fn credentials(raw: Raw, mistakes: &mut Mistakes) -> S3Credentials {
    match (raw.aws_access_key_id, raw.aws_secret_access_key) {
        (Some(id), Some(secret)) => {
            return S3Credentials::Keys {
                id,
                secret,
                session_token: raw.aws_session_token,
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
    if let Some(path) = raw.aws_shared_credentials_file {
        return S3Credentials::File {
            path,
            profile: raw.aws_profile.unwrap_or_else(|| "default".to_owned()),
        };
    }
    if raw.aws_profile.is_some() {
        mistakes.0.push(
            "AWS_PROFILE is set and AWS_SHARED_CREDENTIALS_FILE is not: name the file that holds the profile"
                .to_owned(),
        );
    }
    let sts_endpoint = mistakes.url("AWS_ENDPOINT_URL_STS", raw.aws_endpoint_url_sts);
    match (raw.aws_web_identity_token_file, raw.aws_role_arn) {
        (Some(token_file), Some(role_arn)) => {
            return S3Credentials::WebIdentity {
                token_file,
                role_arn,
                session_name: raw.aws_role_session_name,
                sts_endpoint,
            };
        }
        (Some(_), None) => mistakes.0.push(
            "AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not: name the role that the token is for"
                .to_owned(),
        ),
        _ => {}
    }
    if let Some(relative_uri) = raw.aws_container_credentials_relative_uri {
        return S3Credentials::Task { relative_uri };
    }
    match (
        raw.aws_container_credentials_full_uri,
        raw.aws_container_authorization_token_file,
    ) {
        (Some(full_uri), Some(token_file)) => S3Credentials::Pod {
            full_uri,
            token_file,
        },
        _ => S3Credentials::Machine,
    }
}
