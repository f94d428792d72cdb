//! The deliver stage: each sink is its own consumer group on the alerts topic.
//!
//! One thread ([`stand`]) reads alerts into a bounded backlog, serves the membership and commits what was acknowledged.
//! Lanes, tasks on a runtime of the sink's own, hand alerts over and know nothing of the log. What both share is the desk.
//! Whose turn it is says [`backlog`], how far the sink has come says [`progress`]. A failing sink is tried again with
//! back-off and reported; it delays only itself, and what there is no room for stays in the log.

mod stand;

mod backlog;
#[cfg(feature = "simulation")]
mod in_turns;
mod progress;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use wardbell_connectors::log::{LogError, Remedy};
#[cfg(feature = "simulation")]
use wardbell_connectors::runtime::fault::Action;
use wardbell_connectors::runtime::{Instant, fault};
use wardbell_connectors::sink::{Delivery, Identity, Sink, SinkError};
use wardbell_schemas::alert::{Alert, Priority, TransitionKind};

use super::{Shared, SinkSettings};
use crate::health::{Finding, Severity};
use crate::latency::Stage;
use backlog::{Backlog, Entry, Failure, Turn, Work};
use progress::Progress;
use stand::Stand;

/// An attempt that takes longer has failed, whatever the sink thinks of it.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// The consumer group of a sink.
pub fn group(prefix: &str, sink: &str) -> String {
    format!("{prefix}-deliver-{sink}")
}

/// Runs until the job stops.
pub(super) fn run(shared: &Shared, settings: SinkSettings) {
    let stage = format!("deliver {}", settings.name);
    let fail = |what: String| shared.fail(&stage, &LogError::new(Remedy::Refuse, "starting", what));
    let Some(first) = settings.lanes.first() else {
        return fail("the sink has no lane".to_owned());
    };
    let desk = Arc::new(Desk {
        shared: shared.clone(),
        name: settings.name,
        identity: settings.identity,
        is_muted: shared.record_only && first.notifies(),
        changed: Notify::new(),
        state: Mutex::new(State {
            backlog: Backlog::new(first.batch_max(), first.notifies()),
            progress: BTreeMap::new(),
            rejected: Vec::new(),
            is_closed: false,
            is_reported: false,
        }),
    });
    #[cfg(feature = "simulation")]
    if wardbell_connectors::runtime::simulated::is_simulated() {
        for sink in settings.lanes {
            let desk = desk.clone();
            if let Err(error) = wardbell_connectors::runtime::spawn("lane".to_owned(), || in_turns::lane(desk, sink)) {
                return fail(error.to_string());
            }
        }
        return read_alerts(&desk, &stage);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(error.to_string()),
    };
    for sink in settings.lanes {
        runtime.spawn(lane(desk.clone(), sink));
    }
    read_alerts(&desk, &stage);
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Fills the desk until the job stops.
fn read_alerts(desk: &Desk, stage: &str) {
    desk.shared.supervise(stage, || {
        let ended = Stand::join(desk, stage).and_then(Stand::work);
        desk.clear();
        ended
    });
    desk.close();
}

/// Hands alerts to one sink object, one call after the other.
async fn lane(desk: Arc<Desk>, mut sink: Box<dyn Sink>) {
    while let Some(work) = desk.next().await {
        let outcome = tokio::select! {
            outcome = attempt(&mut *sink, &work.deliveries) => Some(outcome),
            () = work.given_up.notified() => None,
        };
        desk.finish(&work, outcome);
    }
}

/// One call of a sink. Whatever it does is an outcome: a sink that panics or hangs fails, and nobody else with it.
async fn attempt(sink: &mut dyn Sink, deliveries: &[Delivery]) -> Result<(), SinkError> {
    let failed = |what: &str| {
        let step = "handing alerts to the sink".to_owned();
        Err(SinkError::Unavailable { step, what: what.to_owned(), retry_after: None })
    };
    if fault::check("deliver.before").is_err() {
        return failed("it is not reached");
    }
    let begin = move || {
        let sink = sink;
        sink.deliver(deliveries)
    };
    let Ok(mut delivering) = catch_unwind(AssertUnwindSafe(begin)) else {
        return failed("it panicked");
    };
    let caught = std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| delivering.as_mut().poll(context)));
        polled.unwrap_or_else(|_| Poll::Ready(failed("it panicked")))
    });
    #[cfg(feature = "simulation")]
    if wardbell_connectors::runtime::simulated::is_simulated() {
        let outcome = caught.await;
        // The other side has it, and we do not hear so.
        let is_lost = fault::reach("deliver.after") == Some(Action::Fail);
        return if is_lost { failed("no answer came") } else { outcome };
    }
    match tokio::time::timeout(ATTEMPT_MAX, caught).await {
        Ok(outcome) => outcome,
        Err(_) => failed("it gave no answer within 30 s"),
    }
}

