//! Waiting for a container to run and to be well, until a deadline.

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, RestartPolicyNameEnum,
};
use tokio::time::Instant;

use super::error::shorten;
use super::{Engine, EngineError, EngineErrorKind, POLL};

impl Engine {
    /// Waits until a container runs and is not about to be restarted.
    pub async fn wait_running(
        &self,
        container: &str,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        self.wait(container, deadline, "run", |state| match state.phase {
            Phase::Running => Seen::Reached,
            _ => Seen::NotYet,
        })
        .await
    }

    /// Waits until a container's own health check passes; one without a check must run.
    ///
    /// An unhealthy container is waited for as well: many get well. One that exited and is not restarted is
    /// an error at once.
    pub async fn wait_healthy(
        &self,
        container: &str,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        self.wait(container, deadline, "become healthy", |state| {
            match (&state.phase, state.health) {
                (Phase::Running, None | Some(HealthStatusEnum::HEALTHY)) => Seen::Reached,
                (Phase::Exited(_), _) if !state.restarts => Seen::Never,
                _ => Seen::NotYet,
            }
        })
        .await
    }

    async fn wait(
        &self,
        container: &str,
        deadline: Instant,
        goal: &str,
        look: impl Fn(&State) -> Seen,
    ) -> Result<(), EngineError> {
        let begin = Instant::now();
        let log = format!("Read its log: docker logs {container}");
        loop {
            let found = match self.inspect(container).await {
                Ok(inspected) => {
                    let state = State::of(&inspected);
                    match look(&state) {
                        Seen::Reached => return Ok(()),
                        Seen::NotYet => state.describe(),
                        Seen::Never => {
                            let found = state.describe();
                            return Err(EngineError::new(
                                EngineErrorKind::Failed,
                                format!("container {container} does not {goal}: {found}. {log}"),
                            ));
                        }
                    }
                }
                Err(err) if err.is_transient() => err.to_string(),
                Err(err) => return Err(err),
            };
            if Instant::now() >= deadline {
                let seconds = begin.elapsed().as_secs();
                return Err(EngineError::new(
                    EngineErrorKind::Timeout,
                    format!(
                        "container {container} did not {goal} within {seconds} seconds: {found}. {log}"
                    ),
                ));
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
        }
    }
}

enum Seen {
    Reached,
    NotYet,
    Never,
}

enum Phase {
    Running,
    /// With its exit code.
    Exited(i64),
    /// Created, paused, restarting, being removed.
    Other(String),
}

/// What of a container's state the waits look at.
struct State {
    phase: Phase,
    /// Its restart policy starts it again when it exits.
    restarts: bool,
    health: Option<HealthStatusEnum>,
    last_check: Option<String>,
}

impl State {
    fn of(container: &ContainerInspectResponse) -> Self {
        let state = container.state.clone().unwrap_or_default();
        let policy = container
            .host_config
            .as_ref()
            .and_then(|h| h.restart_policy.as_ref()?.name);
        let health = state.health.as_ref();
        Self {
            phase: match state.status {
                Some(ContainerStateStatusEnum::RUNNING) => Phase::Running,
                Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => {
                    Phase::Exited(state.exit_code.unwrap_or(0))
                }
                other => Phase::Other(other.map(|s| s.to_string()).unwrap_or_default()),
            },
            restarts: restarts(policy),
            health: health
                .and_then(|h| h.status)
                .filter(|s| !matches!(s, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY)),
            last_check: health
                .and_then(|h| h.log.as_ref()?.last()?.output.clone())
                .map(|text| shorten(&text))
                .filter(|text| !text.is_empty()),
        }
    }

    fn describe(&self) -> String {
        let phase = match &self.phase {
            Phase::Exited(code) => return format!("it exited with code {code}"),
            Phase::Running => "running",
            Phase::Other(status) => status,
        };
        match (self.health, &self.last_check) {
            (None, _) => format!("it is {phase}"),
            (Some(health), None) => format!("it is {phase} and {health}"),
            (Some(health), Some(check)) => {
                format!("it is {phase} and {health} (its health check said: {check})")
            }
        }
    }
}

/// Whether a restart policy starts the container again after its end.
pub(in crate::stack) const fn restarts(policy: Option<RestartPolicyNameEnum>) -> bool {
    matches!(
        policy,
        Some(
            RestartPolicyNameEnum::ALWAYS
                | RestartPolicyNameEnum::UNLESS_STOPPED
                | RestartPolicyNameEnum::ON_FAILURE
        )
    )
}
