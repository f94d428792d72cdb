//! Why an alert fired: its partition of the canonical log worked through again up to the record that decided it, with what
//! the rule saw on the way.
//!
//! The account is for the people who got the alert, so it names the patient as the alert does. It ends with the proof: the
//! replay gives the same transition, byte for byte, or does not.

use std::collections::VecDeque;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;
use wardbell_connectors::log::{Log, LogError, Record, Remedy};
use wardbell_core::partition::Evaluated;
use wardbell_rules::Rule;
use wardbell_schemas::alert::{Alert, Content, Kind, TransitionKind, print_time};
use wardbell_schemas::{Micros, duration};

use crate::checkpoints::StateTopic;
use crate::pipeline::replay::{Derivation, Derived, PublishedSets, Records};
use crate::sets::{ControlTopic, short};
use crate::verify::{Held, Scope, Told};

/// Evaluations of the rule for the patient that are kept while replaying.
const EVALUATIONS_MAX: usize = 2_000;
/// Lines of evaluations shown to people.
const LINES_MAX: usize = 40;

/// The account of one transition.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// As it stands on the alerts topic.
    pub alert: Alert,
    pub alerts_offset: i64,
    /// Transitions of the same episode that were found with it, as `0 raised high at ...`.
    pub episode: Vec<String>,
    /// The rule set in force when it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<SetInForce>,
    /// What the rule asks for; none for the engine's own alerts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleSays>,
    /// Evaluations of the rule for the alert's key: the last before the condition began, and those until it was decided.
    pub evaluations: Vec<Evaluation>,
    /// Where the replay began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed_from: Option<ReplayedFrom>,
    pub derived_again: DerivedAgain,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetInForce {
    pub number: u64,
    pub hash: String,
}

/// The rule as the set in force has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleSays {
    pub path: String,
    pub owner: String,
    pub reference: String,
    pub hold_us: Micros,
    pub clear_hold_us: Micros,
    pub latching: bool,
    pub limits: Vec<LimitUsed>,
}

/// A limit that was in force for this patient, and the rule's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitUsed {
    pub name: String,
    pub value: f64,
    pub own: Option<f64>,
}

/// What the rule saw and said at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    pub at: String,
    /// `unknown`, `false` or the priority.
    pub raise: &'static str,
    pub clear: Option<bool>,
    pub values: Vec<ValueRead>,
}

/// One number that the rule reads; `None` is unknown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueRead {
    pub signal: String,
    pub function: String,
    pub value: Option<f64>,
}

/// Canonical offset of the replay's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReplayedFrom {
    pub offset: i64,
    pub is_checkpoint: bool,
}

/// What the replay says of the alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DerivedAgain {
    Same,
    /// It gives the transition otherwise.
    Differs(String),
    /// It does not give it.
    NotGiven,
    /// It cannot be replayed.
    NotPossible(String),
}

/// Finds a transition by its id, or the first one held of an episode by the episode's, and explains it. `None`: there is
/// no such alert.
///
/// # Errors
/// As the log says.
pub fn explain(
    log: &Arc<dyn Log>,
    scope: &Scope,
    id: &str,
    told: &mut dyn FnMut(Told),
) -> Result<Option<Explanation>, LogError> {
    let mut found = find(&**log, &scope.alerts, id)?;
    let Some((record, alert)) = found.pop_front() else {
        return Ok(None);
    };
    let line = |alert: &Alert| {
        let Content { number, transition, priority, at, .. } = &alert.data.content;
        format!("{number} {} {} at {}", transition.name(), priority.name(), print_time(*at))
    };
    let mut explanation = Explanation {
        episode: std::iter::once(&alert).chain(found.iter().map(|(_, alert)| alert)).map(line).collect(),
        alerts_offset: record.offset,
        alert,
        set: None,
        rule: None,
        evaluations: Vec::new(),
        replayed_from: None,
        derived_again: DerivedAgain::NotGiven,
    };
    explanation.replay(log, scope, record, told)?;
    Ok(Some(explanation))
}

