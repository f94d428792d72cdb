//! From Rhai text to its syntax tree, cut into the `RULE` constant and the functions.
//!
//! Rhai keeps the bodies of functions behind a type it does not export, so each function's statements are found by their
//! positions: a body's statements are the top-level ones of the walk that lie inside its braces.

use std::ops::Range;

use rhai::{AST, ASTNode, Engine, Expr, OptimizationLevel, Position, Stmt};

use crate::diagnostic::{Diagnostic, SourceFile, offset_of};

/// Expressions nest no deeper than this; a clinician's rule needs five.
const EXPRESSION_DEPTH_MAX: usize = 64;

/// A parsed file.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub file: SourceFile,
    /// Statements outside functions.
    pub top: Vec<Stmt>,
    pub functions: Vec<Function>,
    pub ast: AST,
}

/// One `fn` of the file.
#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub parameters: Vec<String>,
    pub body: Vec<Stmt>,
    /// Where the name stands.
    pub span: Range<usize>,
}

/// An engine that only parses: nothing is optimized away, nothing may loop or import.
pub fn parser() -> Engine {
    let mut engine = Engine::new_raw();
    engine.set_optimization_level(OptimizationLevel::None);
    engine.set_max_expr_depths(EXPRESSION_DEPTH_MAX, EXPRESSION_DEPTH_MAX);
    engine
}

/// Parses one file.
///
/// # Errors
/// The one syntax error that ends the file.
pub fn parse(file: &SourceFile) -> Result<Parsed, Box<Diagnostic>> {
    let ast = parser().compile(&file.text).map_err(|error| {
        let at = span_at(file, error.position());
        Box::new(Diagnostic::error("R001", file, at, format!("syntax: {}", lower_first(&error.err_type().to_string()))))
    })?;
    let mut functions = Vec::new();
    for (_, _, name, _, definition) in ast.shared_lib().iter_script_fn_info() {
        let (start, end) = (definition.body.start_position(), definition.body.end_position());
        functions.push((
            order(start),
            order(end),
            Function {
                name: name.to_owned(),
                parameters: definition.params.iter().map(ToString::to_string).collect(),
                body: Vec::new(),
                span: header_span(file, name),
            },
        ));
    }
    functions.sort_by_key(|(start, ..)| *start);
    let top: Vec<Stmt> = ast.statements().to_vec();
    let mut skip = top.len();
    ast.walk(&mut |path: &[ASTNode]| {
        if let [ASTNode::Stmt(statement)] = path {
            // The walk visits the statements outside functions first.
            if skip > 0 {
                skip -= 1;
            } else {
                let at = order(statement.position());
                let home = functions.iter_mut().find(|(start, end, _)| *start <= at && at <= *end);
                if let Some((.., function)) = home {
                    function.body.push((*statement).clone());
                }
            }
        }
        true
    });
    let functions = functions.into_iter().map(|(.., function)| function).collect();
    Ok(Parsed { file: file.clone(), top, functions, ast })
}

fn order(position: Position) -> (usize, usize) {
    (position.line().unwrap_or(0), position.position().unwrap_or(0))
}

/// The word (or the single character) at a Rhai position.
pub fn span_at(file: &SourceFile, position: Position) -> Range<usize> {
    let Some(line) = position.line() else {
        return 0..0;
    };
    let start = offset_of(&file.text, line, position.position().unwrap_or(1));
    start..start + word_length(&file.text[start..])
}

/// The whole of an expression as far as its own text can be told: a method call with its receiver's name, a string.
pub fn span_of(file: &SourceFile, expression: &Expr) -> Range<usize> {
    span_at(file, expression.start_position())
}

fn word_length(text: &str) -> usize {
    let first = text.chars().next();
    match first {
        Some('"') => text[1..].find('"').map_or(1, |end| end + 2),
        Some(c) if c.is_alphanumeric() || c == '_' => {
            text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).unwrap_or(text.len())
        }
        Some(c) => c.len_utf8(),
        None => 0,
    }
}

/// Where `fn NAME` stands.
fn header_span(file: &SourceFile, name: &str) -> Range<usize> {
    let mut from = 0;
    while let Some(at) = file.text[from..].find("fn ") {
        let start = from + at + 3;
        let rest = file.text[start..].trim_start();
        let start = file.text.len() - rest.len();
        if rest.strip_prefix(name).is_some_and(|after| after.trim_start().starts_with('(')) {
            return start..start + name.len();
        }
        from = start;
    }
    0..0
}

/// Where a parameter stands in the header of its function.
pub fn parameter_span(file: &SourceFile, function: &Function, parameter: &str) -> Range<usize> {
    let header = &file.text[function.span.end..];
    let close = header.find(')').unwrap_or(header.len());
    let mut from = 0;
    while let Some(at) = header[from..close].find(parameter) {
        let start = from + at;
        let end = start + parameter.len();
        let boundary = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_'));
        if boundary(header[..start].chars().next_back()) && boundary(header[end..].chars().next()) {
            return function.span.end + start..function.span.end + end;
        }
        from = end;
    }
    function.span.clone()
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}
