//! What a job knows of its own well-being: which of its loops turn, and what is wrong, said so that somebody can act.
//!
//! Two questions are kept apart. *Is this process alive?* is about our own loops only: a loop that neither beats nor waits
//! for an outside system is stalled, a thread that panicked is dead. A broker or a sink that is away never makes a process
//! look dead, since a restart would not bring it back. *Is it doing its work?* is answered by findings, each with cause,
//! impact and remedy.
//!
//! Time here is measured and decides nothing about a patient, so it is the process's own steady clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wardbell_connectors::runtime::Instant;

use serde::Serialize;

/// When a loop counts as stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A loop that is not waiting and has not beaten for this long.
    pub stalled_after: Duration,
    /// A single wait for an outside system excuses a loop for this long; far above the time-outs of the log's calls.
    pub waiting_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stalled_after: Duration::from_secs(5), waiting_max: Duration::from_secs(120) }
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know; nothing is worse for it.
    Information,
    /// Alerts still arrive in time; somebody should look.
    Degraded,
    /// Alerts do not arrive, or too late.
    Failing,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Information => "information",
            Severity::Degraded => "degraded",
            Severity::Failing => "failing",
        }
    }
}

/// Something an operator should know. Names places, never patients or values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub cause: String,
    /// What it means for alerts.
    pub impact: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    pub fn new(
        severity: Severity,
        cause: impl Into<String>,
        impact: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, cause: cause.into(), impact: impact.into(), remedy: remedy.into() }
    }
}

/// A finding with its key and how long it has stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub key: String,
    pub finding: Finding,
    /// Since it was first reported under this key.
    pub age: Duration,
}

/// What a loop is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopState {
    Turning,
    /// Inside a call to an outside system.
    Waiting(&'static str),
    /// Turned or waited too long ago.
    Stalled,
    /// Its thread panicked.
    Dead,
}

/// A loop, what it is doing, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopReport {
    pub name: String,
    pub state: LoopState,
    pub age: Duration,
}

/// The health of one job; shared by its threads.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    loops: Mutex<Vec<Arc<Loop>>>,
    findings: Mutex<BTreeMap<String, (Finding, Instant)>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { started: Instant::now(), loops: Mutex::default(), findings: Mutex::default() }
    }
}

impl Health {
    /// Enters a loop of the calling job; it is watched until the handle is dropped. A loop that comes back under the name
    /// of a dead one takes its place.
    pub fn enter(&self, name: impl Into<String>) -> LoopHandle {
        self.enter_with(name, Limits::default())
    }

    /// As [`Health::enter`], for a loop with a rhythm of its own.
    pub fn enter_with(&self, name: impl Into<String>, limits: Limits) -> LoopHandle {
        let name = name.into();
        let entered = Arc::new(Loop { name, limits, activity: Mutex::new(Activity::Turning(Instant::now())) });
        let mut loops = lock(&self.loops);
        loops.retain(|known| match *lock(&known.activity) {
            Activity::Ended => false,
            Activity::Dead(_) => known.name != entered.name,
            _ => true,
        });
        loops.push(entered.clone());
        LoopHandle { entered }
    }

    /// Forgets a dead loop whose work was given away.
    pub fn forget(&self, name: &str) {
        lock(&self.loops).retain(|known| known.name != name || !matches!(*lock(&known.activity), Activity::Dead(_)));
    }

