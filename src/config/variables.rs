//! One definition a variable.

mod repository;
mod runs;
mod services;

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

impl Variable {
    /// Every variable the program reads, in the README's order. Each can be given as `NAME_FILE` too: the path of a
    /// file that holds the value.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        [repository::REPOSITORY, runs::RUNS, services::SERVICES]
            .into_iter()
            .flatten()
    }
}

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

/// The README's table of [`Variable::all`].
pub fn markdown_table() -> String {
    let mut table = String::from("| variable | default | meaning |\n|---|---|---|\n");
    for v in Variable::all() {
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
