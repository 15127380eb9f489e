//! What a run works with, when it runs, and what stays of what it made.

use super::{Variable, aliased, var};

pub(super) const RUNS: &[Variable] = &[
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
];
