//! The one configuration file: TOML, unknown keys are errors, environment variables override.
//!
//! `WARDBELL__KAFKA__BOOTSTRAP_SERVERS=broker:9092` overrides `bootstrap_servers` of `[kafka]`: two underscores between
//! the parts, any case; `WARDBELL__SINK__PAGER__URL` overrides `url` of the sink `pager`. Every fault is reported at once,
//! at its place in the file. Defaults never lose data and never start at the latest offset.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};
use wardbell_connectors::log::kafka::KafkaLog;
use wardbell_connectors::log::{LogError, Remedy};
use wardbell_connectors::secret::{SecretError, SecretSource};
use wardbell_connectors::sink::Identity;
use wardbell_connectors::sink::webhook::{Fault, WebhookSettings};
use wardbell_core::partition::{self, Settings};
use wardbell_rules::{Diagnostic, Severity, SourceFile};
use wardbell_schemas::{Micros, SECOND, duration};

use crate::connector::{self, Connector};
use crate::pipeline::Topics;
use crate::sets::RulesFolder;
use crate::toml_file::{field_names, said_at, span_of, unread_keys};

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
    /// A running job publishes changed rule files, if they are sound.
    pub watch_rules: bool,
    /// Make our own topics where they are missing.
    pub create_topics: bool,
    /// Decide and store everything and notify nobody.
    pub record_only: bool,
    pub kafka: Kafka,
    pub source: Source,
    /// Topics in a vendor's own format.
    pub connector: Vec<ConnectorEntry>,
    pub canonical: Canonical,
    pub alerts: Topic,
    pub dead_letters: Topic,
    /// Published rule sets.
    pub control: Topic,
    /// Checkpoints.
    pub state: Topic,
    pub decide: Decide,
    pub canary: Canary,
    pub http: Http,
    pub latency: LatencyFiles,
    pub sink: Vec<Sink>,
    /// The connectors' files, read by [`load`].
    #[serde(skip)]
    pub loaded: Vec<Connector>,
}

#[derive(Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Kafka {
    pub bootstrap_servers: String,
    /// Any option of librdkafka that is no secret.
    pub options: BTreeMap<String, String>,
    /// File that holds the password of the user, alone on its first line.
    pub sasl_password_file: Option<PathBuf>,
    /// Name of an environment variable that holds it.
    pub sasl_password_env: Option<String>,
    /// File that holds the password of the client's private key.
    pub ssl_key_password_file: Option<PathBuf>,
    /// Name of an environment variable that holds it.
    pub ssl_key_password_env: Option<String>,
}

/// Options of librdkafka that are secrets, and the keys under which the file names where they are kept.
const SECRET_OPTIONS: [(&str, &str); 2] =
    [("sasl.password", "sasl_password"), ("ssl.key.password", "ssl_key_password")];

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

/// Topics in a vendor's own format, and the file that says what it means.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ConnectorEntry {
    /// Relative to the folder of the configuration file.
    pub file: PathBuf,
    pub topics: Vec<String>,
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
    /// Time between two checkpoints of a partition; what is decided after one is replayed when an owner takes over.
    #[serde(with = "duration::as_text")]
    pub checkpoint_every: Micros,
}

/// A reading that proves the path from the canonical log to every sink, all the time.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Canary {
    /// Time between two of them; "0s": none are sent.
    #[serde(with = "duration::as_text")]
    pub every: Micros,
}

/// Health, metrics and the API over HTTP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Address and port, or "off".
    pub listen: String,
    /// File that holds the token of the API, alone on its first line.
    pub token_file: Option<PathBuf>,
    /// Name of an environment variable that holds it.
    pub token_env: Option<String>,
}

/// Percentile distributions as files.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct LatencyFiles {
    /// Folder for one `.hgrm` file per stage; absent: none are written.
    pub hgrm_dir: Option<PathBuf>,
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
    /// Where a `webhook` sink posts alerts.
    pub url: Option<String>,
    /// File that holds the secret its requests are signed with.
    pub secret_file: Option<PathBuf>,
    /// Name of an environment variable that holds it.
    pub secret_env: Option<String>,
    /// File that holds a bearer token.
    pub token_file: Option<PathBuf>,
    /// Name of an environment variable that holds it.
    pub token_env: Option<String>,
    /// Certificates in PEM; with them, nobody else is trusted.
    pub ca_file: Option<PathBuf>,
    /// For one attempt.
    #[serde(default = "default_timeout", with = "duration::as_text")]
    pub timeout: Micros,
    /// Sent with every request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Alerts of so many patients are delivered side by side.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// Allow `http:` to other machines.
    #[serde(default)]
    pub allow_plain_http: bool,
}

