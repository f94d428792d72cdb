//! Conditions (section 4) over what a rule sees of its series at `T` (section 3).

use std::cell::RefCell;
use std::collections::BTreeMap;

use rhai::{Expr, Stmt};
use wardbell_schemas::reading::Comparator;

use super::exact::{duration_us, ratio, root_of_ratio, shortest_decimal};
use super::rule::{Function, Priority, Rule, Verdict};
use super::series::{Accepted, Series};
use super::{Patient, SECOND, Signal};

#[derive(Clone, PartialEq, Debug)]
enum Value {
    Unknown,
    Bool(bool),
    Num(f64),
    /// A number of which only one side is known (4.6).
    Bounded(Bounded),
    /// A category's or a priority's name, or the text of a window length.
    Text(String),
    /// Parameters: what stands left of a dot.
    Signal(String),
    Limits,
    Attributes,
}

/// All numbers on one side of `end`.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Bounded {
    end: f64,
    below: bool,
    inclusive: bool,
}

impl Bounded {
    fn of(end: f64, comparator: Comparator) -> Option<Self> {
        let (below, inclusive) = match comparator {
            Comparator::None => return None,
            Comparator::Less => (true, false),
            Comparator::LessOrEqual => (true, true),
            Comparator::Greater => (false, false),
            Comparator::GreaterOrEqual => (false, true),
        };
        Some(Self { end, below, inclusive })
    }

    /// Known where all that the number can be says the same.
    fn compared(self, operator: &str, x: f64) -> Value {
        let can_be_less = self.below || self.end < x;
        let can_be_more = !self.below || self.end > x;
        let can_be_equal = if self.end == x { self.inclusive } else { (self.end > x) == self.below };
        let (less, equal, more) = match operator {
            "<" => (true, false, false),
            "<=" => (true, true, false),
            ">" => (false, false, true),
            ">=" => (false, true, true),
            "==" => (false, true, false),
            "!=" => (true, false, true),
            other => panic!("not a comparison: {other}"),
        };
        let possible = [(can_be_less, less), (can_be_equal, equal), (can_be_more, more)];
        let says = |what: bool| possible.contains(&(true, what));
        match (says(true), says(false)) {
            (true, true) => Value::Unknown,
            (yes, _) => Value::Bool(yes),
        }
    }
}

/// The comparison with its sides changed over.
fn turned(operator: &str) -> &str {
    match operator {
        "<" => ">",
        "<=" => ">=",
        ">" => "<",
        ">=" => "<=",
        same => same,
    }
}

const OPERATORS: [&str; 6] = ["<", "<=", ">", ">=", "==", "!="];

fn number(x: Option<f64>) -> Value {
    match x {
        Some(x) if x.is_finite() => Value::Num(x),
        _ => Value::Unknown,
    }
}

enum Flow {
    Goes(Value),
    Returns(Value),
}

/// A sample of a window, and the end of what it covers, before the cut at the end of the window.
#[derive(Clone, Copy)]
struct Point {
    t: i64,
    value: i64,
    covers_to: i64,
}

/// What one rule sees at one evaluation time.
pub struct View<'a> {
    pub rule: &'a Rule,
    pub t: i64,
    pub signals: &'a BTreeMap<String, &'a Signal>,
    /// The series read for each signal, none where there is no primary series.
    pub series: BTreeMap<String, Option<&'a Series>>,
    pub patient: Option<&'a Patient>,
    /// The windows that the rule's text names, by signal.
    pub windows: RefCell<Vec<(String, i64)>>,
    /// Walk all of the text, also what stands behind a `return`.
    pub dry: bool,
}

