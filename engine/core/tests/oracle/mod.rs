//! The naive, independent evaluation, written from the semantics alone (sections 2 to 8, without control records).
//!
//! It shares no code with the engine. Nothing is incremental: every window is filtered out of the full list of accepted
//! readings, every timer is searched for among all. Slow on purpose.

use rhai::{ASTNode, Dynamic, Engine, Expr, OptimizationLevel, Stmt};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

const SECOND: i64 = 1_000_000;
const EPOCH_END: i64 = 978_307_200 * SECOND; // 2001-01-01
const JUMP: i64 = 10 * SECOND;
const HOUR: i64 = 3_600 * SECOND;
const WEEK: i64 = 7 * 24 * HOUR;
const STALE: &str = "technical/stale";
const CLOCK: &str = "technical/clock";
const FEED: &str = "technical/feed";
const OVERRUN: &str = "technical/overrun";

pub struct Signal {
    pub id: String,
    pub per_unit: i64,
    pub typical_interval_us: i64,
    pub stale_after_us: i64,
    pub categories: Vec<String>,
}

#[derive(Clone)]
pub struct Reading {
    pub patient: String,
    pub device: String,
    pub signal: String,
    pub method: String,
    pub event_us: i64,
    pub value: Option<i64>,
    pub questionable: bool,
}

#[derive(Clone)]
pub struct Record {
    pub source: String,
    pub broker_us: i64,
    pub readings: Vec<Reading>,
}

#[derive(Clone)]
pub enum Item {
    Record(Record),
    Tick { source: String, time_us: i64 },
}

pub struct Settings {
    pub lateness_us: i64,
    pub skew_us: i64,
    pub epoch_check: bool,
    pub record_clock: bool,
    pub sample_cap: usize,
}

pub struct Patient {
    pub id: String,
    pub limits: BTreeMap<String, f64>,
    pub attributes: BTreeMap<String, f64>,
}

#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Transition {
    pub at_us: i64,
    pub what: String,
    pub priority: String,
    pub rule: String,
    pub patient: String,
    pub key: String,
    pub start_us: i64,
    pub number: u32,
}

/// All transitions of the items, applied in the order given.
pub fn run(
    settings: &Settings,
    signals: &[Signal],
    rules: &[&str],
    patients: &[Patient],
    items: &[Item],
) -> Vec<Transition> {
    let mut rules: Vec<Rule> = rules.iter().map(|text| Rule::parse(text)).collect();
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    let mut world = World {
        settings,
        signals: signals.iter().map(|signal| (signal.id.clone(), signal)).collect(),
        patients: patients.iter().map(|patient| (patient.id.clone(), patient)).collect(),
        longest: BTreeMap::new(),
        rules,
        clocks: BTreeMap::new(),
        series: BTreeMap::new(),
        primary: BTreeMap::new(),
        tracks: BTreeMap::new(),
        states: BTreeMap::new(),
        told: BTreeMap::new(),
        feeds: BTreeMap::new(),
        order: 0,
        out: Vec::new(),
    };
    world.longest = world.longest_windows();
    for item in items {
        match item {
            Item::Record(record) => world.record(record),
            Item::Tick { source, time_us } => world.tick(source, *time_us),
        }
    }
    world.out
}

// ---------------------------------------------------------------------------------------------------------------------
// Exact numbers (section 3.4): fractions of integers, rounded once.
// ---------------------------------------------------------------------------------------------------------------------

/// `num / den` as `q / 2^shift`, cut off, with at least `bits` bits in `q` and an even `shift` where asked for; the
/// last part says whether anything was cut off.
fn long_division(num: u128, den: u128, bits: u32, even: bool) -> Option<(u128, i32, bool)> {
    if den == 0 || den >> 127 != 0 {
        return None;
    }
    let (mut q, mut rest, mut shift) = (num / den, num % den, 0);
    if num == 0 {
        return Some((0, 0, false));
    }
    while q < 1 << bits || (even && shift % 2 != 0) {
        q <<= 1;
        rest <<= 1;
        if rest >= den {
            rest -= den;
            q |= 1;
        }
        shift += 1;
    }
    Some((q, shift, rest != 0))
}

/// `(q + something below 1 if inexact) / 2^shift`, to the nearest double, ties to even. `q` has more than 54 bits if
/// inexact.
fn nearest_double(q: u128, shift: i32, inexact: bool) -> f64 {
    let bits = 128 - q.leading_zeros();
    let drop = bits.saturating_sub(53);
    let mut kept = q >> drop;
    if drop > 0 {
        let rest = q & ((1 << drop) - 1);
        let half = 1 << (drop - 1);
        if rest > half || (rest == half && (inexact || kept & 1 == 1)) {
            kept += 1;
        }
    }
    kept as f64 * power_of_two(drop as i32 - shift)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// The double nearest to `num / den`.
fn ratio(num: i128, den: i128) -> Option<f64> {
    let (q, shift, inexact) = long_division(num.unsigned_abs(), den.unsigned_abs(), 64, false)?;
    let size = nearest_double(q, shift, inexact);
    Some(if (num < 0) != (den < 0) && num != 0 { -size } else { size })
}

/// The double nearest to the root of `num / den`.
fn root_of_ratio(num: i128, den: i128) -> Option<f64> {
    if num < 0 || den <= 0 {
        return None;
    }
    let (q, shift, inexact) = long_division(num.unsigned_abs(), den.unsigned_abs(), 116, true)?;
    let root = q.isqrt();
    Some(nearest_double(root, shift / 2, inexact || root * root != q))
}

/// A double as the fraction that its shortest decimal is.
fn shortest_decimal(x: f64) -> Option<(i128, i128)> {
    let text = format!("{x}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let num = format!("{whole}{part}").parse::<i128>().ok()?;
    Some((num, 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?))
}

/// `15s`, `250ms`, `1h30m`, `-10m` in microseconds.
fn duration_us(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.trim().strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.trim()),
    };
    let mut total = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "us" | "µs" => 1,
                "ms" => 1_000,
                "s" => SECOND,
                "m" => 60 * SECOND,
                "h" => HOUR,
                "d" => 24 * HOUR,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    Some(sign * total)
}

// ---------------------------------------------------------------------------------------------------------------------
// Rule files
// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Priority {
    Low,
    Medium,
    High,
}

const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Medium, Priority::High];

impl Priority {
    fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        PRIORITIES.into_iter().find(|p| p.name() == text)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    True(Priority),
    False,
    Unknown,
}

struct Function {
    name: String,
    params: Vec<String>,
    body: Vec<Stmt>,
}

struct Rule {
    id: String,
    priority: Priority,
    hold: i64,
    clear_hold: i64,
    latching: bool,
    limits: BTreeMap<String, f64>,
    gap: Option<i64>,
    max_age: Option<i64>,
    cool_down: i64,
    accepts_questionable: bool,
    /// Parameters of `raise` and `clear` that are signals.
    signals: BTreeSet<String>,
    functions: Vec<Function>,
}

