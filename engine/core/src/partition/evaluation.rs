//! Evaluating rules: which are concerned, what they see, when their timers are due.

use wardbell_rules::evaluate::Inputs;
use wardbell_rules::ir::{Function, Verdict};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::TransitionKind;
use wardbell_schemas::catalogue::Catalogue;

use super::clocks::Timer;
use super::plan::{Plan, RulePlan};
use super::series::Series;
use super::{Evaluated, KeyRef, Partition, Patient, RecordContext};
use crate::episode::Moment;
use crate::window::{self, Question};

/// The frozen view of one key at one evaluation time.
pub(super) struct View<'a> {
    pub plan: &'a Plan,
    pub rule: &'a RulePlan,
    pub catalogue: &'static Catalogue,
    pub series: &'a mut [Series],
    /// For each signal of the rule, the series it reads.
    pub reads: &'a [Option<u32>],
    pub patient: &'a Patient,
    pub at: Micros,
}

impl Inputs for View<'_> {
    fn feature(&mut self, feature: usize, threshold: f64) -> Option<f64> {
        let rule = &self.rule.rule;
        let known = &rule.features[feature];
        let Some(series) = self.reads[known.signal] else {
            // No series at all: nothing was counted, everything else is unknown.
            return matches!(known.function, Function::Count).then_some(0.0);
        };
        let signal = self.catalogue.signal(rule.signals[known.signal]);
        let question = Question {
            function: known.function,
            window: self.rule.windows[feature],
            accept_questionable: rule.accept_questionable,
            max_age_us: Some(rule.max_age_us.unwrap_or(signal.stale_after_us)).filter(|age| *age > 0),
            threshold,
            per_unit: signal.per_unit,
        };
        let series = &mut self.series[series as usize];
        let windows = &self.plan.signal(signal.index).windows;
        window::answer(&series.samples, &mut series.running, windows, &question, self.at)
    }

    fn limit(&self, limit: usize) -> Option<f64> {
        let (name, default) = self.rule.rule.limits.get(limit)?;
        if self.patient.limits.is_empty() {
            return Some(*default);
        }
        Some(self.patient.limits.get(name).copied().unwrap_or(*default))
    }

    fn attribute(&self, attribute: usize) -> Option<f64> {
        self.patient.attributes.get(self.rule.rule.attributes.get(attribute)?).copied()
    }
}

impl Partition {
    /// The rules and keys that an accepted reading of this series concerns, in the order of rule ids.
    pub(super) fn add_concerned(&self, series: u32, concerned: &mut Vec<(usize, KeyRef)>) {
        let known = &self.state.series[series as usize];
        for rule in &self.plan.signal(known.signal_index()).readers {
            let of_patient = self.plan.rules[*rule].rule.is_of_patient();
            concerned.push((*rule, if of_patient { KeyRef::Patient(known.patient) } else { KeyRef::Series(series) }));
        }
    }

    /// (rule id, patient, key), each once.
    pub(super) fn order_concerned(&self, concerned: &mut Vec<(usize, KeyRef)>) {
        let text = |key: &KeyRef| (self.state.patient_names.name(self.patient_of(*key)), self.key_text(*key));
        concerned.sort_by(|(rule_a, a), (rule_b, b)| rule_a.cmp(rule_b).then_with(|| text(a).cmp(&text(b))));
        concerned.dedup();
    }

    /// The series a rule reads for a key.
    pub(super) fn reads(&self, plan: &Plan, rule: usize, key: KeyRef, reads: &mut Vec<Option<u32>>) {
        reads.clear();
        match key {
            KeyRef::Series(series) => reads.push(Some(series)),
            KeyRef::Patient(patient) => {
                let patient = &self.state.patients[patient as usize];
                let signals = &plan.rules[rule].rule.signals;
                reads.extend(signals.iter().map(|signal| patient.signal(*signal).and_then(|known| known.primary)));
            }
        }
    }

    /// The key's clock: of the series, or the smallest among the series it reads.
    pub(super) fn key_clock(&self, plan: &Plan, rule: usize, key: KeyRef) -> Micros {
        self.clock_now(self.clock_of_key(plan, rule, key))
    }

    fn clock_of_key(&self, plan: &Plan, rule: usize, key: KeyRef) -> u32 {
        let patient = match key {
            KeyRef::Series(series) => return self.state.series[series as usize].clock,
            KeyRef::Patient(patient) => &self.state.patients[patient as usize],
        };
        let of_signals = || plan.rules[rule].rule.signals.iter().filter_map(|signal| patient.signal(*signal));
        let clock = |series: u32| self.state.series[series as usize].clock;
        let primary = of_signals().filter_map(|known| known.primary).map(clock);
        let smallest = primary.min_by_key(|clock| (self.clock_now(*clock), *clock));
        smallest.unwrap_or_else(|| {
            let any = of_signals().flat_map(|known| &known.series).map(|series| clock(*series));
            any.min_by_key(|clock| (self.clock_now(*clock), *clock)).unwrap_or(0)
        })
    }