fn default_timeout() -> Micros {
    5 * SECOND
}

fn default_concurrency() -> usize {
    8
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkKind {
    /// Lines for people on standard output.
    Stdout,
    /// One alert a line in a file.
    Jsonl,
    /// Signed HTTP requests, one an alert.
    Webhook,
}

/// Keys that belong to webhook sinks.
const WEBHOOK_KEYS: [&str; 10] = [
    "url",
    "secret_file",
    "secret_env",
    "token_file",
    "token_env",
    "ca_file",
    "timeout",
    "headers",
    "concurrency",
    "allow_plain_http",
];

impl Sink {
    /// What a `webhook` sink is made from.
    ///
    /// # Errors
    /// A key that is missing, or one too many.
    pub fn webhook(&self) -> Result<WebhookSettings, Fault> {
        let fault = |key: &'static str, what: &str, remedy: &str| Fault {
            key,
            what: what.to_owned(),
            remedy: remedy.to_owned(),
            is_warning: false,
        };
        let source = |file: &Option<PathBuf>, variable: &Option<String>| match (file, variable) {
            (Some(path), None) => Ok(Some(SecretSource::File(path.clone()))),
            (None, Some(name)) => Ok(Some(SecretSource::Variable(name.clone()))),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(()),
        };
        let one_secret = || {
            let remedy = "set either secret_file = \"...\" or secret_env = \"...\"";
            fault("secret_file", "requests are signed with exactly one secret", remedy)
        };
        Ok(WebhookSettings {
            url: self.url.clone().ok_or_else(|| {
                fault("url", "a webhook needs an address", "url = \"https://alerts.example.org/wardbell\"")
            })?,
            secret: source(&self.secret_file, &self.secret_env).ok().flatten().ok_or_else(one_secret)?,
            token: source(&self.token_file, &self.token_env).map_err(|()| {
                fault("token_env", "there are two places for one token", "keep either token_file or token_env")
            })?,
            ca_file: self.ca_file.clone(),
            timeout: Duration::from_micros(u64::try_from(self.timeout).unwrap_or(0)),
            headers: self.headers.clone(),
            allow_plain_http: self.allow_plain_http,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            site: "default".to_owned(),
            group: "wardbell".to_owned(),
            instance: None,
            rules: PathBuf::from("rules"),
            watch_rules: true,
            create_topics: true,
            record_only: false,
            kafka: Kafka::default(),
            source: Source::default(),
            connector: Vec::new(),
            canonical: Canonical::default(),
            alerts: Topic { topic: "wardbell.alerts".to_owned() },
            dead_letters: Topic { topic: "wardbell.dead-letters".to_owned() },
            control: Topic { topic: "wardbell.control".to_owned() },
            state: Topic { topic: "wardbell.state".to_owned() },
            decide: Decide::default(),
            canary: Canary::default(),
            http: Http::default(),
            latency: LatencyFiles::default(),
            sink: Vec::new(),
            loaded: Vec::new(),
        }
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self { every: 5 * SECOND }
    }
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            options: BTreeMap::new(),
            sasl_password_file: None,
            sasl_password_env: None,
            ssl_key_password_file: None,
            ssl_key_password_env: None,
        }
    }
}

impl std::fmt::Debug for Kafka {
    /// Options by name alone: a value may be a secret, whatever it is called.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("options", &self.options.keys())
            .finish_non_exhaustive()
    }
}

impl Kafka {
    /// File and environment variable of each of [`SECRET_OPTIONS`], in their order.
    fn secret_places(&self) -> [(Option<&PathBuf>, Option<&String>); 2] {
        [
            (self.sasl_password_file.as_ref(), self.sasl_password_env.as_ref()),
            (self.ssl_key_password_file.as_ref(), self.ssl_key_password_env.as_ref()),
        ]
    }

