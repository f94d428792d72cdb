//! `message`: the sentence of an alert, made by Rhai itself, only when a transition happens.
//!
//! The parameters are the same as those of `raise`; what they give prints at the signal's resolution, and an unknown
//! value prints as `unknown`. Everything the message reads was found when the file was checked, so the windows it needs
//! exist. Operations, depth and sizes are bounded; a fault gives the plain message and is counted by the caller.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rhai::{AST, CallFnOptions, Dynamic, Engine, EvalAltResult, ImmutableString, Scope};
use wardbell_schemas::catalogue::Signal;
use wardbell_schemas::duration;

use crate::evaluate::{self, Inputs};
use crate::ir::{Feature, Number};
use crate::lower::BoundParameter;

/// Operations one message may take; a sentence takes about a hundred.
const OPERATIONS_MAX: u64 = 20_000;
/// Longest message, in characters: one line on a pager.
const CHARACTERS_MAX: usize = 500;

/// The message function of one rule.
#[derive(Debug, Clone)]
pub struct Message {
    pub ast: Arc<AST>,
    pub parameters: Vec<BoundParameter>,
    /// Features it reads, each with its threshold.
    pub reads: Vec<(usize, Option<Number>)>,
}

/// Why a message could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message of the rule failed at line {line}, column {column}: {what}")]
pub struct MessageFault {
    pub line: usize,
    pub column: usize,
    pub what: String,
}

/// What a message can see, by name.
#[derive(Debug, Default)]
struct Seen {
    features: HashMap<String, Shown>,
    limits: HashMap<String, f64>,
    attributes: HashMap<String, f64>,
}

#[derive(Debug, Clone)]
struct SignalView(usize, Arc<Seen>);
#[derive(Debug, Clone)]
struct LimitView(Arc<Seen>);
#[derive(Debug, Clone)]
struct PatientView(Arc<Seen>);

/// A number as it will be read.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    value: Option<f64>,
    text: String,
}

impl Shown {
    fn unknown() -> Self {
        Self { value: None, text: "unknown".to_owned() }
    }

    fn plain(value: f64) -> Self {
        // Twelve significant digits hide what double arithmetic adds to 38.1 - 37.
        let rounded = format!("{value:.9}");
        let text = rounded.trim_end_matches('0').trim_end_matches('.').to_owned();
        Self { value: value.is_finite().then_some(value), text }
    }
}

impl Message {
    /// Makes the sentence from the view of one key.
    ///
    /// # Errors
    /// [`MessageFault`] with the place in the rule file.
    pub fn make(
        &self,
        features: &[Feature],
        signals: &[&Signal],
        limits: &[String],
        attributes: &[String],
        inputs: &mut impl Inputs,
    ) -> Result<String, MessageFault> {
        let mut seen = Seen::default();
        for (feature, threshold) in &self.reads {
            let threshold = threshold.as_ref().map(|number| evaluate::number(number, inputs));
            let value = match threshold {
                Some(None) => None,
                Some(Some(threshold)) => inputs.feature(*feature, threshold),
                None => inputs.feature(*feature, 0.0),
            };
            let known = &features[*feature];
            let key = match threshold {
                Some(threshold) => threshold_key(known.signal, name_of(&known.text), threshold, known.window_us),
                None => key(known.signal, &known.text),
            };
            let mut shown = show(value, known, signals[known.signal]);
            if value.is_none()
                && let Some(bound) = inputs.bound(*feature)
            {
                shown.text = format!("{}{}", bound.symbol(), signals[known.signal].print_f64(bound.value()));
            }
            seen.features.insert(key, shown);
        }
        for (i, name) in limits.iter().enumerate() {
            seen.limits.extend(inputs.limit(i).map(|value| (name.clone(), value)));
        }
        for (i, name) in attributes.iter().enumerate() {
            seen.attributes.extend(inputs.attribute(i).map(|value| (name.clone(), value)));
        }
        let seen = Arc::new(seen);
        let arguments: Vec<Dynamic> = self
            .parameters
            .iter()
            .map(|parameter| match parameter {
                BoundParameter::Signal(signal) => Dynamic::from(SignalView(*signal, seen.clone())),
                BoundParameter::Limits => Dynamic::from(LimitView(seen.clone())),
                BoundParameter::Patient | BoundParameter::Faulty => Dynamic::from(PatientView(seen.clone())),
            })
            .collect();
        let options = CallFnOptions::new().eval_ast(false);
        let result: Result<Dynamic, Box<EvalAltResult>> =
            engine().call_fn_with_options(options, &mut Scope::new(), &self.ast, "message", arguments);
        match result {
            Ok(text) => Ok(text.to_string().chars().take(CHARACTERS_MAX).collect()),
            Err(error) => {
                let position = innermost(&error);
                Err(MessageFault {
                    line: position.line().unwrap_or(0),
                    column: position.position().unwrap_or(0),
                    what: error.to_string(),
                })
            }
        }
    }
}

