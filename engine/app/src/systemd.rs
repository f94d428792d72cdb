//! Notifications to systemd, where it started this process: ready, what is going on, alive, stopping.
//!
//! The watchdog is fed only while `/livez` would say yes, so a process whose loops stand still is started again, and one
//! whose broker is away is not. Without `NOTIFY_SOCKET` nothing happens.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::health::Severity;
use crate::pipeline::Observer;

/// Longest time between two looks at the job.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A start that waits for a broker is given this much longer, again and again.
const START_EXTENSION_US: u32 = 30_000_000;

/// What systemd was told.
#[derive(Debug)]
pub struct Systemd {
    listens: bool,
    look_every: Duration,
    looked: Option<Instant>,
    ready: bool,
    status: String,
}

/// How a job is, at one look.
struct Look {
    live: bool,
    not_ready: Option<String>,
    status: String,
}

impl Systemd {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        Self {
            listens: std::env::var_os("NOTIFY_SOCKET").is_some(),
            // Three times in a period, so that one late notification is no death.
            look_every: watchdog.map_or(LOOK_EVERY, |period| LOOK_EVERY.min(period / 3)),
            looked: None,
            ready: false,
            status: String::new(),
        }
    }

    /// Tells how the job is; to be called often.
    pub fn turn(&mut self, job: &Observer) {
        if !self.listens || self.looked.is_some_and(|looked| looked.elapsed() < self.look_every) {
            return;
        }
        self.looked = Some(Instant::now());
        let due = self.due(Look::at(job));
        tell(&due);
    }

    /// The job waits for something before it can start.
    pub fn starting(&self, why: &str) {
        if self.listens {
            let status = format!("starting: {}", one_line(why));
            tell(&[NotifyState::ExtendTimeoutUsec(START_EXTENSION_US), NotifyState::Status(&status)]);
        }
    }

    /// The job is told to stop: from now on nothing is expected of it but to end.
    pub fn stopping(&self) {
        if self.listens {
            tell(&[NotifyState::Stopping, NotifyState::Status("stopping: finishing what is in hand")]);
        }
    }

    /// What is to be said after a look.
    fn due(&mut self, look: Look) -> Vec<NotifyState<'_>> {
        let mut due = Vec::new();
        if look.live {
            due.push(NotifyState::Watchdog);
        }
        let starting = !self.ready;
        let status = match (starting, look.not_ready) {
            (true, None) => {
                self.ready = true;
                due.push(NotifyState::Ready);
                look.status
            }
            (true, Some(reason)) => {
                due.push(NotifyState::ExtendTimeoutUsec(START_EXTENSION_US));
                format!("starting: {reason}")
            }
            (false, _) => look.status,
        };
        if status != self.status {
            self.status = status;
            due.push(NotifyState::Status(&self.status));
        }
        due
    }
}

impl Look {
    fn at(job: &Observer) -> Self {
        let findings = job.health().findings();
        let worst = findings.iter().find(|standing| standing.finding.severity > Severity::Information);
        let status = match worst {
            Some(standing) => format!("{}: {}", standing.finding.severity.name(), standing.finding.cause),
            None => "healthy".to_owned(),
        };
        let not_ready = job.not_ready().into_iter().next();
        Self {
            live: job.health().is_live(),
            not_ready: not_ready.map(|reason| one_line(&reason)),
            status: one_line(&status),
        }
    }
}

/// The protocol has a line for each notification.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = %error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_said_once_the_watchdog_only_while_live_and_the_status_when_it_changes() {
        let mut systemd =
            Systemd { listens: true, look_every: LOOK_EVERY, looked: None, ready: false, status: String::new() };
        let mut said = |live, not_ready: Option<&str>, status: &str| {
            let look = Look { live, not_ready: not_ready.map(str::to_owned), status: status.to_owned() };
            systemd.due(look).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(true, Some("no partitions"), "healthy"),
            ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000", "STATUS=starting: no partitions"]
        );
        assert_eq!(said(true, None, "healthy"), ["WATCHDOG=1", "READY=1", "STATUS=healthy"]);
        assert_eq!(said(true, Some("the broker does not answer"), "healthy"), ["WATCHDOG=1"]);
        assert_eq!(said(false, None, "failing: a loop"), ["STATUS=failing: a loop"]);
        assert_eq!(said(false, None, "failing: a loop"), [] as [&str; 0]);
    }
}
