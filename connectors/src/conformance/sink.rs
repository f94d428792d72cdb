//! The conformance kit of sinks.
//!
//! A sink that speaks HTTP is checked by [`check_http`], against an endpoint on a free loopback port. Any other sink is
//! checked by [`check`], against a [`Target`] that plays its other side: a few lines that take alerts and behave as told
//! (`examples/custom-sink/tests/conformance.rs` has one). In a test:
//!
//! ```
//! use wardbell_connectors::conformance::sink::{Behavior, Target, check};
//! use wardbell_connectors::sink::jsonl::JsonLines;
//!
//! struct Folder(tempfile::TempDir);
//!
//! impl Target for Folder {
//!     fn behave(&self, script: &[Behavior]) -> bool {
//!         script.iter().all(|behavior| *behavior == Behavior::Take)
//!     }
//!     fn taken(&self) -> Vec<String> {
//!         let text = std::fs::read_to_string(self.0.path().join("alerts.jsonl")).unwrap_or_default();
//!         let id = |line| serde_json::from_str::<serde_json::Value>(line).ok()?["id"].as_str().map(str::to_owned);
//!         text.lines().filter_map(id).collect()
//!     }
//! }
//!
//! let report = check(
//!     || Folder(tempfile::tempdir().expect("a folder")),
//!     |folder| Box::new(JsonLines::open(&folder.0.path().join("alerts.jsonl")).expect("opens")),
//! );
//! assert!(report.passed(), "{report}");
//! ```
//!
//! A check that needs a behavior the target does not have is reported as not applicable, not as passed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::runtime::Runtime;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{
    Alert, Content, EpisodeId, Kind, Measured, Priority, RuleReference, State, TransitionKind,
};

pub use super::endpoint::{Endpoint, Request};
use crate::sink::{Delivery, Sink, SinkError};

/// A sink has to answer or to give up by itself in this time; its own time-out should be a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Deliveries of one alert before the kit says that it never arrives; above the length of every script.
const ATTEMPTS_MAX: usize = 12;
/// What [`Behavior::TooMany`] asks for in the check of it.
const RETRY_AFTER: Duration = Duration::from_secs(7);

/// How the other side treats one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    /// Stores it and acknowledges.
    Take,
    /// The same after a pause of 200 ms.
    TakeSlowly,
    /// Stores it, and the answer is lost on the way back.
    TakeAndLoseAnswer,
    /// Neither stores it nor answers.
    NoAnswer,
    /// Does not know the sender (HTTP 401).
    Unauthorized,
    /// Has no time now and says when to come back (HTTP 429 with `Retry-After`).
    TooMany { retry_after: Duration },
    /// Fails (HTTP 500).
    Fail,
    /// Does not take this alert, whoever sends it (HTTP 422).
    Reject,
}

/// The other side of a sink.
pub trait Target {
    /// Treats the next deliveries like this, one after the other, and takes everything after them. `false` if there is a
    /// behavior it does not have.
    fn behave(&self, script: &[Behavior]) -> bool;

    /// Ids of the alerts it has stored so far, in order, repeated ones repeated.
    fn taken(&self) -> Vec<String>;
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    /// The target does not behave like that.
    NotApplicable,
}

