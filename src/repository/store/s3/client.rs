//! The S3 client, set up by what the environment says.

use object_store::RetryConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};

use super::http::Connector;
use super::profile;
use crate::config::{S3Config, S3Credentials, Secret};
use crate::repository::RepositoryError;

pub(super) fn client(
    bucket: &str,
    access: &S3Config,
    connector: Connector,
) -> Result<AmazonS3, RepositoryError> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(access.region.as_deref().unwrap_or("us-east-1"))
        .with_http_connector(connector)
        .with_checksum_algorithm(Checksum::SHA256)
        // One DELETE an object: every server knows it, and says which one it refuses.
        .with_disable_bulk_delete(true)
        .with_virtual_hosted_style_request(!access.path_style)
        // Ours are in `retry`: they know what may be repeated.
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        });
    if let Some(endpoint) = &access.endpoint {
        let endpoint = if access.path_style {
            endpoint.clone()
        } else {
            with_bucket_as_host(endpoint, bucket)
        };
        builder = builder
            .with_allow_http(endpoint.starts_with("http://"))
            .with_endpoint(endpoint);
    }
    builder = with_credentials(builder, &access.credentials)?;
    builder.build().map_err(|e| {
        RepositoryError::Invalid(format!(
            "s3://{bucket} cannot be used with these settings: {e}"
        ))
    })
}

fn with_bucket_as_host(endpoint: &str, bucket: &str) -> String {
    endpoint.split_once("://").map_or_else(
        || endpoint.to_owned(),
        |(scheme, rest)| format!("{scheme}://{bucket}.{rest}"),
    )
}

fn with_credentials(
    builder: AmazonS3Builder,
    credentials: &S3Credentials,
) -> Result<AmazonS3Builder, RepositoryError> {
    let keys = |id: &str, secret: &str, token: Option<&str>| {
        let builder = builder
            .clone()
            .with_access_key_id(id)
            .with_secret_access_key(secret);
        match token {
            Some(token) => builder.with_token(token),
            None => builder,
        }
    };
    Ok(match credentials {
        S3Credentials::Keys {
            id,
            secret,
            session_token,
        } => keys(
            id,
            secret.reveal(),
            session_token.as_ref().map(Secret::reveal),
        ),
        S3Credentials::File { path, profile } => {
            let found = profile::read(path, profile)?;
            keys(
                &found.id,
                found.secret.reveal(),
                found.session_token.as_ref().map(Secret::reveal),
            )
        }
        S3Credentials::WebIdentity {
            token_file,
            role_arn,
            session_name,
            sts_endpoint,
        } => {
            let given = [
                (
                    AmazonS3ConfigKey::WebIdentityTokenFile,
                    Some(token_file.to_string_lossy().into_owned()),
                ),
                (AmazonS3ConfigKey::RoleArn, Some(role_arn.clone())),
                (AmazonS3ConfigKey::RoleSessionName, session_name.clone()),
                (AmazonS3ConfigKey::StsEndpoint, sts_endpoint.clone()),
            ];
            given
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .fold(builder, |b, (key, value)| b.with_config(key, value))
        }
        S3Credentials::Task { relative_uri } => builder.with_config(
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            relative_uri,
        ),
        S3Credentials::Pod {
            full_uri,
            token_file,
        } => builder
            .with_config(AmazonS3ConfigKey::ContainerCredentialsFullUri, full_uri)
            .with_config(
                AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
                token_file.to_string_lossy(),
            ),
        S3Credentials::Machine { endpoint: None } => builder,
        S3Credentials::Machine {
            endpoint: Some(endpoint),
        } => builder.with_metadata_endpoint(endpoint),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_stands_in_the_path_or_before_the_host() {
        assert_eq!(
            with_bucket_as_host("https://s3.example.org:9000", "backups"),
            "https://backups.s3.example.org:9000"
        );
    }
}
