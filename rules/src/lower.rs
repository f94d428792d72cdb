//! From syntax tree to the typed form: names resolved, types checked, `let` and own functions inlined.
//!
//! What does not lower (loops, mutation, recursion, `switch`) is an error here, named with its place. After the first
//! fault inside an expression its value is [`Value::Poison`], which is compatible with everything, so that one mistake
//! is reported once and the rest of the file is still checked.

use std::ops::Range;

use rhai::{ASTFlags, ASTNode, Expr, FlowControl, FnCallExpr, Stmt};
use wardbell_schemas::alert::Priority;
use wardbell_schemas::catalogue::{Catalogue, Signal};
use wardbell_schemas::decimal::Decimal;
use wardbell_schemas::duration;

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::ir::{Arithmetic, Comparison, Decision, Feature, Function, Logic, Number};
use crate::parse::{self, Parsed, span_at, span_of};

/// Functions of a file may call each other this deep; more is recursion.
const CALL_DEPTH_MAX: usize = 16;
/// Nodes a rule may have after inlining; bounds the work of one evaluation.
const NODES_MAX: usize = 10_000;
/// Samples a series keeps; a window that cannot fit at the signal's interval is refused.
pub const SAMPLES_MAX: i64 = 8_192;

/// A value known while lowering.
#[derive(Debug, Clone)]
enum Value {
    Number(Number),
    Logic(Logic),
    Text(String),
    Decision(Decision),
    /// A category's feature.
    Category {
        feature: usize,
    },
    Signal(usize),
    Limits,
    Patient,
    /// Already reported.
    Poison,
}

impl Value {
    fn describe(&self) -> &'static str {
        match self {
            Value::Number(_) => "a number",
            Value::Logic(_) => "a condition",
            Value::Text(_) => "a text",
            Value::Decision(_) => "a priority",
            Value::Category { .. } => "a category",
            Value::Signal(_) => "a signal",
            Value::Limits => "the limits",
            Value::Patient => "the patient",
            Value::Poison => "a faulty value",
        }
    }
}

/// Collects what the functions of one rule share.
pub struct Lowering<'a> {
    parsed: &'a Parsed,
    catalogue: &'a Catalogue,
    pub signals: Vec<String>,
    pub features: Vec<Feature>,
    pub limits: Vec<String>,
    pub attributes: Vec<String>,
    pub diagnostics: Vec<Diagnostic>,
    depth: usize,
    nodes: usize,
}

type Scope = Vec<(String, Value)>;

impl<'a> Lowering<'a> {
    pub fn new(parsed: &'a Parsed, catalogue: &'a Catalogue, limits: Vec<String>) -> Self {
        Self {
            parsed,
            catalogue,
            signals: Vec::new(),
            features: Vec::new(),
            limits,
            attributes: Vec::new(),
            diagnostics: Vec::new(),
            depth: 0,
            nodes: 0,
        }
    }

    fn report(&mut self, code: &'static str, at: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        self.diagnostics.push(Diagnostic::error(code, &self.parsed.file, at, message));
        let last = self.diagnostics.len() - 1;
        &mut self.diagnostics[last]
    }

    /// Binds the parameters of `raise`, `clear` or `message`: signals of the catalogue, `limit`, `patient`.
    pub fn bind(&mut self, function: &parse::Function) -> Vec<(String, BoundParameter)> {
        let mut bound = Vec::new();
        for name in &function.parameters {
            let at = parse::parameter_span(&self.parsed.file, function, name);
            let parameter = match name.as_str() {
                "limit" => BoundParameter::Limits,
                "patient" => BoundParameter::Patient,
                "rule" | "time" | "now" | "site" | "unit" | "device" | "series" => {
                    self.report("R015", at, format!("parameter name `{name}` is reserved")).label =
                        "reserved".to_owned();
                    BoundParameter::Faulty
                }
                _ if self.catalogue.by_id(name).is_some() => BoundParameter::Signal(self.signal(name)),
                _ => {
                    let ids = self.catalogue.signals().iter().map(|signal| signal.id.as_str());
                    let help = did_you_mean(name, ids.chain(["limit", "patient"]));
                    let diagnostic = self.report("R014", at, format!("unknown signal `{name}`"));
                    diagnostic.label = "not in the signal catalogue".to_owned();
                    diagnostic.help = help;
                    BoundParameter::Faulty
                }
            };
            bound.push((name.clone(), parameter));
        }
        bound
    }

