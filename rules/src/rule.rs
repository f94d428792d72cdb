//! A rule: its declared fields, its typed condition, its message; and a set of rules.
//!
//! [`compile`] reports every fault of a file at once. A rule knows its text's hash (what it was) and its meaning (what
//! decides whether a change is one).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use rhai::{ASTFlags, ASTNode, Expr, Stmt};
use sha2::{Digest, Sha256};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::Priority;
use wardbell_schemas::catalogue::{Catalogue, Signal, SignalIndex, hex};
use wardbell_schemas::duration;

use crate::diagnostic::{Diagnostic, Severity, SourceFile, did_you_mean};
use crate::evaluate::{self, Bound, Inputs};
use crate::ir::{self, Decision, Feature, Logic, Number, Verdict};
use crate::lower::Lowering;
use crate::message::{Message, MessageFault};
use crate::parse::{self, Parsed, span_at, span_of};

/// One checked rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub id: String,
    pub version: u32,
    pub owner: String,
    /// Meant by a plain `true` of `raise`.
    pub priority: Priority,
    pub hold_us: Micros,
    pub clear_hold_us: Micros,
    pub latching: bool,
    pub cool_down_us: Option<Micros>,
    /// The allowed gap, if the rule has its own.
    pub gap_us: Option<Micros>,
    pub max_age_us: Option<Micros>,
    /// Questionable readings are samples for this rule.
    pub accept_questionable: bool,
    pub reference: String,
    /// Limit names and the rule's defaults, in the order of their names.
    pub limits: Vec<(String, f64)>,
    pub attributes: Vec<String>,
    /// The signals it names, in order of first mention. One: the key is the series. Several: the patient.
    pub signals: Vec<SignalIndex>,
    pub features: Vec<Feature>,
    /// How many of the features `raise` and `clear` read; the others stand in the message only.
    n_deciding: usize,
    pub raise: Decision,
    /// `None`: cleared when `raise` is false.
    pub clear: Option<Logic>,
    message: Option<Message>,
    pub path: String,
    /// SHA-256 of the file's text, hexadecimal.
    pub hash: String,
}

/// A feature as one view shows it.
#[derive(Debug, Clone, Copy)]
pub struct Read<'a> {
    pub feature: &'a Feature,
    /// `None`: unknown.
    pub value: Option<f64>,
    /// For functions that take one.
    pub threshold: Option<f64>,
    /// How far the value is known, where it came with a comparator.
    pub bound: Option<Bound>,
}

impl Rule {
    /// Key is the patient, not a series.
    #[inline]
    pub fn is_of_patient(&self) -> bool {
        self.signals.len() > 1
    }

    /// Raise and clear at one evaluation. A true raise wins over a true clear.
    pub fn evaluate(&self, inputs: &mut impl Inputs) -> (Verdict, Option<bool>) {
        let verdict = evaluate::decide(&self.raise, self.priority, inputs);
        let clear = match (&self.clear, verdict) {
            (_, Verdict::True(_)) => Some(false),
            (Some(clear), _) => evaluate::logic(clear, inputs),
            (None, Verdict::Unknown) => None,
            (None, Verdict::False) => Some(true),
        };
        (verdict, clear)
    }

    /// The sentence of an alert. Without a `message` function, or if it faults, a plain one; the fault comes beside it.
    pub fn message(&self, catalogue: &Catalogue, inputs: &mut impl Inputs) -> (String, Option<MessageFault>) {
        let signals: Vec<&Signal> = self.signals.iter().map(|index| catalogue.signal(*index)).collect();
        let Some(message) = &self.message else {
            return (self.plain_message(&signals, inputs), None);
        };
        let limits: Vec<String> = self.limits.iter().map(|(name, _)| name.clone()).collect();
        match message.make(&self.features, &signals, &limits, &self.attributes, inputs) {
            Ok(text) => (text, None),
            Err(fault) => (self.plain_message(&signals, inputs), Some(fault)),
        }
    }

