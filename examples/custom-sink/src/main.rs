//! `wardbell run` with the ward display beside the configured sinks.

use std::path::Path;
use std::process::ExitCode;

use wardbell::pipeline::SinkSettings;
use wardbell_connectors::sink::{Identity, Sink};
use wardbell_custom_sink::WardDisplay;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, display] = &arguments[..] else {
        eprintln!("usage: wardbell-custom-sink CONFIG DISPLAY, like: wardbell-custom-sink wardbell.toml 10.0.4.7:7000");
        return ExitCode::from(2);
    };
    // Each lane is a connection of its own: alerts of two patients are shown side by side.
    let lanes = || (0..2).map(|_| Box::new(WardDisplay::new(display)) as Box<dyn Sink>).collect();
    let sinks =
        || vec![SinkSettings { name: "ward-display".to_owned(), identity: Identity::Pseudonym, lanes: lanes() }];
    wardbell::cli::run_with_sinks(Path::new(config), &sinks)
}