/// What a sink was found to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// By name, in the order they ran.
    pub checks: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// No check failed, and one at least could be run.
    pub fn passed(&self) -> bool {
        let failed = self.checks.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)));
        !failed && self.checks.iter().any(|(_, outcome)| *outcome == Outcome::Passed)
    }

    /// How one check ended; `None` if there is no such check.
    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.checks.iter().find(|(known, _)| *known == name).map(|(_, outcome)| outcome)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.checks {
            match outcome {
                Outcome::Passed => writeln!(f, "passed          {name}")?,
                Outcome::NotApplicable => writeln!(f, "not applicable  {name}")?,
                Outcome::Failed(why) => writeln!(f, "FAILED          {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// Checks a sink that speaks HTTP. `make` makes a sink that delivers to [`Endpoint::url`]; the endpoint knows an alert by
/// the header `Idempotency-Key`, or else by `id` in a JSON body.
///
/// # Panics
/// If this machine gives no loopback port or no thread.
pub fn check_http(make: impl Fn(&Endpoint) -> Box<dyn Sink>) -> Report {
    check(Endpoint::start, make)
}

/// Checks a sink against a target of its own; each check gets a new target and a new sink, made within a tokio runtime.
///
/// # Panics
/// If this machine gives no thread, or if `target` or `make` panics.
pub fn check<T: Target>(target: impl Fn() -> T, make: impl Fn(&T) -> Box<dyn Sink>) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a machine that runs tests has a thread to give");
    let checks: [(&'static str, Check<T>); 12] = [
        ("success", success),
        ("time-out after success", lost_answer),
        ("401", unauthorized),
        ("429 with Retry-After", too_many),
        ("500", failing),
        ("422", rejected),
        ("slow response", slow),
        ("no response", no_answer),
        ("restart", restart),
        ("duplicate delivery", duplicate),
        ("order of one patient", order),
        ("nothing acknowledged that was not taken", no_false_acknowledgment),
    ];
    let run = |(name, check): (&'static str, Check<T>)| {
        let _guard = runtime.enter();
        let target = target();
        let sink = make(&target);
        let mut scene = Scene { runtime: &runtime, make: &make, target, sink };
        let outcome = match check(&mut scene) {
            Ok(()) => Outcome::Passed,
            Err(Ended::Failed(why)) => Outcome::Failed(why),
            Err(Ended::NotApplicable) => Outcome::NotApplicable,
        };
        (name, outcome)
    };
    Report { checks: checks.into_iter().map(run).collect() }
}

/// Why a check ended before its end.
enum Ended {
    Failed(String),
    NotApplicable,
}

type Verdict = Result<(), Ended>;

type Check<T> = fn(&mut Scene<'_, T>) -> Verdict;

fn failed<T>(why: impl Into<String>) -> Result<T, Ended> {
    Err(Ended::Failed(why.into()))
}

/// One check's sink with its neighbors.
struct Scene<'a, T> {
    runtime: &'a Runtime,
    make: &'a dyn Fn(&T) -> Box<dyn Sink>,
    target: T,
    sink: Box<dyn Sink>,
}

impl<T: Target> Scene<'_, T> {
    fn behave(&self, script: &[Behavior]) -> Verdict {
        if self.target.behave(script) { Ok(()) } else { Err(Ended::NotApplicable) }
    }

    /// Hands alerts over once, as many at a time as the sink takes; what it acknowledges must have been taken.
    fn hand(&mut self, deliveries: &[Delivery]) -> Result<Result<(), SinkError>, Ended> {
        for batch in deliveries.chunks(self.sink.batch_max().max(1)) {
            let sink = &mut self.sink;
            let delivered =
                self.runtime.block_on(async move { tokio::time::timeout(PATIENCE, sink.deliver(batch)).await });
            match delivered {
                Err(_) => return failed(format!("neither acknowledged nor given up within {} s", PATIENCE.as_secs())),
                Ok(Err(error)) => return Ok(Err(error)),
                Ok(Ok(())) => {
                    let taken = self.target.taken();
                    if let Some(missing) = batch.iter().find(|delivery| !taken.contains(&delivery.alert.id)) {
                        return failed(format!("`{}` was acknowledged and never taken", missing.alert.id));
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// Hands alerts over until they are acknowledged, as the engine does; gives the errors on the way.
    fn hand_until_taken(&mut self, deliveries: &[Delivery]) -> Result<Vec<SinkError>, Ended> {
        let mut errors = Vec::new();
        while errors.len() < ATTEMPTS_MAX {
            match self.hand(deliveries)? {
                Ok(()) => return Ok(errors),
                Err(error) => errors.push(error),
            }
        }
        let last = errors.last().map(ToString::to_string).unwrap_or_default();
        failed(format!("not taken after {ATTEMPTS_MAX} attempts, the last: {last}"))
    }

    /// One alert under a behavior that passes: it arrives, under its own id only, and is not given up for good.
    fn survives(&mut self, script: &[Behavior]) -> Result<Vec<SinkError>, Ended> {
        self.behave(script)?;
        let alert = delivery(1, 0);
        let errors = self.hand_until_taken(std::slice::from_ref(&alert))?;
        if let Some(error) = errors.iter().find(|error| matches!(error, SinkError::Rejected { .. })) {
            return failed(format!("the alert would be set aside, though the fault passes: {error}"));
        }
        match self.target.taken().into_iter().find(|id| *id != alert.alert.id) {
            Some(other) => failed(format!("the alert came under another id too: `{other}`")),
            None => Ok(errors),
        }
    }
}

fn success<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    let alerts: Vec<Delivery> = (0..6).map(|number| delivery(number % 3, number)).collect();
    match scene.hand(&alerts)? {
        Ok(()) if scene.target.taken() == ids(&alerts) => Ok(()),
        Ok(()) => failed(format!("six alerts were handed over, these arrived: {:?}", scene.target.taken())),
        Err(error) => failed(format!("not taken: {error}")),
    }
}

fn lost_answer<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.survives(&[Behavior::TakeAndLoseAnswer]).map(|_| ())
}

fn unauthorized<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.survives(&[Behavior::Unauthorized; 3]).map(|_| ())
}

fn too_many<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    let errors = scene.survives(&[Behavior::TooMany { retry_after: RETRY_AFTER }])?;
    match errors.first() {
        None => Ok(()),
        Some(SinkError::Unavailable { retry_after: Some(asked), .. }) if *asked == RETRY_AFTER => Ok(()),
        Some(error) => failed(format!("the error does not say when to come back: {error:?}")),
    }
}

fn failing<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.survives(&[Behavior::Fail; 3]).map(|_| ())
}

fn rejected<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.behave(&[Behavior::Reject; 5])?;
    let alert = delivery(1, 0);
    match scene.hand(std::slice::from_ref(&alert))? {
        Err(SinkError::Rejected { .. }) => Ok(()),
        Err(error) => failed(format!("one alert that is rejected would hold back its patient for ever: {error:?}")),
        Ok(()) => failed("acknowledged, though it was rejected"),
    }
}

fn slow<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.survives(&[Behavior::TakeSlowly]).map(|_| ())
}

