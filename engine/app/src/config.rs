//! The one configuration file: TOML, unknown keys are errors, environment variables override.
//!
//! `WARDBELL__KAFKA__BOOTSTRAP_SERVERS=broker:9092` overrides `bootstrap_servers` of `[kafka]`: two underscores between
//! the parts, any case. Every fault is reported at once, at its place in the file. Defaults never lose data and never
//! start at the latest offset.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};
use wardbell_connectors::sink::Identity;
use wardbell_core::partition::Settings;
use wardbell_rules::diagnostic::did_you_mean;
use wardbell_rules::{Diagnostic, SourceFile};
use wardbell_schemas::{Micros, SECOND, duration};

use crate::pipeline::Topics;

/// Prefix of environment variables that override the file.
pub const ENV_PREFIX: &str = "WARDBELL__";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Names this installation; part of every alert's identity, so it must never change.
    pub site: String,
    /// Prefix of consumer groups and transactional ids; instances of one job share it.
    pub group: String,
    /// A name of its own for each instance keeps its partitions over a restart in place.
    pub instance: Option<String>,
    /// Folder or file of rules.
    pub rules: PathBuf,
    /// Make our own topics where they are missing.
    pub create_topics: bool,
    pub kafka: Kafka,
    pub source: Source,
    pub canonical: Canonical,
    pub alerts: Topic,
    pub dead_letters: Topic,
    pub decide: Decide,
    pub sink: Vec<Sink>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Kafka {
    pub bootstrap_servers: String,
    /// Any option of librdkafka.
    pub options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Source {
    pub topics: Vec<String>,
    pub clock: SourceClock,
    /// How far behind broker time an event time may be.
    #[serde(with = "duration::as_text")]
    pub lateness: Micros,
    /// How far ahead.
    #[serde(with = "duration::as_text")]
    pub skew: Micros,
    /// Make source topics that are missing, with this many partitions; absent: they must exist.
    pub create_partitions: Option<i32>,
}

/// Whose time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceClock {
    /// The broker's append time.
    Broker,
    /// The record's own time stamp, believed as it is: for replays.
    Record,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Canonical {
    pub topic: String,
    /// Fixed for life.
    pub partitions: i32,
    #[serde(with = "duration::as_text")]
    pub retention: Micros,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Topic {
    pub topic: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Decide {
    /// Longest time between two commits of an owner without transitions.
    #[serde(with = "duration::as_text")]
    pub commit_every: Micros,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sink {
    /// Part of the consumer group, so it must never change.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: SinkKind,
    /// The file of a `jsonl` sink.
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub identity: Identity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// Lines for people on standard output.
    Stdout,
    /// One alert a line in a file.
    Jsonl,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            site: "default".to_owned(),
            group: "wardbell".to_owned(),
            instance: None,
            rules: PathBuf::from("rules"),
            create_topics: true,
            kafka: Kafka::default(),
            source: Source::default(),
            canonical: Canonical::default(),
            alerts: Topic { topic: "wardbell.alerts".to_owned() },
            dead_letters: Topic { topic: "wardbell.dead-letters".to_owned() },
            decide: Decide::default(),
            sink: Vec::new(),
        }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self { bootstrap_servers: "127.0.0.1:9092".to_owned(), options: BTreeMap::new() }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self {
            topics: Vec::new(),
            clock: SourceClock::Broker,
            lateness: 60 * SECOND,
            skew: 5 * SECOND,
            create_partitions: None,
        }
    }
}

impl Default for Canonical {
    fn default() -> Self {
        Self { topic: "wardbell.readings".to_owned(), partitions: 12, retention: 7 * 86_400 * SECOND }
    }
}

impl Default for Decide {
    fn default() -> Self {
        Self { commit_every: 5 * SECOND }
    }
}

impl Config {
    /// Options for the Kafka client.
    pub fn kafka_options(&self) -> BTreeMap<String, String> {
        let mut options = self.kafka.options.clone();
        options.insert("bootstrap.servers".to_owned(), self.kafka.bootstrap_servers.clone());
        options
    }

    pub fn topics(&self) -> Topics {
        Topics {
            source: self.source.topics.clone(),
            create_source: self.source.create_partitions,
            canonical: self.canonical.topic.clone(),
            alerts: self.alerts.topic.clone(),
            dead_letters: self.dead_letters.topic.clone(),
            partitions: self.canonical.partitions,
            retention: Duration::from_micros(self.canonical.retention.unsigned_abs()),
            create: self.create_topics,
        }
    }

    /// What decides besides the rules.
    pub fn decision(&self) -> Settings {
        Settings {
            lateness_us: self.source.lateness,
            skew_us: self.source.skew,
            record_clock: self.source.clock == SourceClock::Record,
            ..Settings::new(&self.site)
        }
    }
}

/// Reads a configuration with the process's environment.
///
/// # Errors
/// Every fault found, with its place.
pub fn load(path: &Path) -> Result<Config, (Option<SourceFile>, Vec<Diagnostic>)> {
    let file = crate::rules_files::read(path).map_err(|fault| (None, vec![*fault]))?;
    let environment = std::env::vars().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    match parse(&file, &environment) {
        (Some(config), faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err((Some(file), faults)),
    }
}

/// Reads a configuration from its text and overriding variables; the configuration is there if it could be built.
pub fn parse(file: &SourceFile, environment: &BTreeMap<String, String>) -> (Option<Config>, Vec<Diagnostic>) {
    let spans = match DeTable::parse(&file.text) {
        Ok(spans) => spans,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            return (None, vec![Diagnostic::error("C001", file, at, format!("not TOML: {}", error.message()))]);
        }
    };
    let mut faults = unknown_keys(file, spans.get_ref());
    // Types are checked on the text, where the place is known, before anything overrides it.
    if let Err(error) = toml::from_str::<Config>(&file.text) {
        let at = error.span().unwrap_or(0..0);
        faults.push(Diagnostic::error("C003", file, at, error.message().to_owned()));
        return (None, faults);
    }
    let mut table: Table = match toml::from_str(&file.text) {
        Ok(table) => table,
        Err(error) => return (None, vec![Diagnostic::whole_file("C001", &file.path, error.message().to_owned())]),
    };
    for (name, value) in environment {
        if let Err(what) = override_key(&mut table, name, value) {
            faults.push(Diagnostic::whole_file("C004", &file.path, format!("environment variable `{name}`: {what}")));
        }
    }
    let config: Config = match Value::Table(table).try_into() {
        Ok(config) => config,
        Err(error) => {
            let message = format!("with the environment's overrides: {}", error.message());
            faults.push(Diagnostic::whole_file("C004", &file.path, message));
            return (None, faults);
        }
    };
    faults.extend(wrong_values(file, spans.get_ref(), &config));
    (Some(config), faults)
}

/// Keys that nothing reads, each with the nearest one that is.
fn unknown_keys(file: &SourceFile, table: &DeTable<'_>) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let mut check = |table: &DeTable<'_>, known: &'static [&'static str], section: &str| {
        for (key, _) in table.iter() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let help = did_you_mean(name, known.iter().copied())
                    .unwrap_or_else(|| format!("known keys of {section}: {}", known.join(", ")));
                faults.push(
                    Diagnostic::error("C002", file, key.span(), format!("unknown key `{name}` in {section}"))
                        .label("nothing reads this")
                        .help(help),
                );
            }
        }
    };
    check(table, field_names::<Config>(), "the configuration");
    let sections: [(&str, &'static [&'static str]); 6] = [
        ("kafka", field_names::<Kafka>()),
        ("source", field_names::<Source>()),
        ("canonical", field_names::<Canonical>()),
        ("alerts", field_names::<Topic>()),
        ("dead_letters", field_names::<Topic>()),
        ("decide", field_names::<Decide>()),
    ];
    for (section, known) in sections {
        if let Some(DeValue::Table(inner)) = table.get(section).map(|value| value.get_ref()) {
            check(inner, known, &format!("[{section}]"));
        }
    }
    if let Some(DeValue::Array(sinks)) = table.get("sink").map(|value| value.get_ref()) {
        for sink in sinks.iter() {
            if let DeValue::Table(inner) = sink.get_ref() {
                check(inner, field_names::<Sink>(), "[[sink]]");
            }
        }
    }
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults
}

