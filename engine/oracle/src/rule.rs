//! Rule files: declared fields, functions, and what of both makes a rule the same as another (sections 4, 6 and 10).

use std::collections::{BTreeMap, BTreeSet};

use rhai::{ASTNode, Dynamic, Engine, Expr, OptimizationLevel, Stmt};

use super::exact::duration_us;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Priority {
    Low,
    Medium,
    High,
}

pub const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Medium, Priority::High];

impl Priority {
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        PRIORITIES.into_iter().find(|p| p.name() == text)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    True(Priority),
    False,
    Unknown,
}

pub struct Function {
    pub name: String,
    pub params: Vec<String>,
    pub body: Vec<Stmt>,
}

pub struct Rule {
    /// The file, as it was read.
    pub text: String,
    pub id: String,
    pub priority: Priority,
    pub hold: i64,
    pub clear_hold: i64,
    pub latching: bool,
    pub limits: BTreeMap<String, f64>,
    pub gap: Option<i64>,
    pub max_age: Option<i64>,
    pub cool_down: i64,
    pub accepts_questionable: bool,
    /// Parameters of `raise` and `clear` that are signals.
    pub signals: BTreeSet<String>,
    pub functions: Vec<Function>,
    /// What decides whether a change of the text is one of the rule (section 10): the declared fields, and the
    /// functions without the message.
    pub meaning: String,
}

impl Rule {
    pub fn parse(text: &str) -> Self {
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
        functions.sort_by(|a, b| a.name.cmp(&b.name));
        let mut rule = Self {
            text: text.to_string(),
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
            meaning: String::new(),
        };
        rule.meaning = rule.declared() + rule.decides().as_str();
        rule
    }

    fn declared(&self) -> String {
        let times = (self.hold, self.clear_hold, self.cool_down, self.gap, self.max_age);
        let others = (self.priority, self.latching, self.accepts_questionable, &self.limits);
        format!("{times:?} {others:?}")
    }

    fn decides(&self) -> String {
        let functions = self.functions.iter().filter(|function| function.name != "message");
        functions.map(|f| format!("\n{}({}) {}", f.name, f.params.join(", "), written(&f.body))).collect()
    }

    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }

    /// The one signal of a rule whose key is the series.
    pub fn single(&self) -> Option<&str> {
        match self.signals.len() {
            1 => self.signals.first().map(String::as_str),
            _ => None,
        }
    }

    /// Episodes of the other rule belong to keys that this one has too.
    pub fn has_the_keys_of(&self, other: &Self) -> bool {
        self.single() == other.single()
    }
}

// What stands in a text, without its places, blanks and comments.

fn written(statements: &[Stmt]) -> String {
    let statements: Vec<String> = statements.iter().map(statement).collect();
    format!("{{{}}}", statements.join("; "))
}

fn statement(of: &Stmt) -> String {
    match of {
        Stmt::Noop(_) => String::new(),
        Stmt::Expr(inner) => expression(inner),
        Stmt::FnCall(call, _) => format!("{}({})", call.name, list(&call.args, ", ")),
        Stmt::Block(block) => written(block.statements()),
        Stmt::Var(parts, ..) => format!("let {} = {}", parts.0.name, expression(&parts.1)),
        Stmt::Return(value, ..) => {
            format!("return {}", value.as_ref().map_or(String::new(), |value| expression(value)))
        }
        Stmt::If(parts, _) => {
            let (yes, no) = (written(parts.body.statements()), written(parts.branch.statements()));
            format!("if {} {yes} else {no}", expression(&parts.expr))
        }
        other => panic!("not in the language: {other:?}"),
    }
}

fn expression(of: &Expr) -> String {
    match of {
        Expr::BoolConstant(value, _) => value.to_string(),
        Expr::IntegerConstant(value, _) => format!("{:?}", *value as f64),
        Expr::FloatConstant(value, _) => format!("{:?}", **value),
        Expr::StringConstant(text, _) => format!("{:?}", text.as_str()),
        Expr::Variable(parts, ..) => parts.1.to_string(),
        Expr::Property(name, _) => name.2.to_string(),
        Expr::Stmt(block) => written(block.statements()),
        Expr::FnCall(call, _) | Expr::MethodCall(call, _) => format!("{}({})", call.name, list(&call.args, ", ")),
        Expr::And(parts, _) => format!("({})", list(parts, " && ")),
        Expr::Or(parts, _) => format!("({})", list(parts, " || ")),
        Expr::Coalesce(parts, _) => format!("({})", list(parts, " ?? ")),
        Expr::Dot(parts, ..) => format!("{}.{}", expression(&parts.lhs), expression(&parts.rhs)),
        other => panic!("not in the language: {other:?}"),
    }
}

fn list(parts: &[Expr], between: &str) -> String {
    parts.iter().map(expression).collect::<Vec<String>>().join(between)
}