impl View<'_> {
    pub fn raise(&self) -> Verdict {
        match self.call("raise") {
            Some(Value::Bool(true)) => Verdict::True(self.rule.priority),
            Some(Value::Bool(false)) => Verdict::False,
            Some(Value::Unknown) => Verdict::Unknown,
            Some(Value::Text(text)) if text == "none" => Verdict::False,
            Some(Value::Text(text)) => Verdict::True(Priority::parse(&text).expect("raise gives a priority")),
            other => panic!("rule {}: raise gives {other:?}", self.rule.id),
        }
    }

    /// `None` is unknown. Without `clear`: the verdict of `raise` is false. Where raise is true, raise wins.
    pub fn clear(&self, verdict: Verdict) -> Option<bool> {
        let says = match self.call("clear") {
            Some(Value::Bool(b)) => Some(b),
            Some(Value::Unknown) => None,
            None => match verdict {
                Verdict::False => Some(true),
                Verdict::True(_) => Some(false),
                Verdict::Unknown => None,
            },
            other => panic!("rule {}: clear gives {other:?}", self.rule.id),
        };
        if matches!(verdict, Verdict::True(_)) {
            return Some(false);
        }
        says
    }

    /// The windows that `raise` and `clear` name, by signal.
    pub fn windows_named(self) -> Vec<(String, i64)> {
        self.call("raise");
        self.call("clear");
        self.windows.into_inner()
    }

    fn call(&self, name: &str) -> Option<Value> {
        let function = self.rule.function(name)?;
        let values = function
            .params
            .iter()
            .map(|param| match param.as_str() {
                "limit" => Value::Limits,
                "patient" => Value::Attributes,
                signal => Value::Signal(signal.to_string()),
            })
            .collect();
        Some(self.apply(function, values))
    }

    fn apply(&self, function: &Function, values: Vec<Value>) -> Value {
        let scope = function.params.iter().cloned().zip(values).collect();
        match self.block(&function.body, scope) {
            Flow::Goes(value) | Flow::Returns(value) => value,
        }
    }

    fn block(&self, statements: &[Stmt], mut scope: Vec<(String, Value)>) -> Flow {
        let mut last = Value::Unknown;
        for statement in statements {
            match self.statement(statement, &mut scope) {
                Flow::Returns(value) if !self.dry => return Flow::Returns(value),
                Flow::Goes(value) | Flow::Returns(value) => last = value,
            }
        }
        Flow::Goes(last)
    }

    fn statement(&self, statement: &Stmt, scope: &mut Vec<(String, Value)>) -> Flow {
        match statement {
            Stmt::Noop(_) => Flow::Goes(Value::Unknown),
            Stmt::Expr(expr) => self.flow(expr, scope),
            Stmt::FnCall(call, _) => Flow::Goes(self.function_call(call.name.as_str(), &call.args, scope)),
            Stmt::Block(block) => self.block(block.statements(), scope.clone()),
            Stmt::Var(parts, ..) => {
                let value = self.value(&parts.1, scope);
                scope.push((parts.0.name.to_string(), value));
                Flow::Goes(Value::Unknown)
            }
            Stmt::Return(expr, ..) => {
                Flow::Returns(expr.as_ref().map_or(Value::Unknown, |expr| self.value(expr, scope)))
            }
            Stmt::If(parts, _) => {
                // Both branches are looked at: nothing in them has an effect.
                let condition = self.value(&parts.expr, scope);
                let yes = self.block(parts.body.statements(), scope.clone());
                let no = self.block(parts.branch.statements(), scope.clone());
                match condition {
                    Value::Bool(true) => yes,
                    Value::Bool(false) => no,
                    Value::Unknown => match (yes, no) {
                        (Flow::Goes(_), Flow::Goes(_)) => Flow::Goes(Value::Unknown),
                        _ => Flow::Returns(Value::Unknown),
                    },
                    other => panic!("rule {}: if {other:?}", self.rule.id),
                }
            }
            other => panic!("rule {}: not in the language: {other:?}", self.rule.id),
        }
    }

    fn flow(&self, expr: &Expr, scope: &[(String, Value)]) -> Flow {
        match expr {
            Expr::Stmt(block) => self.block(block.statements(), scope.to_vec()),
            expr => Flow::Goes(self.value(expr, scope)),
        }
    }

    fn value(&self, expr: &Expr, scope: &[(String, Value)]) -> Value {
        match expr {
            Expr::BoolConstant(b, _) => Value::Bool(*b),
            Expr::IntegerConstant(n, _) => Value::Num(*n as f64),
            Expr::FloatConstant(x, _) => number(Some(**x)),
            Expr::StringConstant(text, _) => Value::Text(text.to_string()),
            Expr::Variable(parts, ..) => {
                let found = scope.iter().rev().find(|(name, _)| name == parts.1.as_str());
                found.map(|(_, value)| value.clone()).expect("a name is a parameter or a let")
            }
            Expr::Stmt(block) => match self.block(block.statements(), scope.to_vec()) {
                Flow::Goes(value) | Flow::Returns(value) => value,
            },
            Expr::FnCall(call, _) => self.function_call(call.name.as_str(), &call.args, scope),
            Expr::And(parts, _) => self.kleene(parts, false, scope),
            Expr::Or(parts, _) => self.kleene(parts, true, scope),
            Expr::Coalesce(parts, _) => {
                let values: Vec<Value> = parts.iter().map(|part| self.value(part, scope)).collect();
                values.into_iter().find(|value| *value != Value::Unknown).unwrap_or(Value::Unknown)
            }
            Expr::Dot(parts, ..) => {
                let left = self.value(&parts.lhs, scope);
                match (&parts.rhs, left) {
                    (Expr::Property(name, _), Value::Limits) => number(self.limit(name.2.as_str())),
                    (Expr::Property(name, _), Value::Attributes) => {
                        number(self.patient.and_then(|p| p.attributes.get(name.2.as_str()).copied()))
                    }
                    (Expr::Property(name, _), Value::Signal(signal)) => self.ask(&signal, name.2.as_str(), &[]),
                    (Expr::MethodCall(call, _), Value::Signal(signal)) => {
                        let values: Vec<Value> = call.args.iter().map(|arg| self.value(arg, scope)).collect();
                        self.ask(&signal, call.name.as_str(), &values)
                    }
                    (right, left) => panic!("rule {}: {left:?} . {right:?}", self.rule.id),
                }
            }
            other => panic!("rule {}: not in the language: {other:?}", self.rule.id),
        }
    }

    /// The patient's limit replaces the rule's, name by name.
    fn limit(&self, name: &str) -> Option<f64> {
        let own = self.patient.and_then(|patient| patient.limits.get(name));
        own.or_else(|| self.rule.limits.get(name)).copied()
    }

    /// `decisive` is true for `||`, false for `&&`.
    fn kleene(&self, parts: &[Expr], decisive: bool, scope: &[(String, Value)]) -> Value {
        let values: Vec<Value> = parts.iter().map(|part| self.value(part, scope)).collect();
        if values.contains(&Value::Bool(decisive)) {
            Value::Bool(decisive)
        } else if values.contains(&Value::Unknown) {
            Value::Unknown
        } else {
            Value::Bool(!decisive)
        }
    }

    fn function_call(&self, name: &str, args: &[Expr], scope: &[(String, Value)]) -> Value {
        let values: Vec<Value> = args.iter().map(|arg| self.value(arg, scope)).collect();
        if let Some(own) = self.rule.functions.iter().find(|f| f.name == name && f.params.len() == values.len()) {
            return self.apply(own, values);
        }
        if values.contains(&Value::Unknown) {
            return Value::Unknown;
        }
        match (name, values.as_slice()) {
            ("!", [Value::Bool(b)]) => Value::Bool(!b),
            ("-", [Value::Num(x)]) => number(Some(-x)),
            ("+", [Value::Num(x)]) => number(Some(*x)),
            ("+", [Value::Num(x), Value::Num(y)]) => number(Some(x + y)),
            ("-", [Value::Num(x), Value::Num(y)]) => number(Some(x - y)),
            ("*", [Value::Num(x), Value::Num(y)]) => number(Some(x * y)),
            ("/", [Value::Num(x), Value::Num(y)]) => number(Some(x / y)),
            ("%", [Value::Num(x), Value::Num(y)]) => number(Some(x % y)),
            ("<", [Value::Num(x), Value::Num(y)]) => Value::Bool(x < y),
            ("<=", [Value::Num(x), Value::Num(y)]) => Value::Bool(x <= y),
            (">", [Value::Num(x), Value::Num(y)]) => Value::Bool(x > y),
            (">=", [Value::Num(x), Value::Num(y)]) => Value::Bool(x >= y),
            (operator, [Value::Bounded(bounded), Value::Num(x)]) if OPERATORS.contains(&operator) => {
                bounded.compared(operator, *x)
            }
            (operator, [Value::Num(x), Value::Bounded(bounded)]) if OPERATORS.contains(&operator) => {
                bounded.compared(turned(operator), *x)
            }
            // In arithmetic, and against another such number.
            (_, numbers) if numbers.iter().any(|x| matches!(x, Value::Bounded(_))) => Value::Unknown,
            ("==", [a, b]) => Value::Bool(a == b),
            ("!=", [a, b]) => Value::Bool(a != b),
            other => panic!("rule {}: not in the language: {other:?}", self.rule.id),
        }
    }

    /// A questionable reading is a blank for a rule that does not accept it.
    fn takes(&self, reading: &Accepted) -> bool {
        !reading.questionable || self.rule.accepts_questionable
    }

    /// What was accepted and not taken out again, oldest first.
    fn readings<'s>(&self, series: &'s Series) -> Vec<&'s Accepted> {
        let mut readings: Vec<&Accepted> = series.readings.iter().filter(|r| r.t <= self.t && !r.retracted).collect();
        readings.sort_by_key(|r| (r.t, r.order));
        readings
    }

    /// The samples that windows are made of, oldest first.
    fn points(&self, series: &Series) -> Vec<Point> {
        let readings = self.readings(series);
        let mut points = Vec::new();
        for (i, reading) in readings.iter().enumerate() {
            let next = readings.get(i + 1).map_or(self.t, |next| next.t);
            let covers_to = next.min(reading.t + reading.covers_at_most);
            if let Some(value) = reading.value.filter(|_| reading.is_of_windows() && self.takes(reading)) {
                points.push(Point { t: reading.t, value, covers_to });
            }
        }
        points
    }

    /// `last`, `prev` and `age`. A sample whose value is nowhere any more is unknown, and so is what stands before it.
    fn newest(&self, facts: &Signal, series: &Series, name: &str) -> Value {
        let readings = self.readings(series);
        let is_sample = |r: &&&Accepted| r.is_sample() && self.takes(r);
        if name == "age" {
            let newest = readings.iter().rev().filter(is_sample).find(|r| !r.gone);
            return number(newest.and_then(|newest| ratio((self.t - newest.t).into(), SECOND.into())));
        }
        let mut samples =
            readings.iter().rev().filter(is_sample).map(|r| (r.t, r.value.filter(|_| !r.gone), r.comparator));
        let blank_is_newer = readings.last().is_some_and(|newest| !is_sample(&newest));
        let (Some((t, Some(last), comparator)), false) = (samples.next(), blank_is_newer) else {
            return Value::Unknown;
        };
        let max_age = self.rule.max_age.unwrap_or(facts.stale_after_us);
        if max_age != 0 && self.t - t > max_age {
            return Value::Unknown;
        }
        match (name, samples.next()) {
            ("last", _) => match (known(facts, last), comparator) {
                (Value::Num(end), comparator) => Bounded::of(end, comparator).map_or(Value::Num(end), Value::Bounded),
                (other, _) => other,
            },
            ("prev", Some((_, Some(before), Comparator::None))) if comparator == Comparator::None => {
                known(facts, before)
            }
            ("prev", _) => Value::Unknown,
            (other, _) => panic!("rule {}: no property {other}", self.rule.id),
        }
    }

    /// The functions of section 3.
    fn ask(&self, signal: &str, name: &str, args: &[Value]) -> Value {
        let facts = self.signals.get(signal).expect("a rule's signal is in the catalogue");
        let width = match args.last() {
            Some(Value::Text(text)) => Some(duration_us(text).expect("a window has a length")),
            _ => None,
        };
        if let Some(width) = width {
            self.windows.borrow_mut().push((signal.to_string(), width));
        }
        let Some(series) = self.series.get(signal).copied().flatten() else {
            return if name == "count" { Value::Num(0.0) } else { Value::Unknown };
        };
        let Some(width) = width else {
            return self.newest(facts, series, name);
        };
        if self.t - width < series.held_from {
            return Value::Unknown;
        }
        let mut inside = self.points(series);
        inside.retain(|p| self.t - width < p.t && p.t <= self.t);
        let values: Vec<i128> = inside.iter().map(|p| i128::from(p.value)).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable();
        let n = values.len() as i128;
        let unit = i128::from(facts.per_unit);
        if name == "count" {
            return Value::Num(n as f64);
        }
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else {
            return Value::Unknown;
        };
        let (Some(oldest), Some(newest)) = (values.first(), values.last()) else {
            return Value::Unknown;
        };
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else {
            return Value::Unknown;
        };
        let sum: i128 = values.iter().sum();
        let covered = |wanted: &dyn Fn(i64) -> bool| -> i128 {
            let wanted = inside.iter().filter(|p| wanted(p.value));
            wanted.map(|p| i128::from((p.covers_to - p.t).max(0))).sum()
        };
        let as_double = |v: i64| ratio(v.into(), unit).unwrap_or(f64::NAN);
        let everything = covered(&|_| true);
        let seconds = |us: i128| ratio(us, SECOND.into());
        let share = |us: i128| if everything > 0 { ratio(us, everything) } else { None };
        let quantile = |p: (i128, i128)| -> Option<f64> {
            if p.0 < 0 || p.0 > p.1 {
                return None;
            }
            let h = (n - 1).checked_mul(p.0)?;
            let (k, part) = (h / p.1, h % p.1);
            let low = sorted.get(usize::try_from(k).ok()?)?;
            let high = sorted.get(usize::try_from(k).ok()? + 1).unwrap_or(low);
            let num = low.checked_mul(p.1)?.checked_add(part.checked_mul(high - low)?)?;
            ratio(num, p.1.checked_mul(unit)?)
        };
        match (name, args) {
            ("mean", [_]) => number(ratio(sum, n * unit)),
            ("min", [_]) => number(ratio(*least, unit)),
            ("max", [_]) => number(ratio(*most, unit)),
            ("sum", [_]) => number(ratio(sum, unit)),
            ("range", [_]) => number(ratio(most - least, unit)),
            ("median", [_]) => number(quantile((1, 2))),
            ("percentile", [Value::Num(p), _]) => number(shortest_decimal(*p).and_then(quantile)),
            ("stddev", [_]) if n >= 2 => {
                let squares: i128 = values.iter().map(|v| v * v).sum();
                number(root_of_ratio(n * squares - sum * sum, n * (n - 1) * unit * unit))
            }
            ("delta", [_]) if n >= 2 => number(ratio(newest - oldest, unit)),
            ("slope", [_]) if last.t > first.t => number(slope_per_minute(&inside, unit)),
            ("gap", [_]) if n >= 2 => {
                let longest = inside.windows(2).map(|pair| pair[1].t - pair[0].t).max().unwrap_or(0);
                number(seconds(longest.into()))
            }
            ("time_below", [Value::Num(x), _]) => number(seconds(covered(&|v| as_double(v) < *x))),
            ("time_above", [Value::Num(x), _]) => number(seconds(covered(&|v| as_double(v) > *x))),
            ("fraction_below", [Value::Num(x), _]) => number(share(covered(&|v| as_double(v) < *x))),
            ("fraction_above", [Value::Num(x), _]) => number(share(covered(&|v| as_double(v) > *x))),
            ("fraction_is", [Value::Text(c), _]) => {
                number(share(covered(&|v| known(facts, v) == Value::Text(c.clone()))))
            }
            ("stddev" | "delta" | "slope" | "gap", [_]) | (_, [Value::Unknown | Value::Bounded(_), _]) => {
                Value::Unknown
            }
            other => panic!("rule {}: no function {other:?}", self.rule.id),
        }
    }
}