    /// Says what is wrong under `key`. Saying it again renews the words and keeps the time it began.
    pub fn report(&self, key: impl Into<String>, finding: Finding) {
        let mut findings = lock(&self.findings);
        match findings.entry(key.into()) {
            std::collections::btree_map::Entry::Occupied(mut known) => known.get_mut().0 = finding,
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert((finding, Instant::now()));
            }
        }
    }

    /// What was reported under `key` is over; nothing happens if there is no such finding.
    pub fn clear(&self, key: &str) {
        lock(&self.findings).remove(key);
    }

    /// How long this process has worked.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// No loop of ours is stalled or dead.
    pub fn is_live(&self) -> bool {
        self.loops().iter().all(|report| !matches!(report.state, LoopState::Stalled | LoopState::Dead))
    }

    /// Whether something stands under `key`.
    pub fn stands(&self, key: &str) -> bool {
        lock(&self.findings).contains_key(key)
    }

    /// All loops, in the order of their names.
    pub fn loops(&self) -> Vec<LoopReport> {
        self.loops_at(Instant::now())
    }

    fn loops_at(&self, now: Instant) -> Vec<LoopReport> {
        let mut loops: Vec<LoopReport> = lock(&self.loops).iter().filter_map(|known| known.report(now)).collect();
        loops.sort_by(|a, b| a.name.cmp(&b.name));
        loops
    }

    /// Everything that stands, worst first; loops that are stalled or dead among it.
    pub fn findings(&self) -> Vec<Standing> {
        let now = Instant::now();
        let mut standing: Vec<Standing> = lock(&self.findings)
            .iter()
            .map(|(key, (finding, since))| Standing {
                key: key.clone(),
                finding: finding.clone(),
                age: now.saturating_duration_since(*since),
            })
            .collect();
        standing.extend(self.loops_at(now).into_iter().filter_map(LoopReport::into_standing));
        standing.sort_by(|a, b| b.finding.severity.cmp(&a.finding.severity).then_with(|| a.key.cmp(&b.key)));
        standing
    }
}

/// A loop's own end of the watch; lives as long as the loop.
#[derive(Debug)]
pub struct LoopHandle {
    entered: Arc<Loop>,
}

impl LoopHandle {
    /// The loop has turned once more.
    pub fn beat(&self) {
        *lock(&self.entered.activity) = Activity::Turning(Instant::now());
    }

    /// Excuses the loop while it is inside a call that blocks on an outside system, until the guard is dropped.
    #[must_use = "the excuse ends when the guard is dropped"]
    pub fn waiting(&self, what: &'static str) -> Waiting {
        let mut activity = lock(&self.entered.activity);
        let before = std::mem::replace(&mut *activity, Activity::Waiting(what, Instant::now()));
        Waiting { entered: self.entered.clone(), before }
    }
}

impl Drop for LoopHandle {
    fn drop(&mut self) {
        let end = if std::thread::panicking() { Activity::Dead(Instant::now()) } else { Activity::Ended };
        *lock(&self.entered.activity) = end;
    }
}

/// A wait for an outside system; over when dropped.
#[derive(Debug)]
pub struct Waiting {
    entered: Arc<Loop>,
    /// A wait inside another one ends in that.
    before: Activity,
}

