//! Connectors: what brings source topics in.
//!
//! A connector's file ends in `.connector.toml` and says where things stand in a vendor's records (the mapping, for the
//! decoder), what the vendor's words mean and what may be inferred (the profile, for the normalizer), and how far its
//! devices' clocks are believed. Here it is read and checked as a whole; a person who got six things wrong sees six
//! faults. `wardbell normalize` and the samples beside a file run records through it without a broker ([`trial`]).

pub mod trial;
pub mod unmapped;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Value;
use toml::de::{DeTable, DeValue};
use wardbell_connectors::decode::json::JsonDecoder;
use wardbell_connectors::decode::mapped::{
    ControlPlaces, CsvForm, FieldsForm, Mapping, MappingForm, PlaceTable, WideForm,
};
use wardbell_connectors::decode::{Decoded, Decoder, Undecodable};
use wardbell_core::normalize::Refused;
use wardbell_core::normalize::profile::{
    ControlWords, LabelForm, Labeled, PoliciesForm, Profile, ProfileForm, TimeForm,
};
use wardbell_rules::{Diagnostic, SourceFile};
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::{Catalogue, Label, hex};
use wardbell_schemas::decoded::DecodedReading;
use wardbell_schemas::fault::KeyFault;

use crate::config::ConnectorEntry;
use crate::rules_files;
use crate::toml_file::{field_names, span_of, unread_keys};

/// The ending of connectors' files.
pub const ENDING: &str = ".connector.toml";

/// A connector ready for use.
#[derive(Debug, Clone)]
pub struct Connector {
    pub name: String,
    /// Source topics it reads.
    pub topics: Vec<String>,
    wire: Wire,
    pub profile: Profile,
    pub bounds: Bounds,
    /// SHA-256 over the file's content, whatever its comments, blanks and order of keys.
    pub hash: String,
}

/// How records are taken apart.
#[derive(Debug, Clone)]
enum Wire {
    Canonical,
    Mapped(Box<Mapping>),
}

/// How far devices' clocks are believed; `None`: as `[source]` of the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    pub lateness_us: Option<Micros>,
    pub skew_us: Option<Micros>,
    /// The file declares a time resolution.
    pub is_coarse: bool,
    /// Beginnings (UTC) of days to which clocks are reset.
    pub reset_days: Vec<Micros>,
}

/// Connectors are the same if they read the same topics in the same way.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        (&self.topics, &self.hash) == (&other.topics, &other.hash)
    }
}

impl Connector {
    /// Topics with canonical JSON, for which no file is needed.
    pub fn canonical(topics: Vec<String>) -> Self {
        let (name, hash) = ("canonical".to_owned(), String::new());
        Self { name, topics, wire: Wire::Canonical, profile: Profile::default(), bounds: Bounds::default(), hash }
    }

    /// A file of this format is one record, not one record a line.
    pub fn is_whole_file(&self) -> bool {
        matches!(&self.wire, Wire::Mapped(mapping) if mapping.is_whole_file())
    }

    /// For files that are looked at as a whole: a record may hold any number of readings.
    #[must_use]
    pub fn without_limit(self) -> Self {
        let wire = match self.wire {
            Wire::Mapped(mapping) => Wire::Mapped(Box::new(mapping.without_limit())),
            Wire::Canonical => Wire::Canonical,
        };
        Self { wire, ..self }
    }
}

/// Raised whenever the same source record comes to mean other readings though no connector's file has changed.
const NORMALIZER_VERSION: u32 = 1;

/// Names everything that decides how source records are read: in every canonical batch. Rows of a record that were made
/// twice, before and after a change of it, can be told apart.
pub fn normalizer_hash(connectors: &[Connector]) -> String {
    let mut files: Vec<String> =
        connectors.iter().map(|connector| format!("{:?} {}", connector.topics, connector.hash)).collect();
    files.sort();
    let text = format!("wardbell-normalizer/{NORMALIZER_VERSION}\n{}", files.join("\n"));
    let mut hash = hex(&Sha256::digest(text));
    hash.truncate(16);
    hash
}

impl Decoder for Connector {
    fn decode<'a>(&self, value: &'a [u8]) -> Vec<Decoded<'a>> {
        match &self.wire {
            Wire::Canonical => JsonDecoder.decode(value),
            Wire::Mapped(mapping) => mapping.decode(value),
        }
    }
}

/// A refused reading as a fault of its record.
pub fn undecodable(reading: &DecodedReading<'_>, refused: Refused) -> Undecodable {
    let field = match reading.path.as_str() {
        "" => refused.field.to_owned(),
        path => format!("{path}.{}", refused.field),
    };
    Undecodable { reason: refused.reason, field, detail: refused.detail, index: reading.index }
}

/// The keys of a file that are not a section of their own.
#[derive(Debug, Deserialize)]
struct Head {
    name: Option<String>,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    Csv,
    /// Canonical JSON, for its labels, units and policies.
    Canonical,
}

