//! Alerts: one transition of one episode, as the core decides it and as sinks see it.
//!
//! [`Content`] is what must be equal, byte for byte, however the log was cut, replayed or restarted. [`Measured`] is what
//! this run measured about it. On the alerts topic both travel in a CloudEvents 1.0 envelope ([`Alert`]) whose JSON is
//! described by `alert.schema.json` beside this crate.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Micros;
use crate::catalogue::hex;
use crate::reading::SourcePosition;

/// The type of an envelope that proves the path to the sinks and is shown to nobody.
pub const CANARY_TYPE: &str = "org.wardbell.canary.v1";

/// The JSON Schema of an alert, as text.
pub const ALERT_SCHEMA: &str = include_str!("../alert.schema.json");

/// Rule id of transitions that prove the path from the canonical log to every sink; no sink shows them.
pub const CANARY_RULE: &str = "technical/canary";

/// How soon somebody has to act (IEC 60601-1-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    Medium,
    High,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::Low, Priority::Medium, Priority::High];

    pub fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Medium => "medium",
            Priority::High => "high",
        }
    }
}

impl FromStr for Priority {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Priority::ALL.into_iter().find(|priority| priority.name() == text).ok_or(())
    }
}

/// About the patient, or about a device or us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Physiological,
    Technical,
}

/// Presence of the alert signal after a transition (BICEPS, FHIR R6 DeviceAlert).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    On,
    Latched,
    Ack,
    Off,
}

/// One change of an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransitionKind {
    Raised,
    Escalated,
    Deescalated,
    Cleared,
    Latched,
    Reset,
    Acknowledged,
    Expired,
    RuleChanged,
    Superseded,
}

impl TransitionKind {
    pub const ALL: [TransitionKind; 10] = [
        TransitionKind::Raised,
        TransitionKind::Escalated,
        TransitionKind::Deescalated,
        TransitionKind::Cleared,
        TransitionKind::Latched,
        TransitionKind::Reset,
        TransitionKind::Acknowledged,
        TransitionKind::Expired,
        TransitionKind::RuleChanged,
        TransitionKind::Superseded,
    ];

    pub fn name(self) -> &'static str {
        match self {
            TransitionKind::Raised => "raised",
            TransitionKind::Escalated => "escalated",
            TransitionKind::Deescalated => "deescalated",
            TransitionKind::Cleared => "cleared",
            TransitionKind::Latched => "latched",
            TransitionKind::Reset => "reset",
            TransitionKind::Acknowledged => "acknowledged",
            TransitionKind::Expired => "expired",
            TransitionKind::RuleChanged => "rule_changed",
            TransitionKind::Superseded => "superseded",
        }
    }

    /// The state an episode is in afterwards.
    pub fn state(self) -> State {
        match self {
            TransitionKind::Raised | TransitionKind::Escalated | TransitionKind::Deescalated => State::On,
            TransitionKind::Latched => State::Latched,
            TransitionKind::Acknowledged => State::Ack,
            TransitionKind::Cleared
            | TransitionKind::Reset
            | TransitionKind::Expired
            | TransitionKind::RuleChanged
            | TransitionKind::Superseded => State::Off,
        }
    }
}

/// What identifies an episode, for all time: a function of site, rule, patient, key and start alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EpisodeId(pub u128);

impl EpisodeId {
    /// The first 128 bits of SHA-256 over `wardbell/1`, site, rule id, patient, key and start in µs, joined by newlines.
    pub fn new(site: &str, rule: &str, patient: &str, key: &str, start_us: Micros) -> Self {
        let text = format!("wardbell/1\n{site}\n{rule}\n{patient}\n{key}\n{start_us}");
        let digest = Sha256::digest(text.as_bytes());
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(first))
    }
}

impl fmt::Display for EpisodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for EpisodeId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 32 {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ())
    }
}

