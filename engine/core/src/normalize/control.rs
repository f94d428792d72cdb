//! Control requests of source topics: somebody was discharged, an alert was seen.
//!
//! What may come this way concerns one patient and is named in the record. Limits, attributes, rule sets and everything
//! the job says of itself may not: they need an author with rights, which a device topic does not prove.

use wardbell_schemas::control::{Control, ControlRecord};
use wardbell_schemas::decoded::{DecodedControl, RawField};
use wardbell_schemas::reading::Reason;

use super::profile::{Action, Profile};
use super::{Refused, Source, identifier, patient, refuse};

/// Length of an episode id: 128 bits in lower-case hexadecimal.
const EPISODE_LENGTH: usize = 32;

/// A control record with the patient whose partition it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Requested<'a> {
    pub patient: &'a str,
    pub record: ControlRecord,
}

/// Makes a control record of a decoded request; `None` if the connector's file says that the request is not wanted.
/// Its id is its source position, so that a repeated append changes nothing.
///
/// # Errors
/// [`Refused`], for the dead-letter topic.
pub fn control<'a>(
    decoded: &'a DecodedControl<'a>,
    source: &Source<'_>,
    profile: &Profile,
) -> Result<Option<Requested<'a>>, Refused> {
    let action = action(identifier(&decoded.action, "control")?, profile)?;
    if action == Action::Ignore {
        return Ok(None);
    }
    let patient = patient(&decoded.patient, profile)?;
    let owned = |field: &RawField<'_>, name| identifier(field, name).map(str::to_owned);
    let control = match action {
        Action::Discharge => Control::Discharge { patient: patient.to_owned() },
        Action::Standby => {
            let device = decoded.device.is_present().then(|| owned(&decoded.device, "device")).transpose()?;
            Control::Standby { patient: patient.to_owned(), device }
        }
        Action::Acknowledge => {
            Control::Acknowledge { episode: episode(&decoded.episode)?, by: owned(&decoded.by, "by")? }
        }
        Action::Reset => Control::Reset { episode: episode(&decoded.episode)?, by: owned(&decoded.by, "by")? },
        Action::Ignore => return Ok(None),
    };
    let Source { topic, partition, offset, .. } = source;
    let id = format!("{topic}/{partition}/{offset}/{}", decoded.index);
    Ok(Some(Requested { patient, record: ControlRecord { id, control } }))
}

fn action(word: &str, profile: &Profile) -> Result<Action, Refused> {
    if let Some(action) = profile.action(word) {
        return Ok(action);
    }
    match word {
        "limit" | "attribute" | "activate" | "tick" | "condition" => {
            refuse(Reason::Control, "control", "this request may not come from a source topic")
        }
        _ => {
            refuse(Reason::Control, "control", "not a request that a source may make; list its word under the actions")
        }
    }
}

fn episode(field: &RawField<'_>) -> Result<String, Refused> {
    let text = identifier(field, "episode")?;
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != EPISODE_LENGTH || !is_hex {
        return refuse(
            Reason::Control,
            "episode",
            "an episode id has 32 lower-case hexadecimal digits, as alerts show it",
        );
    }
    Ok(text.to_owned())
}