/// Connectors that were read, and what is wrong with their files.
#[derive(Debug, Default)]
pub struct Loaded {
    pub connectors: Vec<Connector>,
    pub files: Vec<SourceFile>,
    pub faults: Vec<Diagnostic>,
}

/// Reads the files that a configuration names, relative to its folder.
pub fn load_all(entries: &[ConnectorEntry], config: &Path) -> Loaded {
    let mut loaded = Loaded::default();
    let folder = config.parent().unwrap_or(Path::new(""));
    for entry in entries {
        match rules_files::read(&folder.join(&entry.file)) {
            Ok(file) => {
                let (connector, faults) = parse(&file, Catalogue::builtin());
                loaded.connectors.extend(connector.map(|read| Connector { topics: entry.topics.clone(), ..read }));
                loaded.faults.extend(faults);
                loaded.files.push(file);
            }
            Err(fault) => {
                let help = "files of connectors are found from the folder of the configuration file";
                loaded.faults.push(fault.help(help));
            }
        }
    }
    loaded
}

/// Reads a connector's file; the connector is there if there is no fault.
pub fn parse(file: &SourceFile, catalogue: &Catalogue) -> (Option<Connector>, Vec<Diagnostic>) {
    let spans = match DeTable::parse(&file.text) {
        Ok(spans) => spans,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            return (None, vec![Diagnostic::error("M001", file, at, format!("not TOML: {}", error.message()))]);
        }
    };
    let table = spans.get_ref();
    let mut faults = unknown_keys(file, table);
    let (head, mapping, profile) = (
        typed::<Head>(file, &mut faults),
        typed::<MappingForm>(file, &mut faults),
        typed::<ProfileForm>(file, &mut faults),
    );
    let (Some(head), Some(mapping), Some(mut profile)) = (head, mapping, profile) else {
        return (None, faults);
    };
    let mut key_faults = foreign_keys(table, head.format);
    let wide = add_wide_labels(&mapping, &mut profile, catalogue, &mut key_faults);
    let wire = match head.format {
        Format::Json => Mapping::json(&mapping).map(|mapping| Wire::Mapped(Box::new(mapping))),
        Format::Csv => Mapping::csv(&mapping).map(|mapping| Wire::Mapped(Box::new(mapping))),
        Format::Canonical => Ok(Wire::Canonical),
    };
    let words = Profile::new(&profile, catalogue);
    let reset_days = profile.time.reset_days();
    key_faults.extend(wire.as_ref().err().into_iter().flatten().cloned());
    key_faults.extend(words.as_ref().err().into_iter().flatten().cloned());
    key_faults.extend(reset_days.as_ref().err().into_iter().flatten().cloned());
    faults.extend(key_faults.into_iter().map(|fault| placed(file, table, at_wide_entry(fault, &wide))));
    faults.sort_by_key(|fault| (fault.line, fault.column));
    let (Ok(wire), Ok(words), Ok(reset_days)) = (wire, words, reset_days) else {
        return (None, faults);
    };
    if !faults.is_empty() {
        return (None, faults);
    }
    let bounds = Bounds {
        lateness_us: profile.time.lateness,
        skew_us: profile.time.skew,
        is_coarse: profile.time.time_resolution.is_some(),
        reset_days,
    };
    let stem = || file_stem(&file.path).to_owned();
    let name = head.name.filter(|name| !name.trim().is_empty()).unwrap_or_else(stem);
    let hash = content_hash(&file.text);
    (Some(Connector { name, topics: Vec::new(), wire, profile: words, bounds, hash }), faults)
}

/// The name of a file without folder and ending.
pub fn file_stem(path: &str) -> &str {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    name.strip_suffix(ENDING).unwrap_or(name)
}

/// The keys of a file that one form reads; a wrong type is a fault.
fn typed<T: serde::de::DeserializeOwned>(file: &SourceFile, faults: &mut Vec<Diagnostic>) -> Option<T> {
    match toml::from_str(&file.text) {
        Ok(form) => Some(form),
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            faults.push(Diagnostic::error("M003", file, at, error.message().to_owned()));
            None
        }
    }
}