    /// What the rule reads, each feature once.
    pub fn readings(&self, inputs: &mut impl Inputs) -> Vec<Read<'_>> {
        let mut thresholds: Vec<Option<&Number>> = vec![None; self.features.len()];
        let mut found = Vec::new();
        let mut collect = |number: &Number| {
            if let Number::Feature { feature, threshold: Some(threshold) } = number {
                found.push((*feature, threshold.clone()));
            }
        };
        ir::visit_decision(&self.raise, &mut collect);
        if let Some(clear) = &self.clear {
            ir::visit_logic(clear, &mut collect);
        }
        for (feature, threshold) in &found {
            thresholds[*feature].get_or_insert(threshold);
        }
        let readings = self.features.iter().zip(thresholds).enumerate();
        readings
            .map(|(i, (feature, threshold))| match threshold {
                Some(threshold) => {
                    let threshold = evaluate::number(threshold, inputs);
                    let value = threshold.and_then(|threshold| inputs.feature(i, threshold));
                    Read { feature, value, threshold, bound: None }
                }
                None => {
                    let value = inputs.feature(i, 0.0);
                    let bound = if value.is_none() { inputs.bound(i) } else { None };
                    Read { feature, value, threshold: None, bound }
                }
            })
            .collect()
    }

    fn plain_message(&self, signals: &[&Signal], inputs: &mut impl Inputs) -> String {
        let mut parts = Vec::new();
        for (i, feature) in self.features.iter().enumerate() {
            if feature.function.takes_threshold() || !feature.function.in_signal_unit() {
                continue;
            }
            let signal = signals[feature.signal];
            let value = match inputs.feature(i, 0.0) {
                Some(value) if signal.is_category() => signal.print(value as i64),
                Some(value) => format!("{} {}", signal.print_f64(value), signal.unit),
                None => "unknown".to_owned(),
            };
            parts.push(format!("{} {} {}", signal.id, feature.text, value.trim_end()));
        }
        if parts.is_empty() { self.id.clone() } else { format!("{}: {}", self.id, parts.join(", ")) }
    }

    /// What decides whether two versions mean the same: condition, limits and declared fields, not wording or layout.
    pub fn meaning(&self) -> String {
        format!(
            "{:?}",
            (
                (
                    &self.id,
                    self.priority,
                    self.hold_us,
                    self.clear_hold_us,
                    self.latching,
                    self.cool_down_us.unwrap_or(0)
                ),
                (self.gap_us, self.max_age_us, self.accept_questionable, &self.limits, &self.attributes),
                (&self.signals, &self.features[..self.n_deciding], &self.raise, &self.clear),
            )
        )
    }

    /// The same condition, limits and declared fields: a change of the set that leaves this rule alone.
    pub fn means_the_same(&self, other: &Rule) -> bool {
        self.meaning() == other.meaning()
    }
}

/// Rules in the order of their ids, with what identifies the whole.
#[derive(Debug, Clone)]
pub struct RuleSet {
    pub rules: Vec<Arc<Rule>>,
    /// SHA-256 over ids and text hashes.
    pub hash: String,
}

impl RuleSet {
    /// `rules` must have distinct ids, as [`compile_all`] makes sure.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        let mut digest = Sha256::new();
        for rule in &rules {
            digest.update(format!("{}\n{}\n", rule.id, rule.hash));
        }
        Self { rules: rules.into_iter().map(Arc::new).collect(), hash: hex(&digest.finalize()) }
    }
}

/// Checks all files; gives the rules that are free of errors, and every fault of every file.
pub fn compile_all(files: &[SourceFile], catalogue: &Catalogue) -> (Vec<Rule>, Vec<Diagnostic>) {
    let mut rules: Vec<Rule> = Vec::new();
    let mut diagnostics = Vec::new();
    for file in files {
        let (rule, mut faults) = compile(file, catalogue);
        if let Some(rule) = rule {
            if let Some(other) = rules.iter().find(|known| known.id == rule.id) {
                let at = file.text.find(&format!("\"{}\"", rule.id)).map_or(0..0, |at| at + 1..at + 1 + rule.id.len());
                faults.push(
                    Diagnostic::error("R040", file, at, format!("rule id `{}` is taken", rule.id))
                        .label("used twice")
                        .help(format!("it is also the id of {}; every rule of a set has its own", other.path)),
                );
            } else {
                rules.push(rule);
            }
        }
        diagnostics.append(&mut faults);
    }
    (rules, diagnostics)
}

