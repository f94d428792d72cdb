//! Sinks take alerts out into the world, each with its own progress, so that a slow one delays only itself.

pub mod console;
pub mod jsonl;

use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wardbell_schemas::Micros;
use wardbell_schemas::alert::Alert;
use wardbell_schemas::catalogue::hex;

/// What of a patient's identity a sink gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// As the source sent it.
    #[default]
    Full,
    /// The same stand-in for the same patient at this site.
    Pseudonym,
    /// Nothing.
    None,
}

impl Identity {
    /// The alert as a sink with this identity level may see it. Ids stay, so alerts can still be told apart and joined.
    pub fn apply(self, mut alert: Alert) -> Alert {
        let content = &mut alert.data.content;
        let shown = match self {
            Identity::Full => return alert,
            _ if content.patient == "-" => return alert,
            Identity::Pseudonym => {
                let digest = Sha256::digest(format!("wardbell/pseudonym\n{}\n{}", content.site, content.patient));
                format!("anon-{}", hex(&digest[..6]))
            }
            Identity::None => "-".to_owned(),
        };
        content.message = content.message.replace(content.patient.as_str(), &shown);
        content.patient = shown;
        alert.subject = format!("{}/{}", alert.data.content.patient, alert.data.content.key);
        alert
    }
}

/// One alert on its way to a sink.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub alert: Alert,
    /// When the sink's stage received it, for measuring.
    pub received_us: Micros,
}

/// Why a delivery failed.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("{step}")]
    Io {
        step: String,
        #[source]
        source: std::io::Error,
    },
}

/// The future of a delivery.
pub type Delivering<'a> = Pin<Box<dyn Future<Output = Result<(), SinkError>> + Send + 'a>>;

/// Takes alerts, in order.
///
/// An implementer acknowledges (returns `Ok`) only what has left our hands for good: written and synced, or confirmed by
/// the other side. After an error the same deliveries come again, so the alert's id is the idempotency key. Time spent
/// waiting delays this sink only.
pub trait Sink: Send {
    /// # Errors
    /// [`SinkError`]; the caller tries again with back-off and reports the sink as failing.
    fn deliver<'a>(&'a mut self, deliveries: &'a [Delivery]) -> Delivering<'a>;
}
