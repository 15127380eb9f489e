//! Commands in a running container.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;

use super::error::Call;
use super::{Engine, EngineError, EngineErrorKind, POLL};
use crate::config::Secret;

/// A command to run in a container.
#[derive(Debug, Clone)]
pub struct Exec {
    pub command: Vec<String>,
    /// For the command alone, on top of the container's. Not in its process list entry.
    pub environment: Vec<(String, Secret)>,
    /// `user` or `uid:gid`; the container's own when absent.
    pub user: Option<String>,
    pub stdin: Option<Vec<u8>>,
    /// How much of each output is kept; the rest is read and dropped.
    pub keep_bytes: usize,
    pub timeout: Duration,
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i64,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// One of the outputs was longer than it was to be kept.
    pub truncated: bool,
}

impl Exec {
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            user: None,
            stdin: None,
            keep_bytes: 1 << 20,
            timeout: Duration::from_mins(2),
        }
    }
}

impl Engine {
    /// Runs a command in a running container to its end; its exit code is the caller's to judge.
    ///
    /// After a timeout the command may still run: the API cannot end it.
    pub async fn exec(&self, container: &str, exec: Exec) -> Result<ExecOutput, EngineError> {
        let program = exec.command.first().cloned().unwrap_or_default();
        let call = self.exec_call(&program, container);
        let limit = exec.timeout;
        let run = self.run_exec(&call, container, exec);
        match tokio::time::timeout(limit, run).await {
            Ok(outcome) => outcome,
            Err(_) => Err(call.hung(limit)),
        }
    }

    async fn run_exec(
        &self,
        call: &Call,
        container: &str,
        exec: Exec,
    ) -> Result<ExecOutput, EngineError> {
        let failed = |err: ApiError| call.failed(&err);
        let (stdin, keep_bytes) = (exec.stdin.clone(), exec.keep_bytes);
        let id = self
            .create_exec(call, container, exec, stdin.is_some())
            .await?;
        let started = self
            .docker
            .start_exec(&id, None::<StartExecOptions>)
            .await
            .map_err(failed)?;
        let StartExecResults::Attached { output, mut input } = started else {
            return Err(EngineError::new(
                EngineErrorKind::Failed,
                format!("the engine detached from a command in container {container}"),
            ));
        };
        let write_input = async {
            if let Some(bytes) = &stdin {
                input.write_all(bytes).await?;
                input.shutdown().await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let (written, collected) = tokio::join!(write_input, collect(output, keep_bytes));
        let mut outcome = collected.map_err(failed)?;
        outcome.exit_code = self.exit_code(call, &id).await?;
        match written {
            // A command that ends without reading its input has its own exit code to tell.
            Err(err) if err.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(failed(ApiError::IOError { err }))
            }
            _ => Ok(outcome),
        }
    }

    pub(super) fn exec_call(&self, program: &str, container: &str) -> Call {
        self.call(
            format!("run {program} in container {container}"),
            "POST /containers/{id}/exec, POST /exec/{id}/start and GET /exec/{id}/json",
            "CONTAINERS=1, EXEC=1 and POST=1",
        )
    }

    /// Prepares a command; its id.
    pub(super) async fn create_exec(
        &self,
        call: &Call,
        container: &str,
        exec: Exec,
        has_input: bool,
    ) -> Result<String, EngineError> {
        let options = CreateExecOptions {
            attach_stdin: Some(has_input),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(
                exec.environment
                    .iter()
                    .map(|(name, value)| format!("{name}={}", value.reveal()))
                    .collect(),
            ),
            cmd: Some(exec.command),
            user: exec.user,
            ..CreateExecOptions::default()
        };
        let created = self.docker.create_exec(container, options).await;
        Ok(created.map_err(|err| call.failed(&err))?.id)
    }

    /// The streams end a moment before the engine has noted the exit.
    pub(super) async fn exit_code(&self, call: &Call, exec_id: &str) -> Result<i64, EngineError> {
        loop {
            let state = self
                .docker
                .inspect_exec(exec_id)
                .await
                .map_err(|err| call.failed(&err))?;
            match (state.running, state.exit_code) {
                (Some(false), Some(code)) => return Ok(code),
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }
}

async fn collect(
    mut output: impl futures_util::Stream<Item = Result<LogOutput, ApiError>> + Unpin,
    keep_bytes: usize,
) -> Result<ExecOutput, ApiError> {
    let mut outcome = ExecOutput {
        exit_code: -1,
        stdout: Vec::new(),
        stderr: Vec::new(),
        truncated: false,
    };
    while let Some(chunk) = output.next().await {
        let (kept, message) = match chunk? {
            LogOutput::StdErr { message } => (&mut outcome.stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => {
                (&mut outcome.stdout, message)
            }
            LogOutput::StdIn { .. } => continue,
        };
        let room = keep_bytes.saturating_sub(kept.len());
        outcome.truncated |= message.len() > room;
        kept.extend(message.iter().take(room));
    }
    Ok(outcome)
}
