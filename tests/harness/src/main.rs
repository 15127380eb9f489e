//! The command line of the harness; `scripts/seed` and the stack tests call it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use harness::change::{self, Pattern};
use harness::compare::{self, Truth};
use harness::destroy::{self, Layout};
use harness::stack::{Service, Stack};
use harness::state::{self, State};
use harness::write::{self, Pauses};
use harness::{ledger, probe, seed, table};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

/// Seeds a running compose stack, writes to it, and compares it with what was acknowledged.
///
/// Exit codes: 0 all well, 1 a service failed or differs, 2 the command line is wrong.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct Target {
    /// The stack's environment file
    #[arg(long, global = true, default_value = ".env")]
    env: PathBuf,
    /// Compose project name
    #[arg(long, global = true, default_value = "demo")]
    project: String,
    /// What seeding made and what the services held [default: .harness-state.json beside --env]
    #[arg(long, global = true)]
    state: Option<PathBuf>,
    /// Only these services
    #[arg(long, global = true, value_delimiter = ',', value_name = "SERVICES")]
    only: Vec<Service>,
    /// Seconds to wait for the services to be ready
    #[arg(long, global = true, default_value_t = 120)]
    patience: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Fill a fresh stack: accounts, workflows, collections, models
    Seed(seed::Sizes),
    /// Record what the services hold now, for a later `compare`
    SnapshotState,
    /// Keep writing to every service and record each acknowledged write
    Write(WriteArguments),
    /// Ask every service on new connections and record failures and the longest wait
    Probe(ProbeArguments),
    /// Compare what the services hold with what was acknowledged before the backup's start
    Compare(CompareArguments),
    /// Destroy the services' data while they run
    Destroy {
        /// Where the data is
        #[arg(long)]
        layout: Layout,
    },
    /// Change a fraction of the Postgres rows
    Change {
        /// 0.01 is one in a hundred
        #[arg(long, default_value_t = 0.01)]
        fraction: f64,
        /// Where the changed rows lie
        #[arg(long, value_enum, default_value_t = Pattern::Spread)]
        pattern: Pattern,
    },
}

#[derive(Args)]
struct WriteArguments {
    /// File that gets one JSON line per acknowledged write; take a new one after a restore
    #[arg(long)]
    ledger: PathBuf,
    /// Stop when this file exists
    #[arg(long)]
    until_file: PathBuf,
    /// Where to write the summary as JSON
    #[arg(long)]
    report: Option<PathBuf>,
    #[command(flatten)]
    pauses: Pauses,
}

#[derive(Args)]
struct ProbeArguments {
    /// Where to write the report as JSON
    #[arg(long)]
    report: PathBuf,
    /// Stop when this file exists
    #[arg(long)]
    until_file: PathBuf,
    /// Milliseconds between two requests to one service
    #[arg(long, default_value_t = 100)]
    every_ms: u64,
}

#[derive(Args)]
struct CompareArguments {
    /// The writer's ledger; without it only the recorded state is compared
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// When the backup began [default: now, so that everything counts]
    #[arg(long)]
    backup_start: Option<Timestamp>,
    /// When the backup had ended: writes sent later must be absent
    #[arg(long)]
    backup_end: Option<Timestamp>,
    /// Where to write the checks as JSON
    #[arg(long)]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("harness: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where and what the command works on.
struct Work {
    stack: Stack,
    services: Vec<Service>,
    state_path: PathBuf,
    patience: Duration,
}

/// Returns whether everything was as it should be.
fn run(cli: Cli) -> Result<bool> {
    let target = cli.target;
    let work = Work {
        stack: Stack::discover(&target.project, &target.env)?,
        services: match target.only.as_slice() {
            [] => Service::ALL.to_vec(),
            only => only.to_vec(),
        },
        state_path: target
            .state
            .unwrap_or_else(|| state::default_path(&target.env)),
        patience: Duration::from_secs(target.patience),
    };
    let needed: &[Service] = match cli.command {
        // Those wait for nothing, or for one service after the other.
        Command::Destroy { .. } | Command::Compare(_) => &[],
        Command::Change { .. } => &[Service::Postgres],
        _ => work.services.as_slice(),
    };
    work.stack.wait_ready(needed, work.patience)?;
    match cli.command {
        Command::Seed(sizes) => work.seed(&sizes),
        Command::SnapshotState => work.snapshot_state(),
        Command::Write(arguments) => work.write(&arguments),
        Command::Probe(arguments) => work.probe(&arguments),
        Command::Compare(arguments) => work.compare(&arguments),
        Command::Destroy { layout } => work.destroy(layout),
        Command::Change { fraction, pattern } => work.change(fraction, pattern),
    }
}

impl Work {
    fn seed(&self, sizes: &seed::Sizes) -> Result<bool> {
        let mut state = seed::run(&self.stack, &self.services, sizes)?;
        if self.state_path.exists() {
            state.adopt(State::read(&self.state_path)?);
        }
        self.keep(&state)
    }