/// Values of the right type that cannot work.
fn wrong_values(file: &SourceFile, table: &DeTable<'_>, config: &Config) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let mut fault = |path: &[&str], message: String, help: &str| {
        let diagnostic = match span_of(table, path) {
            Some(span) => Diagnostic::error("C005", file, span, message),
            None => Diagnostic::whole_file("C005", &file.path, format!("`{}`: {message}", path.join("."))),
        };
        faults.push(diagnostic.help(help));
    };
    let named = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if config.site.is_empty() || config.site.chars().any(char::is_control) {
        fault(&["site"], "a site must have a name without control characters".to_owned(), "name it like \"st-marys\"");
    }
    if !named(&config.group) {
        fault(
            &["group"],
            format!("`{}` cannot be a consumer group", config.group),
            "use letters, digits, `.`, `_`, `-`",
        );
    }
    if config.kafka.bootstrap_servers.is_empty() {
        let help = "name the broker: bootstrap_servers = \"127.0.0.1:9092\"";
        fault(&["kafka", "bootstrap_servers"], "no broker is named".to_owned(), help);
    }
    if config.source.topics.is_empty() {
        fault(&["source", "topics"], "no source topic is named".to_owned(), "add `topics = [\"devices\"]` to [source]");
    }
    for (topic, path) in [
        (&config.canonical.topic, ["canonical", "topic"]),
        (&config.alerts.topic, ["alerts", "topic"]),
        (&config.dead_letters.topic, ["dead_letters", "topic"]),
    ] {
        if !named(topic) || config.source.topics.contains(topic) {
            let message = format!("`{topic}` cannot be this topic");
            fault(&path, message, "it must be a topic name and none of the source topics");
        }
    }
    if !(1..=1_000).contains(&config.canonical.partitions) {
        let message = format!("{} partitions", config.canonical.partitions);
        fault(
            &["canonical", "partitions"],
            message,
            "between 1 and 1,000; 12 suits most sites, and it is fixed for life",
        );
    }
    if config.canonical.retention < 86_400 * SECOND {
        fault(
            &["canonical", "retention"],
            format!("{} is too short", duration::print(config.canonical.retention)),
            "the canonical log must be kept for at least 24h",
        );
    }
    if config.source.lateness < 0 || config.source.skew < 0 || config.decide.commit_every <= 0 {
        fault(&["source"], "lateness, skew and decide.commit_every must not be negative".to_owned(), "like \"60s\"");
    }
    let mut names = BTreeSet::new();
    for sink in &config.sink {
        if !named(&sink.name) || !names.insert(&sink.name) {
            let message = format!("sink name `{}` is empty, used twice or not a plain name", sink.name);
            fault(&["sink"], message, "every sink has a name of its own of letters, digits, `.`, `_`, `-`");
        }
        if (sink.kind == SinkKind::Jsonl) != sink.path.is_some() {
            let message = format!("sink `{}`: `path` belongs to a sink of type \"jsonl\", which needs it", sink.name);
            fault(&["sink"], message, "type = \"jsonl\" and path = \"alerts.jsonl\"");
        }
    }
    if config.sink.is_empty() {
        let help = "add a sink: [[sink]] name = \"console\" type = \"stdout\"";
        fault(&["sink"], "no sink is configured: nobody would see an alert".to_owned(), help);
    }
    faults
}

