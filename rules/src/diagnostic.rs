//! Faults of a file, pointed at where the user edits it.
//!
//! Every fault has a stable code, a place, what is wrong there and, where we know it, the remedy. A file's faults are
//! collected, never reported one at a time.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// A file as text, under the path its user knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    pub path: String,
    pub text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub code: &'static str,
    pub severity: Severity,
    pub path: String,
    /// From 1; 0 if the fault concerns the whole file.
    pub line: usize,
    /// From 1, in characters; 0 if the fault concerns the whole file.
    pub column: usize,
    /// What is wrong, lower case, names in backticks.
    pub message: String,
    /// What stands at the place, a few words.
    pub label: String,
    /// The remedy, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    pub span: Option<Range<usize>>,
}

impl Diagnostic {
    pub fn error(code: &'static str, file: &SourceFile, span: Range<usize>, message: impl Into<String>) -> Self {
        let span = clamp(&file.text, span);
        let (line, column) = line_column(&file.text, span.start);
        Self {
            code,
            severity: Severity::Error,
            path: file.path.clone(),
            line,
            column,
            message: message.into(),
            label: String::new(),
            help: None,
            span: Some(span),
        }
    }

    /// A fault of a whole file (it cannot be read, something is absent).
    pub fn whole_file(code: &'static str, path: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            path: path.to_owned(),
            line: 0,
            column: 0,
            message: message.into(),
            label: String::new(),
            help: None,
            span: None,
        }
    }

    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    /// Renders it with the line it points at, as compilers do; `color` for a terminal.
    pub fn render(&self, text: &str, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut group = match &self.span {
            Some(span) => {
                let annotation = AnnotationKind::Primary.span(clamp(text, span.clone())).label(self.label.as_str());
                let snippet = Snippet::source(text).path(self.path.as_str()).annotation(annotation);
                level.primary_title(self.message.as_str()).id(self.code).element(snippet)
            }
            None => {
                let origin = annotate_snippets::Origin::path(self.path.as_str());
                level.primary_title(self.message.as_str()).id(self.code).element(origin)
            }
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }
}

/// The nearest of `candidates`, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |candidate: &str| {
        let distance = strsim::damerau_levenshtein(name, candidate);
        let longer = name.chars().count().max(candidate.chars().count());
        // A third of the letters may differ; a prefix counts as near (`spo2_sat` for `spo2`).
        let prefix = name.starts_with(candidate) || candidate.starts_with(name);
        (distance * 3 <= longer || (prefix && longer <= 3 * name.len().min(candidate.len()))).then_some(distance)
    };
    candidates.into_iter().filter_map(|candidate| Some((score(candidate)?, candidate))).min().map(|(_, name)| name)
}

/// "did you mean `x`?", if there is an `x`.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, candidates).map(|near| format!("did you mean `{near}`?"))
}

/// Line and column (in characters) of a byte offset, both from 1.
pub fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Byte offset of a line and column (in characters), both from 1.
pub fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let mut start = 0;
    for (i, content) in text.split_inclusive('\n').enumerate() {
        if i + 1 == line {
            return start + content.chars().take(column.saturating_sub(1)).map(char::len_utf8).sum::<usize>();
        }
        start += content.len();
    }
    text.len()
}

/// A span inside the text, on character boundaries, at least one character long where there is one.
fn clamp(text: &str, span: Range<usize>) -> Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start);
    let end = floor(span.end).max(start);
    if start == end { start..start + text[start..].chars().next().map_or(0, char::len_utf8) } else { start..end }
}
