//! Rule sets as they are published: everything that decides, in one document, known by the hash of its bytes.
//!
//! A set is rules, the signal catalogue's hash, the settings that decide (site, lateness, skew, connectors, sample cap)
//! and the version of the semantics. So nothing outside the log decides, and a replay that meets an activation knows from
//! its hash what came into force. [`folder`] makes a document from files; [`ControlTopic`] keeps the published ones;
//! `pipeline` puts them in force.

mod control_topic;
pub mod folder;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wardbell_core::partition::{Connector, Settings};
use wardbell_rules::{Difference, RuleSet, Severity, SourceFile, compile_all};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::print_time;
use wardbell_schemas::catalogue::{Catalogue, hex};
use wardbell_schemas::duration;

pub use control_topic::{ControlTopic, Published};
pub use folder::RulesFolder;
pub use wardbell_core::partition::SEMANTICS;

/// Version of the document's form.
const FORMAT: u32 = 1;

/// A set as it is published. Its bytes are the same wherever and whenever it is made from the same files and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    format: u32,
    semantics: u32,
    /// Hash of the signal catalogue the rules were checked with.
    catalogue: String,
    decision: Decision,
    /// In the order of their paths.
    rules: Vec<RuleText>,
}

/// One rule file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    /// Below the deepest folder that holds all files of the set, with `/` between its parts.
    pub path: String,
    pub text: String,
}

/// The settings that decide, as they are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    site: String,
    lateness_us: Micros,
    skew_us: Micros,
    record_clock: bool,
    epoch_check: bool,
    samples_max: usize,
    /// In the order of their topics.
    connectors: Vec<Connector>,
}

/// Why a document cannot be used by this binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// A set that compiles here.
#[derive(Debug)]
pub struct LoadedSet {
    /// SHA-256 of the document's bytes, hexadecimal.
    pub hash: String,
    pub rules: RuleSet,
    pub settings: Settings,
}

/// What a change of set means, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub rules: Difference,
    /// `lateness 1m -> 2m`.
    pub settings: Vec<String>,
}

impl Document {
    /// A document of checked rule files, whatever folder they lie in.
    pub fn new(files: &[SourceFile], decision: &Settings) -> Self {
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let texts = files.iter().map(|file| file.text.clone());
        let mut rules: Vec<RuleText> =
            below_common_folder(&paths).into_iter().zip(texts).map(|(path, text)| RuleText { path, text }).collect();
        rules.sort_by(|a, b| a.path.cmp(&b.path));
        let catalogue = Catalogue::builtin().hash.clone();
        Self { format: FORMAT, semantics: SEMANTICS, catalogue, decision: Decision::of(decision), rules }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`Unusable`]: damaged, or of a form, catalogue or semantics that this binary does not know.
    pub fn read(bytes: &[u8]) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            semantics: u32,
            catalogue: String,
        }
        let damaged = |error: serde_json::Error| Unusable(format!("it is no set document: {error}"));
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        if head.format != FORMAT {
            return Err(Unusable(format!("its form is {}, this binary reads {FORMAT}", head.format)));
        }
        if head.semantics != SEMANTICS {
            let what = format!("it means version {} of the semantics, this binary has {SEMANTICS}", head.semantics);
            return Err(Unusable(what));
        }
        let ours = &Catalogue::builtin().hash;
        if head.catalogue != *ours {
            let (theirs, ours) = (short(&head.catalogue), short(ours));
            return Err(Unusable(format!("it was made with signal catalogue {theirs}, this binary has {ours}")));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// What is published; [`Document::hash`] is taken over these bytes.
    ///
    /// # Panics
    /// Never: a document is plain data.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a document is plain data")
    }

    /// SHA-256 of the bytes, hexadecimal.
    pub fn hash(&self) -> String {
        hash(&self.bytes())
    }

    pub fn rules(&self) -> &[RuleText] {
        &self.rules
    }

    pub fn settings(&self) -> Settings {
        self.decision.settings()
    }

    /// Compiles it.
    ///
    /// # Errors
    /// [`Unusable`] with every fault of every rule.
    pub fn load(&self) -> Result<LoadedSet, Unusable> {
        let file = |rule: &RuleText| SourceFile { path: rule.path.clone(), text: rule.text.clone() };
        let files: Vec<SourceFile> = self.rules.iter().map(file).collect();
        let (rules, faults) = compile_all(&files, Catalogue::builtin());
        let faults: Vec<String> = faults
            .iter()
            .filter(|fault| fault.severity == Severity::Error)
            .map(|fault| format!("{}:{}:{} {} {}", fault.path, fault.line, fault.column, fault.code, fault.message))
            .collect();
        if !faults.is_empty() {
            return Err(Unusable(format!("its rules do not compile here: {}", faults.join("; "))));
        }
        if rules.is_empty() {
            return Err(Unusable("it holds no rule".to_owned()));
        }
        Ok(LoadedSet { hash: self.hash(), rules: RuleSet::new(rules), settings: self.settings() })
    }
}