fn span_of(table: &DeTable<'_>, path: &[&str]) -> Option<std::ops::Range<usize>> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    match (value.get_ref(), rest) {
        (_, []) => Some(value.span()),
        (DeValue::Table(inner), rest) => span_of(inner, rest),
        _ => None,
    }
}

/// Puts `WARDBELL__SECTION__KEY=value` into the table.
fn override_key(root: &mut Table, name: &str, value: &str) -> Result<(), String> {
    let path: Vec<String> = name
        .trim_start_matches(ENV_PREFIX)
        .split("__")
        .map(str::to_lowercase)
        .filter(|part| !part.is_empty())
        .collect();
    let Some((last, sections)) = path.split_last() else {
        return Err("names no key".to_owned());
    };
    let mut place = &mut *root;
    for section in sections {
        let next = place.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        place = next.as_table_mut().ok_or_else(|| format!("`{section}` is not a section"))?;
    }
    // Numbers, booleans and lists as in the file; everything else is a text.
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let known = match sections {
        [] => field_names::<Config>().contains(&last.as_str()),
        [section] if section == "kafka" => field_names::<Kafka>().contains(&last.as_str()),
        [section] if section == "source" => field_names::<Source>().contains(&last.as_str()),
        [section] if section == "canonical" => field_names::<Canonical>().contains(&last.as_str()),
        [section] if section == "decide" => field_names::<Decide>().contains(&last.as_str()),
        [section] if section == "alerts" || section == "dead_letters" => last == "topic",
        [kafka, options] => kafka == "kafka" && options == "options",
        _ => false,
    };
    if !known {
        return Err(format!("there is no key `{}`", path.join(".")));
    }
    let text = Value::String(value.to_owned());
    place.insert(last.clone(), parsed.unwrap_or_else(|| text.clone()));
    // A name or password may look like a number: what does not fit as such is a text.
    if Value::Table(root.clone()).try_into::<Config>().is_err() {
        let mut place = root;
        for section in sections {
            place = place.get_mut(section).and_then(Value::as_table_mut).ok_or("is not a section")?;
        }
        place.insert(last.clone(), text);
    }
    Ok(())
}

