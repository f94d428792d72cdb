//! Control records: what influences a decision and is not a reading.
//!
//! They are records of the same canonical partition, in JSON, and take effect at their place in its order; a repeated id
//! is ignored. So a replay of the partition is the run.

use serde::{Deserialize, Serialize};

use crate::Micros;
use crate::alert::Priority;

/// One control record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlRecord {
    /// Unique among the control records of its partition; a repeated one is ignored. Ticks need none: repeating a tick
    /// changes nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(flatten)]
    pub control: Control,
}

/// What a control record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "control", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// The writer had read these source partitions to their end.
    Tick { claims: Vec<TickClaim> },
    /// From here on the rule set with this number and content hash is in force.
    Activate { number: u64, hash: String },
    /// A limit of one patient, by the name rules use for it; `None` removes it.
    Limit { patient: String, name: String, value: Option<f64> },
    /// An attribute of one patient (`age`); `None` removes it.
    Attribute { patient: String, name: String, value: Option<f64> },
    /// The patient left: series are forgotten at once, open episodes end as `expired`.
    Discharge { patient: String },
    /// The patient's devices (or one of them) were switched off on purpose: nothing is expected of them until they speak
    /// again.
    Standby {
        patient: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// A person has seen the alert.
    Acknowledge { episode: String, by: String },
    /// A person ends a latched episode.
    Reset { episode: String, by: String },
    /// The job noticed something about itself (a broken budget, a sink that fails): it begins or ends a technical alert. Of
    /// records lost to retention it says that they are; `technical/feed` ends by itself.
    Condition(Condition),
}

/// See [`Control::Condition`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Rule id of the technical alert: `technical/budget`, `technical/sink`, `technical/feed`.
    pub rule: String,
    /// What it is about: a sink's name, `topic/partition`.
    pub key: String,
    pub priority: Priority,
    /// Whether it is so from now on, or no longer.
    pub holds: bool,
    /// When it was noticed, µs since 1970 UTC.
    pub at_us: Micros,
    /// In words, for the message; never about a patient.
    pub detail: String,
}

/// "Source partition `topic/partition` was read up to `end_offset`, asked after `time`."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TickClaim {
    pub topic: String,
    pub partition: i32,
    /// Everything below this offset is in this canonical partition's past.
    pub end_offset: i64,
    /// The time to which that moves the source clock, µs since 1970 UTC.
    pub time_us: Micros,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_records_are_read_as_written() {
        let claim = TickClaim { topic: "devices".to_owned(), partition: 0, end_offset: 12, time_us: 5_000_000 };
        for control in [
            Control::Tick { claims: vec![claim] },
            Control::Limit { patient: "p".to_owned(), name: "low".to_owned(), value: Some(85.0) },
            Control::Reset { episode: "00ff".to_owned(), by: "RN".to_owned() },
        ] {
            let record = ControlRecord { id: "c1".to_owned(), control };
            let text = serde_json::to_string(&record).expect("writes");
            assert_eq!(serde_json::from_str::<ControlRecord>(&text).expect("reads"), record, "{text}");
        }
    }
}