    fn snapshot_state(&self) -> Result<bool> {
        let mut state = State::read(&self.state_path)?;
        state.snapshot.refresh(&self.stack, &self.services)?;
        self.keep(&state)
    }

    fn keep(&self, state: &State) -> Result<bool> {
        state.write(&self.state_path)?;
        println!("state in {}", self.state_path.display());
        Ok(true)
    }

    fn write(&self, arguments: &WriteArguments) -> Result<bool> {
        let outcomes = write::run(
            &self.stack,
            &self.services,
            &arguments.pauses,
            &arguments.ledger,
            &arguments.until_file,
        )?;
        if let Some(report) = &arguments.report {
            write_json(report, &outcomes)?;
        }
        Ok(print_outcomes(&outcomes))
    }

    fn probe(&self, arguments: &ProbeArguments) -> Result<bool> {
        let every = Duration::from_millis(arguments.every_ms);
        let answers = probe::run(&self.stack, &self.services, every, &arguments.until_file)?;
        write_json(&arguments.report, &answers)?;
        Ok(print_answers(&answers))
    }

    fn compare(&self, arguments: &CompareArguments) -> Result<bool> {
        let ledger = arguments.ledger.as_ref();
        let records = ledger.map(|path| ledger::read(path)).transpose()?;
        let truth = Truth {
            state: &State::read(&self.state_path)?,
            records: records.as_deref().unwrap_or_default(),
            backup_start: arguments.backup_start.unwrap_or_else(Timestamp::now),
            backup_end: arguments.backup_end,
        };
        let checks = compare::run(&self.stack, &self.services, &truth, self.patience);
        let ok = checks.iter().all(|check| check.ok);
        if let Some(report) = &arguments.report {
            write_json(report, &json!({"ok": ok, "checks": checks}))?;
        }
        print!("{}", table::render_checks(&checks));
        Ok(ok)
    }

    fn destroy(&self, layout: Layout) -> Result<bool> {
        for line in destroy::run(&self.stack, &self.services, layout)? {
            println!("{line}");
        }
        Ok(true)
    }

    fn change(&self, fraction: f64, pattern: Pattern) -> Result<bool> {
        let changed = change::run(&self.stack, fraction, pattern)?;
        println!("changed {changed} documents");
        Ok(true)
    }
}

fn print_outcomes(outcomes: &[write::Outcome]) -> bool {
    let rows = outcomes.iter().map(|outcome| {
        vec![
            outcome.service.to_string(),
            outcome.acknowledged.to_string(),
            outcome.failures.len().to_string(),
            outcome.longest_ms.to_string(),
            first_error(&outcome.failures),
        ]
    });
    let header = [
        "service",
        "acknowledged",
        "failed",
        "longest ms",
        "first error",
    ];
    print!("{}", table::render(&header, rows));
    outcomes.iter().all(|outcome| outcome.failures.is_empty())
}

fn print_answers(report: &probe::Report) -> bool {
    let rows = report.services.iter().map(|answers| {
        vec![
            answers.service.to_string(),
            answers.requests.to_string(),
            answers.failures.len().to_string(),
            answers.median_ms.to_string(),
            answers.p99_ms.to_string(),
            answers.longest_ms.to_string(),
            first_error(&answers.failures),
        ]
    });
    let header = [
        "service",
        "requests",
        "failed",
        "median ms",
        "p99 ms",
        "longest ms",
        "first error",
    ];
    print!("{}", table::render(&header, rows));
    report
        .services
        .iter()
        .all(|answers| answers.failures.is_empty())
}

fn first_error(failures: &[write::Failure]) -> String {
    failures
        .first()
        .map_or_else(String::new, |failure| failure.error.clone())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value)?;
    std::fs::write(path, bytes).with_context(|| format!("write report {}", path.display()))
}