    /// The allowed gap G and the distance that starts a run again; `None`: infinite.
    fn gap(&self, plan: &Plan, rule: usize, reads: &[Option<u32>]) -> (Option<Micros>, Option<Micros>) {
        let rule = &plan.rules[rule].rule;
        let mut expected = None;
        let mut longest_stale = Some(0);
        for series in reads.iter().flatten() {
            let series = &self.state.series[*series as usize];
            let signal = self.catalogue.signal(series.signal_index());
            expected = expected.max(series.intervals.expected(signal.typical_interval_us));
            longest_stale = match signal.stale_after_us {
                0 => None,
                stale => longest_stale.map(|longest| longest.max(stale)),
            };
        }
        let gap = rule.gap_us.or(expected.map(|expected| 2 * expected));
        (gap, gap.zip(longest_stale).map(|(gap, stale)| gap.max(stale)))
    }

    /// `T` of an evaluation now: the largest `t` of the series concerned, never below the evaluation before.
    fn evaluation_time(&self, plan: &Plan, rule: usize, key: KeyRef) -> Option<Micros> {
        let newest = match key {
            KeyRef::Series(series) => self.state.series[series as usize].newest_t,
            KeyRef::Patient(patient) => {
                let patient = &self.state.patients[patient as usize];
                let signals = plan.rules[rule].rule.signals.iter().filter_map(|signal| patient.signal(*signal));
                let series = signals.flat_map(|known| &known.series);
                series.filter_map(|series| self.state.series[*series as usize].newest_t).max()
            }
        };
        newest.max(self.key_state(plan, rule, key).evaluated_at)
    }

    /// Evaluates one rule for one key and says what follows.
    pub(super) fn evaluate(&mut self, plan: &Plan, rule: usize, key: KeyRef, context: &RecordContext) {
        let Some(at) = self.evaluation_time(plan, rule, key) else {
            return;
        };
        let mut reads = std::mem::take(&mut self.scratch.reads);
        self.reads(plan, rule, key, &mut reads);
        let (gap_us, restart_us) = self.gap(plan, rule, &reads);
        let clock = self.key_clock(plan, rule, key);
        let patient = self.patient_of(key);
        let rule_plan = &plan.rules[rule];
        let mut view = View {
            plan,
            rule: rule_plan,
            catalogue: self.catalogue,
            series: &mut self.state.series,
            reads: &reads,
            patient: &self.state.patients[patient as usize],
            at,
        };
        let (verdict, clear) = rule_plan.rule.evaluate(&mut view);
        if let Some(trace) = &mut self.trace {
            let readings = rule_plan.rule.readings(&mut view);
            trace.push(Evaluated {
                rule: rule_plan.rule.id.clone(),
                patient: self.state.patient_names.name(patient).to_owned(),
                key: match key {
                    KeyRef::Series(series) => view.series[series as usize].key.clone(),
                    KeyRef::Patient(_) => "-".to_owned(),
                },
                at,
                raise: match verdict {
                    Verdict::Unknown => "unknown",
                    Verdict::False => "false",
                    Verdict::True(priority) => priority.name(),
                },
                clear,
                values: readings.into_iter().map(|(feature, value, _)| (feature.text.clone(), value)).collect(),
            });
        }
        self.scratch.reads = reads;
        let moment = Moment { at, clock, gap_us, restart_us };
        let mut steps = std::mem::take(&mut self.scratch.steps);
        steps.clear();
        let state = self.key_state_mut(plan, rule, key);
        state.evaluate(&rule_plan.rule, verdict, clear, &moment, &mut steps);
        for step in &steps {
            self.say(plan, rule, key, step, context.basis_us);
        }
        self.scratch.steps = steps;
        self.arm_hold(plan, rule, key, clock);
        if let KeyRef::Series(series) = key
            && self.state.patients[patient as usize].n_stale > 0
        {
            self.supersede_episodes(plan, rule, series, context);
        }
    }

    /// Arms the next timer of a rule and key that is due after `after`.
    fn arm_hold(&mut self, plan: &Plan, rule: usize, key: KeyRef, after: Micros) {
        let state = self.key_state(plan, rule, key);
        let due = state.next_due(&plan.rules[rule].rule, after);
        if due == state.armed {
            return;
        }
        self.key_state_mut(plan, rule, key).armed = due;
        if let Some(due) = due {
            let clock = self.clock_of_key(plan, rule, key);
            self.state.clocks[clock as usize].arm(due, hold_timer(rule, key));
        }
    }

    /// Arms every hold anew, on the clock its key has now.
    pub(super) fn rearm_holds(&mut self, plan: &Plan) {
        for patient in 0..self.state.patients.len() as u32 {
            self.rearm_holds_of_patient(plan, patient);
        }
        for series in 0..self.state.series.len() as u32 {
            self.rearm_holds_of_series(plan, series);
        }
    }