    /// The log that these brokers keep. Reads the secrets; connects to nobody yet.
    ///
    /// # Errors
    /// [`Remedy::Refuse`] naming a secret that cannot be read, or an option that cannot work.
    pub fn open(&self) -> Result<KafkaLog, LogError> {
        let mut options = self.options.clone();
        options.insert("bootstrap.servers".to_owned(), self.bootstrap_servers.clone());
        let mut secrets = BTreeMap::new();
        for ((option, key), place) in SECRET_OPTIONS.into_iter().zip(self.secret_places()) {
            let (source, ending) = match place {
                (Some(path), _) => (SecretSource::File(path.clone()), "file"),
                (None, Some(name)) => (SecretSource::Variable(name.clone()), "env"),
                (None, None) => continue,
            };
            let unreadable = |error: SecretError| {
                LogError::new(Remedy::Refuse, format!("reading `kafka.{key}_{ending}`"), error.to_string())
            };
            secrets.insert(option, source.read().map_err(unreadable)?);
        }
        KafkaLog::with_secrets(options, secrets)
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
        Self { commit_every: 5 * SECOND, checkpoint_every: 60 * SECOND }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9640".to_owned(), token_file: None, token_env: None }
    }
}

impl Http {
    /// Where to listen; `None` if HTTP is off.
    ///
    /// # Errors
    /// The text is neither an address with a port nor "off".
    pub fn address(&self) -> Result<Option<SocketAddr>, String> {
        if self.listen == "off" {
            return Ok(None);
        }
        self.listen.parse().map(Some).map_err(|_| format!("`{}` is no address with a port", self.listen))
    }

    /// A token can be asked for.
    pub fn has_token(&self) -> bool {
        self.token_file.is_some() || self.token_env.is_some()
    }
}

impl Config {
    /// All source topics: those with canonical JSON, then those of connectors.
    pub fn source_topics(&self) -> Vec<String> {
        let of_connectors = self.connector.iter().flat_map(|entry| &entry.topics);
        self.source.topics.iter().chain(of_connectors).cloned().collect()
    }

    /// How the records of each source topic are decoded and normalized.
    pub fn connectors(&self) -> Vec<Connector> {
        let canonical = Connector::canonical(self.source.topics.clone());
        std::iter::once(canonical).chain(self.loaded.iter().cloned()).collect()
    }

    pub fn topics(&self) -> Topics {
        Topics {
            source: self.source_topics(),
            create_source: self.source.create_partitions,
            canonical: self.canonical.topic.clone(),
            alerts: self.alerts.topic.clone(),
            dead_letters: self.dead_letters.topic.clone(),
            control: self.control.topic.clone(),
            state: self.state.topic.clone(),
            partitions: self.canonical.partitions,
            retention: Duration::from_micros(self.canonical.retention.unsigned_abs()),
            create: self.create_topics,
        }
    }

    /// The configured rules, with what they are to decide with.
    pub fn rules_folder(&self) -> RulesFolder {
        RulesFolder { paths: vec![self.rules.clone()], decision: self.decision(), watch: self.watch_rules }
    }

    /// What decides besides the rules.
    pub fn decision(&self) -> Settings {
        let of_connector = |connector: &Connector| partition::Connector {
            topics: connector.topics.clone(),
            lateness_us: connector.bounds.lateness_us.unwrap_or(self.source.lateness),
            skew_us: connector.bounds.skew_us.unwrap_or(self.source.skew),
            coarse: connector.bounds.is_coarse,
            reset_days: connector.bounds.reset_days.clone(),
        };
        Settings {
            connectors: self.loaded.iter().map(of_connector).collect(),
            lateness_us: self.source.lateness,
            skew_us: self.source.skew,
            record_clock: self.source.clock == SourceClock::Record,
            ..Settings::new(&self.site)
        }
    }
}

/// Reads a configuration with the process's environment, and the files of its connectors.
///
/// # Errors
/// The files and every fault found in them, with its place.
pub fn load(path: &Path) -> Result<Config, (Vec<SourceFile>, Vec<Diagnostic>)> {
    let file = crate::rules_files::read(path).map_err(|fault| (Vec::new(), vec![*fault]))?;
    let environment = std::env::vars().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    let (config, mut faults) = parse(&file, &environment);
    let mut files = vec![file];
    let config = config.map(|mut config| {
        let found = connector::load_all(&config.connector, path);
        faults.extend(found.faults);
        files.extend(found.files);
        config.loaded = found.connectors;
        config
    });
    match config {
        Some(config) if faults.iter().all(|fault| fault.severity == Severity::Warning) => {
            for warning in faults {
                tracing::warn!(remedy = warning.help.as_deref().unwrap_or_default(), "{}", warning.message);
            }
            Ok(config)
        }
        _ => Err((files, faults)),
    }
}

