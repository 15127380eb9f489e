//! The services, where they are not found by themselves.

use super::{Variable, secret, var};

pub(super) const SERVICES: &[Variable] = &[
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