/// The place in the file, below the call of `message` itself.
fn innermost(error: &EvalAltResult) -> rhai::Position {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, position) => {
            let inner = innermost(inner);
            if inner.is_none() { *position } else { inner }
        }
        other => other.position(),
    }
}

fn show(value: Option<f64>, feature: &Feature, signal: &Signal) -> Shown {
    let Some(number) = value else {
        return Shown::unknown();
    };
    let text = if signal.is_category() && feature.function.in_signal_unit() {
        signal.print(number as i64)
    } else if feature.function.in_signal_unit() {
        signal.print_f64(number)
    } else {
        Shown::plain(number).text
    };
    Shown { value, text }
}

fn key(signal: usize, text: &str) -> String {
    format!("{signal}.{text}")
}

fn name_of(text: &str) -> &str {
    text.split('(').next().unwrap_or(text)
}

fn threshold_key(signal: usize, name: &str, threshold: Option<f64>, window_us: i64) -> String {
    format!("{signal}.{name}({threshold:?}, {window_us})")
}

impl SignalView {
    fn get(&self, text: &str) -> Shown {
        self.1.features.get(&key(self.0, text)).cloned().unwrap_or_else(Shown::unknown)
    }

    fn window(&self, name: &str, window: &str) -> Shown {
        match duration::parse(window) {
            Ok(us) => self.get(&format!("{name}(\"{}\")", duration::print(us))),
            Err(_) => Shown::unknown(),
        }
    }

    fn threshold(&self, name: &str, threshold: Option<f64>, window: &str) -> Shown {
        let Ok(us) = duration::parse(window) else {
            return Shown::unknown();
        };
        let key = threshold_key(self.0, name, threshold, us);
        self.1.features.get(&key).cloned().unwrap_or_else(Shown::unknown)
    }
}

