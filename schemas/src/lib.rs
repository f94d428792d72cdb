//! The words everyone shares: signals and units, canonical readings, control records, alerts.
//!
//! Every other crate speaks in these types, so that a quality, a priority or a key means one thing everywhere.
//! Data that clinicians and integrators review (signals, units, spellings) lives in `data/` as CSV and is checked
//! once, at start. No I/O, no clock, no threads here; wire formats of the outside world live in `wardbell-connectors`.
//!
//! Reading order: [`catalogue`] (what can be measured), [`decimal`] (exact numbers), [`reading`] (one measured value
//! and its Arrow form), [`control`] (what else a partition's log carries), [`alert`] (what comes out).

pub mod decimal;
pub mod units;

pub mod catalogue;

pub mod alert;
pub mod control;
pub mod decoded;
pub mod duration;
pub mod fault;
pub mod outcome;
pub mod reading;

/// Microseconds since 1970-01-01T00:00:00Z, or a distance in microseconds. Fields carry the suffix `_us` where the
/// name alone does not say that it is a time.
pub type Micros = i64;

/// One second, in [`Micros`].
pub const SECOND: Micros = 1_000_000;
