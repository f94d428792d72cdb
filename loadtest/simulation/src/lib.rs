//! What must hold after every run, whatever went wrong in it, as checks that know nothing of how the engine does it.
//!
//! Reading order: [`derivation`] (what the naive evaluation makes of a canonical log), [`laws`] (checks over a finished
//! run), [`ward`] (a made-up ward as source records) and [`rules`] (what watches it). The runs themselves, the whole job in
//! simulated time under faults, are in `tests/seeds`.

pub mod derivation;
pub mod laws;
pub mod rules;
pub mod ward;