/// The one engine that makes messages: closed, bounded, without I/O.
fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| {
        let mut engine = Engine::new_raw();
        engine
            .register_global_module(rhai::packages::Package::as_shared_module(&rhai::packages::StandardPackage::new()));
        engine.set_max_operations(OPERATIONS_MAX).set_max_call_levels(16).set_max_string_size(4_096);
        engine.set_max_array_size(256).set_max_map_size(256).set_max_variables(64);
        engine.disable_symbol("eval").disable_symbol("print").disable_symbol("debug");
        engine.register_type_with_name::<SignalView>("Signal");
        for name in ["last", "prev", "age"] {
            engine.register_get(name, move |view: &mut SignalView| view.get(name));
        }
        for name in ["count", "mean", "min", "max", "sum", "median", "range", "stddev", "delta", "slope", "gap"] {
            engine.register_fn(name, move |view: &mut SignalView, window: &str| view.window(name, window));
        }
        let percentile = |view: &SignalView, quantile: f64, window: &str| {
            let us = duration::parse(window).unwrap_or(0);
            view.get(&format!("percentile({quantile}, \"{}\")", duration::print(us)))
        };
        engine.register_fn("percentile", move |view: &mut SignalView, quantile: f64, window: &str| {
            percentile(view, quantile, window)
        });
        engine.register_fn("percentile", move |view: &mut SignalView, quantile: i64, window: &str| {
            percentile(view, quantile as f64, window)
        });
        engine.register_fn("fraction_is", |view: &mut SignalView, state: &str, window: &str| {
            let us = duration::parse(window).unwrap_or(0);
            view.get(&format!("fraction_is(\"{state}\", \"{}\")", duration::print(us)))
        });
        for name in ["time_below", "time_above", "fraction_below", "fraction_above"] {
            engine.register_fn(name, move |view: &mut SignalView, threshold: f64, window: &str| {
                view.threshold(name, Some(threshold), window)
            });
            engine.register_fn(name, move |view: &mut SignalView, threshold: i64, window: &str| {
                view.threshold(name, Some(threshold as f64), window)
            });
            engine.register_fn(name, move |view: &mut SignalView, threshold: Shown, window: &str| {
                view.threshold(name, threshold.value, window)
            });
        }
        let named =
            |map: &HashMap<String, f64>, name: &str| map.get(name).map_or_else(Shown::unknown, |v| Shown::plain(*v));
        engine.register_type_with_name::<LimitView>("Limits");
        engine.register_indexer_get(move |view: &mut LimitView, name: ImmutableString| named(&view.0.limits, &name));
        engine.register_type_with_name::<PatientView>("Patient");
        engine.register_indexer_get(move |view: &mut PatientView, name: ImmutableString| {
            named(&view.0.attributes, &name)
        });
        engine.register_type_with_name::<Shown>("Number");
        engine.register_fn("to_string", |shown: &mut Shown| shown.text.clone());
        engine.register_fn("to_debug", |shown: &mut Shown| shown.text.clone());
        register_arithmetic(&mut engine);
        engine
    })
}

/// Numbers in messages can be subtracted and compared; unknown stays unknown, and compares as false.
fn register_arithmetic(engine: &mut Engine) {
    type Binary = fn(f64, f64) -> f64;
    let operations: [(&str, Binary); 4] =
        [("+", |a, b| a + b), ("-", |a, b| a - b), ("*", |a, b| a * b), ("/", |a, b| a / b)];
    for (name, apply) in operations {
        let combine = move |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Shown::plain(apply(a, b)),
            _ => Shown::unknown(),
        };
        engine.register_fn(name, move |a: Shown, b: Shown| combine(a.value, b.value));
        engine.register_fn(name, move |a: Shown, b: f64| combine(a.value, Some(b)));
        engine.register_fn(name, move |a: f64, b: Shown| combine(Some(a), b.value));
        engine.register_fn(name, move |a: Shown, b: i64| combine(a.value, Some(b as f64)));
        engine.register_fn(name, move |a: i64, b: Shown| combine(Some(a as f64), b.value));
    }
    type Test = fn(&f64, &f64) -> bool;
    let tests: [(&str, Test); 6] =
        [("<", f64::lt), ("<=", f64::le), (">", f64::gt), (">=", f64::ge), ("==", f64::eq), ("!=", f64::ne)];
    for (name, test) in tests {
        let compare = move |a: Option<f64>, b: Option<f64>| matches!((a, b), (Some(a), Some(b)) if test(&a, &b));
        engine.register_fn(name, move |a: Shown, b: Shown| compare(a.value, b.value));
        engine.register_fn(name, move |a: Shown, b: f64| compare(a.value, Some(b)));
        engine.register_fn(name, move |a: f64, b: Shown| compare(Some(a), b.value));
        engine.register_fn(name, move |a: Shown, b: i64| compare(a.value, Some(b as f64)));
        engine.register_fn(name, move |a: i64, b: Shown| compare(Some(a as f64), b.value));
    }
}
