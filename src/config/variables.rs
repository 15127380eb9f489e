//! One definition a variable.

use std::fmt::Write as _;

/// A variable as the README shows it.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    pub name: &'static str,
    /// Another name people already have in their `.env` for the same thing.
    pub alias: Option<&'static str>,
    pub default: &'static str,
    pub example: &'static str,
    pub secret: bool,
    pub help: &'static str,
}

const fn var(
    name: &'static str,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Variable {
    Variable {
        name,
        alias: None,
        default,
        example,
        secret: false,
        help,
    }
}

const fn secret(name: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        alias: None,
        default: "",
        example: "",
        secret: true,
        help,
    }
}

const fn aliased(
    name: &'static str,
    alias: &'static str,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Variable {
    Variable {
        name,
        alias: Some(alias),
        default,
        example,
        secret: false,
        help,
    }
}

/// Every variable the program reads. Each can be given as `NAME_FILE` too: the path of a file that holds the value.
pub const VARIABLES: &[Variable] = &[
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
    var(
        "LIFEBOAT_STATE",
        "/var/lib/lifeboat",
        "/var/lib/lifeboat",
        "Directory of journal, lock, cache and scratch files.",
    ),
    var(
        "LIFEBOAT_DATA",
        "/data",
        "/data",
        "Directory below which the services' data is mounted.",
    ),
    var(
        "LIFEBOAT_PROJECT_DIR",
        "/project",
        "/project",
        "The compose project's own directory: `.env` and compose files.",
    ),
    var(
        "LIFEBOAT_PROJECT",
        "found through the Docker API",
        "ai-kit",
        "Name of the compose project.",
    ),
    var(
        "LIFEBOAT_SERVICES",
        "all that are found",
        "postgres,n8n",
        "Only these services, by compose name or kind.",
    ),
    var(
        "DOCKER_HOST",
        "unix:///var/run/docker.sock",
        "tcp://socket-proxy:2375",
        "The Docker API; `none` to work without it.",
    ),
    aliased(
        "BACKUP_CRON_EXPRESSION",
        "SCHEDULE",
        "0 3 * * *",
        "0 3 * * *",
        "When to back up: a cron expression, or @daily, @hourly, @weekly.",
    ),
    var(
        "BACKUP_JITTER",
        "0s",
        "10m",
        "A random delay of up to this long before each scheduled backup.",
    ),
    var(
        "BACKUP_ON_START",
        "no",
        "yes",
        "Back up at once when the sidecar starts, too.",
    ),
    var(
        "TZ",
        "UTC",
        "Europe/Berlin",
        "Time zone of the schedule and of printed times.",
    ),
    var(
        "BACKUP_RETENTION_DAYS",
        "",
        "30",
        "Keep every backup younger than this many days.",
    ),
    var(
        "BACKUP_KEEP_LAST",
        "3",
        "3",
        "Keep at least this many of the newest backups.",
    ),
    var(
        "BACKUP_KEEP_DAYS",
        "7",
        "7",
        "Keep the newest backup of each of this many days.",
    ),
    var(
        "BACKUP_KEEP_WEEKS",
        "4",
        "4",
        "Keep the newest backup of each of this many weeks.",
    ),
    var(
        "BACKUP_KEEP_MONTHS",
        "6",
        "6",
        "Keep the newest backup of each of this many months.",
    ),
    var(
        "BACKUP_PRUNING_LEEWAY",
        "1m",
        "1h",
        "Added to the age limit, so that a late run does not cost a day.",
    ),
    var(
        "BACKUP_PRUNE",
        "yes",
        "no",
        "Whether each backup gives back, when it is done, the space of what retention has dropped.",
    ),
    var(
        "BACKUP_SHRINK_LIMIT",
        "50",
        "50",
        "Retention freezes when a backup has less than this percent of the size or counts of the one before.",
    ),
    var(
        "BACKUP_EXCLUDE_REGEXP",
        "",
        "\\.log$",
        "Files whose path matches are left out (not of PostgreSQL, Qdrant or Ollama).",
    ),
    var("BACKUP_COMPRESSION_LEVEL", "3", "6", "zstd level, 1 to 19."),
    var(
        "BACKUP_RATE_LIMIT",
        "",
        "50MB",
        "How many bytes of the services' data a backup reads in a second, at most.",
    ),
    var(
        "BACKUP_PRIORITY",
        "low",
        "normal",
        "low or normal: whether backups leave CPU and disk to the services first, and pause while these keep all processors busy.",
    ),
    var(
        "LOCK_TIMEOUT",
        "60m",
        "10m",
        "How long to wait for another run to end.",
    ),
    var(
        "STOP_GRACE",
        "90s",
        "2m",
        "How long a service may take to stop before a restore.",
    ),
    var(
        "RESTORE_TIMEOUT",
        "10m",
        "30m",
        "How long a restored service may take to become healthy before the restore is rolled back.",
    ),
    var(
        "LOG_LEVEL",
        "info",
        "debug",
        "error, warn, info, debug or trace.",
    ),
    var("LOG_FORMAT", "text", "json", "text or json."),
    var(
        "POSTGRES_HOST",
        "found through the Docker API",
        "postgres",
        "Host of the PostgreSQL server.",
    ),
    var("POSTGRES_PORT", "5432", "5432", "Its port."),
    var(
        "POSTGRES_DB",
        "the server's POSTGRES_DB, else the user's name",
        "n8n",
        "Database to connect to; the whole cluster is backed up.",
    ),
    var(
        "POSTGRES_USER",
        "the server's POSTGRES_USER, else postgres",
        "root",
        "User with the right to back up.",
    ),
    secret(
        "POSTGRES_PASSWORD",
        "Its password; the server's own POSTGRES_PASSWORD when not given.",
    ),
    var(
        "POSTGRES_DATA",
        "found through the mounts",
        "/data/postgres",
        "The data directory as the sidecar sees it.",
    ),
    var(
        "PITR",
        "off",
        "on",
        "Keep PostgreSQL's write-ahead log all the time, so that `restore --at` goes back to any moment.",
    ),
    var(
        "PITR_INTERVAL",
        "10s",
        "1m",
        "How often it is fetched: what a disaster may cost at most.",
    ),
    var(
        "PITR_KEEP_DAYS",
        "7",
        "30",
        "How far back any moment can be restored, as long as the backups before it are kept.",
    ),
    var(
        "PITR_MAX_WAL",
        "4GB",
        "1GB",
        "How much of it the server keeps at most while it cannot be fetched; never more than a quarter of the free space.",
    ),
    var(
        "POSTGRES_MODE",
        "physical",
        "both",
        "What is backed up: the data directory (physical), a dump of each database (dump), or both. A restore with `dump` uses the dumps of a backup that has both.",
    ),
    var(
        "POSTGRES_BIN",
        "found",
        "/usr/lib/postgresql/17/bin",
        "Directory of the pg_dump, pg_restore and psql to use. Without it: those in the server's container, or, for a server that runs in none, where packages put them.",
    ),
    var(
        "QDRANT_URL",
        "found through the Docker API",
        "http://qdrant:6333",
        "Qdrant's REST address.",
    ),
    var(
        "QDRANT_GRPC_URL",
        "the REST host, port 6334",
        "http://qdrant:6334",
        "Qdrant's gRPC address.",
    ),
    secret(
        "QDRANT_API_KEY",
        "Qdrant's API key; the server's own QDRANT__SERVICE__API_KEY when not given.",
    ),
    var(
        "OLLAMA_URL",
        "found through the Docker API",
        "http://ollama:11434",
        "Ollama's address.",
    ),
    var(
        "OLLAMA_DATA",
        "found through the mounts",
        "/data/ollama",
        "Ollama's directory (`.ollama`) as the sidecar sees it.",
    ),
    var(
        "N8N_URL",
        "found through the Docker API",
        "http://n8n:5678",
        "n8n's address.",
    ),
    var(
        "N8N_DATA",
        "found through the mounts",
        "/data/n8n",
        "n8n's directory (`.n8n`) as the sidecar sees it.",
    ),
    secret(
        "N8N_ENCRYPTION_KEY",
        "n8n's encryption key, when it is in neither its container's environment nor its `config` file.",
    ),
];

