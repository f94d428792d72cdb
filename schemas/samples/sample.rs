//! Frozen samples, as the tests of several crates read them; see README.md in this folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Writes samples that are not there yet.
const WRITE: &str = "WARDBELL_WRITE_SAMPLES";
const BYTES_PER_LINE: usize = 40;

fn path(name: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let folder = above.map(|folder| folder.join("schemas/samples")).find(|folder| folder.is_dir());
    folder.expect("the repository holds schemas/samples").join(name)
}

/// The bytes that a version once wrote.
pub fn read(name: &str) -> Vec<u8> {
    let text =
        std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}; {WRITE}=1 makes it"));
    if !name.ends_with(".hex") {
        return text.trim_end_matches('\n').as_bytes().to_vec();
    }
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_else(|_| panic!("{name}: not a byte"));
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// What is written today is still the sample, byte for byte.
pub fn assert_still_written(name: &str, written: &[u8]) {
    if std::env::var_os(WRITE).is_some() && !path(name).exists() {
        std::fs::write(path(name), text(name, written)).expect("the sample can be written");
    }
    let frozen = read(name);
    let lossy = String::from_utf8_lossy;
    assert!(
        frozen == written,
        "{name}: what is written has changed; it needs a new number and a new sample, and this one stays.\nfrozen: {}\ntoday:  {}",
        lossy(&frozen),
        lossy(written)
    );
}

fn text(name: &str, written: &[u8]) -> String {
    if !name.ends_with(".hex") {
        return String::from_utf8_lossy(written).into_owned() + "\n";
    }
    let mut text = format!("# {name}: frozen, see README.md\n");
    for line in written.chunks(BYTES_PER_LINE) {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a string takes everything"));
        text.push('\n');
    }
    text
}
