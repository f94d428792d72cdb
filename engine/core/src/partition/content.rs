//! Saying a transition: everything about it that must be the same in every run.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use wardbell_rules::evaluate::Inputs;
use wardbell_rules::rule::Read;
use wardbell_schemas::Micros;
use wardbell_schemas::alert::{
    CANARY_RULE, Content, EpisodeId, Evidence, Kind, Priority, RuleReference, TransitionKind,
};
use wardbell_schemas::duration;
use wardbell_schemas::reading::{ReadingRow, SourcePosition};

use super::evaluation::View;
use super::plan::Plan;
use super::series::{Position, Series};
use super::{Decided, KeyRef, Noticed, Partition, SEMANTICS};
use crate::episode::Step;

/// Rule ids of the engine's own alerts.
pub const STALE: &str = "technical/stale";
pub const CLOCK: &str = "technical/clock";
pub const OVERRUN: &str = "technical/overrun";
pub const FEED: &str = "technical/feed";

/// One transition of a technical alert.
#[derive(Debug, Clone, Copy)]
pub(super) struct TechnicalStep {
    pub kind: TransitionKind,
    pub at: Micros,
    pub start: Micros,
    pub raised_at: Micros,
    pub number: u32,
}

impl Partition {
    pub(super) fn episode_id(&self, plan: &Plan, rule: usize, key: KeyRef, start: Micros) -> EpisodeId {
        let patient = self.state.patient_names.name(self.patient_of(key));
        EpisodeId::new(&self.settings.site, &plan.rules[rule].rule.id, patient, self.key_text(key), start)
    }

    /// Says a transition of a rule's episode.
    pub(super) fn say(&mut self, plan: &Plan, rule: usize, key: KeyRef, step: &Step, basis_us: Option<Micros>) {
        let id = self.episode_id(plan, rule, key, step.start);
        match step.kind.state() {
            wardbell_schemas::alert::State::Off => self.open.remove(&id.0),
            _ => self.open.insert(id.0, (rule, key)),
        };
        let mut reads = Vec::new();
        self.reads(plan, rule, key, &mut reads);
        let patient = self.patient_of(key);
        let at = self.key_state(plan, rule, key).evaluated_at.unwrap_or(step.at);
        let checked = &plan.rules[rule].rule;
        let newest = reads.iter().flatten().copied().max_by_key(|series| {
            let series = &self.state.series[*series as usize];
            (series.newest_t, series.newest_source.map(|position| position.offset))
        });
        let mut view = View::new(plan, rule, self.catalogue, &mut self.state, &reads, patient, at);
        let (message, fault) = checked.message(view.catalogue, &mut view);
        let limits: BTreeMap<String, f64> = checked
            .limits
            .iter()
            .enumerate()
            .filter_map(|(i, (name, _))| Some((name.clone(), view.limit(i)?)))
            .collect();
        let readings = checked.readings(&mut view);
        let evidence = readings
            .into_iter()
            .map(|Read { feature, value, threshold, bound }| {
                let signal = self.catalogue.signal(checked.signals[feature.signal]);
                let series = reads[feature.signal].map(|series| &self.state.series[series as usize]);
                let in_unit = feature.function.in_signal_unit();
                let state = value.filter(|_| signal.is_category() && in_unit).map(|value| signal.print(value as i64));
                let known_to = bound.map(|bound| format!("{}{}", bound.symbol(), signal.print_f64(bound.value())));
                let function = match threshold {
                    Some(threshold) => {
                        let name = feature.text.split('(').next().unwrap_or_default();
                        format!("{name}({threshold}, \"{}\")", duration::print(feature.window_us))
                    }
                    None => feature.text.clone(),
                };
                Evidence {
                    signal: signal.id.clone(),
                    series: series.map_or_else(|| "-".to_owned(), |series| series.key.clone()),
                    function,
                    value,
                    state: state.or(known_to),
                    unit: if in_unit { signal.unit.clone() } else { String::new() },
                }
            })
            .collect();
        if fault.is_some() {
            self.message_faults += 1;
        }
        let newest = newest.map(|series| &self.state.series[series as usize]);
        let content = Content {
            id: format!("{id}.{}", step.number),
            episode: id.to_string(),
            number: step.number,
            transition: step.kind,
            state: step.kind.state(),
            kind: Kind::Physiological,
            priority: step.priority,
            site: self.settings.site.clone(),
            rule: RuleReference { id: checked.id.clone(), version: checked.version, hash: checked.hash.clone() },
            raised_by_version: step.raised_by_version,
            patient: self.state.patient_names.name(patient).to_owned(),
            key: self.key_text(key).to_owned(),
            at: step.at,
            condition_start: step.condition_start,
            episode_start: step.start,
            intentional_delay_us: step.at - step.condition_start,
            by_timer: step.by_timer,
            message,
            evidence,
            limits,
            event_time: newest.map(|series| series.newest_event),
            flags: newest.map(Series::flags).unwrap_or_default(),
        };
        let source = newest.and_then(|series| series.newest_source).map(|position| self.position(position));
        self.push(content, if step.by_timer { None } else { basis_us }, source);
    }