/// The names of a struct's fields, as serde knows them.
fn field_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("only structs are asked"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("the names are known now"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "site = \"a\"\n[source]\ntopics = [\"devices\"]\n[[sink]]\nname = \"console\"\ntype = \"stdout\"\n";

    fn faults(text: &str) -> Vec<String> {
        let file = SourceFile { path: "wardbell.toml".to_owned(), text: text.to_owned() };
        let shown = |fault: Diagnostic| {
            let help = fault.help.map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{} {}:{} {}{help}", fault.code, fault.line, fault.column, fault.message)
        };
        parse(&file, &BTreeMap::new()).1.into_iter().map(shown).collect()
    }

    #[test]
    fn a_small_file_is_enough() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }

    #[test]
    fn every_unknown_key_is_named_with_the_nearest_and_its_place() {
        let text = format!("rule = \"x\"\n{GOOD}pth = \"y\"\n[kafka]\nbootstrap_server = \"h:1\"\n");
        assert_eq!(
            faults(&text),
            [
                "C002 1:1 unknown key `rule` in the configuration (did you mean `rules`?)",
                "C002 8:1 unknown key `pth` in [[sink]] (did you mean `path`?)",
                "C002 10:1 unknown key `bootstrap_server` in [kafka] (did you mean `bootstrap_servers`?)",
            ]
        );
    }

    #[test]
    fn wrong_types_and_values_are_named_at_their_place() {
        assert_eq!(faults("site = 7\n").len(), 1);
        let lateness = GOOD.replace("[source]", "[source]\nlateness = \"60\"");
        assert!(faults(&lateness)[0].contains("has no unit"), "{:?}", faults(&lateness));
        let text =
            GOOD.replace("topics = [\"devices\"]", "topics = []") + "[canonical]\npartitions = 0\nretention = \"1h\"\n";
        let found = faults(&text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|fault| fault.starts_with("C005")), "{found:?}");
    }

    #[test]
    fn the_environment_overrides_the_file_and_unknown_names_are_refused() {
        let file = SourceFile { path: "w.toml".to_owned(), text: GOOD.to_owned() };
        let set = |name: &str, value: &str| parse(&file, &BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let (config, faults) = set("WARDBELL__KAFKA__BOOTSTRAP_SERVERS", "broker:9092");
        assert_eq!((faults.len(), config.expect("builds").kafka.bootstrap_servers.as_str()), (0, "broker:9092"));
        let (config, _) = set("WARDBELL__CANONICAL__PARTITIONS", "4");
        assert_eq!(config.expect("builds").canonical.partitions, 4);
        let (config, faults) = set("WARDBELL__INSTANCE", "1");
        assert_eq!((faults.len(), config.expect("builds").instance.as_deref()), (0, Some("1")));
        let (_, faults) = set("WARDBELL__KAFKA__SERVERS", "x");
        assert!(faults[0].message.contains("there is no key `kafka.servers`"), "{faults:?}");
    }
}
