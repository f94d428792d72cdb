//! A fault at a key of a file, found by whoever gives the key its meaning; whoever has read the file knows its place.

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFault {
    /// From the file's root: `["labels", "HR", "unit"]`; places in a list as numbers from 0.
    pub path: Vec<String>,
    /// What is wrong, lower case, names in backticks.
    pub message: String,
    /// The remedy.
    pub help: String,
}

impl KeyFault {
    pub fn new(path: &[&str], message: impl Into<String>, help: impl Into<String>) -> Self {
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        Self { path, message: message.into(), help: help.into() }
    }
}
