//! The typed form a rule decides in: numbers, logic and verdicts, each possibly unknown.
//!
//! Every number is a double; comparison is exact IEEE; whatever is not finite is unknown. `let`, `if` and calls of the
//! file's own functions are inlined when the tree is built, so it holds no names: only indexes into the rule's features,
//! limits and attributes. Evaluation is in [`crate::evaluate`].

use wardbell_schemas::Micros;
use wardbell_schemas::alert::Priority;

/// What a rule reads of a series at an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Feature {
    /// Index into the rule's signals.
    pub signal: usize,
    pub function: Function,
    /// Length of the window; 0 for functions without one.
    pub window_us: Micros,
    /// As written in the rule, normalized: `mean("30s")`, `last`.
    pub text: String,
}

/// The functions of a signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    Last,
    Prev,
    Age,
    Count,
    Mean,
    Min,
    Max,
    Sum,
    Median,
    /// The quantile as an exact fraction, from the shortest decimal of its double.
    Percentile {
        num: i64,
        den: i64,
    },
    Range,
    Stddev,
    Delta,
    Slope,
    /// Seconds below the argument, which the rule computes.
    TimeBelow,
    TimeAbove,
    FractionBelow,
    FractionAbove,
    /// Fraction of the covered time in which the category had this code.
    FractionIs {
        code: i64,
    },
    Gap,
}

impl Function {
    /// Takes a threshold that is computed at each evaluation.
    pub fn takes_threshold(self) -> bool {
        use Function::*;
        matches!(self, TimeBelow | TimeAbove | FractionBelow | FractionAbove)
    }

    /// The result is in the signal's unit (and printed at its resolution).
    pub fn in_signal_unit(self) -> bool {
        use Function::*;
        matches!(self, Last | Prev | Mean | Min | Max | Sum | Median | Percentile { .. } | Range | Stddev | Delta)
    }
}

/// A number or unknown.
#[derive(Debug, Clone, PartialEq)]
pub enum Number {
    Constant(f64),
    Feature {
        feature: usize,
        threshold: Option<Box<Number>>,
    },
    /// Index into the rule's limit names.
    Limit(usize),
    /// Index into the rule's attribute names.
    Attribute(usize),
    Negate(Box<Number>),
    Arithmetic(Arithmetic, Box<Number>, Box<Number>),
    Coalesce(Box<Number>, Box<Number>),
    If(Box<Logic>, Box<Number>, Box<Number>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// True, false or unknown (Kleene).
#[derive(Debug, Clone, PartialEq)]
pub enum Logic {
    Constant(bool),
    Compare(Comparison, Box<Number>, Box<Number>),
    /// A category's feature against one of its states.
    State {
        feature: usize,
        code: i64,
        equal: bool,
    },
    /// Two categories of the same signal against each other.
    SameState {
        left: usize,
        right: usize,
        equal: bool,
    },
    And(Vec<Logic>),
    Or(Vec<Logic>),
    Not(Box<Logic>),
    Coalesce(Box<Logic>, Box<Logic>),
    If(Box<Logic>, Box<Logic>, Box<Logic>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    NotEqual,
}

/// What `raise` is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// True means the rule's own priority.
    Logic(Logic),
    /// `"high"`, `"medium"`, `"low"`; `None` for `"none"`.
    Level(Option<Priority>),
    If(Box<Logic>, Box<Decision>, Box<Decision>),
    Coalesce(Box<Decision>, Box<Decision>),
}

/// What `raise` says at one evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Unknown,
    False,
    True(Priority),
}

/// Calls `visit` for every number inside a decision, outer before inner.
pub fn visit_decision(decision: &Decision, visit: &mut impl FnMut(&Number)) {
    match decision {
        Decision::Logic(condition) => visit_logic(condition, visit),
        Decision::Level(_) => {}
        Decision::If(condition, then, otherwise) => {
            visit_logic(condition, visit);
            visit_decision(then, visit);
            visit_decision(otherwise, visit);
        }
        Decision::Coalesce(first, second) => {
            visit_decision(first, visit);
            visit_decision(second, visit);
        }
    }
}

/// Calls `visit` for every number inside a condition.
pub fn visit_logic(condition: &Logic, visit: &mut impl FnMut(&Number)) {
    match condition {
        Logic::Constant(_) | Logic::State { .. } | Logic::SameState { .. } => {}
        Logic::Compare(_, left, right) => {
            visit_number(left, visit);
            visit_number(right, visit);
        }
        Logic::And(parts) | Logic::Or(parts) => parts.iter().for_each(|part| visit_logic(part, visit)),
        Logic::Not(inner) => visit_logic(inner, visit),
        Logic::Coalesce(first, second) => {
            visit_logic(first, visit);
            visit_logic(second, visit);
        }
        Logic::If(condition, then, otherwise) => {
            for part in [condition, then, otherwise] {
                visit_logic(part, visit);
            }
        }
    }
}

fn visit_number(number: &Number, visit: &mut impl FnMut(&Number)) {
    visit(number);
    match number {
        Number::Constant(_) | Number::Limit(_) | Number::Attribute(_) | Number::Feature { threshold: None, .. } => {}
        Number::Feature { threshold: Some(inner), .. } | Number::Negate(inner) => visit_number(inner, visit),
        Number::Arithmetic(_, left, right) | Number::Coalesce(left, right) => {
            visit_number(left, visit);
            visit_number(right, visit);
        }
        Number::If(condition, then, otherwise) => {
            visit_logic(condition, visit);
            visit_number(then, visit);
            visit_number(otherwise, visit);
        }
    }
}
