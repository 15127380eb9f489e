//! Commands in a running container whose input and output are streams of any length.
//!
//! The output is taken as slowly as it is written on, and the input is read as slowly as the command takes it:
//! nothing is held but a piece of each. There is no time limit: a dump of a large database is silent for as
//! long as the server needs. What ends a command that hangs is the end of its own connection to the server.

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{StartExecOptions, StartExecResults};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::Call;
use super::exec::Exec;
use super::{Engine, EngineError, EngineErrorKind};

/// How much of the input travels at once.
const PIECE_BYTES: usize = 64 * 1024;

/// What a command reads.
pub type Input<'a> = &'a mut (dyn AsyncRead + Unpin + Send);
/// Where a command's standard output goes.
pub type Output<'a> = &'a mut (dyn AsyncWrite + Unpin + Send);

/// How a command with streams ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i64,
    /// The end of standard error: what went wrong stands there.
    pub stderr: Vec<u8>,
}

impl Engine {
    /// Runs a command to its end; its exit code is the caller's to judge.
    ///
    /// `exec.stdin` and its time limit are not used. An input that cannot be read, or an output that cannot be
    /// written, is an error at once; the command, whose streams are closed then, may still run for a while.
    pub async fn exec_streaming(
        &self,
        container: &str,
        exec: Exec,
        input: Option<Input<'_>>,
        output: Output<'_>,
    ) -> Result<Ended, EngineError> {
        let program = exec.command.first().cloned().unwrap_or_default();
        let call = self.exec_call(&program, container);
        let keep_bytes = exec.keep_bytes;
        let id = self
            .create_exec(&call, container, exec, input.is_some())
            .await?;
        // The engine's frames are as large as its reads: a larger buffer saves copying.
        let options = StartExecOptions {
            output_capacity: Some(PIECE_BYTES),
            ..StartExecOptions::default()
        };
        let started = self.docker.start_exec(&id, Some(options)).await;
        let StartExecResults::Attached {
            output: mut frames,
            input: mut stdin,
        } = started.map_err(|err| call.failed(&err))?
        else {
            return Err(EngineError::new(
                EngineErrorKind::Failed,
                format!("the engine detached from {program} in container {container}"),
            ));
        };
        let feed = async {
            if let Some(input) = input {
                feed(input, &mut stdin, &program).await?;
            }
            Ok(())
        };
        let take = take(&mut frames, output, keep_bytes, &call, &program);
        let ((), stderr) = tokio::try_join!(feed, take)?;
        Ok(Ended {
            exit_code: self.exit_code(&call, &id).await?,
            stderr,
        })
    }
}

/// Passes the input on until it or the command ends.
async fn feed(
    input: Input<'_>,
    stdin: &mut (impl AsyncWrite + Unpin),
    program: &str,
) -> Result<(), EngineError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let got = input.read(&mut piece).await.map_err(|err| {
            EngineError::new(
                EngineErrorKind::Failed,
                format!("cannot read what {program} is to be given: {err}"),
            )
        })?;
        let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        // A command that ends without reading all of its input has its own exit code to tell.
        if stdin.write_all(bytes).await.is_err() {
            return Ok(());
        }
    }
    stdin.shutdown().await.unwrap_or_default();
    Ok(())
}

/// Writes standard output on, and keeps the end of standard error.
async fn take(
    frames: &mut (impl Stream<Item = Result<LogOutput, ApiError>> + Unpin),
    output: Output<'_>,
    keep_bytes: usize,
    call: &Call,
    program: &str,
) -> Result<Vec<u8>, EngineError> {
    let mut stderr = Vec::new();
    while let Some(frame) = frames.next().await {
        match frame.map_err(|err| call.failed(&err))? {
            LogOutput::StdErr { message } => keep_end(&mut stderr, &message, keep_bytes),
            LogOutput::StdOut { message } | LogOutput::Console { message } => {
                output.write_all(&message).await.map_err(|err| {
                    EngineError::new(
                        EngineErrorKind::Failed,
                        format!("cannot pass on what {program} writes: {err}"),
                    )
                })?;
            }
            LogOutput::StdIn { .. } => {}
        }
    }
    Ok(stderr)
}

/// Adds to what is kept, and drops its beginning when it grows too long.
pub fn keep_end(kept: &mut Vec<u8>, more: &[u8], keep_bytes: usize) {
    kept.extend_from_slice(more);
    let surplus = kept.len().saturating_sub(keep_bytes);
    kept.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_complaint_is_kept() {
        let mut kept = Vec::new();
        for piece in ["abc", "defgh", "ij"] {
            keep_end(&mut kept, piece.as_bytes(), 4);
        }
        assert_eq!(kept, b"ghij");
    }
}
