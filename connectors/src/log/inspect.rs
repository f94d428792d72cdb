//! Asking a log, before a job starts, whether it is as the job needs it. Nothing that is asked leaves anything behind.

use std::collections::BTreeMap;
use std::fmt;

use super::{Log, LogError, TopicPartition, TopicSpec};

/// Something about a topic that a person has to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFault {
    pub topic: String,
    pub what: String,
    /// What puts it right, most often a command.
    pub remedy: String,
    /// It works all the same.
    pub is_warning: bool,
}

impl TopicFault {
    pub fn error(topic: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { topic: topic.to_owned(), what: what.into(), remedy: remedy.into(), is_warning: false }
    }

    pub fn warning(topic: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::error(topic, what, remedy) }
    }
}

impl fmt::Display for TopicFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic `{}` {}: {}", self.topic, self.what, self.remedy)
    }
}

/// Something a job does, which a broker may not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    Read(TopicPartition),
    Write(TopicPartition),
    /// Delete old records.
    Delete(TopicPartition),
    /// Append without gaps and repetition, to whatever topic.
    Append,
}

/// See the module.
pub trait Inspect: Log {
    /// Everything that is wrong with topics, at once. A topic that is missing and may be made is looked at as if it
    /// were made, and is not made.
    ///
    /// # Errors
    /// [`super::Remedy::Retry`] if the broker cannot be reached.
    fn topic_faults(&self, topics: &[TopicSpec]) -> Result<Vec<TopicFault>, LogError>;

    /// Whether the broker allows something.
    ///
    /// # Errors
    /// [`super::Remedy::Refuse`] if it does not; any other if that could not be found out.
    fn may(&self, right: &Right) -> Result<(), LogError>;

    /// Settings of a broker by name; empty for a log without brokers.
    ///
    /// # Errors
    /// [`super::Remedy::Refuse`] if we may not know, [`super::Remedy::Retry`] if the broker cannot be reached.
    fn broker_settings(&self) -> Result<BTreeMap<String, String>, LogError>;
}
