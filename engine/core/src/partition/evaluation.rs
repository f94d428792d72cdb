//! Evaluating rules: which are concerned, what they see, when their timers are due.

use wardbell_rules::evaluate::{Bound, Inputs};
use wardbell_rules::ir::{Function, Verdict};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::TransitionKind;
use wardbell_schemas::catalogue::Catalogue;

use super::clocks::Timer;
use super::plan::{Plan, RulePlan};
use super::series::Series;
use super::{Evaluated, KeyRef, Partition, Patient, RecordContext, State};
use crate::episode::Moment;
use crate::window;

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
    /// Answers of this series at this time that another rule has asked for already; for rules of one signal.
    pub answers: Option<&'a mut Answers>,
}

impl<'a> View<'a> {
    #[inline]
    pub fn new(
        plan: &'a Plan,
        rule: usize,
        catalogue: &'static Catalogue,
        state: &'a mut State,
        reads: &'a [Option<u32>],
        patient: u32,
        at: Micros,
    ) -> Self {
        let patient = &state.patients[patient as usize];
        Self { plan, rule: &plan.rules[rule], catalogue, series: &mut state.series, reads, patient, at, answers: None }
    }
}

/// What was asked of one series since its newest reading, by the places of the signal's questions.
#[derive(Debug, Default)]
pub(super) struct Answers {
    series: u32,
    known: Vec<Option<Option<f64>>>,
}

impl Answers {
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Answers what a rule of one signal asks with its feature, which takes no threshold.
    #[inline]
    fn answer(
        &mut self,
        plan: &Plan,
        rule: &RulePlan,
        feature: usize,
        index: u32,
        series: &mut Series,
        at: Micros,
    ) -> Option<f64> {
        let signal = plan.signal(series.signal_index());
        if self.series != index || self.known.is_empty() {
            self.series = index;
            self.known.clear();
            self.known.resize(signal.questions.len(), None);
        }
        *self.known[rule.shared[feature]].get_or_insert_with(|| {
            window::answer(&series.samples, &mut series.running, &signal.windows, &rule.questions[feature], 0.0, at)
        })
    }
}