/// Checks one file; the rule is there if no fault is an error.
pub fn compile(file: &SourceFile, catalogue: &Catalogue) -> (Option<Rule>, Vec<Diagnostic>) {
    let parsed = match parse::parse(file) {
        Ok(parsed) => parsed,
        Err(diagnostic) => return (None, vec![*diagnostic]),
    };
    let (fields, mut diagnostics) = read_fields(&parsed);
    let mut lowering = Lowering::new(&parsed, catalogue, fields.limits.keys().cloned().collect());
    let function = |name: &str| parsed.functions.iter().find(|function| function.name == name);
    let Some(raise_function) = function("raise") else {
        diagnostics.push(
            Diagnostic::whole_file("R005", &file.path, "the file has no `raise` function")
                .help("add `fn raise(spo2, limit) { spo2.last < limit.low }`"),
        );
        return (None, diagnostics);
    };
    diagnostics.extend(misnamed_functions(&parsed));
    let raise = lowering.decision(raise_function);
    let clear_function = function("clear");
    let clear = clear_function.map(|function| lowering.condition(function));
    let deciding_signals = lowering.signals.len();
    if deciding_signals == 0 && lowering.diagnostics.is_empty() {
        lowering.diagnostics.push(
            Diagnostic::error(
                "R033",
                file,
                raise_function.span.clone(),
                "`raise` names no signal, so it is never evaluated",
            )
            .help("name the signals it reads as parameters: `fn raise(spo2, limit)`"),
        );
    }
    let deciding_features = lowering.features.len();
    let message = function("message").map(|function| {
        let reads = lowering.message_features(function);
        let parameters = lowering.bind(function).into_iter().map(|(_, parameter)| parameter).collect();
        (Message { ast: Arc::new(parsed.ast.clone()), parameters, reads }, function)
    });
    if let Some((_, function)) = &message
        && lowering.signals.len() > deciding_signals
    {
        for extra in lowering.signals.split_off(deciding_signals) {
            let at = parse::parameter_span(file, function, &extra);
            lowering.diagnostics.push(
                Diagnostic::error(
                    "R034",
                    file,
                    at,
                    format!("`message` reads `{extra}`, which neither `raise` nor `clear` names"),
                )
                .help("a message can only show what decided"),
            );
        }
    }
    let Lowering { signals, features, limits: _, attributes, diagnostics: found, .. } = lowering;
    diagnostics.extend(found);
    let (Some(raise), Some(clear)) = (raise, clear.map_or(Some(None), |clear| clear.map(Some))) else {
        return (None, diagnostics);
    };
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return (None, diagnostics);
    }
    let rule = Rule {
        id: fields.id,
        version: fields.version,
        owner: fields.owner,
        priority: fields.priority,
        hold_us: fields.hold_us,
        clear_hold_us: fields.clear_hold_us,
        latching: fields.latching,
        cool_down_us: fields.cool_down_us,
        gap_us: fields.gap_us,
        max_age_us: fields.max_age_us,
        accept_questionable: fields.accept_questionable,
        reference: fields.reference,
        limits: fields.limits.into_iter().collect(),
        attributes,
        signals: signals.iter().filter_map(|id| catalogue.by_id(id)).map(|signal| signal.index).collect(),
        features,
        n_deciding: deciding_features,
        raise,
        clear,
        message: message.as_ref().map(|(message, _)| message.clone()),
        path: file.path.clone(),
        hash: hex(&Sha256::digest(file.text.as_bytes())),
    };
    if let Some(value) = both_true_at(&rule, deciding_features) {
        let at = clear_function.map_or(0..0, |function| function.span.clone());
        diagnostics.push(
            Diagnostic::error("R031", file, at, format!("`raise` and `clear` are both true at {value}"))
                .help("separate the limits, so that nothing is both: an alert that raises and clears at once flaps"),
        );
    }
    if let Some(fault) = message_fault(&rule, catalogue) {
        let at = crate::diagnostic::offset_of(&file.text, fault.line.max(1), fault.column.max(1));
        diagnostics.push(Diagnostic::error("R050", file, at..at, format!("`message` fails: {}", fault.what)));
    }
    let usable = !diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    (usable.then_some(rule), diagnostics)
}