impl Decision {
    fn of(settings: &Settings) -> Self {
        // Every field is named, so that a new setting cannot be forgotten here. Where a partition begins is not decided
        // by a set.
        let Settings { site, lateness_us, skew_us, epoch_check, record_clock, connectors, samples_max, resumed: _ } =
            settings.clone();
        let mut connectors = connectors;
        for connector in &mut connectors {
            connector.topics.sort();
            connector.reset_days.sort_unstable();
        }
        connectors.sort_by(|a, b| a.topics.cmp(&b.topics));
        Self { site, lateness_us, skew_us, record_clock, epoch_check, samples_max, connectors }
    }

    fn settings(&self) -> Settings {
        let Self { site, lateness_us, skew_us, record_clock, epoch_check, samples_max, connectors } = self.clone();
        Settings { site, lateness_us, skew_us, record_clock, epoch_check, samples_max, connectors, resumed: false }
    }
}

impl Change {
    /// From one set to another.
    pub fn between(before: &LoadedSet, after: &LoadedSet) -> Self {
        Self {
            rules: Difference::between(&before.rules, &after.rules, Catalogue::builtin()),
            settings: settings_changed(&before.settings, &after.settings),
        }
    }

    /// One line for each rule and setting that differs, then how many rules do not.
    pub fn lines(&self) -> Vec<String> {
        let settings = self.settings.iter().map(|what| format!("settings  {what}"));
        settings.chain(self.rules.lines()).collect()
    }

    /// The lines as one, for logs.
    pub fn in_one_line(&self) -> String {
        let words = |line: String| line.split_whitespace().collect::<Vec<&str>>().join(" ");
        self.lines().into_iter().map(words).collect::<Vec<String>>().join("; ")
    }
}

/// Site and clock are part of every alert's identity and of the order of the log itself: they stay as they were first
/// published.
///
/// # Errors
/// A sentence with both values.
pub fn same_site_and_clock(published: &Settings, wanted: &Settings) -> Result<(), String> {
    let clock = |settings: &Settings| if settings.record_clock { "record" } else { "broker" };
    if published.site != wanted.site {
        return Err(format!(
            "`site` is \"{}\", but \"{}\" is published; it is part of every alert's identity and never changes",
            wanted.site, published.site
        ));
    }
    if published.record_clock != wanted.record_clock {
        return Err(format!(
            "`source.clock` is \"{}\", but \"{}\" is published; the order of the log rests on it and it never changes",
            clock(wanted),
            clock(published)
        ));
    }
    Ok(())
}

/// The first letters of a hash, enough to tell sets apart.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn settings_changed(before: &Settings, after: &Settings) -> Vec<String> {
    let (before, after) = (Decision::of(before), Decision::of(after));
    let mut what = Vec::new();
    let mut note = |name: &str, before: String, after: String| {
        if before != after {
            what.push(format!("{name} {before} -> {after}"));
        }
    };
    note("lateness", duration::print(before.lateness_us), duration::print(after.lateness_us));
    note("skew", duration::print(before.skew_us), duration::print(after.skew_us));
    note("epoch check", before.epoch_check.to_string(), after.epoch_check.to_string());
    note("samples kept", before.samples_max.to_string(), after.samples_max.to_string());
    let by_topics = |decision: &Decision| -> BTreeMap<String, String> {
        let words = |connector: &Connector| {
            let mut words = vec![
                format!("lateness {}", duration::print(connector.lateness_us)),
                format!("skew {}", duration::print(connector.skew_us)),
            ];
            words.extend(connector.coarse.then(|| "coarse stamps".to_owned()));
            let date = |day: &Micros| print_time(*day).chars().take(10).collect::<String>();
            words.extend(connector.reset_days.iter().map(|day| format!("reset day {}", date(day))));
            format!("({})", words.join(", "))
        };
        decision.connectors.iter().map(|connector| (connector.topics.join(", "), words(connector))).collect()
    };
    let (old, new) = (by_topics(&before), by_topics(&after));
    for topics in old.keys().chain(new.keys()).collect::<BTreeSet<&String>>() {
        let words = |known: &BTreeMap<String, String>| known.get(topics).cloned().unwrap_or_else(|| "none".to_owned());
        note(&format!("connector of {topics}"), words(&old), words(&new));
    }
    what
}

