//! Where the fields of a reading stand, the same for every format: a place in the record, a constant, or several of them
//! joined.

use std::borrow::Cow;

use wardbell_schemas::decoded::{DecodedControl, DecodedReading, RawField};
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::Reason;

use super::{ControlPlaces, FieldsForm, PlaceForm};
use crate::decode::{Decoded, Part, Undecodable};

/// Between the parts of a joined identifier, unless the file says otherwise.
const SEPARATOR: &str = "/";

/// One field. `P` is a place in a record of one format.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Field<P> {
    /// The records of this connector do not have it.
    Nowhere,
    Constant(String),
    At(P),
    Joined {
        parts: Vec<Field<P>>,
        with: String,
        /// A part that held the separator could make one identifier of two.
        is_identifier: bool,
    },
}

/// Which field, as faults name it, and how it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub name: &'static str,
    /// A reading has it from the element it stands in, or from what is around that.
    pub is_inherited: bool,
}

/// All fields of a reading.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fields<P> {
    patient: Field<P>,
    device: Field<P>,
    label: Field<P>,
    method: Field<P>,
    value: Field<P>,
    unit: Field<P>,
    time: Field<P>,
    quality: Field<P>,
    change: Field<P>,
}

/// The fields of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ControlFields<P> {
    action: Field<P>,
    patient: Field<P>,
    device: Field<P>,
    episode: Field<P>,
    by: Field<P>,
}

impl<P> Field<P> {
    /// Reads the file's words for one field; `place` gives its places a meaning in the format.
    fn new(
        form: Option<&PlaceForm>,
        key: [&str; 2],
        kind: Kind,
        place: &mut dyn FnMut(&PlaceForm, Kind) -> Result<P, String>,
        faults: &mut Vec<KeyFault>,
    ) -> Self {
        match form {
            None => Field::Nowhere,
            Some(PlaceForm::Constant(text)) => Field::Constant(text.clone()),
            Some(PlaceForm::Join { join, with }) => {
                let is_identifier = matches!(kind.name, "patient" | "device");
                let default = if is_identifier { SEPARATOR } else { " " };
                let nested = join.iter().any(|part| matches!(part, PlaceForm::Join { .. }));
                if nested || join.len() < 2 {
                    let help = "join = [\"ward\", \"bed\"]";
                    faults.push(KeyFault::new(&key, "a join takes two or more places that are no joins", help));
                    return Field::Nowhere;
                }
                // One character, which no part may contain: else two patients could become one.
                if is_identifier && with.as_ref().is_some_and(|with| with.chars().count() != 1) {
                    let help = "like \"/\"; no part may contain it, so that two identifiers never become one";
                    faults.push(KeyFault::new(&key, "the parts of an identifier are joined by one character", help));
                    return Field::Nowhere;
                }
                let parts = join.iter().map(|part| Field::new(Some(part), key, kind, place, faults)).collect();
                Field::Joined { parts, with: with.clone().unwrap_or_else(|| default.to_owned()), is_identifier }
            }
            Some(form) => match place(form, kind) {
                Ok(place) => Field::At(place),
                Err(message) => {
                    faults.push(KeyFault::new(&key, message, "see how places are written in CONNECTOR_FILES.md"));
                    Field::Nowhere
                }
            },
        }
    }

    /// The same field with its places in another form.
    fn try_map<Q, E>(&self, place: &mut dyn FnMut(&P) -> Result<Q, E>) -> Result<Field<Q>, E> {
        Ok(match self {
            Field::Nowhere => Field::Nowhere,
            Field::Constant(text) => Field::Constant(text.clone()),
            Field::At(at) => Field::At(place(at)?),
            Field::Joined { parts, with, is_identifier } => Field::Joined {
                parts: parts.iter().map(|part| part.try_map(place)).collect::<Result<_, E>>()?,
                with: with.clone(),
                is_identifier: *is_identifier,
            },
        })
    }

    /// What stands there; `Err` if a part of an identifier holds the separator.
    fn read<'a>(&self, at: &dyn Fn(&P) -> RawField<'a>) -> Result<RawField<'a>, Misjoined> {
        match self {
            Field::Nowhere => Ok(RawField::Absent),
            Field::Constant(text) => Ok(RawField::Text(Cow::Owned(text.clone()))),
            Field::At(place) => Ok(at(place)),
            Field::Joined { parts, with, is_identifier } => {
                let mut joined = String::new();
                for (i, part) in parts.iter().enumerate() {
                    let field = part.read(at)?;
                    let text = match &field {
                        RawField::Text(text) => text.trim(),
                        RawField::Number(text) => text,
                        RawField::Absent | RawField::Null => return Ok(RawField::Absent),
                        RawField::Bool(_) | RawField::Nested => return Ok(RawField::Nested),
                    };
                    if text.is_empty() {
                        return Ok(RawField::Absent);
                    }
                    if *is_identifier && text.contains(with.as_str()) {
                        return Err(Misjoined);
                    }
                    if i > 0 {
                        joined.push_str(with);
                    }
                    joined.push_str(text);
                }
                Ok(RawField::Text(Cow::Owned(joined)))
            }
        }
    }

    /// The same, where an empty text is no field.
    fn read_optional<'a>(&self, at: &dyn Fn(&P) -> RawField<'a>) -> RawField<'a> {
        match self.read(at) {
            Ok(RawField::Text(text)) if text.trim().is_empty() => RawField::Absent,
            Ok(field) => field,
            // Only identifiers are ever misjoined, and none of them is optional.
            Err(Misjoined) => RawField::Nested,
        }
    }
}