impl Rule {
    fn parse(text: &str) -> Self {
        let mut engine = Engine::new_raw();
        engine.set_optimization_level(OptimizationLevel::None);
        engine.set_max_expr_depths(0, 0);
        let ast = engine.compile(text).expect("a rule file parses");
        let mut functions = Vec::new();
        for function in ast.iter_functions() {
            // (`clone_functions_only_filtered` does not filter into an empty module, rhai 1.27.0.)
            let mut alone = ast.clone_functions_only();
            alone.retain_functions(|_, _, name, arity| name == function.name && arity == function.params.len());
            let mut body = Vec::new();
            alone.walk(&mut |path: &[ASTNode]| {
                if let [ASTNode::Stmt(statement)] = path {
                    body.push((*statement).clone());
                }
                true
            });
            functions.push(Function {
                name: function.name.to_string(),
                params: function.params.iter().map(|name| (*name).to_string()).collect(),
                body,
            });
        }
        let fields = ast
            .statements()
            .iter()
            .find_map(|statement| match statement {
                Stmt::Var(parts, ..) if parts.0.name.as_str() == "RULE" => parts.1.get_literal_value(None),
                _ => None,
            })
            .and_then(Dynamic::try_cast::<rhai::Map>)
            .expect("a rule file has a constant map RULE");
        let string = |name: &str| fields.get(name).and_then(|v| v.clone().into_string().ok());
        let duration =
            |name: &str| string(name).map(|text| duration_us(&text).expect("a duration field of RULE is a duration"));
        let mut limits = BTreeMap::new();
        if let Some(map) = fields.get("limits").and_then(|v| v.clone().try_cast::<rhai::Map>()) {
            for (name, value) in map {
                let value = value.as_float().or_else(|_| value.as_int().map(|n| n as f64));
                limits.insert(name.to_string(), value.expect("a limit is a number"));
            }
        }
        let accepted = fields.get("accept").and_then(|v| v.clone().try_cast::<rhai::Array>()).unwrap_or_default();
        let mut signals = BTreeSet::new();
        for function in functions.iter().filter(|f| f.name == "raise" || f.name == "clear") {
            signals.extend(function.params.iter().filter(|p| *p != "limit" && *p != "patient").cloned());
        }
        Self {
            id: string("id").expect("RULE has an id"),
            priority: string("priority").as_deref().and_then(Priority::parse).expect("RULE has a priority"),
            hold: duration("hold").unwrap_or(0),
            clear_hold: duration("clear_hold").unwrap_or(0),
            latching: fields.get("latching").and_then(|v| v.as_bool().ok()).unwrap_or(false),
            limits,
            gap: duration("gap"),
            max_age: duration("max_age"),
            cool_down: duration("cool_down").unwrap_or(0),
            accepts_questionable: accepted.into_iter().any(|v| v.into_string().is_ok_and(|s| s == "questionable")),
            signals,
            functions,
        }
    }

    fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }

    /// The one signal of a rule whose key is the series.
    fn single(&self) -> Option<&str> {
        match self.signals.len() {
            1 => self.signals.first().map(String::as_str),
            _ => None,
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Conditions (section 4) over a view of the series at T
// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, PartialEq, Debug)]
enum Value {
    Unknown,
    Bool(bool),
    Num(f64),
    /// A category's or a priority's name, or the text of a window length.
    Text(String),
    /// Parameters: what stands left of a dot.
    Signal(String),
    Limits,
    Attributes,
}

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

/// What a rule sees of one reading of a series: its place, its value if it is a sample for this rule.
#[derive(Clone, Copy)]
struct Point {
    t: i64,
    value: Option<i64>,
    /// The end of what a sample covers, before the cut at the end of the window.
    covers_to: i64,
}

struct View<'a> {
    rule: &'a Rule,
    t: i64,
    signals: &'a BTreeMap<String, &'a Signal>,
    /// The series read for each signal, none where there is no primary series.
    series: BTreeMap<String, Option<&'a Series>>,
    patient: Option<&'a Patient>,
    /// The windows that the rule's text names, by signal.
    windows: RefCell<Vec<(String, i64)>>,
    /// Walk all of the text, also what stands behind a `return`.
    dry: bool,
}

impl View<'_> {
    fn raise(&self) -> Verdict {
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
    fn clear(&self, verdict: Verdict) -> Option<bool> {
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
            ("==", [a, b]) => Value::Bool(a == b),
            ("!=", [a, b]) => Value::Bool(a != b),
            other => panic!("rule {}: not in the language: {other:?}", self.rule.id),
        }
    }

    /// The readings of a series as this rule sees them, oldest first.
    fn points(&self, series: &Series) -> Vec<Point> {
        let mut readings: Vec<&Accepted> = series.readings.iter().filter(|r| r.t <= self.t).collect();
        readings.sort_by_key(|r| (r.t, r.order));
        let mut points = Vec::new();
        for (i, reading) in readings.iter().enumerate() {
            let next = readings.get(i + 1).map_or(self.t, |next| next.t);
            points.push(Point {
                t: reading.t,
                value: reading.value.filter(|_| !reading.questionable || self.rule.accepts_questionable),
                covers_to: next.min(reading.t + reading.covers_at_most),
            });
        }
        points
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
        let known = |v: i64| match facts.categories.is_empty() {
            true => number(ratio(v.into(), facts.per_unit.into())),
            false => usize::try_from(v)
                .ok()
                .and_then(|i| facts.categories.get(i))
                .map_or(Value::Unknown, |c| Value::Text(c.clone())),
        };
        let points = self.points(series);
        let Some(width) = width else {
            let samples: Vec<Point> = points.iter().copied().filter(|p| p.value.is_some()).collect();
            let Some(newest) = samples.last() else {
                return Value::Unknown;
            };
            if name == "age" {
                return number(ratio((self.t - newest.t).into(), SECOND.into()));
            }
            let max_age = self.rule.max_age.unwrap_or(facts.stale_after_us);
            let blank_is_newer = points.last().is_some_and(|p| p.value.is_none());
            if blank_is_newer || (max_age != 0 && self.t - newest.t > max_age) {
                return Value::Unknown;
            }
            let wanted = match name {
                "last" => samples.last(),
                "prev" => samples.len().checked_sub(2).and_then(|i| samples.get(i)),
                other => panic!("rule {}: no property {other}", self.rule.id),
            };
            return wanted.and_then(|p| p.value).map_or(Value::Unknown, known);
        };
        if self.t - width < series.held_from {
            return Value::Unknown;
        }
        let inside: Vec<Point> =
            points.iter().copied().filter(|p| p.value.is_some() && self.t - width < p.t && p.t <= self.t).collect();
        let values: Vec<i128> = inside.iter().filter_map(|p| p.value).map(i128::from).collect();
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
            let wanted = inside.iter().filter(|p| p.value.is_some_and(wanted));
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
            ("fraction_is", [Value::Text(c), _]) => number(share(covered(&|v| known(v) == Value::Text(c.clone())))),
            ("stddev" | "delta" | "slope" | "gap", [_]) | (_, [Value::Unknown, _]) => Value::Unknown,
            other => panic!("rule {}: no function {other:?}", self.rule.id),
        }
    }
}