/// Paths below the deepest folder that holds all of them, so that it does not matter where that folder lies.
fn below_common_folder(paths: &[&str]) -> Vec<String> {
    let parts = |path: &str| -> Vec<String> {
        let named = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        };
        Path::new(path).components().filter_map(named).collect()
    };
    let split: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let folders = split.iter().map(|parts| parts.split_last().map_or(&[][..], |(_, folder)| folder));
    let common = folders.reduce(|common, folder| {
        let same = common.iter().zip(folder).take_while(|(a, b)| a == b).count();
        &common[..same]
    });
    let depth = common.map_or(0, <[String]>::len);
    split.iter().map(|parts| parts[depth.min(parts.len())..].join("/")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEVER: &str = "const RULE = #{ id: \"fever\", version: 1, owner: \"o\", priority: \"low\" };\nfn raise(temp_core) { temp_core.last >= 38.5 }\n";
    const LOW: &str = "const RULE = #{ id: \"low\", version: 1, owner: \"o\", priority: \"high\" };\nfn raise(spo2) { spo2.last < 90.0 }\n";

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: path.to_owned(), text: text.to_owned() }
    }

    fn settings() -> Settings {
        Settings::new("ward")
    }

    #[test]
    fn a_document_is_read_as_written_and_compiles() {
        let document = Document::new(&[file("rules/low.rhai", LOW), file("rules/fever.rhai", FEVER)], &settings());
        let read = Document::read(&document.bytes()).expect("it is ours");
        assert_eq!((&read, read.hash()), (&document, document.hash()));
        let loaded = read.load().expect("the rules are sound");
        let ids: Vec<&str> = loaded.rules.rules.iter().map(|rule| rule.id.as_str()).collect();
        assert_eq!((ids, loaded.settings.site.as_str()), (vec!["fever", "low"], "ward"));
        assert_eq!(loaded.hash, document.hash());
    }

    #[test]
    fn the_same_files_have_the_same_hash_wherever_they_lie_and_in_whatever_order() {
        let here = Document::new(&[file("rules/icu/low.rhai", LOW), file("rules/fever.rhai", FEVER)], &settings());
        let there = Document::new(
            &[file("/etc/w/rules/fever.rhai", FEVER), file("/etc/w/rules/icu/low.rhai", LOW)],
            &settings(),
        );
        assert_eq!(here.hash(), there.hash());
        let paths: Vec<&str> = here.rules().iter().map(|rule| rule.path.as_str()).collect();
        assert_eq!(paths, ["fever.rhai", "icu/low.rhai"]);
        assert_eq!(Document::new(&[file("a/b/low.rhai", LOW)], &settings()).rules()[0].path, "low.rhai");
    }

    #[test]
    fn everything_that_decides_is_in_the_hash() {
        let files = [file("low.rhai", LOW)];
        let base = Document::new(&files, &settings());
        let connector = Connector {
            topics: vec!["devices".to_owned()],
            lateness_us: 1,
            skew_us: 1,
            coarse: false,
            reset_days: Vec::new(),
        };
        for other in [
            Settings { site: "other".to_owned(), ..settings() },
            Settings { lateness_us: 1, ..settings() },
            Settings { skew_us: 1, ..settings() },
            Settings { epoch_check: false, ..settings() },
            Settings { record_clock: true, ..settings() },
            Settings { samples_max: 1, ..settings() },
            Settings { connectors: vec![connector], ..settings() },
        ] {
            assert_ne!(Document::new(&files, &other).hash(), base.hash(), "{other:?}");
        }
        let resumed = Settings { resumed: true, ..settings() };
        assert_eq!(Document::new(&files, &resumed).hash(), base.hash());
        assert_ne!(Document::new(&[file("low.rhai", &format!("{LOW}\n"))], &settings()).hash(), base.hash());
    }

    #[test]
    fn what_this_binary_cannot_use_is_refused_in_words() {
        let document = Document::new(&[file("low.rhai", LOW)], &settings());
        let text = String::from_utf8(document.bytes()).expect("JSON");
        let refused = |text: &str| Document::read(text.as_bytes()).expect_err("it cannot be used").to_string();
        assert!(refused("{").contains("no set document"));
        assert!(refused(&text.replace("\"format\":1", "\"format\":9")).contains("form is 9"));
        assert!(refused(&text.replace("\"semantics\":1", "\"semantics\":2")).contains("version 2 of the semantics"));
        let catalogue = &Catalogue::builtin().hash;
        assert!(refused(&text.replace(catalogue.as_str(), "00ff")).contains("signal catalogue 00ff"));
        assert!(refused(&text.replace("\"rules\":", "\"rulez\":")).contains("rulez"));
        let broken = Document::new(&[file("low.rhai", &LOW.replace("spo2.last", "spo2.lst"))], &settings());
        let fault = broken.load().expect_err("the rule has a fault").to_string();
        assert!(fault.contains("low.rhai:2:") && fault.contains("R025"), "{fault}");
        let empty = Document::new(&[], &settings()).load().expect_err("nothing would be watched").to_string();
        assert!(empty.contains("no rule"), "{empty}");
    }

    #[test]
    fn changes_of_settings_are_told_with_both_values() {
        let load = |settings: &Settings| Document::new(&[file("low.rhai", LOW)], settings).load().expect("sound");
        let after = Settings { lateness_us: 120_000_000, ..settings() };
        let change = Change::between(&load(&settings()), &load(&after));
        assert_eq!(change.in_one_line(), "settings lateness 1m -> 2m; unchanged 1");
        let other = Settings { site: "other".to_owned(), ..settings() };
        assert!(same_site_and_clock(&settings(), &other).is_err_and(|what| what.contains("\"other\"")));
        assert_eq!(same_site_and_clock(&settings(), &after), Ok(()));
    }
}