/// Keys that nothing reads, each with the nearest one that is.
fn unknown_keys(file: &SourceFile, table: &DeTable<'_>) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let mut check = |table: &DeTable<'_>, known: &[&[&str]], section: &str| {
        faults.extend(unread_keys("M002", file, table, &known.concat(), section));
    };
    let section = |name: &str| match table.get(name).map(|value| value.get_ref()) {
        Some(DeValue::Table(section)) => Some(section),
        _ => None,
    };
    let forms = [field_names::<Head>(), field_names::<MappingForm>(), field_names::<ProfileForm>()];
    check(table, &forms, "a connector's file");
    for (name, known) in [
        ("time", &[field_names::<TimeForm>()][..]),
        ("policies", &[field_names::<PoliciesForm>()]),
        ("fields", &[field_names::<FieldsForm>()]),
        ("csv", &[field_names::<CsvForm>()]),
        ("control", &[field_names::<ControlPlaces>(), field_names::<ControlWords>()]),
    ] {
        if let Some(keys) = section(name) {
            check(keys, known, &format!("[{name}]"));
        }
    }
    let wide: Vec<&DeTable<'_>> = match table.get("wide").map(|value| value.get_ref()) {
        Some(DeValue::Array(entries)) => entries.iter().filter_map(|entry| entry.get_ref().as_table()).collect(),
        _ => Vec::new(),
    };
    for entry in &wide {
        check(entry, &[field_names::<WideForm>()], "[[wide]]");
    }
    let labels = section("labels").into_iter().flat_map(|labels| labels.iter());
    for label in labels.filter_map(|(_, label)| label.get_ref().as_table()) {
        check(label, &[field_names::<LabelForm>()], "a label");
    }
    // Places that are tables; `actions` of [control] holds words and no place.
    let of_sections = ["fields", "control"].into_iter().filter_map(section).flat_map(|section| section.iter());
    let of_wide = wide.iter().flat_map(|entry| entry.iter()).filter(|(key, _)| key.get_ref() == "at");
    let places = of_sections.filter(|(key, _)| key.get_ref() != "actions").chain(of_wide);
    for place in places.filter_map(|(_, place)| place.get_ref().as_table()) {
        check(place, &[field_names::<PlaceTable>()], "a place");
    }
    faults
}

/// Keys that say where things stand, in a file whose format has its places fixed.
fn foreign_keys(table: &DeTable<'_>, format: Format) -> Vec<KeyFault> {
    if format != Format::Canonical {
        return Vec::new();
    }
    let of_file = field_names::<MappingForm>().iter().filter(|key| **key != "control").map(|key| vec![*key]);
    let of_control = field_names::<ControlPlaces>().iter().map(|key| vec!["control", *key]);
    let written = of_file.chain(of_control).filter(|path| span_of(table, path).is_some());
    let fault = |path: Vec<&str>| {
        let help = "leave it out, or say format = \"json\" or \"csv\"";
        KeyFault::new(&path, "canonical JSON has its places fixed", help)
    };
    written.map(fault).collect()
}

/// Readings of the wide form bear their place as label; what the file says of the place is said of that label. Gives the
/// entry of each such label.
fn add_wide_labels(
    mapping: &MappingForm,
    profile: &mut ProfileForm,
    catalogue: &Catalogue,
    faults: &mut Vec<KeyFault>,
) -> BTreeMap<String, usize> {
    let mut entries = BTreeMap::new();
    for (i, entry) in mapping.wide.iter().enumerate() {
        let (label, place) = (entry.label(), i.to_string());
        let WideForm { at: _, signal, method, unit } = entry.clone();
        let says_nothing = signal.is_none() && method.is_none() && unit.is_none();
        let is_known = matches!(catalogue.label(&label), Label::Known(_));
        match profile.labels.contains_key(&label) {
            true if entries.contains_key(&label) => {
                faults.push(KeyFault::new(&["wide", &place], format!("`{label}` stands twice"), "keep one of the two"));
            }
            true if !says_nothing => {
                let message = format!("`{label}` has a meaning here and in [labels]");
                faults.push(KeyFault::new(&["wide", &place], message, "keep one of the two"));
            }
            false if !(says_nothing && is_known) => {
                let form = LabelForm { signal, method, unit, ..LabelForm::default() };
                profile.labels.insert(label.clone(), Labeled(form));
                entries.insert(label, i);
            }
            _ => {}
        }
    }
    entries
}

/// A fault of a label that stands for a place is one of that place's entry.
fn at_wide_entry(fault: KeyFault, wide: &BTreeMap<String, usize>) -> KeyFault {
    match &fault.path[..] {
        [section, label, rest @ ..] if section == "labels" && wide.contains_key(label) => {
            let mut path = vec!["wide".to_owned(), wide[label].to_string()];
            path.extend(rest.iter().cloned());
            KeyFault { path, ..fault }
        }
        _ => fault,
    }
}

/// A fault at its key, or at the nearest thing around it that is written in the file.
fn placed(file: &SourceFile, table: &DeTable<'_>, fault: KeyFault) -> Diagnostic {
    let path: Vec<&str> = fault.path.iter().map(String::as_str).collect();
    let span = (1..=path.len()).rev().find_map(|length| span_of(table, &path[..length]));
    let diagnostic = match span {
        Some(span) => Diagnostic::error("M005", file, span, fault.message),
        None => Diagnostic::whole_file("M005", &file.path, fault.message),
    };
    diagnostic.help(fault.help)
}

/// See [`Connector::hash`].
fn content_hash(text: &str) -> String {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    hex(&Sha256::digest(sorted(&Value::Table(table))))
}

/// A value with the keys of its tables in order.
fn sorted(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let entries: BTreeMap<&String, String> = table.iter().map(|(key, value)| (key, sorted(value))).collect();
            let entries: Vec<String> = entries.iter().map(|(key, value)| format!("{key:?}={value}")).collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(values) => format!("[{}]", values.iter().map(sorted).collect::<Vec<String>>().join(",")),
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests;