/// Reads a configuration from its text and overriding variables; the configuration is there if it could be built.
pub fn parse(file: &SourceFile, environment: &BTreeMap<String, String>) -> (Option<Config>, Vec<Diagnostic>) {
    let spans = match DeTable::parse(&file.text) {
        Ok(spans) => spans,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            let message = format!("not TOML: {}", said_at(&file.text, &at, error.message()));
            return (None, vec![Diagnostic::error("C001", file, at, message)]);
        }
    };
    let mut faults = unknown_keys(file, spans.get_ref());
    // Types are checked on the text, where the place is known, before anything overrides it.
    if let Err(error) = toml::from_str::<Config>(&file.text) {
        let at = error.span().unwrap_or(0..0);
        let message = said_at(&file.text, &at, error.message()).to_owned();
        faults.push(Diagnostic::error("C003", file, at, message));
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
        faults.extend(unread_keys("C002", file, table, known, section));
    };
    check(table, field_names::<Config>(), "the configuration");
    let sections: &[(&str, &'static [&'static str])] = &[
        ("kafka", field_names::<Kafka>()),
        ("source", field_names::<Source>()),
        ("canonical", field_names::<Canonical>()),
        ("alerts", field_names::<Topic>()),
        ("dead_letters", field_names::<Topic>()),
        ("control", field_names::<Topic>()),
        ("state", field_names::<Topic>()),
        ("decide", field_names::<Decide>()),
        ("canary", field_names::<Canary>()),
        ("http", field_names::<Http>()),
        ("latency", field_names::<LatencyFiles>()),
    ];
    for &(section, known) in sections {
        if let Some(DeValue::Table(inner)) = table.get(section).map(|value| value.get_ref()) {
            check(inner, known, &format!("[{section}]"));
        }
    }
    let lists: [(&str, &'static [&'static str]); 2] =
        [("sink", field_names::<Sink>()), ("connector", field_names::<ConnectorEntry>())];
    for (list, known) in lists {
        if let Some(DeValue::Array(entries)) = table.get(list).map(|value| value.get_ref()) {
            for entry in entries.iter() {
                if let DeValue::Table(inner) = entry.get_ref() {
                    check(inner, known, &format!("[[{list}]]"));
                }
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
    for ((option, key), place) in SECRET_OPTIONS.into_iter().zip(config.kafka.secret_places()) {
        if config.kafka.options.contains_key(option) {
            let message = format!("`{option}` does not belong into a configuration");
            let help = format!(
                "keep it in a file, {key}_file = \"...\", or name an environment variable, {key}_env = \"...\""
            );
            fault(&["kafka", "options", option], message, &help);
        }
        if let (Some(_), Some(_)) = place {
            let message = "there are two places for one password".to_owned();
            fault(&["kafka", &format!("{key}_env")], message, &format!("keep either {key}_file or {key}_env"));
        }
    }
    let source_topics = config.source_topics();
    if source_topics.is_empty() {
        fault(&["source", "topics"], "no source topic is named".to_owned(), "add `topics = [\"devices\"]` to [source]");
    }
    for (i, entry) in config.connector.iter().enumerate() {
        let place = i.to_string();
        if entry.topics.is_empty() {
            fault(&["connector", &place], "no topic is named".to_owned(), "add `topics = [\"vendor\"]`");
        }
        for topic in &entry.topics {
            if source_topics.iter().filter(|known| *known == topic).count() > 1 {
                let message = format!("topic `{topic}` has two connectors");
                let help = "a topic stands once, in [source] or at one [[connector]]";
                fault(&["connector", &place, "topics"], message, help);
            }
        }
    }
    for (topic, path) in [
        (&config.canonical.topic, ["canonical", "topic"]),
        (&config.alerts.topic, ["alerts", "topic"]),
        (&config.dead_letters.topic, ["dead_letters", "topic"]),
        (&config.control.topic, ["control", "topic"]),
        (&config.state.topic, ["state", "topic"]),
    ] {
        if !named(topic) || source_topics.contains(topic) {
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
    if !(SECOND..=3_600 * SECOND).contains(&config.decide.checkpoint_every) {
        fault(
            &["decide", "checkpoint_every"],
            format!("a checkpoint every {} cannot work", duration::print(config.decide.checkpoint_every)),
            "between 1s and 1h; 60s suits most sites, longer makes a take-over slower",
        );
    }
    match config.http.address() {
        Err(message) => fault(&["http", "listen"], message, "like \"127.0.0.1:9640\", or \"off\""),
        Ok(Some(address)) if !address.ip().is_loopback() && !config.http.has_token() => fault(
            &["http", "listen"],
            format!("`{address}` can be reached from other machines, but no token is configured"),
            "add token_file = \"...\" or token_env = \"...\" to [http], or listen on 127.0.0.1",
        ),
        Ok(_) => {}
    }
    if config.http.token_file.is_some() && config.http.token_env.is_some() {
        let message = "there are two places for one token".to_owned();
        fault(&["http", "token_env"], message, "keep either token_file or token_env");
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
    faults.extend(wrong_webhooks(file, table, config));
    faults
}

/// Webhooks that cannot work, and keys of webhooks at other sinks.
fn wrong_webhooks(file: &SourceFile, table: &DeTable<'_>, config: &Config) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for (index, sink) in config.sink.iter().enumerate() {
        let written = match table.get("sink").map(|value| value.get_ref()) {
            Some(DeValue::Array(sinks)) => sinks.get(index).map(|written| written.get_ref()),
            _ => None,
        };
        let span = |key: &str| match written {
            Some(DeValue::Table(keys)) => keys.get(key).map(|value| value.span()),
            _ => None,
        };
        let mut fault = |key: &str, what: &str, help: String, is_warning: bool| {
            let message = format!("sink `{}`, `{key}`: {what}", sink.name);
            let diagnostic = match span(key).or_else(|| span("name")) {
                Some(span) => Diagnostic::error("C005", file, span, message),
                None => Diagnostic::whole_file("C005", &file.path, message),
            };
            let diagnostic = diagnostic.help(help);
            faults.push(if is_warning { diagnostic.warning() } else { diagnostic });
        };
        if sink.kind != SinkKind::Webhook {
            for key in WEBHOOK_KEYS.into_iter().filter(|key| span(key).is_some()) {
                fault(key, "belongs to a sink of type \"webhook\"", "remove it".to_owned(), false);
            }
            continue;
        }
        if !(1..=64).contains(&sink.concurrency) {
            fault("concurrency", "out of range", "between 1 and 64; 8 suits most receivers".to_owned(), false);
        }
        let found = sink.webhook().map_or_else(|fault| vec![fault], |settings| settings.faults());
        for found in found {
            fault(found.key, &found.what, found.remedy, found.is_warning);
        }
    }
    faults
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
    // Numbers, booleans and lists as in the file; everything else is a text.
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let known = match sections {
        [] => field_names::<Config>().contains(&last.as_str()),
        [section] if section == "kafka" => field_names::<Kafka>().contains(&last.as_str()),
        [section] if section == "source" => field_names::<Source>().contains(&last.as_str()),
        [section] if section == "canonical" => field_names::<Canonical>().contains(&last.as_str()),
        [section] if section == "decide" => field_names::<Decide>().contains(&last.as_str()),
        [section] if section == "canary" => field_names::<Canary>().contains(&last.as_str()),
        [section] if section == "http" => field_names::<Http>().contains(&last.as_str()),
        [section] if section == "latency" => field_names::<LatencyFiles>().contains(&last.as_str()),
        [section] if ["alerts", "dead_letters", "control", "state"].contains(&section.as_str()) => last == "topic",
        [sink, _] if sink == "sink" => last != "name" && field_names::<Sink>().contains(&last.as_str()),
        [kafka, options] => kafka == "kafka" && options == "options",
        _ => false,
    };
    if !known {
        return Err(format!("there is no key `{}`", path.join(".")));
    }
    let text = Value::String(value.to_owned());
    section_of(root, sections)?.insert(last.clone(), parsed.unwrap_or_else(|| text.clone()));
    // A name or password may look like a number: what does not fit as such is a text.
    if Value::Table(root.clone()).try_into::<Config>().is_err() {
        section_of(root, sections)?.insert(last.clone(), text);
    }
    Ok(())
}

/// The table at a path, made where it is missing; a sink stands under its name.
fn section_of<'a>(root: &'a mut Table, path: &[String]) -> Result<&'a mut Table, String> {
    if let [sink, name] = path
        && sink == "sink"
    {
        let is_named = |sink: &&mut Table| {
            sink.get("name").and_then(Value::as_str).is_some_and(|known| known.eq_ignore_ascii_case(name))
        };
        let sinks = root.get_mut("sink").and_then(Value::as_array_mut).into_iter().flatten();
        let found = sinks.filter_map(Value::as_table_mut).find(is_named);
        return found.ok_or_else(|| format!("there is no sink `{name}` in the file"));
    }
    let mut place = root;
    for section in path {
        let next = place.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        place = next.as_table_mut().ok_or_else(|| format!("`{section}` is not a section"))?;
    }
    Ok(place)
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
    fn a_port_for_other_machines_needs_a_token() {
        let http = |keys: &str| faults(&format!("{GOOD}[http]\n{keys}\n"));
        for good in [
            "listen = \"off\"",
            "listen = \"[::1]:0\"",
            "listen = \"0.0.0.0:9640\"\ntoken_env = \"TOKEN\"",
            "token_file = \"token\"",
        ] {
            assert_eq!(http(good), Vec::<String>::new(), "{good}");
        }
        for (bad, what) in [
            ("listen = \"9640\"", "no address with a port"),
            ("listen = \"0.0.0.0:9640\"", "no token is configured"),
            ("token_file = \"a\"\ntoken_env = \"B\"", "two places"),
            ("port = 9640", "unknown key `port` in [http]"),
        ] {
            let found = http(bad);
            assert!(found.len() == 1 && found[0].contains(what), "{bad}: {found:?}");
        }
    }

    #[test]
    fn a_webhook_needs_an_address_and_one_secret_that_can_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        std::fs::set_permissions(&secret, private).expect("set");
        let with = |keys: &str| {
            let keys = keys.replace("SECRET", &format!("secret_file = \"{}\"", secret.display()));
            faults(&format!("{GOOD}[[sink]]\nname = \"pager\"\ntype = \"webhook\"\n{keys}\n"))
        };
        let good = with("url = \"https://a.example/\"\nSECRET\ntimeout = \"2s\"\nconcurrency = 4");
        assert_eq!(good, Vec::<String>::new());
        for (keys, place, what) in [
            ("SECRET", "8:8", "needs an address"),
            ("url = \"https://a.example/\"", "8:8", "exactly one secret"),
            ("url = \"https://a.example/\"\nSECRET\nsecret_env = \"X\"", "11:15", "exactly one secret"),
            ("SECRET\nurl = \"http://a.example/\"", "11:7", "plain HTTP"),
            ("url = \"https://a.example/\"\nsecret_file = \"no/such/file\"", "11:15", "cannot be read"),
            ("url = \"https://a.example/\"\nSECRET\nconcurrency = 0", "12:15", "out of range"),
            ("url = \"https://a.example/\"\nSECRET\ntimeout = \"60s\"", "12:11", "no useful time-out"),
        ] {
            let found = with(keys);
            assert_eq!(found.len(), 1, "{keys}: {found:?}");
            assert!(found[0].starts_with(&format!("C005 {place} ")) && found[0].contains(what), "{keys}: {found:?}");
        }
        let foreign = faults(&format!("{GOOD}url = \"https://a.example/\"\n"));
        assert!(foreign.len() == 1 && foreign[0].starts_with("C005 7:7 "), "{foreign:?}");
    }

    #[test]
    fn a_source_topic_belongs_to_one_connector() {
        let connector =
            |topics: &str| faults(&format!("{GOOD}[[connector]]\nfile = \"v.connector.toml\"\ntopics = {topics}\n"));
        assert_eq!(connector("[\"vendor\"]"), Vec::<String>::new());
        assert_eq!(
            connector("[\"vendor\", \"devices\"]"),
            ["C005 9:10 topic `devices` has two connectors (a topic stands once, in [source] or at one [[connector]])"]
        );
        let nothing = connector("[]");
        assert!(nothing.len() == 1 && nothing[0].contains("no topic is named"), "{nothing:?}");
        let alone = GOOD.replace("[source]\ntopics = [\"devices\"]\n", "")
            + "[[connector]]\nfile = \"v.connector.toml\"\ntopics = [\"vendor\"]\nlateness = \"5s\"\n";
        assert_eq!(
            faults(&alone),
            ["C002 8:1 unknown key `lateness` in [[connector]] (known keys of [[connector]]: file, topics)"]
        );
    }

    #[test]
    fn passwords_are_kept_outside_the_file_and_shown_nowhere() {
        const PASSWORD: &str = "swordfish-7531";
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("password");
        std::fs::write(&path, format!("{PASSWORD}\n")).expect("written");
        let with = |keys: &str| SourceFile {
            path: "wardbell.toml".to_owned(),
            text: format!("{GOOD}[kafka]\n{keys}\n").replace("PATH", &path.display().to_string()),
        };
        let none = BTreeMap::new();
        for keys in [
            "options = { \"sasl.password\" = \"swordfish-7531\" }",
            "options = { \"ssl.key.password\" = \"swordfish-7531\" }",
            "[kafka.options]\n\"sasl.password\" = \"swordfish-7531\"",
            "[kafka.options]\n\"sasl.password\" = \"swordfish-7531",
            "[kafka.options]\n\"sasl.password\" = [\"swordfish-7531\"]",
        ] {
            let file = with(keys);
            let (config, faults) = parse(&file, &none);
            assert_eq!(faults.len(), 1, "{keys}: {faults:?}");
            let shown = crate::rules_files::render(&faults, std::slice::from_ref(&file), false);
            assert!(!shown.contains("7531"), "{keys}: {shown}");
            assert!(!format!("{config:?} {faults:?}").contains("7531"), "{keys}: {config:?} {faults:?}");
            let remedy = faults[0].help.clone().unwrap_or_default();
            assert!(config.is_none() || remedy.contains("_password_file"), "{keys}: {faults:?}");
        }
        let overridden = BTreeMap::from([("WARDBELL__KAFKA__OPTIONS__sasl.password".to_owned(), PASSWORD.to_owned())]);
        let (_, refused) = parse(&with(""), &overridden);
        let help = refused.first().and_then(|fault| fault.help.as_deref()).unwrap_or_default();
        assert!(help.contains("sasl_password_env"), "{refused:?}");
        assert!(!format!("{refused:?}").contains("7531"), "{refused:?}");

        let (twice, keeps_one) = ("sasl_password_file = \"PATH\"\nsasl_password_env = \"X\"", "keep either");
        let help = parse(&with(twice), &none).1.first().and_then(|fault| fault.help.clone()).unwrap_or_default();
        assert!(help.contains(keeps_one), "{help}");
        let (config, faults) = parse(&with("sasl_password_file = \"PATH\""), &none);
        let config = config.expect("builds");
        assert_eq!(faults, []);
        config.kafka.open().expect("the password can be read");
        assert!(!format!("{config:?}").contains("7531"));
        let lost = Kafka { sasl_password_file: Some(folder.path().join("lost")), ..config.kafka };
        let refused = lost.open().err().expect("there is no such file");
        assert_eq!(refused.remedy, Remedy::Refuse);
        assert!(refused.to_string().contains("kafka.sasl_password_file"), "{refused}");
    }

    #[test]
    fn a_sink_is_overridden_by_its_name() {
        let file = SourceFile { path: "w.toml".to_owned(), text: GOOD.to_owned() };
        let set = |name: &str, value: &str| parse(&file, &BTreeMap::from([(name.to_owned(), value.to_owned())]));
        let (config, faults) = set("WARDBELL__SINK__CONSOLE__IDENTITY", "none");
        assert_eq!(faults, []);
        assert_eq!(config.expect("builds").sink[0].identity, Identity::None);
        for (name, what) in [
            ("WARDBELL__SINK__PAGER__IDENTITY", "there is no sink `pager`"),
            ("WARDBELL__SINK__CONSOLE__NAME", "there is no key `sink.console.name`"),
            ("WARDBELL__SINK__CONSOLE__IDENTITI", "there is no key `sink.console.identiti`"),
        ] {
            let (_, faults) = set(name, "x");
            assert!(faults[0].message.contains(what), "{name}: {faults:?}");
        }
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