/// The rule behind an alert, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReference {
    pub id: String,
    pub version: u32,
    /// SHA-256 of the rule's text, hexadecimal; empty for the engine's own technical rules.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// One number a decision was made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub signal: String,
    /// `device/signal/method` of the series that was read.
    pub series: String,
    /// The function and its arguments as in the rule: `mean("30s")`.
    pub function: String,
    /// `None`: unknown.
    pub value: Option<f64>,
    /// The state's name, for a category.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

/// Everything about a transition that is the same in every run over the same log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Episode id, a dot, and 0, 1, 2 ... within the episode.
    pub id: String,
    pub episode: String,
    pub number: u32,
    pub transition: TransitionKind,
    pub state: State,
    pub kind: Kind,
    pub priority: Priority,
    pub site: String,
    pub rule: RuleReference,
    /// The version that raised the episode.
    pub raised_by_version: u32,
    pub patient: String,
    /// `device/signal/method`, `-` for a patient, `device/-/-` for a device, `topic/partition` for a feed.
    pub key: String,
    /// The transition's `T`.
    #[serde(with = "rfc3339")]
    pub at: Micros,
    /// Where the condition began.
    #[serde(with = "rfc3339")]
    pub condition_start: Micros,
    /// Start of the episode, as in its id.
    #[serde(with = "rfc3339")]
    pub episode_start: Micros,
    /// `at` minus `condition_start`: the delay a clinician asked for.
    pub intentional_delay_us: Micros,
    /// Decided by a timer, between two readings.
    pub by_timer: bool,
    pub message: String,
    pub evidence: Vec<Evidence>,
    /// The limits in force for this patient, by name.
    pub limits: BTreeMap<String, f64>,
    /// Event time of the newest reading of the key when it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339_option")]
    pub event_time: Option<Micros>,
    /// Reasons and policies attached to that reading.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// What this run measured; never part of the content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Append time of the source record that decided; for a timer, of the canonical record that made it fire.
    pub basis_us: Micros,
    /// Append time of the canonical record.
    pub canonical_us: Micros,
    /// When the decision was taken.
    pub decided_us: Micros,
    /// Where the newest reading of the key came from. The same readings in another topic, or in a file, decide the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourcePosition>,
    /// Canonical log position of the record that decided.
    pub partition: i32,
    pub offset: i64,
    /// Decided, or handed to the sink, later than the budget.
    #[serde(default)]
    pub delayed: bool,
}

/// A transition in its CloudEvents envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    pub specversion: String,
    pub id: String,
    pub source: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub subject: String,
    #[serde(with = "rfc3339")]
    pub time: Micros,
    pub datacontenttype: String,
    pub data: AlertData,
}

/// Payload of an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertData {
    #[serde(flatten)]
    pub content: Content,
    pub measured: Measured,
}

impl Alert {
    pub fn new(content: Content, measured: Measured) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: content.id.clone(),
            source: format!("/wardbell/{}", content.site),
            event_type: match content.rule.id.as_str() {
                CANARY_RULE => CANARY_TYPE.to_owned(),
                _ => format!("org.wardbell.alert.{}.v1", content.transition.name()),
            },
            subject: format!("{}/{}", content.patient, content.key),
            time: content.at,
            datacontenttype: "application/json".to_owned(),
            data: AlertData { content, measured },
        }
    }

    /// Sinks take its place in the order and hand it to nobody.
    pub fn is_canary(&self) -> bool {
        self.event_type == CANARY_TYPE
    }
}

/// Prints a time as RFC 3339 in UTC with microseconds.
pub fn print_time(us: Micros) -> String {
    match Timestamp::from_microsecond(us) {
        Ok(timestamp) => format!("{timestamp:.6}"),
        Err(_) => format!("{us} µs since 1970"),
    }
}

/// Times as RFC 3339 text in JSON.
mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::Micros;

    pub fn serialize<S: Serializer>(us: &Micros, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::print_time(*us))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Micros, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<Timestamp>().map(Timestamp::as_microsecond).map_err(serde::de::Error::custom)
    }
}