/// A part of a joined identifier holds the separator.
struct Misjoined;

impl<P> Fields<P> {
    /// Reads the section `[fields]`.
    pub fn new(
        form: &FieldsForm,
        place: &mut dyn FnMut(&PlaceForm, Kind) -> Result<P, String>,
        faults: &mut Vec<KeyFault>,
    ) -> Self {
        let mut field = |form: &Option<PlaceForm>, name: &'static str, is_inherited: bool| {
            Field::new(form.as_ref(), ["fields", name], Kind { name, is_inherited }, place, faults)
        };
        Self {
            patient: field(&form.patient, "patient", true),
            device: field(&form.device, "device", true),
            label: field(&form.label, "label", false),
            method: field(&form.method, "method", true),
            value: field(&form.value, "value", false),
            unit: field(&form.unit, "unit", false),
            time: field(&form.time, "time", true),
            quality: field(&form.quality, "quality", true),
            change: field(&form.change, "change", true),
        }
    }

    pub fn has_value(&self) -> bool {
        !matches!(self.value, Field::Nowhere)
    }

    /// # Errors
    /// The first of `place`.
    pub fn try_map<Q, E>(&self, place: &mut dyn FnMut(&P) -> Result<Q, E>) -> Result<Fields<Q>, E> {
        Ok(Fields {
            patient: self.patient.try_map(place)?,
            device: self.device.try_map(place)?,
            label: self.label.try_map(place)?,
            method: self.method.try_map(place)?,
            value: self.value.try_map(place)?,
            unit: self.unit.try_map(place)?,
            time: self.time.try_map(place)?,
            quality: self.quality.try_map(place)?,
            change: self.change.try_map(place)?,
        })
    }

    /// One reading. `at` says what stands at a place; in the wide form `wide` is its label and what stands at its own
    /// place, which is the value unless `[fields]` says where in it the value is.
    pub fn reading<'a>(
        &self,
        at: &dyn Fn(&P) -> RawField<'a>,
        wide: Option<(&str, RawField<'a>)>,
        index: u32,
        path: String,
    ) -> Decoded<'a> {
        let (label, own) = match wide {
            Some((label, own)) => (Some(label), Some(own)),
            None => (None, None),
        };
        let identifier = |field: &Field<P>, name: &str| {
            field.read(at).map_err(|Misjoined| Undecodable {
                reason: Reason::FieldText,
                field: if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") },
                detail: "a part of a joined identifier holds the separator".to_owned(),
                index,
            })
        };
        let (patient, device) = (identifier(&self.patient, "patient")?, identifier(&self.device, "device")?);
        Ok(Part::Reading(DecodedReading {
            patient,
            device,
            label: match label {
                Some(label) => RawField::Text(Cow::Owned(label.to_owned())),
                None => self.label.read_optional(at),
            },
            method: self.method.read_optional(at),
            value: match own {
                Some(own) if !self.has_value() => own,
                // An empty text is told from an absent field: it is a value that is missing.
                _ => self.value.read(at).unwrap_or(RawField::Nested),
            },
            unit: self.unit.read_optional(at),
            time: self.time.read_optional(at),
            quality: self.quality.read_optional(at),
            change: self.change.read_optional(at),
            index,
            path,
        }))
    }
}

impl<P> ControlFields<P> {
    /// Reads the section `[control]`, if it says where the request stands; patient and device are those of `[fields]`
    /// where it has none of its own.
    pub fn new(
        form: &ControlPlaces,
        fields: &FieldsForm,
        place: &mut dyn FnMut(&PlaceForm, Kind) -> Result<P, String>,
        faults: &mut Vec<KeyFault>,
    ) -> Option<Self> {
        form.action.as_ref()?;
        let mut field = |form: Option<&PlaceForm>, name: &'static str| {
            Field::new(form, ["control", name], Kind { name, is_inherited: true }, place, faults)
        };
        Some(Self {
            action: field(form.action.as_ref(), "action"),
            patient: field(form.patient.as_ref().or(fields.patient.as_ref()), "patient"),
            device: field(form.device.as_ref().or(fields.device.as_ref()), "device"),
            episode: field(form.episode.as_ref(), "episode"),
            by: field(form.by.as_ref(), "by"),
        })
    }

    /// The request of a record, if it is one.
    pub fn control<'a>(&self, at: &dyn Fn(&P) -> RawField<'a>) -> Option<Decoded<'a>> {
        let action = self.action.read_optional(at);
        if !action.is_present() {
            return None;
        }
        let identifier = |field: &Field<P>, name: &str| {
            let detail = "a part of a joined identifier holds the separator";
            field.read(at).map_err(|Misjoined| Undecodable::record(Reason::FieldText, name, detail))
        };
        let control = || -> Decoded<'a> {
            Ok(Part::Control(DecodedControl {
                action,
                patient: identifier(&self.patient, "patient")?,
                device: identifier(&self.device, "device")?,
                episode: self.episode.read_optional(at),
                by: self.by.read_optional(at),
                index: 0,
            }))
        };
        Some(control())
    }
}
