//! Wardbell: the job that turns readings on a log into alerts at sinks, and the command line around it.
//!
//! [`pipeline`] holds the three stages (normalize, decide, deliver) with their threads, transactions and drains;
//! [`latency`] measures them; [`config`] reads the one TOML file; [`cli`] is what people type. Decisions are taken in
//! `wardbell-core`, wire formats live in `wardbell-connectors`; this crate connects them and adds nothing to either.

pub mod config;

pub mod pipeline;

pub mod latency;
pub mod rules_files;

pub mod cli;
pub mod demo;