/// Functions that nothing calls and whose names are slips of `raise`, `clear` or `message`, or that stand twice.
fn misnamed_functions(parsed: &Parsed) -> Vec<Diagnostic> {
    const MEANT: [&str; 3] = ["raise", "clear", "message"];
    let mut called = BTreeSet::new();
    parsed.ast.walk(&mut |path: &[ASTNode]| {
        match path.last() {
            Some(ASTNode::Expr(Expr::FnCall(call, _))) => called.insert(call.name.to_string()),
            Some(ASTNode::Stmt(Stmt::FnCall(call, _))) => called.insert(call.name.to_string()),
            _ => false,
        };
        true
    });
    let mut faults = Vec::new();
    for (i, function) in parsed.functions.iter().enumerate() {
        let name = function.name.as_str();
        let meant = MEANT.contains(&name);
        let again = parsed.functions[..i].iter().any(|other| other.name == name);
        if meant && again {
            faults.push(Diagnostic::error(
                "R006",
                &parsed.file,
                function.span.clone(),
                format!("`{name}` stands twice"),
            ));
        } else if !meant
            && !called.contains(name)
            && let Some(help) = did_you_mean(name, MEANT)
        {
            faults.push(
                Diagnostic::error("R006", &parsed.file, function.span.clone(), format!("nothing calls `{name}`"))
                    .help(help),
            );
        }
    }
    faults
}

/// The declared fields of RULE.
#[derive(Debug)]
struct Fields {
    id: String,
    version: u32,
    owner: String,
    priority: Priority,
    hold_us: Micros,
    clear_hold_us: Micros,
    latching: bool,
    cool_down_us: Option<Micros>,
    gap_us: Option<Micros>,
    max_age_us: Option<Micros>,
    accept_questionable: bool,
    reference: String,
    limits: BTreeMap<String, f64>,
}

const FIELD_NAMES: [&str; 13] = [
    "id",
    "version",
    "owner",
    "priority",
    "hold",
    "clear_hold",
    "latching",
    "limits",
    "reference",
    "gap",
    "max_age",
    "cool_down",
    "accept",
];

/// A field's value as written: literals only.
enum Literal<'a> {
    Text(&'a str),
    Number(f64),
    Integer(i64),
    Bool(bool),
    Map(Vec<(&'a str, &'a Expr)>),
    List(Vec<&'a Expr>),
}

fn literal(expression: &Expr) -> Option<Literal<'_>> {
    match expression {
        Expr::StringConstant(text, _) => Some(Literal::Text(text)),
        Expr::IntegerConstant(value, _) => Some(Literal::Integer(*value)),
        Expr::FloatConstant(value, _) => Some(Literal::Number(**value)),
        Expr::BoolConstant(value, _) => Some(Literal::Bool(*value)),
        Expr::Map(map, _) => {
            Some(Literal::Map(map.0.iter().map(|(name, value)| (name.name.as_str(), value)).collect()))
        }
        Expr::Array(items, _) => Some(Literal::List(items.iter().collect())),
        Expr::FnCall(call, _) if call.name == "-" && call.args.len() == 1 => match literal(&call.args[0])? {
            Literal::Integer(value) => Some(Literal::Integer(-value)),
            Literal::Number(value) => Some(Literal::Number(-value)),
            _ => None,
        },
        _ => None,
    }
}

