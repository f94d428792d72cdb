//! The rule language: Rhai text in, a checked and typed form out.
//!
//! Rhai parses; our intermediate representation decides. The interpreter cannot carry the meaning of `raise` and `clear`
//! (unknown values, exact comparison), so the checker walks Rhai's syntax tree into [`ir`], which [`evaluate`] runs.
//! Only `message` runs in Rhai itself, at transitions. This crate also reads the test notation ([`cases`]).
//!
//! It knows no Kafka, no files and no clock: callers hand in texts with their paths and get [`Rule`]s and
//! [`Diagnostic`]s back. Meaning of everything: `SEMANTICS.md` beside this crate.

mod bands;
mod lower;
mod message;
mod parse;

pub mod cases;
pub mod diagnostic;
pub mod difference;
pub mod evaluate;
pub mod ir;
pub mod packs;
pub mod rule;

pub use bands::Bands;
pub use diagnostic::{Diagnostic, Severity, SourceFile};
pub use difference::Difference;
pub use lower::SAMPLES_MAX;
pub use rule::{Rule, RuleSet, compile, compile_all};