/// What the stage's thread and its lanes share.
struct Desk {
    shared: Shared,
    name: String,
    identity: Identity,
    /// Nobody is notified: alerts are taken as delivered without being handed over.
    is_muted: bool,
    /// Lanes look again whether there is work.
    changed: Notify,
    state: Mutex<State>,
}

struct State {
    backlog: Backlog,
    /// By assigned partition of the alerts topic.
    progress: BTreeMap<i32, Progress>,
    /// To be written to the dead-letter topic, with the last error.
    rejected: Vec<(Entry, String)>,
    is_closed: bool,
    /// Health was told that the sink fails.
    is_reported: bool,
}

impl State {
    fn acknowledge(&mut self, (partition, offset): (i32, i64)) {
        if let Some(progress) = self.progress.get_mut(&partition) {
            progress.acknowledge(offset);
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; sinks are called without it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work for a lane, when there is some; `None` once there will be no more.
    async fn next(&self) -> Option<Work> {
        loop {
            let changed = self.changed.notified();
            let turn = {
                let mut state = self.lock();
                if state.is_closed {
                    return None;
                }
                let turn = state.backlog.next(Instant::now(), self.shared.clock.now_us());
                self.pass_withheld(&mut state);
                turn
            };
            match turn {
                Turn::Work(work) => return Some(work),
                Turn::Wait(None) => changed.await,
                Turn::Wait(Some(until)) => {
                    let _ = tokio::time::timeout_at(until.for_tokio(), changed).await;
                }
            }
        }
    }

    /// Takes down what became of an attempt; `None`: nobody waits for it any more.
    fn finish(&self, work: &Work, outcome: Option<Result<(), SinkError>>) {
        match outcome {
            Some(Ok(())) => self.acknowledged(work),
            Some(Err(error)) => self.failed(work, &error),
            None => self.lock().backlog.given_back(work),
        }
        self.changed.notify_waiters();
    }

    fn acknowledged(&self, work: &Work) {
        let mut state = self.lock();
        let mut entries = state.backlog.acknowledged(work);
        for entry in &entries {
            state.acknowledge(entry.place());
        }
        self.pass_canaries(&mut state);
        let recovered = state.is_reported && !state.backlog.is_failing();
        if recovered {
            state.is_reported = false;
        }
        drop(state);
        if recovered {
            tracing::info!(sink = self.name, "the sink takes alerts again");
            self.shared.health.clear(&self.key());
        }
        self.measure(&mut entries);
    }

    fn failed(&self, work: &Work, error: &SinkError) {
        self.shared.statistics.sink_failed(&self.name);
        let mut state = self.lock();
        let Failure { pause, set_aside } = state.backlog.failed(work, error, Instant::now());
        let is_overdue = state.backlog.is_overdue();
        state.is_reported = state.backlog.is_failing();
        let is_reported = state.is_reported;
        if let Some(entry) = set_aside {
            state.rejected.push((entry, error.to_string()));
        }
        drop(state);
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            sink = self.name,
            error = %error,
            cause,
            pause_ms = pause.as_millis() as u64,
            "the sink does not take alerts; trying again"
        );
        if !is_reported {
            // The last that failed was set aside.
            return self.shared.health.clear(&self.key());
        }
        let (severity, remedy) = match error {
            SinkError::Refused { remedy, .. } => (Severity::Failing, remedy.as_str()),
            SinkError::Rejected { .. } => (Severity::Degraded, "see why the other side rejects this alert"),
            _ if is_overdue => {
                (Severity::Failing, "bring the other side of the sink back; alerts then go on by themselves")
            }
            _ => (Severity::Degraded, "see that the other side of the sink runs and can be reached"),
        };
        let finding = Finding::new(
            severity,
            if cause.is_empty() { error.to_string() } else { format!("{error}: {cause}") },
            format!(
                "alerts of sink `{}` wait and are tried again; none is dropped, other sinks are not concerned",
                self.name
            ),
            remedy,
        );
        self.shared.health.report(self.key(), finding);
    }

    /// Under this key stands that the sink fails.
    fn key(&self) -> String {
        format!("sink/{}", self.name)
    }

    /// Retention deleted alerts that the sink had not taken.
    fn alerts_lost(&self, partition: i32, from: i64, to: i64) {
        tracing::error!(
            sink = self.name,
            partition,
            from,
            to,
            "alerts were deleted before the sink took them: retention is shorter than the outage"
        );
        let finding = Finding::new(
            Severity::Failing,
            format!(
                "sink `{}` missed what stood from offset {from} to before {to} in partition {partition} of the alerts topic: \
                 it was deleted before the sink took it",
                self.name
            ),
            "whoever relies on this sink was never told of these alerts",
            "look after the patients concerned; keep `canonical.retention` longer than the longest outage of a sink",
        );
        self.shared.health.report(format!("{}/lost", self.key()), finding);
    }

    /// An alert waits for longer than the budget of 30 s to be taken.
    fn breached(&self, priority: Priority) {
        self.shared.statistics.breach(&self.name, priority);
    }

    fn pass_canaries(&self, state: &mut State) {
        let now_us = self.shared.clock.now_us();
        for (partition, progress) in &mut state.progress {
            for basis_us in progress.pass_canaries() {
                self.shared.statistics.canary_acknowledged(&self.name, *partition, basis_us, now_us);
            }
        }
    }

    fn pass_withheld(&self, state: &mut State) {
        let withheld = state.backlog.take_withheld();
        if withheld.is_empty() {
            return;
        }
        for place in &withheld {
            state.acknowledge(*place);
        }
        self.pass_canaries(state);
        self.shared.statistics.withheld(&self.name, withheld.len() as u64);
        tracing::info!(
            sink = self.name,
            alerts = withheld.len(),
            "withheld: decided late, and over before anybody could be told"
        );
    }

    fn measure(&self, entries: &mut [Entry]) {
        let now_us = self.shared.clock.now_us();
        let statistics = &self.shared.statistics;
        statistics.delivered(&self.name, entries.len() as u64);
        for entry in entries {
            if entry.falls_overdue(now_us) {
                self.breached(entry.priority());
            }
            let Alert { data, .. } = &entry.delivery.alert;
            statistics.latency.record(Stage::Deliver, None, now_us - entry.delivery.received_us);
            statistics.acknowledged(&self.name, data.content.priority, now_us - data.measured.basis_us);
            if data.content.transition == TransitionKind::Raised {
                statistics.latency.record(Stage::IntentionalDelay, None, data.content.intentional_delay_us);
            }
        }
    }

    /// Gives up what is in hand; the log has it.
    fn clear(&self) {
        let mut state = self.lock();
        state.backlog.clear();
        state.progress.clear();
        state.rejected.clear();
    }

    /// No lane begins anything any more.
    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_waiters();
    }
}