    pub(super) fn rearm_holds_of_patient(&mut self, plan: &Plan, patient: u32) {
        for rule in &plan.of_patient {
            self.rearm_hold(plan, *rule, KeyRef::Patient(patient));
        }
    }

    pub(super) fn rearm_holds_of_series(&mut self, plan: &Plan, series: u32) {
        let known = &self.state.series[series as usize];
        if !known.alive {
            return;
        }
        for rule in &plan.signal(known.signal_index()).of_series {
            self.rearm_hold(plan, *rule, KeyRef::Series(series));
        }
    }

    fn rearm_hold(&mut self, plan: &Plan, rule: usize, key: KeyRef) {
        if self.state.clocks.is_empty() {
            return;
        }
        // What an open episode needs to be found by people comes from its state.
        if let Some(open) = self.key_state(plan, rule, key).open() {
            let id = self.episode_id(plan, rule, key, open.start);
            self.open.insert(id.0, (rule, key));
        }
        self.key_state_mut(plan, rule, key).armed = None;
        // The key's clock may be another one now and past the due value already: then it fires with the next movement.
        self.arm_hold(plan, rule, key, Micros::MIN);
    }

    /// A hold's timer fired: it may raise or escalate.
    pub(super) fn hold_if_due(&mut self, plan: &Plan, rule: usize, key: KeyRef, due: Micros) {
        if self.is_gone(plan, rule, key) || self.key_state(plan, rule, key).armed != Some(due) {
            return;
        }
        self.key_state_mut(plan, rule, key).armed = None;
        if self.key_clock(plan, rule, key) < due {
            // Another of the series it reads is behind: wait for that one's clock.
            let clock = self.clock_of_key(plan, rule, key);
            self.key_state_mut(plan, rule, key).armed = Some(due);
            self.state.clocks[clock as usize].arm(due, hold_timer(rule, key));
            return;
        }
        let mut reads = std::mem::take(&mut self.scratch.reads);
        self.reads(plan, rule, key, &mut reads);
        let (gap_us, _) = self.gap(plan, rule, &reads);
        self.scratch.reads = reads;
        let mut steps = std::mem::take(&mut self.scratch.steps);
        steps.clear();
        self.key_state_mut(plan, rule, key).fire(&plan.rules[rule].rule, due, gap_us, &mut steps);
        for step in &steps {
            self.say(plan, rule, key, step, None);
        }
        self.scratch.steps = steps;
        self.arm_hold(plan, rule, key, due);
    }

    /// The key was forgotten since the timer was armed.
    fn is_gone(&self, plan: &Plan, rule: usize, key: KeyRef) -> bool {
        match key {
            KeyRef::Series(series) => {
                let series = &self.state.series[series as usize];
                !series.alive || plan.rules[rule].rule.signals[0] != series.signal_index()
            }
            KeyRef::Patient(_) => false,
        }
    }

    /// What a silent device left open ends once the same rule has been clear on another series for long enough.
    fn supersede_episodes(&mut self, plan: &Plan, rule: usize, series: u32, context: &RecordContext) {
        let rule_plan = &plan.rules[rule];
        let clear_for = self.state.series[series as usize].rules[rule_plan.slot].clear_for();
        if clear_for.is_none_or(|length| length < rule_plan.rule.clear_hold_us) {
            return;
        }
        let at = self.evaluation_time(plan, rule, KeyRef::Series(series)).unwrap_or(context.broker);
        for silent in self.silent_siblings(series) {
            let clock = self.clock_now(self.state.series[silent as usize].clock);
            let state = &mut self.state.series[silent as usize].rules[rule_plan.slot];
            if let Some(step) = state.clear_or_latch(&rule_plan.rule, TransitionKind::Superseded, at, clock) {
                state.armed = None;
                self.say(plan, rule, KeyRef::Series(silent), &step, context.basis_us);
            }
        }
    }

    /// Stale series of the same patient, signal and method that fell silent before this one's newest sample, in the order
    /// of their keys.
    fn silent_siblings(&self, series: u32) -> Vec<u32> {
        let own = &self.state.series[series as usize];
        let patient = &self.state.patients[own.patient as usize];
        let group = patient.signal(own.signal_index()).map_or(&[][..], |known| &known.series);
        let silent = |index: &u32| {
            let other = &self.state.series[*index as usize];
            let spoke = own.newest_sample > other.silence.stale_since;
            *index != series && other.method == own.method && other.silence.is_stale && spoke
        };
        let mut siblings: Vec<u32> = group.iter().copied().filter(silent).collect();
        siblings.sort_by(|a, b| self.state.series[*a as usize].key.cmp(&self.state.series[*b as usize].key));
        siblings
    }
}

fn hold_timer(rule: usize, key: KeyRef) -> Timer {
    let rule = rule as u32;
    match key {
        KeyRef::Series(series) => Timer::HoldOfSeries { series, rule },
        KeyRef::Patient(patient) => Timer::HoldOfPatient { patient, rule },
    }
}