impl Inputs for View<'_> {
    #[inline]
    fn feature(&mut self, feature: usize, threshold: f64) -> Option<f64> {
        let known = &self.rule.rule.features[feature];
        let Some(series) = self.reads[known.signal] else {
            // No series at all: nothing was counted, everything else is unknown.
            return matches!(known.function, Function::Count).then_some(0.0);
        };
        let question = &self.rule.questions[feature];
        let of_series = &mut self.series[series as usize];
        match self.answers.as_mut().filter(|_| !question.function.takes_threshold()) {
            Some(answers) => answers.answer(self.plan, self.rule, feature, series, of_series, self.at),
            None => {
                let windows = &self.plan.signal(of_series.signal_index()).windows;
                window::answer(&of_series.samples, &mut of_series.running, windows, question, threshold, self.at)
            }
        }
    }

    fn bound(&mut self, feature: usize) -> Option<Bound> {
        let known = &self.rule.rule.features[feature];
        let series = self.reads[known.signal].filter(|_| matches!(known.function, Function::Last))?;
        window::bound(&self.series[series as usize].samples, &self.rule.questions[feature], self.at)
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

    /// The key's clock, with its number: that of the series, or the smallest among the series it reads.
    pub(super) fn key_clock(&self, plan: &Plan, rule: usize, key: KeyRef) -> (Micros, u32) {
        let number = self.clock_of_key(plan, rule, key);
        (self.clock_now(number), number)
    }

    fn clock_of_key(&self, plan: &Plan, rule: usize, key: KeyRef) -> u32 {
        let patient = match key {
            KeyRef::Series(series) => return self.state.series[series as usize].clock,
            KeyRef::Patient(patient) => &self.state.patients[patient as usize],
        };
        let of_signals = || plan.rules[rule].rule.signals.iter().filter_map(|signal| patient.signal(*signal));
        let clock = |series: u32| self.state.series[series as usize].clock;
        let primary = of_signals().filter_map(|known| known.primary).map(clock);
        // Of two that agree, the one with the smaller name.
        let order = |a: &u32, b: &u32| {
            let of = |clock: &u32| (self.clock_now(*clock), self.state.clocks[*clock as usize].name.as_str());
            of(a).cmp(&of(b))
        };
        let smallest = primary.min_by(order);
        smallest.unwrap_or_else(|| {
            let any = of_signals().flat_map(|known| &known.series).map(|series| clock(*series));
            any.min_by(order).unwrap_or(0)
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
        if let KeyRef::Series(series) = key
            && self.passes_by(plan, rule, series)
        {
            return;
        }
        let Some(at) = self.evaluation_time(plan, rule, key) else {
            return;
        };
        let mut reads = std::mem::take(&mut self.scratch.reads);
        self.reads(plan, rule, key, &mut reads);
        let patient = self.patient_of(key);
        let rule_plan = &plan.rules[rule];
        let mut view = View::new(plan, rule, self.catalogue, &mut self.state, &reads, patient, at);
        view.answers = match key {
            KeyRef::Series(_) => Some(&mut self.scratch.answers),
            KeyRef::Patient(_) => None,
        };
        let bands = rule_plan.bands.as_ref().filter(|_| view.patient.limits.is_empty());
        let said = bands.and_then(|bands| bands.evaluate(&mut view));
        let (verdict, clear) = said.unwrap_or_else(|| rule_plan.rule.evaluate(&mut view));
        // Almost every evaluation ends here: nothing was going on and nothing begins.
        if self.trace.is_none() && !matches!(verdict, Verdict::True(_)) && view.patient.n_stale == 0 {
            let state = self.key_state_mut(plan, rule, key);
            if state.is_quiet() && state.pass(clear, at, rule_plan.certain_gap_us) {
                self.scratch.reads = reads;
                return;
            }
        }
        self.follow(plan, rule, key, at, verdict, clear, reads, context);
    }

    /// Where almost every evaluation ends: a rule that compares one feature, a series about which nothing was going on,
    /// and nothing begins. False if there is more to it: nothing has changed then.
    #[inline]
    fn passes_by(&mut self, plan: &Plan, rule: usize, index: u32) -> bool {
        let rule_plan = &plan.rules[rule];
        let series = &mut self.state.series[index as usize];
        let patient = &self.state.patients[series.patient as usize];
        let Some((bands, feature)) = rule_plan.bands.as_ref().and_then(|bands| Some((bands, bands.feature()?))) else {
            return false;
        };
        let state = &series.rules[rule_plan.slot];
        let untouched = state.is_quiet() && patient.n_stale == 0 && patient.limits.is_empty() && self.trace.is_none();
        let Some(at) = series.newest_t.max(state.evaluated_at).filter(|_| untouched) else {
            return false;
        };
        let answer = self.scratch.answers.answer(plan, rule_plan, feature, index, series, at);
        let Some((verdict, clear)) = answer.filter(|value| value.is_finite()).map(|value| bands.at(value)) else {
            return false;
        };
        !matches!(verdict, Verdict::True(_)) && series.rules[rule_plan.slot].pass(clear, at, rule_plan.certain_gap_us)
    }

    /// What an evaluation that may change something says.
    #[expect(clippy::too_many_arguments, reason = "the facts of one evaluation, each named at the call")]
    fn follow(
        &mut self,
        plan: &Plan,
        rule: usize,
        key: KeyRef,
        at: Micros,
        verdict: Verdict,
        clear: Option<bool>,
        reads: Vec<Option<u32>>,
        context: &RecordContext,
    ) {
        let (gap_us, restart_us) = self.gap(plan, rule, &reads);
        let (clock, clock_number) = self.key_clock(plan, rule, key);
        let patient = self.patient_of(key);
        let rule_plan = &plan.rules[rule];
        if let Some(trace) = &mut self.trace {
            let mut view = View::new(plan, rule, self.catalogue, &mut self.state, &reads, patient, at);
            let readings = rule_plan.rule.readings(&mut view);
            trace.push(Evaluated {
                rule: rule_plan.rule.id.clone(),
                patient: self.state.patient_names.name(patient).to_owned(),
                key: match key {
                    KeyRef::Series(series) => self.state.series[series as usize].key.clone(),
                    KeyRef::Patient(_) => "-".to_owned(),
                },
                at,
                raise: match verdict {
                    Verdict::Unknown => "unknown",
                    Verdict::False => "false",
                    Verdict::True(priority) => priority.name(),
                },
                clear,
                values: readings.into_iter().map(|read| (read.feature.text.clone(), read.value)).collect(),
            });
        }
        self.scratch.reads = reads;
        let moment = Moment { at, clock, clock_number, gap_us, restart_us };
        let mut steps = std::mem::take(&mut self.scratch.steps);
        steps.clear();
        let state = self.key_state_mut(plan, rule, key);
        let ends_held_back = verdict == Verdict::False && state.is_held_back(&rule_plan.rule);
        state.evaluate(&rule_plan.rule, verdict, clear, &moment, &mut steps);
        self.held_back += u64::from(ends_held_back);
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
        if self.key_clock(plan, rule, key).0 < due {
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
            let number = self.state.series[silent as usize].clock;
            let clock = (self.clock_now(number), number);
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