    fn signal(&mut self, id: &str) -> usize {
        position_or_push(&mut self.signals, id)
    }

    fn catalogue_signal(&self, signal: usize) -> Option<&'a Signal> {
        self.catalogue.by_id(self.signals.get(signal)?)
    }

    /// Lowers `raise`.
    pub fn decision(&mut self, function: &parse::Function) -> Option<Decision> {
        let value = self.function(function);
        match self.as_decision(value) {
            Ok(decision) => decision,
            Err(value) => {
                let message = format!("`{}` gives {}, not a condition or a priority", function.name, value.describe());
                let diagnostic = self.report("R021", function.span.clone(), message);
                diagnostic.help =
                    Some("end it with a comparison, or with \"high\", \"medium\", \"low\", \"none\"".to_owned());
                None
            }
        }
    }

    /// Lowers `clear`.
    pub fn condition(&mut self, function: &parse::Function) -> Option<Logic> {
        match self.function(function) {
            Value::Logic(condition) => Some(condition),
            Value::Poison => None,
            value => {
                let message = format!("`{}` gives {}, not a condition", function.name, value.describe());
                self.report("R021", function.span.clone(), message).help = Some("end it with a comparison".to_owned());
                None
            }
        }
    }

    fn function(&mut self, function: &parse::Function) -> Value {
        let scope = self.bind(function).into_iter().map(|(name, parameter)| (name, parameter.into())).collect();
        self.block(&function.body, function.span.clone(), scope)
    }

    /// Finds what `message` reads, so that it is there when the message is made. Thresholds come with their features.
    pub fn message_features(&mut self, function: &parse::Function) -> Vec<(usize, Option<Number>)> {
        let scope: Scope = self.bind(function).into_iter().map(|(name, parameter)| (name, parameter.into())).collect();
        let mut reads = Vec::new();
        let mut chains = Vec::new();
        for statement in &function.body {
            statement.walk(&mut Vec::new(), &mut |path: &[ASTNode]| {
                if let Some(ASTNode::Expr(expression @ Expr::Dot(chain, ..))) = path.last()
                    && matches!(&chain.lhs, Expr::Variable(..))
                {
                    chains.push((*expression).clone());
                }
                true
            });
        }
        for chain in &chains {
            match self.expression(chain, &scope) {
                Value::Number(Number::Feature { feature, threshold }) => {
                    reads.push((feature, threshold.map(|threshold| *threshold)));
                }
                Value::Category { feature } => reads.push((feature, None)),
                _ => {}
            }
        }
        reads
    }

    fn as_decision(&mut self, value: Value) -> Result<Option<Decision>, Value> {
        match value {
            Value::Decision(decision) => Ok(Some(decision)),
            Value::Logic(condition) => Ok(Some(Decision::Logic(condition))),
            Value::Text(text) => match text.as_str() {
                "none" => Ok(Some(Decision::Level(None))),
                other => match other.parse::<Priority>() {
                    Ok(priority) => Ok(Some(Decision::Level(Some(priority)))),
                    Err(()) => Err(Value::Text(text)),
                },
            },
            Value::Poison => Ok(None),
            other => Err(other),
        }
    }

    /// A block's value is that of its last statement.
    fn block(&mut self, statements: &[Stmt], at: Range<usize>, mut scope: Scope) -> Value {
        let statements: Vec<&Stmt> = statements.iter().filter(|statement| !statement.is_noop()).collect();
        let Some((last, leading)) = statements.split_last() else {
            self.report("R022", at, "an empty block has no value").help =
                Some("give it a condition, a number or a priority".to_owned());
            return Value::Poison;
        };
        for statement in leading {
            match statement {
                Stmt::Var(variable, ..) => {
                    let (name, value, _) = &**variable;
                    let value = self.expression(value, &scope);
                    scope.push((name.name.to_string(), value));
                }
                other => self.refuse(other),
            }
        }
        match last {
            Stmt::Expr(expression) => self.expression(expression, &scope),
            Stmt::FnCall(call, position) => self.call(call, span_at(&self.parsed.file, *position), &scope),
            Stmt::If(control, position) => self.branch(control, span_at(&self.parsed.file, *position), &scope),
            Stmt::Block(block) => self.block(block.statements(), at, scope),
            Stmt::Return(Some(expression), flags, _) if !flags.intersects(ASTFlags::BREAK) => {
                self.expression(expression, &scope)
            }
            other => {
                self.refuse(other);
                Value::Poison
            }
        }
    }

    fn refuse(&mut self, statement: &Stmt) {
        let (what, help) = match statement {
            Stmt::While(..) | Stmt::Do(..) | Stmt::For(..) | Stmt::BreakLoop(..) => {
                ("a loop", "windows such as `spo2.mean(\"30s\")` replace loops over readings")
            }
            Stmt::Assignment(..) => ("an assignment", "bind a new name with `let` instead; values do not change"),
            Stmt::Switch(..) => ("`switch`", "write it as `if ... else if ... else`"),
            Stmt::TryCatch(..) => ("`try`", "unknown values are handled with `??`"),
            Stmt::Return(..) => ("`return` or `throw` here", "the last expression is the value"),
            Stmt::Import(..) | Stmt::Export(..) => ("`import` or `export`", "a rule file stands alone"),
            Stmt::Var(..) => ("a `let` without a value after it", "end the block with an expression"),
            _ => ("a statement without effect", "remove it, or bind it with `let`"),
        };
        let at = span_at(&self.parsed.file, statement.position());
        let diagnostic = self.report("R020", at, format!("{what} is not part of the rule language"));
        diagnostic.label = "cannot be evaluated exactly".to_owned();
        diagnostic.help = Some(help.to_owned());
    }

    fn branch(&mut self, control: &FlowControl, at: Range<usize>, scope: &Scope) -> Value {
        let condition = self.logic(&control.expr, scope);
        if control.branch.is_empty() {
            let diagnostic = self.report("R023", at, "`if` without `else`");
            diagnostic.label = "what is it otherwise?".to_owned();
            diagnostic.help = Some("add `else { false }` (or the value that holds otherwise)".to_owned());
            return Value::Poison;
        }
        let then = self.block(control.body.statements(), at.clone(), scope.clone());
        let otherwise = self.block(control.branch.statements(), at.clone(), scope.clone());
        let Some(condition) = condition else {
            return Value::Poison;
        };
        let condition = Box::new(condition);
        match (then, otherwise) {
            (Value::Poison, _) | (_, Value::Poison) => Value::Poison,
            (Value::Number(then), Value::Number(otherwise)) => {
                Value::Number(Number::If(condition, Box::new(then), Box::new(otherwise)))
            }
            (Value::Logic(then), Value::Logic(otherwise)) => {
                Value::Logic(Logic::If(condition, Box::new(then), Box::new(otherwise)))
            }
            (then, otherwise) => {
                let kinds = (then.describe(), otherwise.describe());
                match (self.as_decision(then), self.as_decision(otherwise)) {
                    (Ok(Some(then)), Ok(Some(otherwise))) => {
                        Value::Decision(Decision::If(condition, Box::new(then), Box::new(otherwise)))
                    }
                    _ => {
                        let message = format!("the branches of `if` give {} and {}", kinds.0, kinds.1);
                        self.report("R021", at, message).help = Some(
                            "both must be numbers, conditions, or priorities (\"high\", \"medium\", \"low\", \"none\")"
                                .to_owned(),
                        );
                        Value::Poison
                    }
                }
            }
        }
    }

    fn logic(&mut self, expression: &Expr, scope: &Scope) -> Option<Logic> {
        match self.expression(expression, scope) {
            Value::Logic(condition) => Some(condition),
            Value::Poison => None,
            other => {
                self.mismatch(expression, "a condition", &other);
                None
            }
        }
    }

    fn number(&mut self, expression: &Expr, scope: &Scope) -> Option<Number> {
        match self.expression(expression, scope) {
            Value::Number(number) => Some(number),
            Value::Poison => None,
            other => {
                self.mismatch(expression, "a number", &other);
                None
            }
        }
    }

    fn mismatch(&mut self, expression: &Expr, expected: &str, found: &Value) {
        let at = span_of(&self.parsed.file, expression);
        let help = match found {
            Value::Signal(_) => Some("read it with a function: `.last`, `.mean(\"30s\")`".to_owned()),
            Value::Category { .. } => Some(
                "compare a category with `==` or `!=` and one of its names; it has no order and no arithmetic"
                    .to_owned(),
            ),
            Value::Limits => Some("name the limit: `limit.low`".to_owned()),
            _ => None,
        };
        let message = format!("expected {expected}, found {}", found.describe());
        let code = if matches!(found, Value::Category { .. }) { "R028" } else { "R021" };
        let diagnostic = self.report(code, at, message);
        diagnostic.label = format!("this is {}", found.describe());
        diagnostic.help = help;
    }

    fn expression(&mut self, expression: &Expr, scope: &Scope) -> Value {
        self.nodes += 1;
        if self.nodes == NODES_MAX {
            let at = span_of(&self.parsed.file, expression);
            self.report("R032", at, format!("the rule has more than {NODES_MAX} parts after inlining")).help =
                Some("split it into several rules".to_owned());
        }
        if self.nodes >= NODES_MAX {
            return Value::Poison;
        }
        let at = span_of(&self.parsed.file, expression);
        match expression {
            Expr::BoolConstant(value, _) => Value::Logic(Logic::Constant(*value)),
            // Every number in a rule is a double.
            Expr::IntegerConstant(value, _) => Value::Number(Number::Constant(*value as f64)),
            Expr::FloatConstant(value, _) => Value::Number(Number::Constant(**value)),
            Expr::StringConstant(text, _) => Value::Text(text.to_string()),
            Expr::Variable(name, ..) => {
                let name = name.1.as_str();
                if let Some((_, value)) = scope.iter().rev().find(|(bound, _)| bound == name) {
                    return value.clone();
                }
                let help = self.help_for_name(name, scope);
                let diagnostic = self.report("R022", at, format!("unknown name `{name}`"));
                diagnostic.label = "not a parameter and not bound with `let`".to_owned();
                diagnostic.help = help;
                Value::Poison
            }
            Expr::Dot(chain, ..) => self.member(&chain.lhs, &chain.rhs, scope),
            Expr::FnCall(call, _) => self.call(call, at, scope),
            Expr::Stmt(block) => match block.statements() {
                [Stmt::If(control, _)] => self.branch(control, at, scope),
                statements => self.block(statements, at, scope.clone()),
            },
            Expr::And(parts, _) | Expr::Or(parts, _) => {
                let lowered: Vec<Option<Logic>> = parts.iter().map(|part| self.logic(part, scope)).collect();
                match lowered.into_iter().collect::<Option<Vec<Logic>>>() {
                    Some(parts) if matches!(expression, Expr::And(..)) => Value::Logic(Logic::And(parts)),
                    Some(parts) => Value::Logic(Logic::Or(parts)),
                    None => Value::Poison,
                }
            }
            Expr::Coalesce(parts, _) => {
                let values: Vec<Value> = parts.iter().map(|part| self.expression(part, scope)).collect();
                self.coalesce(values, at)
            }
            _ => {
                let diagnostic = self.report("R020", at, "this expression is not part of the rule language");
                diagnostic.help =
                    Some("numbers, comparisons, `&&`, `||`, `!`, `??`, `if`, and functions of signals are".to_owned());
                Value::Poison
            }
        }
    }

    fn help_for_name(&self, name: &str, scope: &Scope) -> Option<String> {
        if self.catalogue.by_id(name).is_some() || matches!(name, "limit" | "patient") {
            return Some(format!("add `{name}` to the function's parameters"));
        }
        did_you_mean(name, scope.iter().map(|(bound, _)| bound.as_str()))
    }

    fn coalesce(&mut self, values: Vec<Value>, at: Range<usize>) -> Value {
        let mut values = values.into_iter().rev();
        let Some(mut result) = values.next() else {
            return Value::Poison;
        };
        for first in values {
            result = match (first, result) {
                (Value::Poison, _) | (_, Value::Poison) => Value::Poison,
                (Value::Number(a), Value::Number(b)) => Value::Number(Number::Coalesce(Box::new(a), Box::new(b))),
                (Value::Logic(a), Value::Logic(b)) => Value::Logic(Logic::Coalesce(Box::new(a), Box::new(b))),
                (a, b) => {
                    let kinds = (a.describe(), b.describe());
                    match (self.as_decision(a), self.as_decision(b)) {
                        (Ok(Some(a)), Ok(Some(b))) => Value::Decision(Decision::Coalesce(Box::new(a), Box::new(b))),
                        _ => {
                            self.report("R021", at.clone(), format!("`??` between {} and {}", kinds.0, kinds.1)).help =
                                Some("both sides must be numbers, or both conditions".to_owned());
                            Value::Poison
                        }
                    }
                }
            };
        }
        result
    }

    /// `receiver.member` or `receiver.member(...)`.
    fn member(&mut self, receiver: &Expr, member: &Expr, scope: &Scope) -> Value {
        let receiver_value = self.expression(receiver, scope);
        let (name, arguments): (&str, &[Expr]) = match member {
            Expr::Property(property, _) => (property.2.as_str(), &[]),
            Expr::MethodCall(call, _) => (call.name.as_str(), &call.args),
            other => {
                let at = span_of(&self.parsed.file, other);
                self.report("R020", at, "a chain of members is not part of the rule language");
                return Value::Poison;
            }
        };
        let at = span_at(&self.parsed.file, member.start_position());
        match receiver_value {
            Value::Signal(signal) => {
                self.feature(signal, name, arguments, matches!(member, Expr::MethodCall(..)), at, scope)
            }
            Value::Limits => match self.limits.iter().position(|limit| limit == name) {
                Some(limit) => Value::Number(Number::Limit(limit)),
                None => {
                    let help = did_you_mean(name, self.limits.iter().map(String::as_str)).unwrap_or_else(|| {
                        if self.limits.is_empty() {
                            "declare it: `limits: #{ low: 90.0 }` in RULE".to_owned()
                        } else {
                            format!("declared are: {}", self.limits.join(", "))
                        }
                    });
                    let diagnostic = self.report("R024", at, format!("unknown limit `{name}`"));
                    diagnostic.label = "not in `limits` of RULE".to_owned();
                    diagnostic.help = Some(help);
                    Value::Poison
                }
            },
            Value::Patient => Value::Number(Number::Attribute(position_or_push(&mut self.attributes, name))),
            Value::Poison => Value::Poison,
            other => {
                let message = format!("{} has no member `{name}`", other.describe());
                self.report("R025", at, message);
                Value::Poison
            }
        }
    }

    fn feature(
        &mut self,
        signal: usize,
        name: &str,
        arguments: &[Expr],
        called: bool,
        at: Range<usize>,
        scope: &Scope,
    ) -> Value {
        let Some(known) = FUNCTIONS.iter().find(|function| function.name == name) else {
            let help = did_you_mean(name, FUNCTIONS.iter().map(|function| function.name));
            let diagnostic = self.report("R025", at, format!("signals have no function `{name}`"));
            diagnostic.label = "unknown function".to_owned();
            diagnostic.help = help;
            return Value::Poison;
        };
        let expected = known.arguments.len();
        if arguments.len() != expected || (called != (expected > 0)) {
            let diagnostic = self.report("R029", at, format!("`{name}` is written {}", known.usage));
            diagnostic.label = format!("{} argument(s) given", arguments.len());
            return Value::Poison;
        }
        let Some(catalogue_signal) = self.catalogue_signal(signal) else {
            return Value::Poison;
        };
        if catalogue_signal.is_category() && !known.of_category {
            let states = catalogue_signal.states.join(", ");
            let diagnostic =
                self.report("R028", at, format!("`{}` is a category: it has no `{name}`", catalogue_signal.id));
            diagnostic.help = Some(format!("compare `.last` with one of its names ({states})"));
            return Value::Poison;
        }
        if !catalogue_signal.is_category() && name == "fraction_is" {
            self.report("R028", at, format!("`{}` is a number: `fraction_is` is for categories", catalogue_signal.id));
            return Value::Poison;
        }
        let (mut window_us, mut threshold, mut function, mut texts) = (0, None, known.function, Vec::new());
        for (kind, argument) in known.arguments.iter().zip(arguments) {
            match kind {
                Argument::Window => {
                    let Some(window) = self.window(argument, catalogue_signal, scope) else {
                        return Value::Poison;
                    };
                    window_us = window;
                    texts.push(format!("\"{}\"", duration::print(window)));
                }
                Argument::Threshold => {
                    let Some(number) = self.number(argument, scope) else {
                        return Value::Poison;
                    };
                    texts.push(match &number {
                        Number::Constant(value) => value.to_string(),
                        Number::Limit(limit) => format!("limit.{}", self.limits[*limit]),
                        _ => "…".to_owned(),
                    });
                    threshold = Some(Box::new(number));
                }
                Argument::Quantile => {
                    let Some((text, quantile)) = self.quantile(argument) else {
                        return Value::Poison;
                    };
                    texts.push(text);
                    function = quantile;
                }
                Argument::State => {
                    let at = span_of(&self.parsed.file, argument);
                    let Value::Text(state) = self.expression(argument, scope) else {
                        self.report("R029", at, format!("`{name}` is written {}", known.usage));
                        return Value::Poison;
                    };
                    let Some(code) = self.state_code(catalogue_signal, &state, at) else {
                        return Value::Poison;
                    };
                    texts.push(format!("\"{state}\""));
                    function = Function::FractionIs { code };
                }
            }
        }
        let text = if texts.is_empty() { name.to_owned() } else { format!("{name}({})", texts.join(", ")) };
        let feature = Feature { signal, function, window_us, text };
        let feature = match self.features.iter().position(|known| *known == feature) {
            Some(index) => index,
            None => {
                self.features.push(feature);
                self.features.len() - 1
            }
        };
        let states = catalogue_signal.is_category() && matches!(function, Function::Last | Function::Prev);
        if states { Value::Category { feature } } else { Value::Number(Number::Feature { feature, threshold }) }
    }

    fn window(&mut self, argument: &Expr, signal: &Signal, scope: &Scope) -> Option<i64> {
        let at = span_of(&self.parsed.file, argument);
        let text = match self.expression(argument, scope) {
            Value::Text(text) => text,
            Value::Poison => return None,
            other => {
                let message = format!("a window is a text with its unit, not {}", other.describe());
                self.report("R026", at, message).help = Some("write it like \"30s\", \"5m\" or \"24h\"".to_owned());
                return None;
            }
        };
        match duration::parse(&text) {
            Ok(window) if window > 0 => {
                // Signals that come as events have no interval to reckon with.
                let typical = signal.typical_interval_us;
                if typical > 0 && window / typical > SAMPLES_MAX {
                    let longest = duration::print(typical * SAMPLES_MAX);
                    let message = format!("a window of {text} does not fit the samples kept of `{}`", signal.id);
                    let diagnostic = self.report("R027", at, message);
                    diagnostic.label = format!(
                        "{} samples at one every {}; {SAMPLES_MAX} are kept",
                        window / typical,
                        duration::print(typical)
                    );
                    diagnostic.help = Some(format!("the longest window of `{}` is {longest}", signal.id));
                    return None;
                }
                Some(window)
            }
            Ok(_) => {
                self.report("R026", at, format!("a window must be longer than zero, this is `{text}`"));
                None
            }
            Err(message) => {
                self.report("R026", at, message);
                None
            }
        }
    }

    /// A quantile literal as an exact fraction: the shortest decimal of its double.
    fn quantile(&mut self, argument: &Expr) -> Option<(String, Function)> {
        let at = span_of(&self.parsed.file, argument);
        let value = match argument {
            Expr::FloatConstant(value, _) => **value,
            Expr::IntegerConstant(value, _) => *value as f64,
            _ => f64::NAN,
        };
        let text = value.to_string();
        let fraction = (0.0..=1.0).contains(&value).then(|| text.parse::<Decimal>().ok()).flatten();
        let function = fraction.and_then(|decimal| {
            let den = 10_i64.checked_pow(decimal.exponent.unsigned_abs())?;
            let num = i64::try_from(decimal.mantissa).ok()?;
            Some(Function::Percentile { num, den })
        });
        if function.is_none() {
            self.report("R029", at, "the first argument of `percentile` is a number from 0 to 1").help =
                Some("write it like `percentile(0.95, \"5m\")`".to_owned());
        }
        function.map(|function| (text, function))
    }

    fn state_code(&mut self, signal: &Signal, state: &str, at: Range<usize>) -> Option<i64> {
        let code = signal.states.iter().position(|known| known == state);
        if code.is_none() {
            let diagnostic = self.report("R028", at, format!("`{}` has no state `{state}`", signal.id));
            diagnostic.help = Some(format!("its states are: {}", signal.states.join(", ")));
        }
        code.map(|code| code as i64)
    }

    /// An operator or one of the file's own functions.
    fn call(&mut self, call: &FnCallExpr, at: Range<usize>, scope: &Scope) -> Value {
        let name = call.name.as_str();
        match (name, &call.args[..]) {
            ("+" | "-" | "*" | "/", [left, right]) => {
                let (left, right) = (self.number(left, scope), self.number(right, scope));
                let (Some(left), Some(right)) = (left, right) else {
                    return Value::Poison;
                };
                let operation = match name {
                    "+" => Arithmetic::Add,
                    "-" => Arithmetic::Subtract,
                    "*" => Arithmetic::Multiply,
                    _ => Arithmetic::Divide,
                };
                Value::Number(Number::Arithmetic(operation, Box::new(left), Box::new(right)))
            }
            ("-", [inner]) => match self.number(inner, scope) {
                Some(inner) => Value::Number(Number::Negate(Box::new(inner))),
                None => Value::Poison,
            },
            ("!", [inner]) => match self.logic(inner, scope) {
                Some(inner) => Value::Logic(Logic::Not(Box::new(inner))),
                None => Value::Poison,
            },
            ("<" | "<=" | ">" | ">=" | "==" | "!=", [left, right]) => self.comparison(name, left, right, scope),
            (_, arguments) => self.own_function(name, arguments, at, scope),
        }
    }

    fn comparison(&mut self, operator: &str, left: &Expr, right: &Expr, scope: &Scope) -> Value {
        let (left_value, right_value) = (self.expression(left, scope), self.expression(right, scope));
        let equality = matches!(operator, "==" | "!=");
        match (left_value, right_value) {
            (Value::Poison, _) | (_, Value::Poison) => Value::Poison,
            (Value::Number(left), Value::Number(right)) => {
                let comparison = match operator {
                    "<" => Comparison::Less,
                    "<=" => Comparison::LessOrEqual,
                    ">" => Comparison::Greater,
                    ">=" => Comparison::GreaterOrEqual,
                    "==" => Comparison::Equal,
                    _ => Comparison::NotEqual,
                };
                Value::Logic(Logic::Compare(comparison, Box::new(left), Box::new(right)))
            }
            (Value::Category { feature }, Value::Text(state)) if equality => {
                self.state_comparison(feature, &state, operator, right)
            }
            (Value::Text(state), Value::Category { feature }) if equality => {
                self.state_comparison(feature, &state, operator, left)
            }
            (Value::Category { feature: a }, Value::Category { feature: b })
                if equality && self.features[a].signal == self.features[b].signal =>
            {
                Value::Logic(Logic::SameState { left: a, right: b, equal: operator == "==" })
            }
            (left_value, right_value) => {
                let odd =
                    if matches!(left_value, Value::Number(_)) { (right, &right_value) } else { (left, &left_value) };
                self.mismatch(odd.0, "a number", odd.1);
                Value::Poison
            }
        }
    }

    fn state_comparison(&mut self, feature: usize, state: &str, operator: &str, at: &Expr) -> Value {
        let at = span_of(&self.parsed.file, at);
        let Some(signal) = self.catalogue_signal(self.features[feature].signal) else {
            return Value::Poison;
        };
        match self.state_code(signal, state, at) {
            Some(code) => Value::Logic(Logic::State { feature, code, equal: operator == "==" }),
            None => Value::Poison,
        }
    }

    fn own_function(&mut self, name: &str, arguments: &[Expr], at: Range<usize>, scope: &Scope) -> Value {
        let parsed = self.parsed;
        let Some(function) = parsed
            .functions
            .iter()
            .find(|function| function.name == name && function.parameters.len() == arguments.len())
        else {
            let help = did_you_mean(name, parsed.functions.iter().map(|function| function.name.as_str()));
            let diagnostic =
                self.report("R025", at, format!("unknown function `{name}` with {} argument(s)", arguments.len()));
            diagnostic.help = help
                .or_else(|| Some("operators, functions of signals and functions of this file can be used".to_owned()));
            return Value::Poison;
        };
        if self.depth == CALL_DEPTH_MAX {
            self.report("R030", at, format!("`{name}` calls itself, or calls nest deeper than {CALL_DEPTH_MAX}"))
                .help = Some("recursion is not part of the rule language".to_owned());
            return Value::Poison;
        }
        let scope = function
            .parameters
            .iter()
            .zip(arguments)
            .map(|(parameter, argument)| (parameter.clone(), self.expression(argument, scope)))
            .collect();
        self.depth += 1;
        let value = self.block(&function.body, function.span.clone(), scope);
        self.depth -= 1;
        value
    }
}

