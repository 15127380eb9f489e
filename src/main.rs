//! Parse, log, config, signals, dispatch, exit code.

use std::process::ExitCode;

use lifeboat::cli::{Cli, Command};
use lifeboat::commands::{self, Context, Failure};
use lifeboat::config::{self, Config, Priority};

fn main() -> ExitCode {
    let cli = Cli::parse_multi_call(std::env::args_os());
    if matches!(cli.command, Some(Command::Variables)) {
        return finish(
            commands::print(&config::markdown_table()).map_err(Failure::from),
            cli.json,
        );
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(err) => return finish(Err(Failure::usage(err)), cli.json),
    };
    commands::start_logging(&config);
    if config.priority == Priority::Low && cli.command.as_ref().is_none_or(Command::is_backup) {
        commands::give_way();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => {
            return finish(
                Err(Failure::from(
                    anyhow::Error::new(err).context("start the runtime"),
                )),
                cli.json,
            );
        }
    };
    let json = cli.json;
    let result = runtime.block_on(async {
        let stop = commands::stop_on_signals()?;
        let context = Context {
            config,
            json: cli.json,
            stop,
        };
        match cli
            .command
            .unwrap_or_else(|| Command::Run(commands::run::Args::default()))
        {
            Command::Run(args) => commands::run::run(&context, &args).await,
            Command::Backup(args) => commands::backup::run(&context, &args).await,
            Command::List(args) => commands::list::run(&context, &args),
            Command::Show(args) => commands::show::run(&context, &args),
            Command::Restore(args) => commands::restore::run(&context, &args).await,
            Command::Mark(args) => commands::mark::run(&context, &args).await,
            Command::Pitr(args) => commands::pitr::run(&context, &args).await,
            Command::Import(args) => commands::import::run(&context, &args).await,
            Command::Forget(args) => commands::forget::run(&context, &args).await,
            Command::Export(args) => commands::export::run(&context, &args).await,
            Command::Verify(args) => commands::verify::run(&context, &args),
            Command::Key(args) => commands::key::run(&context, &args),
            Command::Prune(args) => commands::prune::run(&context, &args),
            Command::Repair(args) => commands::repair::run(&context, &args).await,
            Command::Copy(args) => commands::copy::run(&context, &args).await,
            Command::Doctor(args) => commands::doctor::run(&context, &args).await,
            Command::Status(args) => commands::status::run(&context, &args),
            Command::Variables => Ok(()),
        }
    });
    finish(result, json)
}

/// Prints a failure once, as a sentence, and turns it into the exit code.
fn finish(result: Result<(), Failure>, json: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.code)
        }
    }
}