    /// Says a technical transition whose key is a series, if there is one.
    pub(super) fn say_of_series(
        &mut self,
        rule: &'static str,
        index: u32,
        step: Option<TechnicalStep>,
        basis_us: Option<Micros>,
    ) {
        let Some(step) = step else {
            return;
        };
        let series = &self.state.series[index as usize];
        let display = &self.catalogue.signal(series.signal_index()).display;
        let device = self.state.device_names.name(series.device);
        let message = match (rule, step.kind) {
            (STALE, TransitionKind::Raised) => format!("no {display} from device {device}: not measured is not normal"),
            (STALE, TransitionKind::Superseded) => format!("{display} comes from another device than {device} now"),
            (STALE, TransitionKind::Cleared) if series.silence.deadline.is_none() => {
                format!("{display} from device {device} is not expected: it is switched off")
            }
            (STALE, TransitionKind::Expired) => format!("{display} from device {device} is not expected any more"),
            (STALE, _) => format!("{display} from device {device} is measured again"),
            (_, TransitionKind::Raised) => {
                format!("{display} from device {device} comes faster than its windows can hold")
            }
            (_, TransitionKind::Expired) => format!("{display} from device {device} is not followed any more"),
            _ => format!("windows of {display} from device {device} are whole again"),
        };
        let (patient, key, source) = (series.patient, series.key.clone(), series.newest_source);
        self.say_technical(rule, patient, &key, Priority::Low, &step, message, source, basis_us);
    }

    /// Says a transition of `technical/feed`, if there is one.
    pub(super) fn say_of_feed(&mut self, clock: u32, step: Option<TechnicalStep>, message: String) {
        let Some(step) = step else {
            return;
        };
        let key = self.state.clocks[clock as usize].name.clone();
        let content = self.technical_content(FEED, "-", &key, Priority::High, &step, message);
        self.push(content, None, None);
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one transition, each named at the call")]
    pub(super) fn say_technical(
        &mut self,
        rule: &'static str,
        patient: u32,
        key: &str,
        priority: Priority,
        step: &TechnicalStep,
        message: String,
        source: Option<Position>,
        basis_us: Option<Micros>,
    ) {
        let name = self.state.patient_names.name(patient).to_owned();
        let content = self.technical_content(rule, &name, key, priority, step, message);
        let source = source.map(|position| self.position(position));
        self.push(content, basis_us, source);
    }

    /// Says what the job noticed about itself, and no longer does.
    pub(super) fn say_noticed(&mut self, noticed: &Noticed, step: &TechnicalStep, message: String) {
        let content = self.technical_content(&noticed.rule, "-", &noticed.key, noticed.priority, step, message);
        self.push(content, None, None);
    }

    /// A canary reading has come through: a transition that sinks take and nobody sees.
    pub(super) fn say_canary(&mut self, row: &ReadingRow<'_>) {
        let at = row.event_time_us;
        let step = TechnicalStep { kind: TransitionKind::Raised, at, start: at, raised_at: at, number: 0 };
        let content = self.technical_content(CANARY_RULE, "-", row.patient, Priority::Low, &step, String::new());
        self.push(content, None, None);
    }

    fn technical_content(
        &self,
        rule: &str,
        patient: &str,
        key: &str,
        priority: Priority,
        step: &TechnicalStep,
        message: String,
    ) -> Content {
        let id = EpisodeId::new(&self.settings.site, rule, patient, key, step.start);
        Content {
            id: format!("{id}.{}", step.number),
            episode: id.to_string(),
            number: step.number,
            transition: step.kind,
            state: step.kind.state(),
            kind: Kind::Technical,
            priority,
            site: self.settings.site.clone(),
            rule: RuleReference { id: rule.to_owned(), version: SEMANTICS, hash: String::new() },
            raised_by_version: SEMANTICS,
            patient: patient.to_owned(),
            key: key.to_owned(),
            at: step.at,
            condition_start: step.raised_at,
            episode_start: step.start,
            intentional_delay_us: 0,
            by_timer: rule == STALE && step.kind == TransitionKind::Raised,
            message,
            evidence: Vec::new(),
            limits: BTreeMap::new(),
            event_time: None,
            flags: Vec::new(),
        }
    }

    fn position(&self, position: Position) -> SourcePosition {
        let feed = &self.state.feeds[position.feed as usize];
        SourcePosition {
            topic: feed.topic.clone(),
            partition: feed.partition,
            offset: position.offset,
            index: position.index,
        }
    }

    fn push(&mut self, content: Content, basis_us: Option<Micros>, source: Option<SourcePosition>) {
        self.state.transitions += 1;
        self.add_to_digest(&content);
        self.decided.push(Decided { content, basis_us, source });
    }

    pub(super) fn add_to_digest(&mut self, content: &Content) {
        let digest = Sha256::new()
            .chain_update(self.state.digest)
            .chain_update(&content.id)
            .chain_update(content.transition.name())
            .chain_update(content.priority.name())
            .chain_update(content.at.to_le_bytes())
            .finalize();
        self.state.digest.copy_from_slice(&digest[..16]);
    }
}