impl Waiting {
    /// Another call to the outside system begins: each is excused for as long as one may take.
    pub fn renew(&self) {
        let mut activity = lock(&self.entered.activity);
        if let Activity::Waiting(what, _) = *activity {
            *activity = Activity::Waiting(what, Instant::now());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut activity = lock(&self.entered.activity);
        // A loop that has ended meanwhile stays ended.
        if let Activity::Waiting(..) = *activity {
            *activity = match self.before {
                Activity::Waiting(what, since) => Activity::Waiting(what, since),
                _ => Activity::Turning(Instant::now()),
            };
        }
    }
}

#[derive(Debug)]
struct Loop {
    name: String,
    limits: Limits,
    activity: Mutex<Activity>,
}

/// What a loop said last, and when.
#[derive(Debug, Clone, Copy)]
enum Activity {
    Turning(Instant),
    Waiting(&'static str, Instant),
    Dead(Instant),
    /// On purpose.
    Ended,
}

impl Loop {
    fn report(&self, now: Instant) -> Option<LoopReport> {
        let age = |since| now.saturating_duration_since(since);
        let (state, age) = match *lock(&self.activity) {
            Activity::Turning(since) if age(since) > self.limits.stalled_after => (LoopState::Stalled, age(since)),
            Activity::Turning(since) => (LoopState::Turning, age(since)),
            Activity::Waiting(_, since) if age(since) > self.limits.waiting_max => (LoopState::Stalled, age(since)),
            Activity::Waiting(what, since) => (LoopState::Waiting(what), age(since)),
            Activity::Dead(since) => (LoopState::Dead, age(since)),
            Activity::Ended => return None,
        };
        Some(LoopReport { name: self.name.clone(), state, age })
    }
}

impl LoopReport {
    /// A finding, if the loop is stalled or dead.
    fn into_standing(self) -> Option<Standing> {
        let cause = match self.state {
            LoopState::Stalled => format!("loop `{}` has not turned for {} s", self.name, self.age.as_secs()),
            LoopState::Dead => format!("the thread of loop `{}` panicked", self.name),
            LoopState::Turning | LoopState::Waiting(_) => return None,
        };
        let finding = Finding::new(
            Severity::Failing,
            cause,
            "what this loop works on stands still: alerts of it do not arrive",
            "restart this process; nothing is lost, it goes on from what is committed; report the log's last lines",
        );
        Some(Standing { key: format!("loop {}", self.name), finding, age: self.age })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(health: &Health, later: Duration) -> Vec<(String, LoopState)> {
        health.loops_at(Instant::now() + later).into_iter().map(|report| (report.name, report.state)).collect()
    }

    const SIX: Duration = Duration::from_secs(6);

    #[test]
    fn a_loop_that_does_not_beat_is_stalled_and_one_that_ended_is_forgotten() {
        let health = Health::default();
        let handle = health.enter("partition 3");
        assert_eq!(state(&health, Duration::ZERO), [("partition 3".to_owned(), LoopState::Turning)]);
        assert_eq!(state(&health, SIX), [("partition 3".to_owned(), LoopState::Stalled)]);
        drop(handle);
        assert_eq!(state(&health, SIX), []);
    }

    #[test]
    fn a_waiting_loop_is_excused_up_to_the_maximum() {
        let health = Health::default();
        let handle = health.enter("normalize");
        let outer = handle.waiting("the broker");
        drop(handle.waiting("an answer within"));
        assert_eq!(state(&health, SIX), [("normalize".to_owned(), LoopState::Waiting("the broker"))]);
        assert_eq!(state(&health, Duration::from_secs(121)), [("normalize".to_owned(), LoopState::Stalled)]);
        drop(outer);
        assert_eq!(state(&health, SIX), [("normalize".to_owned(), LoopState::Stalled)]);
    }

    #[test]
    fn a_thread_that_panicked_is_dead_until_another_takes_its_place() {
        let health = Health::default();
        let handle = health.enter("decide");
        let ended = std::thread::spawn(move || {
            let _handle = handle;
            panic!("on purpose, for the test");
        });
        assert!(ended.join().is_err());
        assert!(!health.is_live());
        assert_eq!(health.findings()[0].key, "loop decide");
        let handle = health.enter("decide");
        assert!(health.is_live());
        drop(handle);
        assert_eq!(health.loops(), []);
    }

    #[test]
    fn a_finding_keeps_its_beginning_and_the_worst_comes_first() {
        let health = Health::default();
        let finding = |severity, cause: &str| Finding::new(severity, cause, "impact", "remedy");
        health.report("b", finding(Severity::Degraded, "first words"));
        let since = health.findings()[0].age;
        health.report("a", finding(Severity::Information, "known"));
        health.report("b", finding(Severity::Failing, "later words"));
        let findings = health.findings();
        let keys: Vec<&str> = findings.iter().map(|standing| standing.key.as_str()).collect();
        assert_eq!(keys, ["b", "a"]);
        assert_eq!(findings[0].finding.cause, "later words");
        assert!(findings[0].age >= since);
        health.clear("b");
        assert!(!health.stands("b") && health.stands("a"));
    }
}