/// The alerts with an id, which all stand in one partition; those of an episode in their order.
fn find(log: &dyn Log, topic: &str, id: &str) -> Result<VecDeque<(Record, Alert)>, LogError> {
    let mut found = VecDeque::new();
    let episode = format!("{id}.");
    let is_wanted = |known: &[u8]| known == id.as_bytes() || known.starts_with(episode.as_bytes());
    for partition in 0..log.describe(topic)?.0 {
        let (first, end) = log.offsets(topic, partition)?;
        let mut records = Records::open(log, topic, partition, first, end)?;
        while let Some(record) = records.read_past_markers()? {
            if !record.header("id").is_some_and(is_wanted) {
                continue;
            }
            let alert = serde_json::from_slice(record.value.as_deref().unwrap_or_default());
            let alert: Alert = alert.map_err(|error: serde_json::Error| {
                let (line, column) = (error.line(), error.column());
                let what = format!("it is damaged at offset {}: line {line}, column {column}", record.offset);
                LogError::new(Remedy::Refuse, format!("reading the alert on {topic}/{partition}"), what)
            })?;
            let is_all = record.header("id") == Some(id.as_bytes());
            found.push_back((record, alert));
            if is_all {
                break;
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

impl Explanation {
    fn content(&self) -> &Content {
        &self.alert.data.content
    }

    /// Replays the partition from the newest checkpoint before the alert, or from an older one if that shows more.
    fn replay(
        &mut self,
        log: &Arc<dyn Log>,
        scope: &Scope,
        record: Record,
        told: &mut dyn FnMut(Told),
    ) -> Result<(), LogError> {
        let (partition, decided_at) = (self.alert.data.measured.partition, self.alert.data.measured.offset);
        let (first, end) = log.offsets(&scope.canonical, partition)?;
        if !(first..end).contains(&decided_at) {
            let what = format!("canonical offset {decided_at}, which decided it, is not held any more");
            self.derived_again = DerivedAgain::NotPossible(what);
            return Ok(());
        }
        let mut sets = PublishedSets::new(ControlTopic::new(log.clone(), &scope.control));
        let state = StateTopic::new(log.clone(), &scope.state);
        let usable = |(_, next_offset): &(i64, i64)| (first..=decided_at).contains(next_offset);
        let mut begins: Vec<Option<i64>> =
            state.complete(partition)?.into_iter().filter(usable).rev().map(|(at, _)| Some(at)).collect();
        if begins.is_empty() && first == 0 {
            begins.push(None);
        }
        self.derived_again = DerivedAgain::NotPossible(
            "the first records of the canonical log are deleted, and no checkpoint from before it is held".to_owned(),
        );
        let held = Held::new(record);
        for begin in begins {
            let newer = self.is_derived().then(|| self.clone());
            let replayed = self.replay_from_begin(log, scope, begin, &held, &mut sets, told);
            match newer {
                // What an older one could add is not worth the answer that is there.
                Some(newer) if replayed.is_err() || !self.is_derived() => {
                    *self = newer;
                    break;
                }
                _ => replayed?,
            }
            if self.is_derived() && self.begins_before_the_condition() {
                break;
            }
        }
        Ok(())
    }

    /// Replays from a checkpoint, or from the first record, and holds what comes against the alert.
    fn replay_from_begin(
        &mut self,
        log: &Arc<dyn Log>,
        scope: &Scope,
        begin: Option<i64>,
        held: &Held,
        sets: &mut PublishedSets,
        told: &mut dyn FnMut(Told),
    ) -> Result<(), LogError> {
        let partition = self.alert.data.measured.partition;
        let n_partitions = log.describe(&scope.canonical)?.0;
        let (from, begun) = match begin {
            None => (0, Ok(Derivation::new(partition, n_partitions))),
            Some(at) => {
                let state = StateTopic::new(log.clone(), &scope.state);
                let stored = state.read(partition, at, &mut |_| {}, &|| false)?;
                let derivation = Derivation::from_checkpoint(partition, n_partitions, &stored.slices, sets);
                (stored.next_offset, derivation)
            }
        };
        self.replayed_from = Some(ReplayedFrom { offset: from, is_checkpoint: begin.is_some() });
        let replayed = match begun {
            Ok(derivation) => self.replay_from(&**log, scope, (from, derivation), sets, told)?,
            Err(what) => Err(what),
        };
        self.derived_again = match replayed {
            Ok(Some(derived)) => match held.differs(&derived, &scope.alerts) {
                None => DerivedAgain::Same,
                Some(what) => DerivedAgain::Differs(what),
            },
            Ok(None) => DerivedAgain::NotGiven,
            Err(what) => DerivedAgain::NotPossible(what),
        };
        Ok(())
    }

    /// Replays from an offset up to the record that decided and gives the transition, if it comes. The inner error says why
    /// that cannot be done.
    fn replay_from(
        &mut self,
        log: &dyn Log,
        scope: &Scope,
        (from, mut derivation): (i64, Derivation),
        sets: &mut PublishedSets,
        told: &mut dyn FnMut(Told),
    ) -> Result<Result<Option<Derived>, String>, LogError> {
        let measured = &self.alert.data.measured;
        let (partition, decided_at) = (measured.partition, measured.offset);
        derivation.watch(&self.content().rule.id, &self.content().patient, EVALUATIONS_MAX);
        let mut given = None;
        let mut before = None;
        for stretch in [from..decided_at, decided_at..decided_at + 1] {
            before = in_force(&derivation);
            let mut records = Records::open(log, &scope.canonical, partition, stretch.start, stretch.end)?;
            let followed = derivation.follow(&mut records, sets, |_, offset, derived| {
                told(Told { partition, offset, end: decided_at + 1 });
                let wanted = derived.into_iter().find(|derived| derived.content.id == self.content().id);
                given = given.take().or(wanted);
                Ok(ControlFlow::Continue(()))
            })?;
            if let Err(what) = followed {
                return Ok(Err(what));
            }
        }
        self.say_rule(in_force(&derivation), before, sets)?;
        self.say_evaluations(derivation.take_watched());
        Ok(Ok(given))
    }

    /// The rule as it was in force: that of the new set, or of the one before for an episode that its change ended.
    fn say_rule(
        &mut self,
        after: Option<SetInForce>,
        before: Option<SetInForce>,
        sets: &mut PublishedSets,
    ) -> Result<(), LogError> {
        for set in [&after, &before].into_iter().flatten() {
            let loaded = sets.get(set.number, &set.hash);
            let loaded = loaded.map_err(|what| LogError::new(Remedy::Refuse, "looking up the rule", what))?;
            let reference = &self.content().rule;
            let rule = loaded.rules.rules.iter().find(|rule| rule.id == reference.id && rule.hash == reference.hash);
            if let Some(rule) = rule {
                self.rule = Some(RuleSays::of(rule, self.content()));
                self.set = Some(set.clone());
                return Ok(());
            }
        }
        self.set = after;
        Ok(())
    }

    fn say_evaluations(&mut self, watched: Vec<Evaluated>) {
        let content = self.content();
        let of_key: Vec<Evaluated> =
            watched.into_iter().filter(|seen| seen.key == content.key && seen.at <= content.at).collect();
        let inside = of_key.iter().position(|seen| seen.at >= content.condition_start).unwrap_or(of_key.len());
        let shown = of_key.into_iter().skip(inside.saturating_sub(1));
        let evaluations = shown.map(|seen| Evaluation::of(seen, content)).collect();
        self.evaluations = evaluations;
    }

    /// The replay has come to the alert, whatever it says of it.
    fn is_derived(&self) -> bool {
        !matches!(self.derived_again, DerivedAgain::NotPossible(_))
    }

    /// The evaluations shown reach back to where the condition began.
    fn begins_before_the_condition(&self) -> bool {
        let start = print_time(self.content().condition_start);
        self.content().kind == Kind::Technical || self.evaluations.first().is_some_and(|first| first.at <= start)
    }
}

fn in_force(derivation: &Derivation) -> Option<SetInForce> {
    derivation.in_force().map(|(number, hash)| SetInForce { number, hash: hash.to_owned() })
}

impl RuleSays {
    fn of(rule: &Rule, content: &Content) -> Self {
        let own = |name: &str| rule.limits.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let limit = |(name, value): (&String, &f64)| LimitUsed { name: name.clone(), value: *value, own: own(name) };
        Self {
            path: rule.path.clone(),
            owner: rule.owner.clone(),
            reference: rule.reference.clone(),
            hold_us: rule.hold_us,
            clear_hold_us: rule.clear_hold_us,
            latching: rule.latching,
            limits: content.limits.iter().map(limit).collect(),
        }
    }
}

impl Evaluation {
    /// Evaluations and evidence name what the rule reads in the same order.
    fn of(seen: Evaluated, content: &Content) -> Self {
        let signals = content.evidence.iter().map(|evidence| evidence.signal.clone());
        let signals = signals.chain(std::iter::repeat(String::new()));
        let values = seen.values.into_iter().zip(signals);
        Self {
            at: print_time(seen.at),
            raise: seen.raise,
            clear: seen.clear,
            values: values.map(|((function, value), signal)| ValueRead { signal, function, value }).collect(),
        }
    }

    fn says_the_same(&self, other: &Evaluation) -> bool {
        (self.raise, self.clear) == (other.raise, other.clear)
    }

    fn values_in_words(&self) -> String {
        let words = self.values.iter().map(|ValueRead { signal, function, value }| match value {
            Some(value) => format!("{signal} {function} = {}", (value * 1_000.0).round() / 1_000.0),
            None => format!("{signal} {function} unknown"),
        });
        words.collect::<Vec<String>>().join(", ")
    }
}

impl Explanation {
    /// The account in plain words.
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        // Writing into a text cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let content = self.content();
        let (transition, priority) = (content.transition.name(), content.priority.name());
        writeln!(text, "{} {transition} {priority} at {}", content.rule.id, print_time(content.at))?;
        writeln!(text, "  {}", content.message)?;
        match (content.patient.as_str(), content.key.as_str()) {
            ("-", key) => writeln!(text, "  about {key}, site {}", content.site)?,
            (patient, "-") => writeln!(text, "  patient {patient}, site {}", content.site)?,
            (patient, key) => writeln!(text, "  patient {patient}, {key}, site {}", content.site)?,
        }
        writeln!(text, "  transition {}", content.id)?;
        self.write_rule(text)?;
        self.write_why(text)?;
        self.write_when(text)?;
        if content.kind == Kind::Physiological {
            self.write_evaluations(text)?;
        }
        writeln!(text, "\nEpisode {}", content.episode)?;
        for line in &self.episode {
            writeln!(text, "  {line}")?;
        }
        self.write_proof(text)
    }

    fn write_rule(&self, text: &mut String) -> std::fmt::Result {
        let reference = &self.content().rule;
        writeln!(text, "\nRule")?;
        match &self.rule {
            Some(rule) => {
                writeln!(text, "  {} version {}, owner {}", reference.id, reference.version, rule.owner)?;
                writeln!(text, "  {}, SHA-256 {}", rule.path, reference.hash)?;
                if !rule.reference.is_empty() {
                    writeln!(text, "  reference: {}", rule.reference)?;
                }
                for LimitUsed { name, value, own } in &rule.limits {
                    match own {
                        Some(own) if own != value => {
                            writeln!(text, "  limit {name} {value}, set for this patient; the rule's own is {own}")?;
                        }
                        _ => writeln!(text, "  limit {name} {value}, the rule's own")?,
                    }
                }
            }
            None => writeln!(text, "  {} version {}: {}", reference.id, reference.version, own_alert(&reference.id))?,
        }
        if let Some(set) = &self.set {
            writeln!(text, "  rule set {} ({}) was in force", set.number, short(&set.hash))?;
        }
        Ok(())
    }

    fn write_why(&self, text: &mut String) -> std::fmt::Result {
        let content = self.content();
        writeln!(text, "\nWhy")?;
        if content.kind == Kind::Physiological {
            writeln!(text, "  the condition began at {}", print_time(content.condition_start))?;
        }
        if let Some(rule) = &self.rule {
            match content.transition {
                TransitionKind::Raised | TransitionKind::Escalated => {
                    writeln!(text, "  it had to last for {}, the rule's hold", duration::print(rule.hold_us))?;
                }
                TransitionKind::Cleared | TransitionKind::Latched | TransitionKind::Deescalated => {
                    let hold = duration::print(rule.clear_hold_us);
                    writeln!(text, "  to go down, it had to be clear or lower for {hold}, the rule's clear hold")?;
                }
                _ => {}
            }
        }
        let by =
            if content.by_timer { "a timer, between two readings" } else { "a reading or another record of the log" };
        writeln!(text, "  decided for {}, by {by}", print_time(content.at))?;
        for evidence in &content.evidence {
            let value = match (&evidence.state, evidence.value) {
                (Some(state), _) => state.clone(),
                (None, Some(value)) => format!("{value} {}", evidence.unit).trim_end().to_owned(),
                (None, None) => "unknown".to_owned(),
            };
            writeln!(text, "  read: {} {} = {value} (series {})", evidence.signal, evidence.function, evidence.series)?;
        }
        if !content.flags.is_empty() {
            writeln!(text, "  flags of the newest reading: {}", content.flags.join(", "))?;
        }
        Ok(())
    }

    fn write_when(&self, text: &mut String) -> std::fmt::Result {
        let (content, measured) = (self.content(), &self.alert.data.measured);
        writeln!(text, "\nWhen")?;
        if let Some(event_time) = content.event_time {
            writeln!(text, "  newest reading: measured at {}", print_time(event_time))?;
            if !content.by_timer {
                let age = duration::print(measured.basis_us - event_time);
                writeln!(text, "  data age {age}: from there to the broker")?;
            }
        }
        let delay = duration::print(content.intentional_delay_us);
        writeln!(text, "  intentional delay {delay}: from the beginning of the condition to here")?;
        let what = if content.by_timer { "canonical record that moved the clock" } else { "record that decided" };
        writeln!(text, "  appended by the broker at {}: the {what}", print_time(measured.basis_us))?;
        let latency = duration::print(measured.decided_us - measured.basis_us);
        let delayed = if measured.delayed { ", later than the budget" } else { "" };
        writeln!(text, "  decided at {}, {latency} after that{delayed}", print_time(measured.decided_us))
    }

    fn write_evaluations(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\nWhat the rule saw and said")?;
        let mut stretches: Vec<(&Evaluation, &Evaluation, usize)> = Vec::new();
        for evaluation in &self.evaluations {
            match stretches.last_mut() {
                Some((_, last, n)) if last.says_the_same(evaluation) => {
                    (*last, *n) = (evaluation, *n + 1);
                }
                _ => stretches.push((evaluation, evaluation, 1)),
            }
        }
        if !self.begins_before_the_condition() {
            writeln!(text, "  (evaluations before these were before the replay began, or too many to keep)")?;
        }
        let left_out = stretches.len().saturating_sub(LINES_MAX);
        if left_out > 0 {
            writeln!(text, "  ({left_out} stretches before are left out; `--json` has them)")?;
        }
        for (first, last, n) in stretches.into_iter().skip(left_out) {
            let clear = match first.clear {
                None => "unknown",
                Some(true) => "true",
                Some(false) => "false",
            };
            let (from, to) = (first.values_in_words(), last.values_in_words());
            let values = if from == to { from } else { format!("{from} … {to}") };
            let times = if n == 1 { "once".to_owned() } else { format!("{n} times, to {}", last.at) };
            writeln!(text, "  {} {times}: raise {}, clear {clear}; {values}", first.at, first.raise)?;
        }
        Ok(())
    }

    fn write_proof(&self, text: &mut String) -> std::fmt::Result {
        let measured = &self.alert.data.measured;
        writeln!(text, "\nProof")?;
        writeln!(text, "  decided by canonical partition {}, offset {}", measured.partition, measured.offset)?;
        if let Some(source) = &measured.source {
            let (topic, partition, offset) = (&source.topic, source.partition, source.offset);
            writeln!(text, "  newest reading from {topic}/{partition}, offset {offset}")?;
        }
        if let Some(ReplayedFrom { offset, is_checkpoint }) = self.replayed_from {
            let from = if is_checkpoint { "a checkpoint" } else { "the beginning of the log" };
            writeln!(text, "  replayed from {from}, canonical offset {offset}")?;
        }
        match &self.derived_again {
            DerivedAgain::Same => writeln!(text, "  derived again: the same, byte for byte"),
            DerivedAgain::Differs(what) => writeln!(text, "  derived again: NOT THE SAME: {what}"),
            DerivedAgain::NotGiven => writeln!(text, "  derived again: NO, the canonical log does not give it"),
            DerivedAgain::NotPossible(why) => writeln!(text, "  cannot be derived again: {why}"),
        }
    }
}

/// What the engine's own alerts mean.
fn own_alert(rule: &str) -> &'static str {
    match rule {
        "technical/stale" => {
            "an expected signal gave no sample for longer than it may; judged by its source's clock, not by ours"
        }
        "technical/clock" => "the device's clock is further from the broker's time than the settings allow",
        "technical/overrun" => "readings come faster than the rules' windows can hold",
        "technical/feed" => "a source was watched by nobody for a while, or lost records",
        "technical/budget" => "alerts took longer than the budget of 30 s",
        "technical/sink" => "a sink does not take alerts",
        "technical/replay" => "a replay gave another history than the committed one",
        "technical/canary" => "a reading of our own, which proves the path to every sink and is shown to nobody",
        _ => "the engine noticed this about itself or a device",
    }
}
