//! Windows over the samples of one series: exact, sliding, evaluated at every reading.
//!
//! One buffer of samples serves all windows on a series. Count, sum, minimum and maximum are kept as the window moves
//! (amortized constant cost, independent of its length); the other functions walk the window's samples when a rule asks.
//! Everything is an integer until the last step ([`crate::exact`]). A window that reaches back to where samples may be
//! missing is unknown.

mod running;
mod samples;

pub use running::{Needs, Running};
pub use samples::{Accepted, Reading, Sample, Samples, push_back};

use wardbell_rules::evaluate::Bound;
use wardbell_rules::ir::Function;
use wardbell_schemas::reading::Comparator;
use wardbell_schemas::{Micros, SECOND};

use crate::exact::{ratio_to_f64, sqrt_ratio_to_f64};

/// One window a rule asks for on a signal.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowPlan {
    pub length_us: Micros,
    /// Windows of rules whose evaluation times can differ are kept apart: 0 for rules of one signal, else a number per
    /// set of signals.
    pub class: usize,
    pub accept_questionable: bool,
    pub needs: Needs,
}

/// What one question about a series is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Question {
    pub function: Function,
    /// Index into the signal's window plans; `None` for `last`, `prev`, `age`.
    pub window: Option<usize>,
    pub accept_questionable: bool,
    /// Oldest age at which `last` is known; `None`: no limit.
    pub max_age_us: Option<Micros>,
    /// Counts of resolution in one unit.
    pub per_unit: i64,
}

/// Answers a question at evaluation time `at`. `None` is unknown. `threshold` is for functions that take one.
pub fn answer(
    samples: &Samples,
    running: &mut [Running],
    plans: &[WindowPlan],
    question: &Question,
    threshold: f64,
    at: Micros,
) -> Option<f64> {
    let accept = question.accept_questionable;
    let counts = |num: i128, den: i128| ratio_to_f64(num, den.checked_mul(i128::from(question.per_unit))?);
    match question.function {
        Function::Last => samples.last(accept, at, question.max_age_us).and_then(|value| counts(value.into(), 1)),
        Function::Prev => {
            samples.last(accept, at, question.max_age_us)?;
            samples.prev(accept).and_then(|value| counts(value.into(), 1))
        }
        Function::Age => ratio_to_f64((at - samples.newest_sample(accept)?).into(), SECOND.into()),
        function => {
            let index = question.window?;
            let (plan, state) = (&plans[index], &mut running[index]);
            let edge = at - plan.length_us;
            if edge < samples.held_from() {
                return None;
            }
            state.advance(samples, plan, edge);
            match function {
                Function::Count => Some(state.count() as f64),
                Function::Sum => (state.count() > 0).then(|| counts(state.sum(), 1))?,
                Function::Mean => (state.count() > 0).then(|| counts(state.sum(), state.count().into()))?,
                Function::Min => counts(state.min()?.into(), 1),
                Function::Max => counts(state.max()?.into(), 1),
                Function::Range => counts(i128::from(state.max()?) - i128::from(state.min()?), 1),
                Function::Delta => {
                    let (first, last) = state.ends(samples, plan)?;
                    counts(i128::from(last.value) - i128::from(first.value), 1)
                }
                walked => walk(samples, state.start(), accept, walked, question, threshold, at),
            }
        }
    }
}

/// How far `last` is known where its value came with a comparator.
pub fn bound(samples: &Samples, question: &Question, at: Micros) -> Option<Bound> {
    let (value, comparator) = samples.newest_value(question.accept_questionable, at, question.max_age_us)?;
    let value = ratio_to_f64(value.into(), question.per_unit.into())?;
    Some(match comparator {
        Comparator::None => return None,
        Comparator::Less => Bound::Below { value, inclusive: false },
        Comparator::LessOrEqual => Bound::Below { value, inclusive: true },
        Comparator::Greater => Bound::Above { value, inclusive: false },
        Comparator::GreaterOrEqual => Bound::Above { value, inclusive: true },
    })
}