fn read_fields(parsed: &Parsed) -> (Fields, Vec<Diagnostic>) {
    let file = &parsed.file;
    let mut reader = FieldReader { file, diagnostics: Vec::new() };
    let mut rule_map = None;
    for statement in &parsed.top {
        match statement {
            Stmt::Noop(_) => {}
            Stmt::Var(variable, flags, _) if variable.0.name == "RULE" && flags.intersects(ASTFlags::CONSTANT) => {
                rule_map = Some(&variable.1);
            }
            other => reader.error(
                "R002",
                span_at(file, other.position()),
                "only `const RULE` and functions may stand here".to_owned(),
                Some("move it into a function".to_owned()),
            ),
        }
    }
    let entries: Vec<(&rhai::Ident, &Expr)> = match rule_map {
        Some(Expr::Map(map, _)) => map.0.iter().map(|(name, value)| (name, value)).collect(),
        Some(other) => {
            reader.error(
                "R002",
                span_of(file, other),
                "RULE is not a map".to_owned(),
                Some("write `const RULE = #{ id: \"...\", ... };`".to_owned()),
            );
            Vec::new()
        }
        None => {
            reader.diagnostics.push(Diagnostic::whole_file("R002", &file.path, "the file has no `const RULE`").help(
                "begin it with `const RULE = #{ id: \"spo2-low\", version: 1, owner: \"...\", priority: \"high\" };`",
            ));
            Vec::new()
        }
    };
    let mut seen = BTreeSet::new();
    for (name, _) in &entries {
        if !FIELD_NAMES.contains(&name.name.as_str()) {
            let help = did_you_mean(&name.name, FIELD_NAMES)
                .unwrap_or_else(|| format!("known fields: {}", FIELD_NAMES.join(", ")));
            reader.error("R003", span_at(file, name.pos), format!("unknown field `{}` in RULE", name.name), Some(help));
        } else if !seen.insert(name.name.to_string()) {
            reader.error("R003", span_at(file, name.pos), format!("field `{}` stands twice in RULE", name.name), None);
        }
    }
    let find = |field: &str| entries.iter().find(|(name, _)| name.name == field).map(|(_, value)| *value);
    if rule_map.is_some() {
        for required in ["id", "version", "owner", "priority"] {
            if find(required).is_none() {
                let at = file.text.find("RULE").map_or(0..0, |at| at..at + 4);
                reader.error("R003", at, format!("RULE has no `{required}`"), Some(format!("add `{required}: ...`")));
            }
        }
    }
    let id = reader.text(find("id"), "id").unwrap_or_default();
    if !id.is_empty() && !id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_') {
        let at = find("id").map_or(0..0, |value| span_of(file, value));
        reader.error("R004", at, format!("rule id `{id}` may hold lower-case letters, digits, `-` and `_` only"), None);
    }
    let priority = match reader.text(find("priority"), "priority") {
        Some(text) => text.parse().unwrap_or_else(|()| {
            let at = find("priority").map_or(0..0, |value| span_of(file, value));
            reader.error(
                "R004",
                at,
                format!("priority is `{text}`; it is \"low\", \"medium\" or \"high\""),
                did_you_mean(&text, ["low", "medium", "high"]),
            );
            Priority::High
        }),
        None => Priority::High,
    };
    let fields = Fields {
        id,
        version: reader.version(find("version")),
        owner: reader.text(find("owner"), "owner").unwrap_or_default(),
        priority,
        hold_us: reader.duration(find("hold"), "hold").unwrap_or(0),
        clear_hold_us: reader.duration(find("clear_hold"), "clear_hold").unwrap_or(0),
        latching: reader.boolean(find("latching"), "latching").unwrap_or(false),
        cool_down_us: reader.duration(find("cool_down"), "cool_down"),
        gap_us: reader.duration(find("gap"), "gap"),
        max_age_us: reader.duration(find("max_age"), "max_age"),
        accept_questionable: reader.accept(find("accept")),
        reference: reader.text(find("reference"), "reference").unwrap_or_default(),
        limits: reader.limits(find("limits")),
    };
    (fields, reader.diagnostics)
}

struct FieldReader<'a> {
    file: &'a SourceFile,
    diagnostics: Vec<Diagnostic>,
}

