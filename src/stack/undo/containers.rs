//! Stopping and starting the containers of an interrupted run.

use std::time::Duration;

use tokio::time::Instant;

use crate::stack::ContainerRef;
use crate::stack::engine::{Engine, EngineErrorKind};

/// How long a started container may take to become healthy before the next one is started all the same.
const HEALTHY_WITHIN: Duration = Duration::from_mins(1);
/// A database may have much to write when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(90);

pub(super) async fn stop(engine: &Engine, container: &ContainerRef) -> Result<(), String> {
    let grace = Duration::from_secs(container.stop_timeout.unwrap_or(0)).max(STOP_GRACE);
    match engine.stop(&container.id, grace).await {
        Err(err) if err.kind != EngineErrorKind::NoSuchContainer => Err(err.to_string()),
        _ => Ok(()),
    }
}

pub(super) async fn start(
    engine: Option<&Engine>,
    container: &ContainerRef,
) -> Result<String, String> {
    let name = &container.name;
    let Some(engine) = engine else {
        return Err(format!(
            "container {name} was stopped and cannot be started without the Docker API: docker start {name}"
        ));
    };
    match engine.start(&container.id).await {
        Ok(()) => {}
        Err(err) if err.kind == EngineErrorKind::NoSuchContainer => {
            return Ok(format!(
                "container {name} was stopped and has been removed since: nothing to start"
            ));
        }
        Err(err) => return Err(err.to_string()),
    }
    // The next container may need this one: n8n exits when its database does not answer.
    let deadline = Instant::now() + HEALTHY_WITHIN;
    Ok(match engine.wait_healthy(&container.id, deadline).await {
        Ok(()) => format!("started container {name} again"),
        Err(err) => format!("started container {name} again, but {err}"),
    })
}