/// Functions that look at every sample of the window.
fn walk(
    samples: &Samples,
    start: u64,
    accept: bool,
    function: Function,
    question: &Question,
    threshold: f64,
    at: Micros,
) -> Option<f64> {
    let inside = || samples.from(start).filter(move |sample| sample.counts(accept));
    let per_unit = i128::from(question.per_unit);
    match function {
        Function::Median => quantile(inside().map(|sample| sample.value).collect(), 1, 2, per_unit),
        Function::Percentile { num, den } => {
            quantile(inside().map(|sample| sample.value).collect(), num.into(), den.into(), per_unit)
        }
        Function::Stddev => {
            let (mut n, mut sum, mut squares) = (0_i128, 0_i128, 0_i128);
            for sample in inside() {
                let value = i128::from(sample.value);
                (n, sum, squares) = (n + 1, sum + value, squares + value * value);
            }
            if n < 2 {
                return None;
            }
            sqrt_ratio_to_f64(n * squares - sum * sum, n * (n - 1) * per_unit * per_unit)
        }
        Function::Slope => {
            // Times relative to the first sample keep the products small; the slope does not depend on the origin.
            let origin = inside().next()?.t;
            let (mut n, mut st, mut sv, mut stt, mut stv) = (0_i128, 0_i128, 0_i128, 0_i128, 0_i128);
            for sample in inside() {
                let (t, v) = (i128::from(sample.t - origin), i128::from(sample.value));
                (n, st, sv, stt, stv) = (n + 1, st + t, sv + v, stt + t * t, stv + t * v);
            }
            let den = n * stt - st * st;
            let minute = i128::from(60 * SECOND);
            (den != 0).then(|| ratio_to_f64((n * stv - st * sv) * minute, den.checked_mul(per_unit)?))?
        }
        Function::Gap => {
            let mut longest = None;
            let mut before: Option<Micros> = None;
            for sample in inside() {
                if let Some(before) = before {
                    longest = longest.max(Some(sample.t - before));
                }
                before = Some(sample.t);
            }
            ratio_to_f64(longest?.into(), SECOND.into())
        }
        Function::TimeBelow
        | Function::TimeAbove
        | Function::FractionBelow
        | Function::FractionAbove
        | Function::FractionIs { .. } => {
            let (mut matching, mut covered, mut any) = (0_i128, 0_i128, false);
            for (sample, until) in samples.covered_from(start, at) {
                if !sample.counts(accept) {
                    continue;
                }
                any = true;
                let value = sample.value as f64 / question.per_unit as f64;
                let counts = match function {
                    Function::TimeBelow | Function::FractionBelow => value < threshold,
                    Function::TimeAbove | Function::FractionAbove => value > threshold,
                    Function::FractionIs { code } => sample.value == code,
                    _ => false,
                };
                let length = i128::from(until - sample.t);
                covered += length;
                matching += if counts { length } else { 0 };
            }
            let time = matches!(function, Function::TimeBelow | Function::TimeAbove);
            match (any, time) {
                (false, _) => None,
                (true, true) => ratio_to_f64(matching, SECOND.into()),
                (true, false) => ratio_to_f64(matching, covered),
            }
        }
        _ => None,
    }
}

/// `x[k] + (h - k) (x[k+1] - x[k])` with `h = (n - 1) p`, exact, rounded once.
fn quantile(mut values: Vec<i64>, num: i128, den: i128, per_unit: i128) -> Option<f64> {
    values.sort_unstable();
    let last = i128::try_from(values.len()).ok()? - 1;
    if last < 0 {
        return None;
    }
    let h = last * num;
    let k = usize::try_from(h / den).ok()?;
    let low = i128::from(*values.get(k)?);
    let high = i128::from(*values.get(k + 1).unwrap_or(&values[k]));
    ratio_to_f64(low.checked_mul(den)? + (h % den) * (high - low), den.checked_mul(per_unit)?)
}