impl FieldReader<'_> {
    fn error(&mut self, code: &'static str, at: Range<usize>, message: String, help: Option<String>) {
        self.diagnostics.push(Diagnostic::error(code, self.file, at, message).maybe_help(help));
    }

    fn wrong(&mut self, value: &Expr, field: &str, expected: &str) {
        let at = span_of(self.file, value);
        self.error("R004", at, format!("`{field}` must be {expected}"), None);
    }

    fn text(&mut self, value: Option<&Expr>, field: &str) -> Option<String> {
        let value = value?;
        match literal(value) {
            Some(Literal::Text(text)) if !text.is_empty() => Some(text.to_owned()),
            _ => {
                self.wrong(value, field, "a text");
                None
            }
        }
    }

    fn version(&mut self, value: Option<&Expr>) -> u32 {
        let Some(value) = value else {
            return 0;
        };
        match literal(value) {
            Some(Literal::Integer(version)) if (1..=i64::from(u32::MAX)).contains(&version) => version as u32,
            _ => {
                self.wrong(value, "version", "a whole number from 1");
                0
            }
        }
    }

    fn boolean(&mut self, value: Option<&Expr>, field: &str) -> Option<bool> {
        let value = value?;
        match literal(value) {
            Some(Literal::Bool(value)) => Some(value),
            _ => {
                self.wrong(value, field, "true or false");
                None
            }
        }
    }

    fn duration(&mut self, value: Option<&Expr>, field: &str) -> Option<Micros> {
        let value = value?;
        match literal(value) {
            Some(Literal::Text(text)) => match duration::parse(text) {
                Ok(us) if us >= 0 => Some(us),
                Ok(_) => {
                    self.wrong(value, field, "a duration that is not negative");
                    None
                }
                Err(message) => {
                    let at = span_of(self.file, value);
                    self.error("R004", at, format!("`{field}`: {message}"), None);
                    None
                }
            },
            _ => {
                self.wrong(value, field, "a duration with its unit, like \"15s\"");
                None
            }
        }
    }

    fn accept(&mut self, value: Option<&Expr>) -> bool {
        let Some(value) = value else {
            return false;
        };
        if let Some(Literal::List(items)) = literal(value) {
            let names: Vec<_> = items.iter().map(|item| literal(item)).collect();
            if names.iter().all(|name| matches!(name, Some(Literal::Text("questionable")))) {
                return !names.is_empty();
            }
        }
        self.wrong(value, "accept", "the list [\"questionable\"]");
        false
    }

    fn limits(&mut self, value: Option<&Expr>) -> BTreeMap<String, f64> {
        let mut limits = BTreeMap::new();
        let Some(value) = value else {
            return limits;
        };
        let Some(Literal::Map(entries)) = literal(value) else {
            self.wrong(value, "limits", "a map: `#{ low: 90.0, clear: 92.0 }`");
            return limits;
        };
        for (name, value) in entries {
            match literal(value) {
                Some(Literal::Number(limit)) => limits.insert(name.to_owned(), limit),
                Some(Literal::Integer(limit)) => limits.insert(name.to_owned(), limit as f64),
                _ => {
                    self.wrong(value, &format!("limits.{name}"), "a number");
                    None
                }
            };
        }
        limits
    }
}

/// A view in which the rule's limits hold and every feature has the same value.
struct Probe<'a> {
    rule: &'a Rule,
    value: Option<f64>,
}

impl Inputs for Probe<'_> {
    fn feature(&mut self, _feature: usize, _threshold: f64) -> Option<f64> {
        self.value
    }

    fn limit(&self, limit: usize) -> Option<f64> {
        self.rule.limits.get(limit).map(|(_, value)| *value)
    }

    fn attribute(&self, _attribute: usize) -> Option<f64> {
        None
    }
}

/// Where raise and clear read one and the same feature only: a value at which both are true, if there is one. Both are
/// made of comparisons with constants, so the constants and their neighbors are all that has to be tried.
fn both_true_at(rule: &Rule, deciding_features: usize) -> Option<f64> {
    let clear = rule.clear.as_ref()?;
    if deciding_features != 1 || rule.features.first()?.function.takes_threshold() {
        return None;
    }
    let mut constants: Vec<f64> = rule.limits.iter().map(|(_, value)| *value).collect();
    let mut collect = |number: &Number| {
        if let Number::Constant(value) = number {
            constants.push(*value);
        }
    };
    ir::visit_decision(&rule.raise, &mut collect);
    ir::visit_logic(clear, &mut collect);
    let neighbors: Vec<f64> = constants.iter().flat_map(|value| [value.next_down(), value.next_up()]).collect();
    // Round numbers first: they make the better message.
    constants.into_iter().chain(neighbors).find(|value| {
        let mut probe = Probe { rule, value: Some(*value) };
        let raised = matches!(evaluate::decide(&rule.raise, rule.priority, &mut probe), Verdict::True(_));
        raised && evaluate::logic(clear, &mut probe) == Some(true)
    })
}

/// Tries the message once with values and once without any.
fn message_fault(rule: &Rule, catalogue: &Catalogue) -> Option<MessageFault> {
    [Some(1.0), None].into_iter().find_map(|value| rule.message(catalogue, &mut Probe { rule, value }).1)
}

#[cfg(test)]
mod tests;