/// Least squares over the samples of a window.
fn slope_per_minute(inside: &[Point], unit: i128) -> Option<f64> {
    let origin = inside.first()?.t;
    let (mut st, mut sv, mut stt, mut stv) = (0_i128, 0_i128, 0_i128, 0_i128);
    for point in inside {
        let (t, v) = (i128::from(point.t - origin), i128::from(point.value?));
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

// ---------------------------------------------------------------------------------------------------------------------
// Series
// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct SeriesId {
    patient: String,
    device: String,
    signal: String,
    method: String,
}

impl SeriesId {
    fn of(reading: &Reading) -> Self {
        Self {
            patient: reading.patient.clone(),
            device: reading.device.clone(),
            signal: reading.signal.clone(),
            method: reading.method.clone(),
        }
    }

    fn key(&self) -> String {
        format!("{}/{}/{}", self.device, self.signal, self.method)
    }

    fn track(&self, rule: &str) -> TrackId {
        TrackId { patient: self.patient.clone(), key: self.key(), rule: rule.to_string() }
    }
}

/// A reading that was accepted. All of them are kept.
struct Accepted {
    t: i64,
    /// The place in the order of acceptance.
    order: u64,
    value: Option<i64>,
    questionable: bool,
    covers_at_most: i64,
    /// Gone because of the sample cap.
    evicted: bool,
}

/// What duplicates are judged by.
struct Remembered {
    event: i64,
    value: Option<i64>,
    clock: i64,
}

struct Series {
    source: String,
    readings: Vec<Accepted>,
    /// All intervals between samples that count; the last sample's own waits for the next reading.
    intervals: Vec<i64>,
    waiting: Option<i64>,
    memory: Vec<Remembered>,
    /// `t` is being replaced; true if that began with a coarse stamp.
    replacing: Option<bool>,
    /// The slow-clock rule applies.
    slow: bool,
    /// Newest event time and broker time of the records in a row that were late.
    late_row: Vec<(i64, i64)>,
    newest_of_record_before: Option<i64>,
    /// The clock at the last sample, or at the first reading.
    heard: i64,
    /// The deadline of staleness; none once it has passed, or without expectation.
    deadline: Option<i64>,
    /// Past the deadline since its last sample.
    stale: bool,
    /// Devices that had a sample since this one went stale.
    successors: BTreeSet<String>,
    held_from: i64,
    /// The place of its first sample in the order of acceptance.
    first_sample: Option<u64>,
}

impl Series {
    /// The newest `t` of all accepted readings.
    fn newest_t(&self) -> Option<i64> {
        self.readings.iter().map(|r| r.t).max()
    }

    fn newest_sample_t(&self) -> Option<i64> {
        self.readings.iter().filter(|r| r.value.is_some()).map(|r| r.t).max()
    }

    /// `e` of section 5; none is infinite.
    fn expected_interval(&self, typical: i64) -> Option<i64> {
        median_of_last_three(&self.intervals).map(|median| median.max(typical))
    }

    /// How long after the last sample a series is stale (7.1), the interval that it closed included.
    fn patience(&self, signal: &Signal) -> i64 {
        let mut intervals = self.intervals.clone();
        intervals.extend(self.waiting);
        let own = median_of_last_three(&intervals).or_else(|| intervals.iter().max().copied());
        let usual = own.unwrap_or(0).max(signal.typical_interval_us);
        signal.stale_after_us.max((10 * signal.stale_after_us).min(3 * usual))
    }

    /// A sign of life at a clock value: the deadline is fixed anew.
    fn alive(&mut self, clock: i64, signal: &Signal) {
        self.heard = clock;
        self.expect(clock, signal);
    }

    fn expect(&mut self, clock: i64, signal: &Signal) {
        self.deadline = (signal.stale_after_us != 0).then(|| clock + self.patience(signal));
    }
}

fn median_of_last_three(intervals: &[i64]) -> Option<i64> {
    let mut three = intervals.get(intervals.len().checked_sub(3)?..)?.to_vec();
    three.sort_unstable();
    three.get(1).copied()
}

// ---------------------------------------------------------------------------------------------------------------------
// Episodes
// ---------------------------------------------------------------------------------------------------------------------

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct TrackId {
    patient: String,
    key: String,
    rule: String,
}

/// A value of a source clock.
#[derive(Clone)]
struct Stamp {
    source: String,
    us: i64,
}

#[derive(Clone)]
struct Episode {
    start: i64,
    priority: Priority,
    highest: Priority,
    next_number: u32,
    last_at: i64,
    latched: bool,
}

#[derive(Clone)]
struct Ended {
    start: i64,
    at: i64,
    clock: Stamp,
    highest: Priority,
    cools_down: bool,
}

#[derive(Default)]
struct Track {
    open: Option<Episode>,
    ended: Option<Ended>,
}

#[derive(Clone)]
struct Run {
    began: i64,
    since: i64,
    newest: i64,
    /// The key's clock at the evaluation that set `since`, moved as that moved.
    clock: Stamp,
}

/// First and newest evaluation of a run that a distance above the gap starts again.
#[derive(Clone, Copy)]
struct Span {
    first: i64,
    newest: i64,
}

impl Span {
    fn extended(span: Option<Self>, t: i64, gap: Option<i64>) -> Self {
        match span {
            Some(span) if gap.is_none_or(|gap| t - span.newest <= gap) => Self { first: span.first, newest: t },
            _ => Self { first: t, newest: t },
        }
    }
}

/// What a rule remembers of a key.
#[derive(Default)]
struct State {
    evaluated: Option<i64>,
    runs: [Option<Run>; 3],
    clearing: Option<Span>,
    lower: Option<Span>,
    /// The run of `clear` that another series' episode may end by (7.2), open episode or not.
    well: Option<Span>,
}

impl State {
    fn forget_runs(&mut self) {
        self.runs = [None, None, None];
        self.clearing = None;
        self.lower = None;
    }
}

/// A key of a rule, and what it reads.
struct Reads {
    series: Vec<SeriesId>,
    gap: Option<i64>,
    /// A longer distance starts a run again; none is no limit.
    restart_above: Option<i64>,
}

enum Due {
    Stale(SeriesId),
    Forget(SeriesId),
    Hold(TrackId, Priority, i64),
}

/// How a reading's `t` came to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    AsSent,
    Replaced,
    /// Replaced, and no matter of `technical/clock`.
    Quietly,
}

struct Decided<'a> {
    reading: &'a Reading,
    id: SeriesId,
    t: i64,
    time: Time,
}

