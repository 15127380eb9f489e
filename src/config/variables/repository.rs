//! Where backups are kept, and who can read them.

use super::{Variable, aliased, secret, var};

pub(super) const REPOSITORY: &[Variable] = &[
    var(
        "LIFEBOAT_REPOSITORY",
        "/backup",
        "/backup",
        "The repository: a directory, or `s3://bucket/prefix`.",
    ),
    var(
        "COPY_REPOSITORY",
        "",
        "s3://bucket/prefix",
        "A second repository, a directory or `s3://bucket/prefix`, that every backup is copied to after it was made; the default target of `copy`.",
    ),
    secret(
        "TARGET_AGE_PASSPHRASE",
        "Passphrase of the repository that `copy --reencrypt` writes to.",
    ),
    var(
        "TARGET_AGE_PUBLIC_KEYS",
        "",
        "age1...",
        "Public keys that `copy --reencrypt` encrypts to.",
    ),
    secret(
        "TARGET_AGE_IDENTITY",
        "The age identity that opens the repository that `copy --reencrypt` writes to.",
    ),
    var(
        "AWS_ACCESS_KEY_ID",
        "",
        "AKIA...",
        "Access key of the S3 repository. Without keys, file or token, the role of the machine or container is asked for.",
    ),
    secret("AWS_SECRET_ACCESS_KEY", "Its secret."),
    secret(
        "AWS_SESSION_TOKEN",
        "Its session token, when the key is a temporary one.",
    ),
    aliased(
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "us-east-1",
        "eu-central-1",
        "Region of the bucket.",
    ),
    aliased(
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT",
        "AWS itself",
        "https://minio.example.org:9000",
        "Address of an S3 server other than AWS; http:// sends everything in the clear.",
    ),
    var(
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "https://minio.example.org:9000",
        "The same for S3 alone: it goes before AWS_ENDPOINT_URL.",
    ),
    var(
        "AWS_S3_FORCE_PATH_STYLE",
        "yes with an endpoint, else no",
        "no",
        "Whether the bucket stands in the path instead of the host's name.",
    ),
    var(
        "AWS_CA_BUNDLE",
        "",
        "/run/secrets/ca.pem",
        "File of certificates to trust beside the system's.",
    ),
    var(
        "AWS_SHARED_CREDENTIALS_FILE",
        "",
        "/run/secrets/aws",
        "File of credentials by profile, as AWS's tools write it.",
    ),
    var("AWS_PROFILE", "default", "backup", "Which profile of it."),
    var(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "",
        "/var/run/secrets/token",
        "File of a token to exchange for keys of AWS_ROLE_ARN.",
    ),
    var(
        "AWS_ROLE_ARN",
        "",
        "arn:aws:iam::123456789012:role/backup",
        "The role that the token is for.",
    ),
    var(
        "AWS_ROLE_SESSION_NAME",
        "WebIdentitySession",
        "lifeboat",
        "How the session shows in AWS's logs.",
    ),
    var(
        "AWS_ENDPOINT_URL_STS",
        "that of the region",
        "https://sts.example.org",
        "Where the token is exchanged.",
    ),
    var(
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "",
        "/v2/credentials/...",
        "Set by ECS for a task with a role.",
    ),
    var(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "",
        "http://169.254.170.23/v1/credentials",
        "Set by EKS for a pod with a role.",
    ),
    var(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "",
        "/var/run/secrets/token",
        "Set by EKS with it.",
    ),
    var(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        "http://169.254.169.254",
        "http://[fd00:ec2::254]",
        "Where the machine's role is asked for.",
    ),
    var(
        "LIFEBOAT_REPOSITORY_ID",
        "",
        "5f3c...",
        "The id the repository must have (`key show` prints it): one that was exchanged is refused.",
    ),
    secret(
        "AGE_PASSPHRASE",
        "Encrypts the repository; whoever has it can restore. Write it down in another place.",
    ),
    var(
        "AGE_PUBLIC_KEYS",
        "",
        "age1...,age1...",
        "Encrypts to these age public keys. Without AGE_PASSPHRASE this host can write backups and not read them.",
    ),
    secret(
        "AGE_IDENTITY",
        "The age identity (AGE-SECRET-KEY-1...) that reads a repository made with AGE_PUBLIC_KEYS.",
    ),
    var(
        "BACKUP_PLAINTEXT_SECRETS",
        "no",
        "yes",
        "Lets an unencrypted remote repository hold the stack's passwords and keys.",
    ),
];