/// A count of the signal's resolution, or a category's state.
fn known(facts: &Signal, counts: i64) -> Value {
    match facts.categories.is_empty() {
        true => number(ratio(counts.into(), facts.per_unit.into())),
        false => {
            let state = usize::try_from(counts).ok().and_then(|i| facts.categories.get(i));
            state.map_or(Value::Unknown, |state| Value::Text(state.clone()))
        }
    }
}

/// Least squares over the samples of a window.
fn slope_per_minute(inside: &[Point], unit: i128) -> Option<f64> {
    let origin = inside.first()?.t;
    let (mut st, mut sv, mut stt, mut stv) = (0_i128, 0_i128, 0_i128, 0_i128);
    for point in inside {
        let (t, v) = (i128::from(point.t - origin), i128::from(point.value));
        st += t;
        sv += v;
        stt = stt.checked_add(t.checked_mul(t)?)?;
        stv = stv.checked_add(t.checked_mul(v)?)?;
    }
    let n = inside.len() as i128;
    let num = n.checked_mul(stv)?.checked_sub(st.checked_mul(sv)?)?;
    let den = n.checked_mul(stt)?.checked_sub(st.checked_mul(st)?)?;
    ratio(num.checked_mul(i128::from(60 * SECOND))?, den.checked_mul(unit)?)
}