/// Names that `compose.override.yml` itself reads. They stand in the same `.env`, so the program meets them.
pub const COMPOSE_VARIABLES: &[(&str, &str, &str)] = &[
    ("LIFEBOAT_IMAGE", "lifeboat:latest", "The image."),
    (
        "LIFEBOAT_BACKUPS",
        "./backups",
        "Directory or volume of the repository.",
    ),
    (
        "LIFEBOAT_POSTGRES_DATA",
        "./data/postgres",
        "PostgreSQL's data: the same directory or volume its service mounts.",
    ),
    ("LIFEBOAT_N8N_DATA", "./data/n8n", "n8n's."),
    ("LIFEBOAT_OLLAMA_DATA", "./data/ollama", "Ollama's."),
    (
        "LIFEBOAT_PROJECT_FILES",
        ".",
        "The directory of `.env` and the compose files.",
    ),
    (
        "LIFEBOAT_NETWORK",
        "default",
        "The compose network the services share.",
    ),
    (
        "LIFEBOAT_DOCKER_SOCKET",
        "/var/run/docker.sock",
        "The engine's socket on the host.",
    ),
];

/// The README's table of [`VARIABLES`].
pub fn markdown_table() -> String {
    let mut table = String::from("| variable | default | meaning |\n|---|---|---|\n");
    for v in VARIABLES {
        let alias = v.alias.map(|a| format!(" (or `{a}`)")).unwrap_or_default();
        let default = if v.default.is_empty() {
            "-".to_owned()
        } else {
            v.default.replace('|', "\\|")
        };
        let secret = if v.secret { " Secret." } else { "" };
        // Writing to a String cannot fail.
        writeln!(
            table,
            "| `{}`{alias} | {default} | {}{secret} |",
            v.name,
            v.help.replace('|', "\\|")
        )
        .ok();
    }
    table.push_str("\nRead by `compose.override.yml` only:\n\n| variable | default | meaning |\n|---|---|---|\n");
    for (name, default, help) in COMPOSE_VARIABLES {
        writeln!(table, "| `{name}` | {default} | {help} |").ok();
    }
    table
}