mod rfc3339_option {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::Micros;

    pub fn serialize<S: Serializer>(us: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
        match us {
            Some(us) => super::rfc3339::serialize(us, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Micros>, D::Error> {
        #[derive(Deserialize)]
        struct Time(#[serde(with = "super::rfc3339")] Micros);
        Ok(Option::<Time>::deserialize(deserializer)?.map(|Time(us)| us))
    }
}

/// Content as the bytes two runs are compared by.
///
/// # Panics
/// Never: the type has no value that JSON cannot hold (non-finite numbers do not reach evidence).
pub fn content_bytes(content: &Content) -> Vec<u8> {
    serde_json::to_vec(content).expect("content is plain data")
}

/// SHA-256 over many contents, each followed by a newline; in hexadecimal.
pub fn hash_contents<'a>(contents: impl IntoIterator<Item = &'a Content>) -> String {
    let mut digest = Sha256::new();
    for content in contents {
        digest.update(content_bytes(content));
        digest.update(b"\n");
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn example() -> Content {
        let episode = EpisodeId::new("test", "spo2-low", "p7", "mon-3/spo2/-", 10_000_000);
        Content {
            id: format!("{episode}.0"),
            episode: episode.to_string(),
            number: 0,
            transition: TransitionKind::Raised,
            state: State::On,
            kind: Kind::Physiological,
            priority: Priority::High,
            site: "test".to_owned(),
            rule: RuleReference { id: "spo2-low".to_owned(), version: 3, hash: "ab".to_owned() },
            raised_by_version: 3,
            patient: "p7".to_owned(),
            key: "mon-3/spo2/-".to_owned(),
            at: 25_000_000,
            condition_start: 10_000_000,
            episode_start: 10_000_000,
            intentional_delay_us: 15_000_000,
            by_timer: true,
            message: "SpO₂ 86 %".to_owned(),
            evidence: vec![Evidence {
                signal: "spo2".to_owned(),
                series: "mon-3/spo2/-".to_owned(),
                function: "last".to_owned(),
                value: Some(86.0),
                state: None,
                unit: "%".to_owned(),
            }],
            limits: BTreeMap::from([("low".to_owned(), 90.0)]),
            event_time: Some(24_000_000),
            flags: Vec::new(),
        }
    }

    #[test]
    fn an_alert_is_valid_by_its_schema_and_read_as_written() {
        let schema: serde_json::Value = serde_json::from_str(ALERT_SCHEMA).expect("the schema is JSON");
        let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
        let source = Some(SourcePosition { topic: "devices".to_owned(), partition: 0, offset: 24, index: 0 });
        let alert = Alert::new(example(), Measured { source, ..Measured::default() });
        let json = serde_json::to_value(&alert).expect("writes");
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(serde_json::from_value::<Alert>(json.clone()).expect("reads"), alert);
        let mut broken = json;
        broken["data"]["priority"] = "urgent".into();
        assert!(!validator.is_valid(&broken), "an unknown priority must not pass");
    }

    #[test]
    fn an_episode_id_depends_on_each_of_its_parts() {
        let id = EpisodeId::new("s", "r", "p", "k", 1);
        for other in [
            EpisodeId::new("S", "r", "p", "k", 1),
            EpisodeId::new("s", "R", "p", "k", 1),
            EpisodeId::new("s", "r", "P", "k", 1),
            EpisodeId::new("s", "r", "p", "K", 1),
            EpisodeId::new("s", "r", "p", "k", 2),
        ] {
            assert_ne!(id, other);
        }
        assert_eq!(id.to_string().parse(), Ok(id));
        // Worked by hand with sha256sum, so that another implementation can check itself against it.
        let known = EpisodeId::new("test", "spo2-low", "patient", "device-a/spo2/-", 0);
        assert_eq!(known.to_string(), "5ea3fde74ca244ef35f50360b04728fa");
    }
}
