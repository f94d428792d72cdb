//! Wardbell: the job that turns readings on a log into alerts at sinks, and the command line around it.
//!
//! [`pipeline`] holds the three stages (normalize, decide, deliver) with their threads, transactions and drains;
//! [`latency`] measures them; [`sets`] is what decides in them, published and known by its hash; [`checkpoints`] keeps what
//! they know, [`recover`] is for when that cannot be read; [`config`] reads the one TOML file, [`connector`] a vendor's;
//! [`cli`] is what people type. Decisions are taken in `wardbell-core`, wire formats live in `wardbell-connectors`; this
//! crate connects them and adds nothing to either.

pub mod config;
pub mod connector;

pub mod pipeline;

pub mod checkpoints;
pub mod explain;
pub mod health;
pub mod http;
pub mod latency;
pub mod latency_files;
pub mod online;
pub mod recover;
pub mod rule_cases;
pub mod rules_files;
pub mod sets;
pub mod systemd;
mod toml_file;
pub mod verify;

pub mod cli;
pub mod demo;