fn no_answer<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    scene.survives(&[Behavior::NoAnswer]).map(|_| ())
}

fn restart<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    let alerts = [delivery(1, 0), delivery(1, 1)];
    scene.hand_until_taken(&alerts)?;
    scene.sink = (scene.make)(&scene.target);
    scene.hand_until_taken(&alerts)?;
    twice(scene, &alerts)
}

fn duplicate<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    let alerts = [delivery(1, 0), delivery(1, 1)];
    scene.hand_until_taken(&alerts)?;
    scene.hand_until_taken(&alerts)?;
    twice(scene, &alerts)
}

/// What was delivered twice came under the same ids, so that the other side can tell.
fn twice<T: Target>(scene: &Scene<'_, T>, alerts: &[Delivery]) -> Verdict {
    let (taken, known) = (scene.target.taken(), ids(alerts));
    match taken.iter().find(|id| !known.contains(id)) {
        Some(other) => failed(format!("an alert that came again has another id: `{other}`")),
        None => Ok(()),
    }
}

fn order<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    use Behavior::{Fail, NoAnswer, Take, TakeAndLoseAnswer, Unauthorized};
    scene.behave(&[Take, Fail, Take, TakeAndLoseAnswer, Unauthorized, Take, NoAnswer])?;
    let alerts: Vec<Delivery> = (0..6).map(|number| delivery(1, number)).collect();
    let batch_max = scene.sink.batch_max().max(1);
    for batch in alerts.chunks(batch_max) {
        scene.hand_until_taken(batch)?;
    }
    let mut first: Vec<String> = Vec::new();
    for id in scene.target.taken() {
        if !first.contains(&id) {
            first.push(id);
        }
    }
    if first == ids(&alerts) { Ok(()) } else { failed(format!("the alerts arrived in another order: {first:?}")) }
}

fn no_false_acknowledgment<T: Target>(scene: &mut Scene<'_, T>) -> Verdict {
    use Behavior::{Fail, NoAnswer, Reject, TooMany, Unauthorized};
    let too_many = TooMany { retry_after: Duration::ZERO };
    for (number, behavior) in (0..).zip([Fail, Unauthorized, too_many, Reject, NoAnswer]) {
        scene.behave(&[behavior])?;
        let alert = delivery(1, number);
        // `hand` looks whether an acknowledged alert was taken.
        let _ = scene.hand(std::slice::from_ref(&alert))?;
    }
    Ok(())
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| delivery.alert.id.clone()).collect()
}

/// An alert about nobody: `number` tells alerts of one invented patient apart.
pub fn delivery(patient: u32, number: u32) -> Delivery {
    let patient = format!("conformance-{patient}");
    let at = Micros::from(number) * wardbell_schemas::SECOND;
    let rule = "conformance/check";
    let episode = EpisodeId::new("conformance", rule, &patient, "-", at).to_string();
    let content = Content {
        id: format!("{episode}.0"),
        episode,
        number: 0,
        transition: TransitionKind::Raised,
        state: State::On,
        kind: Kind::Technical,
        priority: Priority::Medium,
        site: "conformance".to_owned(),
        rule: RuleReference { id: rule.to_owned(), version: 1, hash: String::new() },
        raised_by_version: 1,
        patient,
        key: "-".to_owned(),
        at,
        condition_start: at,
        episode_start: at,
        intentional_delay_us: 0,
        by_timer: false,
        message: format!("Conformance check, alert {number}"),
        evidence: Vec::new(),
        limits: BTreeMap::new(),
        event_time: None,
        flags: Vec::new(),
    };
    Delivery { alert: Alert::new(content, Measured::default()), received_us: 0 }
}
