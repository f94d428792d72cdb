//! Rule sets that an earlier version published are still read, and what is written today is still the same.

#[path = "../../../schemas/samples/sample.rs"]
mod sample;

use wardbell::sets::Document;
use wardbell_core::partition::{Connector, Settings};
use wardbell_rules::SourceFile;
use wardbell_schemas::catalogue::Catalogue;

/// Hash of the signal catalogue that the sample was made with. A set of another catalogue is refused, whatever its form.
const CATALOGUE: &str = "eb853e7d589b099548fe037bd4fdaf9a12c732397cdd2b2c44547eaafeb9c21e";
const FEVER: &str = "const RULE = #{ id: \"fever\", version: 2, owner: \"ward 4\", priority: \"low\" };\nfn raise(temp_core) { temp_core.last >= 38.5 }\n";
const LOW: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\", hold: \"5s\" };\nfn raise(spo2) { spo2.last < 90.0 }\n";

/// Replaces one hash of a catalogue by another.
fn of_catalogue(document: &[u8], from: &str, to: &str) -> Vec<u8> {
    String::from_utf8_lossy(document).replace(from, to).into_bytes()
}

#[test]
fn a_frozen_set_is_read_and_written_as_it_was() {
    let file = |path: &str, text: &str| SourceFile { path: path.to_owned(), text: text.to_owned() };
    let connector = Connector {
        topics: vec!["ventilators".to_owned(), "ventilators-icu".to_owned()],
        lateness_us: 120_000_000,
        skew_us: 10_000_000,
        coarse: true,
        reset_days: vec![0, 946_684_800_000_000],
    };
    let settings = Settings {
        lateness_us: 60_000_000,
        skew_us: 5_000_000,
        record_clock: false,
        epoch_check: true,
        samples_max: 8_192,
        connectors: vec![connector],
        ..Settings::new("st-marys")
    };
    let meant = Document::new(&[file("rules/icu/low.rhai", LOW), file("rules/fever.rhai", FEVER)], &settings);
    let ours = &Catalogue::builtin().hash;
    sample::assert_still_written("set-1.json", &of_catalogue(&meant.bytes(), ours, CATALOGUE));
    let frozen = of_catalogue(&sample::read("set-1.json"), CATALOGUE, ours);
    let read = Document::read(&frozen).expect("a frozen set can be read");
    assert_eq!((&read, read.hash()), (&meant, meant.hash()));
    assert_eq!(read.load().expect("its rules compile").hash, meant.hash());
}
