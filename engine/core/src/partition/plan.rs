//! The rule set, arranged by what readings need: per signal its windows and the rules that read it.

use std::sync::Arc;

use wardbell_rules::ir::Function;
use wardbell_rules::{Bands, Rule, RuleSet};
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::{Catalogue, SignalIndex};

use crate::window::{Needs, Question, WindowPlan};

/// One rule with its place in the plan.
#[derive(Debug)]
pub struct RulePlan {
    pub rule: Arc<Rule>,
    /// For rules that compare one number with limits: the fast way to decide.
    pub bands: Option<Bands>,
    /// For each feature of the rule, what is asked of its series.
    pub questions: Vec<Question>,
    /// For rules of one signal: each feature's place among the signal's, where rules share answers.
    pub shared: Vec<usize>,
    /// The allowed gap is never shorter than this.
    pub certain_gap_us: Micros,
    /// Index among the rules of its signal (key: series) or among the rules of patients (key: patient).
    pub slot: usize,
}

/// What the plan knows of one signal.
#[derive(Debug, Default)]
pub struct SignalPlan {
    pub windows: Vec<WindowPlan>,
    /// Length of the longest window; 0 without one.
    pub longest_us: Micros,
    /// Rules whose key is the series, in the order of their ids, as indexes into [`Plan::rules`].
    pub of_series: Vec<usize>,
    /// All rules that read the signal, in the order of their ids.
    pub readers: Vec<usize>,
    /// What rules whose key is the series ask of it, each question once.
    pub questions: Vec<Question>,
}

/// A rule set ready to run.
#[derive(Debug)]
pub struct Plan {
    /// In the order of their ids.
    pub rules: Vec<RulePlan>,
    pub signals: Vec<SignalPlan>,
    /// Rules whose key is the patient, in the order of their ids, as indexes into `rules`.
    pub of_patient: Vec<usize>,
    pub set: RuleSet,
}

impl Plan {
    pub fn new(set: &RuleSet, catalogue: &Catalogue) -> Self {
        let mut signals: Vec<SignalPlan> = catalogue.signals().iter().map(|_| SignalPlan::default()).collect();
        let mut rules = Vec::new();
        let mut of_patient = Vec::new();
        // Rules of one and the same set of signals are evaluated at the same times, so they share windows.
        let mut classes: Vec<Vec<SignalIndex>> = Vec::new();
        for (index, rule) in set.rules.iter().enumerate() {
            let class = if rule.is_of_patient() {
                let mut key = rule.signals.clone();
                key.sort_unstable();
                let known = classes.iter().position(|class| *class == key);
                1 + known.unwrap_or_else(|| {
                    classes.push(key);
                    classes.len() - 1
                })
            } else {
                0
            };
            let mut shared = Vec::new();
            let questions: Vec<Question> = rule
                .features
                .iter()
                .map(|feature| {
                    let signal = catalogue.signal(rule.signals[feature.signal]);
                    let plan = &mut signals[usize::from(signal.index.0)];
                    let windowless = matches!(feature.function, Function::Last | Function::Prev | Function::Age);
                    let window = (!windowless).then(|| {
                        let wanted = WindowPlan {
                            length_us: feature.window_us,
                            class,
                            accept_questionable: rule.accept_questionable,
                            needs: Needs::of(feature.function),
                        };
                        plan.longest_us = plan.longest_us.max(feature.window_us);
                        share_window(&mut plan.windows, wanted)
                    });
                    let question = Question {
                        function: feature.function,
                        window,
                        accept_questionable: rule.accept_questionable,
                        max_age_us: Some(rule.max_age_us.unwrap_or(signal.stale_after_us)).filter(|age| *age > 0),
                        per_unit: signal.per_unit,
                    };
                    if !rule.is_of_patient() {
                        let known = plan.questions.iter().position(|known| *known == question);
                        shared.push(known.unwrap_or_else(|| {
                            plan.questions.push(question);
                            plan.questions.len() - 1
                        }));
                    }
                    question
                })
                .collect();
            let typical = rule.signals.iter().map(|signal| catalogue.signal(*signal).typical_interval_us).min();
            let certain_gap_us = rule.gap_us.unwrap_or(2 * typical.unwrap_or(0));
            for signal in &rule.signals {
                signals[usize::from(signal.0)].readers.push(index);
            }
            let home = if rule.is_of_patient() {
                &mut of_patient
            } else {
                &mut signals[usize::from(rule.signals[0].0)].of_series
            };
            let slot = home.len();
            home.push(index);
            let bands = Bands::of(rule);
            rules.push(RulePlan { rule: rule.clone(), bands, questions, shared, certain_gap_us, slot });
        }
        Self { rules, signals, of_patient, set: set.clone() }
    }

    pub fn signal(&self, index: SignalIndex) -> &SignalPlan {
        &self.signals[usize::from(index.0)]
    }
}

fn share_window(windows: &mut Vec<WindowPlan>, wanted: WindowPlan) -> usize {
    let same = |known: &WindowPlan| {
        (known.length_us, known.class, known.accept_questionable)
            == (wanted.length_us, wanted.class, wanted.accept_questionable)
    };
    match windows.iter().position(same) {
        Some(index) => {
            windows[index].needs = windows[index].needs.union(wanted.needs);
            index
        }
        None => {
            windows.push(wanted);
            windows.len() - 1
        }
    }
}