/// What a parameter of `raise`, `clear` or `message` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundParameter {
    Signal(usize),
    Limits,
    Patient,
    Faulty,
}

impl From<BoundParameter> for Value {
    fn from(parameter: BoundParameter) -> Self {
        match parameter {
            BoundParameter::Signal(signal) => Value::Signal(signal),
            BoundParameter::Limits => Value::Limits,
            BoundParameter::Patient => Value::Patient,
            BoundParameter::Faulty => Value::Poison,
        }
    }
}

enum Argument {
    Window,
    Threshold,
    Quantile,
    State,
}

struct KnownFunction {
    name: &'static str,
    function: Function,
    arguments: &'static [Argument],
    of_category: bool,
    usage: &'static str,
}

const fn known(
    name: &'static str,
    function: Function,
    arguments: &'static [Argument],
    of_category: bool,
    usage: &'static str,
) -> KnownFunction {
    KnownFunction { name, function, arguments, of_category, usage }
}

/// Every function of a signal, as in the table of the semantics.
const FUNCTIONS: &[KnownFunction] = &[
    known("last", Function::Last, &[], true, "without arguments: `spo2.last`"),
    known("prev", Function::Prev, &[], true, "without arguments: `spo2.prev`"),
    known("age", Function::Age, &[], true, "without arguments: `spo2.age`"),
    known("count", Function::Count, &[Argument::Window], true, "with a window: `spo2.count(\"30s\")`"),
    known("mean", Function::Mean, &[Argument::Window], false, "with a window: `spo2.mean(\"30s\")`"),
    known("min", Function::Min, &[Argument::Window], false, "with a window: `spo2.min(\"30s\")`"),
    known("max", Function::Max, &[Argument::Window], false, "with a window: `spo2.max(\"30s\")`"),
    known("sum", Function::Sum, &[Argument::Window], false, "with a window: `urine_output.sum(\"6h\")`"),
    known("median", Function::Median, &[Argument::Window], false, "with a window: `spo2.median(\"30s\")`"),
    known(
        "percentile",
        Function::Percentile { num: 0, den: 1 },
        &[Argument::Quantile, Argument::Window],
        false,
        "with a quantile and a window: `spo2.percentile(0.25, \"30s\")`",
    ),
    known("range", Function::Range, &[Argument::Window], false, "with a window: `spo2.range(\"30s\")`"),
    known("stddev", Function::Stddev, &[Argument::Window], false, "with a window: `spo2.stddev(\"30s\")`"),
    known("delta", Function::Delta, &[Argument::Window], false, "with a window: `spo2.delta(\"30s\")`"),
    known("slope", Function::Slope, &[Argument::Window], false, "with a window: `spo2.slope(\"5m\")`"),
    known(
        "time_below",
        Function::TimeBelow,
        &[Argument::Threshold, Argument::Window],
        false,
        "with a bound and a window: `spo2.time_below(90.0, \"60s\")`",
    ),
    known(
        "time_above",
        Function::TimeAbove,
        &[Argument::Threshold, Argument::Window],
        false,
        "with a bound and a window: `spo2.time_above(90.0, \"60s\")`",
    ),
    known(
        "fraction_below",
        Function::FractionBelow,
        &[Argument::Threshold, Argument::Window],
        false,
        "with a bound and a window: `spo2.fraction_below(90.0, \"60s\")`",
    ),
    known(
        "fraction_above",
        Function::FractionAbove,
        &[Argument::Threshold, Argument::Window],
        false,
        "with a bound and a window: `spo2.fraction_above(90.0, \"60s\")`",
    ),
    known(
        "fraction_is",
        Function::FractionIs { code: 0 },
        &[Argument::State, Argument::Window],
        true,
        "with a state and a window: `consciousness.fraction_is(\"V\", \"1h\")`",
    ),
    known("gap", Function::Gap, &[Argument::Window], false, "with a window: `spo2.gap(\"30s\")`"),
];

fn position_or_push(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}