struct World<'a> {
    settings: &'a Settings,
    signals: BTreeMap<String, &'a Signal>,
    patients: BTreeMap<String, &'a Patient>,
    /// The longest window of the set, by signal.
    longest: BTreeMap<String, i64>,
    /// By id.
    rules: Vec<Rule>,
    clocks: BTreeMap<String, i64>,
    series: BTreeMap<SeriesId, Series>,
    /// By patient and signal.
    primary: BTreeMap<(String, String), SeriesId>,
    tracks: BTreeMap<TrackId, Track>,
    states: BTreeMap<TrackId, State>,
    /// When a device's wrong clock was last told, by patient and device.
    told: BTreeMap<(String, String), Stamp>,
    /// The clock at the last jump of an open `technical/feed`.
    feeds: BTreeMap<String, i64>,
    order: u64,
    out: Vec<Transition>,
}

impl<'a> World<'a> {
    fn signal(&self, id: &str) -> &'a Signal {
        self.signals.get(id).expect("a signal of the catalogue")
    }

    fn the_series(&mut self, id: &SeriesId) -> &mut Series {
        self.series.get_mut(id).expect("a known series")
    }

    fn rule(&self, id: &str) -> &Rule {
        self.rules.iter().find(|rule| rule.id == id).expect("a rule of the set")
    }

    fn longest_windows(&self) -> BTreeMap<String, i64> {
        let mut longest: BTreeMap<String, i64> = BTreeMap::new();
        for rule in &self.rules {
            let view = View {
                rule,
                t: 0,
                signals: &self.signals,
                series: BTreeMap::new(),
                patient: None,
                windows: RefCell::default(),
                dry: true,
            };
            view.call("raise");
            view.call("clear");
            for (signal, width) in view.windows.into_inner() {
                let entry = longest.entry(signal).or_insert(0);
                *entry = width.max(*entry);
            }
        }
        longest
    }

    // -- transitions ---------------------------------------------------------------------------------------------

    fn emit(&mut self, id: &TrackId, episode: &mut Episode, at: i64, what: &str) {
        episode.last_at = at;
        self.out.push(Transition {
            at_us: at,
            what: what.to_string(),
            priority: episode.priority.name().to_string(),
            rule: id.rule.clone(),
            patient: id.patient.clone(),
            key: id.key.clone(),
            start_us: episode.start,
            number: episode.next_number,
        });
        episode.next_number += 1;
    }

    fn open(&self, id: &TrackId) -> Option<&Episode> {
        self.tracks.get(id).and_then(|track| track.open.as_ref())
    }

    /// Open and not latched.
    fn active(&self, id: &TrackId) -> Option<&Episode> {
        self.open(id).filter(|episode| !episode.latched)
    }

    /// A new episode.
    fn begin(&mut self, id: &TrackId, at: i64, priority: Priority, condition_start: i64) {
        let mut start = condition_start;
        if let Some(ended) = self.tracks.get(id).and_then(|track| track.ended.as_ref()) {
            start = start.max(ended.at + 1).max(ended.start + 1);
        }
        let mut episode = Episode { start, priority, highest: priority, next_number: 0, last_at: at, latched: false };
        self.emit(id, &mut episode, at, "raised");
        self.tracks.entry(id.clone()).or_default().open = Some(episode);
    }

    /// A change of an open episode, at `at` or at its newest transition's `T`, if that is later.
    fn change(&mut self, id: &TrackId, at: i64, what: &str, priority: Option<Priority>, latched: bool) {
        let Some(mut episode) = self.tracks.get_mut(id).and_then(|track| track.open.take()) else {
            return;
        };
        episode.priority = priority.unwrap_or(episode.priority);
        episode.highest = episode.highest.max(episode.priority);
        episode.latched = latched;
        let at = at.max(episode.last_at);
        self.emit(id, &mut episode, at, what);
        self.tracks.entry(id.clone()).or_default().open = Some(episode);
    }

    fn end(&mut self, id: &TrackId, at: i64, what: &str, clock: Stamp) {
        let Some(mut episode) = self.tracks.get_mut(id).and_then(|track| track.open.take()) else {
            return;
        };
        let at = at.max(episode.last_at);
        self.emit(id, &mut episode, at, what);
        let cools_down = what == "cleared" || what == "reset";
        let ended = Ended { start: episode.start, at, clock, highest: episode.highest, cools_down };
        self.tracks.entry(id.clone()).or_default().ended = Some(ended);
    }

    // -- source clocks -------------------------------------------------------------------------------------------

    fn source<'s>(&self, source: &'s str) -> &'s str {
        if self.settings.record_clock { "" } else { source }
    }

    fn clock(&self, source: &str) -> i64 {
        self.clocks.get(source).copied().expect("a source that was heard of")
    }

    fn stamp(&self, source: &str) -> Stamp {
        Stamp { source: source.to_string(), us: self.clock(source) }
    }

    fn tick(&mut self, source: &str, time: i64) {
        let source = self.source(source).to_string();
        self.move_clock(&source, time);
        let clock = self.clock(&source);
        if self.feeds.get(&source).is_some_and(|jump| clock >= jump + JUMP) {
            self.feeds.remove(&source);
            let stamp = self.stamp(&source);
            self.end(&feed_track(&source), clock, "cleared", stamp);
        }
    }

    /// A record's or a tick's time moves a source clock; timers fire first.
    fn move_clock(&mut self, source: &str, time: i64) {
        let Some(before) = self.clocks.get(source).copied() else {
            self.clocks.insert(source.to_string(), time);
            return;
        };
        let by = time - before;
        if self.settings.record_clock || (0..=JUMP).contains(&by) {
            let now = time.max(before);
            self.fire(source, now);
            self.clocks.insert(source.to_string(), now);
        } else if by > JUMP {
            for series in self.series.values_mut().filter(|series| series.source == source) {
                series.deadline = series.deadline.map(|deadline| deadline + by);
            }
            self.fire(source, time);
            self.clocks.insert(source.to_string(), time);
            self.feed_is_wrong(source);
        } else if by < -JUMP {
            self.shift(source, by);
            self.clocks.insert(source.to_string(), time);
            self.feed_is_wrong(source);
        }
    }

    fn feed_is_wrong(&mut self, source: &str) {
        let clock = self.clock(source);
        self.feeds.insert(source.to_string(), clock);
        let id = feed_track(source);
        if self.open(&id).is_none() {
            self.begin(&id, clock, Priority::High, clock);
        }
    }

    /// Every stored value of a clock moves.
    fn shift(&mut self, source: &str, by: i64) {
        for series in self.series.values_mut().filter(|series| series.source == source) {
            series.heard += by;
            series.deadline = series.deadline.map(|deadline| deadline + by);
            for remembered in &mut series.memory {
                remembered.clock += by;
            }
            for late in &mut series.late_row {
                late.1 += by;
            }
        }
        let ended = self.tracks.values_mut().filter_map(|track| track.ended.as_mut()).map(|ended| &mut ended.clock);
        let runs = self.states.values_mut().flat_map(|state| state.runs.iter_mut().flatten()).map(|run| &mut run.clock);
        for stamp in ended.chain(runs).chain(self.told.values_mut()) {
            if stamp.source == source {
                stamp.us += by;
            }
        }
    }

    // -- timers --------------------------------------------------------------------------------------------------

    /// All timers of a clock that are due when it moves to `now`, one after the other, the earliest first.
    fn fire(&mut self, source: &str, now: i64) {
        while let Some((due, timer)) = self.earliest(source, now) {
            match timer {
                Due::Stale(id) => {
                    let series = self.the_series(&id);
                    let deadline = series.deadline.take().expect("a deadline that passed");
                    series.stale = true;
                    series.successors.clear();
                    self.begin(&id.track(STALE), deadline, Priority::Low, deadline);
                }
                Due::Forget(id) => self.forget(&id, due),
                Due::Hold(id, priority, at) => self.raise_or_escalate(&id, priority, at),
            }
        }
    }

    fn earliest(&self, source: &str, now: i64) -> Option<(i64, Due)> {
        let mut all: Vec<((i64, TrackId), Due)> = Vec::new();
        for (id, series) in self.series.iter().filter(|(_, series)| series.source == source) {
            let signal = self.signal(&id.signal);
            if let Some(deadline) = series.deadline {
                all.push(((deadline + 1, id.track(STALE)), Due::Stale(id.clone())));
            }
            if signal.stale_after_us != 0 {
                let due = series.heard + WEEK.max(signal.stale_after_us);
                all.push(((due, id.track("")), Due::Forget(id.clone())));
            }
        }
        for id in self.states.keys() {
            let reads = self.reads(id);
            let clocks: Vec<(String, i64)> = self.clocks_of(id, &reads, Some((source, now)));
            if !clocks.iter().any(|(name, _)| name == source) {
                continue;
            }
            let clock = clocks.iter().map(|(_, us)| *us).min().unwrap_or(now);
            for (due, at, priority) in self.holds(id, &reads) {
                if due <= clock {
                    all.push(((due, id.clone()), Due::Hold(id.clone(), priority, at)));
                }
            }
        }
        let priority = |due: &Due| match due {
            Due::Hold(_, priority, _) => std::cmp::Reverse(Some(*priority)),
            _ => std::cmp::Reverse(None),
        };
        let due = all.into_iter().filter(|((due, _), _)| *due <= now);
        due.min_by(|a, b| a.0.cmp(&b.0).then_with(|| priority(&a.1).cmp(&priority(&b.1)))).map(|((at, _), d)| (at, d))
    }

    /// Raises and escalations that only wait for the key's clock: (due on the clock, `T`, priority).
    fn holds(&self, id: &TrackId, reads: &Reads) -> Vec<(i64, i64, Priority)> {
        let Some(state) = self.states.get(id) else {
            return Vec::new();
        };
        let mut holds = Vec::new();
        for (priority, run) in PRIORITIES.into_iter().zip(&state.runs) {
            let Some(run) = run else { continue };
            if self.active(id).is_some_and(|episode| priority <= episode.priority) {
                continue;
            }
            let (at, clock) = self.due(id, priority, run);
            if reads.gap.is_none_or(|gap| at - run.newest <= gap) {
                holds.push((clock, at, priority));
            }
        }
        holds
    }

    /// When a raise with this priority is due: its `T`, and the clock that a timer waits for.
    fn due(&self, id: &TrackId, priority: Priority, run: &Run) -> (i64, i64) {
        let rule = self.rule(&id.rule);
        let (mut at, mut clock) = (run.since + rule.hold, run.clock.us + rule.hold);
        let track = self.tracks.get(id);
        let over = track.filter(|track| track.open.is_none()).and_then(|track| track.ended.as_ref());
        if let Some(ended) = over.filter(|ended| rule.cool_down > 0 && ended.cools_down && priority <= ended.highest) {
            at = at.max(ended.at + rule.cool_down);
            clock = clock.max(ended.clock.us + rule.cool_down);
        }
        (at, clock)
    }

    /// A hold of this priority is complete.
    fn raise_or_escalate(&mut self, id: &TrackId, priority: Priority, at: i64) {
        let condition_start = self.states.get(id).and_then(|state| state.runs[0].as_ref()).map_or(at, |run| run.began);
        match self.open(id).map(|episode| episode.latched) {
            None => self.begin(id, at, priority, condition_start),
            Some(true) => self.change(id, at, "raised", Some(priority), false),
            Some(false) => {
                self.change(id, at, "escalated", Some(priority), false);
                if let Some(state) = self.states.get_mut(id) {
                    state.lower = None;
                }
                return;
            }
        }
        if let Some(state) = self.states.get_mut(id) {
            state.clearing = None;
            state.lower = None;
        }
    }

    /// Section 2.8.
    fn forget(&mut self, id: &SeriesId, at: i64) {
        let source = self.series.get(id).map(|series| series.source.clone()).unwrap_or_default();
        let clock = Stamp { source, us: at };
        self.series.remove(id);
        let others: Vec<&SeriesId> =
            self.series.keys().filter(|other| other.patient == id.patient && other.signal == id.signal).collect();
        let first = others.into_iter().filter_map(|other| Some((self.series.get(other)?.first_sample?, other))).min();
        let first = first.map(|(_, other)| other.clone());
        let place = (id.patient.clone(), id.signal.clone());
        if self.primary.get(&place) == Some(id) {
            self.primary.remove(&place);
            if let Some(first) = first {
                self.primary.insert(place, first);
            }
        }
        let mut gone: Vec<TrackId> = self
            .states
            .keys()
            .chain(self.tracks.keys())
            .filter(|track| {
                let own = track.patient == id.patient && track.key == id.key();
                let of_patient = track.patient == id.patient
                    && track.key == "-"
                    && self.rules.iter().any(|rule| {
                        let left = |s: &SeriesId| s.patient == id.patient && rule.signals.contains(&s.signal);
                        rule.id == track.rule && !self.series.keys().any(left)
                    });
                own || of_patient
            })
            .cloned()
            .collect();
        gone.sort_by(|a, b| (&a.rule, &a.key).cmp(&(&b.rule, &b.key)));
        gone.dedup();
        for track in gone {
            self.end(&track, at, "expired", clock.clone());
            self.tracks.remove(&track);
            self.states.remove(&track);
        }
    }

    // -- readings ------------------------------------------------------------------------------------------------

    fn record(&mut self, record: &Record) {
        let source = self.source(&record.source).to_string();
        self.move_clock(&source, record.broker_us);
        let clock = self.clock(&source);
        let readings: Vec<&Reading> =
            record.readings.iter().filter(|reading| self.signals.contains_key(&reading.signal)).collect();
        for reading in &readings {
            self.hear(reading, &source, clock);
        }
        self.look_for_slow_clocks(&readings, record.broker_us);
        let mut decided: Vec<Decided> = Vec::new();
        for reading in &readings {
            self.remember_no_longer(&SeriesId::of(reading), clock);
            if let Some((t, time)) = self.decide(reading, &decided, record.broker_us, clock) {
                decided.push(Decided { reading, id: SeriesId::of(reading), t, time });
            }
        }
        decided.sort_by_key(|d| d.t);
        for group in decided.chunk_by(|a, b| a.t == b.t) {
            let mut touched: Vec<&SeriesId> = Vec::new();
            for d in group {
                if self.accept(d, clock) {
                    touched.push(&d.id);
                }
            }
            self.evaluate_all(&touched);
        }
    }

    /// A reading of any outcome: the series is known, and is on this clock.
    fn hear(&mut self, reading: &Reading, source: &str, clock: i64) {
        let signal = self.signal(&reading.signal);
        let series = self.series.entry(SeriesId::of(reading)).or_insert_with(|| {
            let mut series = Series {
                source: source.to_string(),
                readings: Vec::new(),
                intervals: Vec::new(),
                waiting: None,
                memory: Vec::new(),
                replacing: None,
                slow: false,
                late_row: Vec::new(),
                newest_of_record_before: None,
                heard: clock,
                deadline: None,
                stale: false,
                successors: BTreeSet::new(),
                held_from: i64::MIN,
                first_sample: None,
            };
            series.expect(clock, signal);
            series
        });
        series.source = source.to_string();
    }

    fn remember_no_longer(&mut self, id: &SeriesId, clock: i64) {
        let lasts = self.settings.lateness_us + self.settings.skew_us;
        let series = self.the_series(id);
        if series.replacing.is_none() {
            series.memory.retain(|remembered| clock - remembered.clock <= lasts);
        }
    }

    fn is_epoch(&self, event: i64) -> bool {
        self.settings.epoch_check && event < EPOCH_END
    }

    /// Section 2.3, once per series and record.
    fn look_for_slow_clocks(&mut self, readings: &[&Reading], broker: i64) {
        let mut newest: BTreeMap<SeriesId, i64> = BTreeMap::new();
        for reading in readings {
            let entry = newest.entry(SeriesId::of(reading)).or_insert(reading.event_us);
            *entry = reading.event_us.max(*entry);
        }
        for (id, event) in newest {
            let clock = self.series.get(&id).map_or(broker, |series| self.clock(&series.source));
            self.remember_no_longer(&id, clock);
            let too_old = event < broker - self.settings.lateness_us && !self.is_epoch(event);
            let series = self.the_series(&id);
            let seen_before = series.newest_of_record_before.replace(event) == Some(event);
            if series.memory.iter().any(|remembered| remembered.event == event) || !too_old {
                series.late_row.clear();
                continue;
            }
            if seen_before {
                continue;
            }
            if series.late_row.last().is_some_and(|(before, _)| event <= *before) {
                series.late_row.clear();
            }
            series.late_row.push((event, broker));
            if let [.., first, _, third] = series.late_row.as_slice() {
                let (by_event, by_broker) = (third.0 - first.0, third.1 - first.1);
                if 4 * by_broker >= 3 * by_event && 3 * by_broker <= 4 * by_event {
                    series.slow = true;
                    series.replacing = series.replacing.or(Some(false));
                }
            }
        }
    }

    /// A reading's `t` (2.2, 2.3, 2.6); none if it is late or a duplicate.
    fn decide(&mut self, reading: &Reading, decided: &[Decided], broker: i64, clock: i64) -> Option<(i64, Time)> {
        let id = SeriesId::of(reading);
        let event = reading.event_us;
        let earlier: Vec<&Decided> = decided.iter().filter(|d| d.id == id).collect();
        // A duplicate or a conflict inside the record: the first stays.
        if earlier.iter().any(|d| d.reading.event_us == event) {
            return None;
        }
        let series = self.series.get(&id)?;
        let newest = series.newest_t().into_iter().chain(earlier.iter().map(|d| d.t)).max();
        let replaced_before = earlier.iter().filter(|d| d.time != Time::AsSent).count() as i64;
        if let Some(last) = series.memory.iter().rev().find(|remembered| remembered.event == event) {
            // A blank is a duplicate.
            reading.value?;
            if reading.value == last.value {
                self.sign_of_life(&id, clock);
                return None;
            }
            let t = broker.max(newest.map_or(broker, |t| t + 1));
            let series = self.the_series(&id);
            series.replacing = series.replacing.or(Some(true));
            return Some((t, Time::Quietly));
        }
        let too_old = event < broker - self.settings.lateness_us;
        let wrong = self.is_epoch(event) || event > broker + self.settings.skew_us || (too_old && series.slow);
        if too_old && !wrong {
            return None;
        }
        let goes_on = !too_old && series.replacing.is_some() && newest.is_some_and(|newest| event < newest);
        let series = self.the_series(&id);
        if wrong || goes_on {
            let began_coarse = *series.replacing.get_or_insert(false);
            return Some((broker + replaced_before, if began_coarse { Time::Quietly } else { Time::Replaced }));
        }
        series.replacing = None;
        series.slow = false;
        Some((event, Time::AsSent))
    }

    /// A duplicate with a value in a later record.
    fn sign_of_life(&mut self, id: &SeriesId, clock: i64) {
        let signal = self.signal(&id.signal);
        let series = self.the_series(id);
        series.expect(clock, signal);
        series.stale = false;
        series.successors.clear();
        let stamp = Stamp { source: series.source.clone(), us: clock };
        self.end(&id.track(STALE), clock, "cleared", stamp);
    }

    /// One reading joins its series; false if it is late after all (2.4).
    fn accept(&mut self, decided: &Decided, clock: i64) -> bool {
        let (id, reading, t) = (&decided.id, decided.reading, decided.t);
        let signal = self.signal(&id.signal);
        let lateness = self.settings.lateness_us;
        let order = self.order;
        let series = self.the_series(id);
        if series.newest_t().is_some_and(|newest| t < newest - lateness) {
            return false;
        }
        let stamp = Stamp { source: series.source.clone(), us: clock };
        self.tell_of_clock(decided, &stamp);

        let series = self.the_series(id);
        series.intervals.extend(series.waiting.take());
        let coverage = match series.expected_interval(signal.typical_interval_us) {
            Some(e) => 2 * e,
            None => 2 * signal.typical_interval_us,
        };
        let covers_at_most = if signal.stale_after_us == 0 { coverage } else { coverage.min(signal.stale_after_us) };
        let newest_sample = series.newest_sample_t();
        series.memory.push(Remembered { event: reading.event_us, value: reading.value, clock });
        series.readings.push(Accepted {
            t,
            order,
            value: reading.value,
            questionable: reading.questionable,
            covers_at_most,
            evicted: false,
        });
        self.order += 1;
        if reading.value.is_none() {
            return true;
        }
        let series = self.the_series(id);
        series.first_sample.get_or_insert(order);
        series.waiting = newest_sample.map(|newest| t - newest).filter(|interval| *interval > 0);
        series.alive(clock, signal);
        series.stale = false;
        series.successors.clear();
        self.end(&id.track(STALE), clock, "cleared", stamp.clone());
        self.choose_primary(id, t);
        self.supersede_stale_alerts(id, clock, &stamp);
        self.evict(id, clock, &stamp);
        true
    }

    /// Section 7.5.
    fn tell_of_clock(&mut self, decided: &Decided, stamp: &Stamp) {
        let (patient, device) = (decided.id.patient.clone(), decided.id.device.clone());
        let track = TrackId { patient: patient.clone(), key: format!("{device}/-/-"), rule: CLOCK.to_string() };
        match decided.time {
            Time::AsSent => self.end(&track, stamp.us, "cleared", stamp.clone()),
            Time::Replaced => {
                let place = (patient, device);
                let lately = self.told.get(&place).is_some_and(|told| stamp.us - told.us < HOUR);
                if self.open(&track).is_none() && !lately {
                    self.told.insert(place, stamp.clone());
                    self.begin(&track, stamp.us, Priority::Low, stamp.us);
                }
            }
            Time::Quietly => {}
        }
    }

    /// Section 4.1, at a sample.
    fn choose_primary(&mut self, id: &SeriesId, t: i64) {
        let place = (id.patient.clone(), id.signal.clone());
        let stale_after = self.signal(&id.signal).stale_after_us;
        let silent = match self.primary.get(&place) {
            None => true,
            Some(primary) if primary == id => false,
            Some(primary) => {
                let newest = self.series.get(primary).and_then(Series::newest_sample_t);
                stale_after != 0 && newest.is_none_or(|newest| t - newest > stale_after)
            }
        };
        if silent {
            self.primary.insert(place, id.clone());
        }
    }

    /// Section 7.2, the stale alerts of other devices.
    fn supersede_stale_alerts(&mut self, id: &SeriesId, clock: i64, stamp: &Stamp) {
        for other in self.swapped(id, false) {
            self.the_series(&other).successors.insert(id.device.clone());
            self.end(&other.track(STALE), clock, "superseded", stamp.clone());
        }
    }

    /// The stale series of the same patient, signal and method, by key; if asked for, only those that this series
    /// had a sample after.
    fn swapped(&self, id: &SeriesId, after: bool) -> Vec<SeriesId> {
        let mut others: Vec<SeriesId> = self
            .series
            .iter()
            .filter(|(other, series)| {
                other.patient == id.patient
                    && other.signal == id.signal
                    && other.method == id.method
                    && other.device != id.device
                    && series.stale
                    && (!after || series.successors.contains(&id.device))
            })
            .map(|(other, _)| other.clone())
            .collect();
        others.sort_by_key(SeriesId::key);
        others
    }

    /// Section 3.1, at a sample.
    fn evict(&mut self, id: &SeriesId, clock: i64, stamp: &Stamp) {
        let Some(longest) = self.longest.get(&id.signal).copied() else {
            return;
        };
        let cap = self.settings.sample_cap.max(2);
        let series = self.the_series(id);
        let newest = series.newest_t().expect("a sample was accepted");
        let mut evicted = false;
        loop {
            let needed =
                series.readings.iter_mut().filter(|r| r.value.is_some() && !r.evicted && r.t > newest - longest);
            let mut needed: Vec<&mut Accepted> = needed.collect();
            if needed.len() <= cap {
                break;
            }
            needed.sort_by_key(|r| (r.t, r.order));
            let oldest = needed.remove(0);
            oldest.evicted = true;
            series.held_from = series.held_from.max(oldest.t);
            evicted = true;
        }
        let known = newest - longest >= series.held_from;
        let track = id.track(OVERRUN);
        if evicted && self.open(&track).is_none() {
            self.begin(&track, clock, Priority::Low, clock);
        } else if known {
            self.end(&track, clock, "cleared", stamp.clone());
        }
    }

    // -- evaluation ----------------------------------------------------------------------------------------------

    /// The readings of one `t` are accepted: each rule and key concerned, once, by rule id, patient, key.
    fn evaluate_all(&mut self, touched: &[&SeriesId]) {
        let mut concerned: BTreeSet<(String, String, String)> = BTreeSet::new();
        for id in touched {
            for rule in &self.rules {
                match rule.single() {
                    Some(signal) if signal == id.signal => {
                        concerned.insert((rule.id.clone(), id.patient.clone(), id.key()));
                    }
                    None if rule.signals.contains(&id.signal) => {
                        concerned.insert((rule.id.clone(), id.patient.clone(), "-".to_string()));
                    }
                    _ => {}
                }
            }
        }
        for (rule, patient, key) in concerned {
            self.evaluate(&TrackId { patient, key, rule });
        }
    }

    /// All series of the rule's signals that belong to the key, read or not.
    fn all_series(&self, id: &TrackId) -> Vec<SeriesId> {
        let rule = self.rule(&id.rule);
        let of_key = |s: &&SeriesId| {
            s.patient == id.patient
                && rule.signals.contains(&s.signal)
                && (rule.single().is_none() || s.key() == id.key)
        };
        self.series.keys().filter(of_key).cloned().collect()
    }

    fn reads(&self, id: &TrackId) -> Reads {
        let rule = self.rule(&id.rule);
        let series: Vec<SeriesId> = match rule.single() {
            Some(_) => self.all_series(id),
            None => {
                let primary = |s: &String| self.primary.get(&(id.patient.clone(), s.clone())).cloned();
                rule.signals.iter().filter_map(primary).collect()
            }
        };
        let expected = |s: &SeriesId| {
            let typical = self.signal(&s.signal).typical_interval_us;
            self.series.get(s).and_then(|series| series.expected_interval(typical))
        };
        let gap = rule.gap.or_else(|| series.iter().filter_map(expected).max().map(|e| 2 * e));
        let stale: Vec<i64> = series.iter().map(|s| self.signal(&s.signal).stale_after_us).collect();
        let longest = stale.iter().copied().max().filter(|_| !stale.contains(&0));
        let restart_above = match (gap, longest) {
            (Some(gap), Some(longest)) => Some(gap.max(longest)),
            _ => None,
        };
        Reads { series, gap, restart_above }
    }

    /// The clocks of what a key reads, one of them perhaps moved. Where it reads nothing yet: of all its series.
    fn clocks_of(&self, id: &TrackId, reads: &Reads, moved: Option<(&str, i64)>) -> Vec<(String, i64)> {
        let all = self.all_series(id);
        let series = if reads.series.is_empty() { &all } else { &reads.series };
        let sources: BTreeSet<String> =
            series.iter().filter_map(|s| self.series.get(s)).map(|series| series.source.clone()).collect();
        sources
            .into_iter()
            .map(|source| match moved {
                Some((name, us)) if name == source => (source, us),
                _ => {
                    let us = self.clock(&source);
                    (source, us)
                }
            })
            .collect()
    }

    fn key_clock(&self, id: &TrackId, reads: &Reads) -> Stamp {
        let clocks = self.clocks_of(id, reads, None);
        let (source, us) = clocks.into_iter().min_by_key(|(_, us)| *us).expect("a key has a series");
        Stamp { source, us }
    }

    fn evaluate(&mut self, id: &TrackId) {
        let reads = self.reads(id);
        let clock = self.key_clock(id, &reads);
        let newest = self.all_series(id).iter().filter_map(|s| self.series.get(s)?.newest_t()).max();
        let mut state = self.states.remove(id).unwrap_or_default();
        let t = newest.max(state.evaluated).expect("a reading was accepted");
        state.evaluated = Some(t);
        let (verdict, clear) = self.ask(id, &reads, t);
        extend_runs(&mut state, verdict, t, &clock, &reads);
        state.well = (clear == Some(true)).then(|| Span::extended(state.well, t, reads.gap));
        self.states.insert(id.clone(), state);

        self.raise_by_reading(id, verdict, t);
        self.deescalate(id, verdict, t, &reads);
        self.clear(id, clear, t, &reads, &clock);
        self.raise_by_timer(id, &reads, &clock);
        self.supersede_episodes(id, t, &clock);
    }

    fn ask(&self, id: &TrackId, reads: &Reads, t: i64) -> (Verdict, Option<bool>) {
        let rule = self.rule(&id.rule);
        let series_of = |signal: &String| {
            let read = reads.series.iter().find(|s| s.signal == *signal);
            (signal.clone(), read.and_then(|s| self.series.get(s)))
        };
        let view = View {
            rule,
            t,
            signals: &self.signals,
            series: rule.signals.iter().map(series_of).collect(),
            patient: self.patients.get(&id.patient).copied(),
            windows: RefCell::default(),
            dry: false,
        };
        let verdict = view.raise();
        (verdict, view.clear(verdict))
    }

    /// Sections 6.2 and 6.4.
    fn raise_by_reading(&mut self, id: &TrackId, verdict: Verdict, t: i64) {
        let Verdict::True(said) = verdict else { return };
        let above = self.active(id).map(|episode| episode.priority);
        let Some(state) = self.states.get(id) else { return };
        let complete = PRIORITIES.into_iter().zip(&state.runs).filter(|(priority, run)| {
            *priority <= said
                && above.is_none_or(|above| *priority > above)
                && run.as_ref().is_some_and(|run| t >= self.due(id, *priority, run).0)
        });
        if let Some(priority) = complete.map(|(priority, _)| priority).max() {
            self.raise_or_escalate(id, priority, t);
        }
    }

    /// Sections 6.3 and 6.4, looked at after an evaluation: the highest for which both conditions hold.
    fn raise_by_timer(&mut self, id: &TrackId, reads: &Reads, clock: &Stamp) {
        loop {
            let holds = self.holds(id, reads).into_iter().filter(|(due, _, _)| *due <= clock.us);
            let Some((_, at, priority)) = holds.max_by_key(|(_, _, priority)| *priority) else {
                return;
            };
            self.raise_or_escalate(id, priority, at);
        }
    }

    /// Section 6.5.
    fn deescalate(&mut self, id: &TrackId, verdict: Verdict, t: i64, reads: &Reads) {
        let clear_hold = self.rule(&id.rule).clear_hold;
        let above = self.active(id).map(|episode| episode.priority);
        let Some(state) = self.states.get_mut(id) else { return };
        match (above, verdict) {
            (Some(above), Verdict::True(said)) if said < above => {
                let lower = Span::extended(state.lower, t, reads.gap);
                state.lower = Some(lower);
                if t - lower.first >= clear_hold {
                    state.lower = None;
                    self.change(id, t, "deescalated", Some(said), false);
                }
            }
            _ => state.lower = None,
        }
    }

    /// Sections 6.6 and 6.9.
    fn clear(&mut self, id: &TrackId, clear: Option<bool>, t: i64, reads: &Reads, clock: &Stamp) {
        let (clear_hold, latching) = (self.rule(&id.rule).clear_hold, self.rule(&id.rule).latching);
        let active = self.active(id).is_some();
        let Some(state) = self.states.get_mut(id) else { return };
        if !active || clear != Some(true) {
            state.clearing = None;
            return;
        }
        let clearing = Span::extended(state.clearing, t, reads.gap);
        state.clearing = Some(clearing);
        if t - clearing.first < clear_hold {
            return;
        }
        state.forget_runs();
        if latching {
            self.change(id, t, "latched", None, true);
        } else {
            self.end(id, t, "cleared", clock.clone());
        }
    }

    /// Section 7.2, the open episodes of stale series, after this series' own transitions.
    fn supersede_episodes(&mut self, id: &TrackId, t: i64, clock: &Stamp) {
        let rule = self.rule(&id.rule);
        let (clear_hold, latching) = (rule.clear_hold, rule.latching);
        if rule.single().is_none() {
            return;
        }
        let Some(well) = self.states.get(id).and_then(|state| state.well) else {
            return;
        };
        if t - well.first < clear_hold {
            return;
        }
        let Some(own) = self.all_series(id).into_iter().next() else {
            return;
        };
        for other in self.swapped(&own, true) {
            let other = other.track(&id.rule);
            if self.active(&other).is_none() {
                continue;
            }
            if latching {
                self.change(&other, t, "latched", None, true);
            } else {
                self.end(&other, t, "superseded", clock.clone());
            }
            if let Some(state) = self.states.get_mut(&other) {
                state.forget_runs();
            }
        }
    }
}

/// Section 6.1.
fn extend_runs(state: &mut State, verdict: Verdict, t: i64, clock: &Stamp, reads: &Reads) {
    for (priority, run) in PRIORITIES.into_iter().zip(&mut state.runs) {
        match verdict {
            Verdict::Unknown => {}
            Verdict::True(said) if said >= priority => {
                let fresh = Run { began: t, since: t, newest: t, clock: clock.clone() };
                *run = Some(match run.take() {
                    Some(run) if reads.restart_above.is_none_or(|limit| t - run.newest <= limit) => {
                        let uncounted = reads.gap.map_or(0, |gap| (t - run.newest - gap).max(0));
                        Run {
                            since: run.since + uncounted,
                            newest: t,
                            clock: Stamp { us: run.clock.us + uncounted, ..run.clock },
                            ..run
                        }
                    }
                    _ => fresh,
                });
            }
            Verdict::True(_) | Verdict::False => *run = None,
        }
    }
}

fn feed_track(source: &str) -> TrackId {
    TrackId { patient: "-".to_string(), key: source.to_string(), rule: FEED.to_string() }
}
