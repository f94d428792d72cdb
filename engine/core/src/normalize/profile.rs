//! The profile: what the words of one connector mean, beyond what the catalogue says of everybody's.
//!
//! A connector's file says it in its sections ([`ProfileForm`]); [`Profile::new`] checks all of them against the catalogue
//! once. The default profile knows only the catalogue and allows nothing. Whatever is inferred on the way is a named
//! [`Policy`]: allowed here, marked in each reading that used it, and counted. How a file is written:
//! `connectors/CONNECTOR_FILES.md`.

use std::collections::BTreeMap;
use std::fmt;

use hashbrown::{HashMap, HashSet};
use jiff::civil::Date;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use wardbell_rules::diagnostic::did_you_mean;
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::{Catalogue, Label, Signal, SignalIndex};
use wardbell_schemas::decimal::{Decimal, Ratio};
use wardbell_schemas::fault::KeyFault;
use wardbell_schemas::reading::{Change, Policies, Policy};
use wardbell_schemas::units::Conversion;

use super::time::TimeRules;
use super::{TEXT_MAX, is_gas_share, number};

/// Pressure of water vapor in gas at 37 °C, in mm[Hg]: it is not part of the dry gas that a share refers to.
const WATER_VAPOR_MMHG: i128 = 47;
/// Separates the parts of a value that holds several signals, unless the file says otherwise.
const SEPARATOR: &str = "/";

/// The sections of a connector's file that say what its words mean.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ProfileForm {
    /// Vendor label to signal.
    pub labels: BTreeMap<String, Labeled>,
    /// Labels that are known and not wanted.
    pub ignore: Vec<String>,
    /// Vendor unit to UCUM.
    pub units: BTreeMap<String, String>,
    /// Vendor value to the value it stands for.
    pub states: BTreeMap<String, Word>,
    /// Values that mean "no value".
    pub sentinels: Vec<Word>,
    /// Patient identifiers that mean "no patient".
    pub no_patient: Vec<Word>,
    /// Vendor status to what it says about the value.
    pub status: BTreeMap<String, Status>,
    /// Vendor word to what a reading does to an earlier one.
    pub changes: BTreeMap<String, Change>,
    pub control: ControlWords,
    pub time: TimeForm,
    pub policies: PoliciesForm,
}

/// What a vendor label means; `"HR" = "heart_rate"` is short for `"HR" = { signal = "heart_rate" }`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labeled(pub LabelForm);

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LabelForm {
    /// Id of the catalogue; may be absent where the catalogue knows the label.
    pub signal: Option<String>,
    /// Several signals in one value, in its order.
    pub split: Vec<String>,
    pub separator: Option<String>,
    /// Method or site, unless the reading names its own.
    pub method: Option<String>,
    /// The unit that the vendor documents for this label; used where a reading carries none.
    pub unit: Option<String>,
    pub states: BTreeMap<String, Word>,
    pub sentinels: Vec<Word>,
    /// Letters behind a number (`10T`) to the method they stand for.
    pub suffixes: BTreeMap<String, String>,
}

/// What a source says about its own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Ok,
    Questionable,
    Missing,
    /// Switched off: nothing is expected of it until it speaks again.
    Off,
    Test,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ControlWords {
    /// Vendor word to the request it makes.
    pub actions: BTreeMap<String, Action>,
}

/// A request that a source may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Acknowledge,
    Reset,
    Discharge,
    Standby,
    /// Known, and none of these.
    Ignore,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TimeForm {
    /// How far behind broker time an event time may be.
    #[serde(deserialize_with = "some_duration")]
    pub lateness: Option<Micros>,
    /// How far ahead.
    #[serde(deserialize_with = "some_duration")]
    pub skew: Option<Micros>,
    /// Devices stamp no finer than this.
    #[serde(deserialize_with = "some_duration")]
    pub time_resolution: Option<Micros>,
    /// Dates to which devices' clocks are reset, `"1970-01-01"`.
    pub reset_dates: Vec<String>,
    /// How times are written, beside what is understood anyway: `"%d.%m.%Y %H:%M:%S"`, or `"hl7"`.
    pub formats: Vec<String>,
}

/// What may be inferred. Everything is off by default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PoliciesForm {
    pub decimal_comma: bool,
    pub thousands_comma: bool,
    pub infer_temperature_unit: bool,
    pub scale_fraction: bool,
    /// The time zone of times without one: an IANA name or an offset.
    pub assume_zone: Option<String>,
    pub day_first: bool,
    pub month_first: bool,
    pub spreadsheet_time: bool,
    pub record_time: bool,
    /// `"760 mm[Hg]"`
    pub barometric_pressure: Option<String>,
}

/// A text, or a number or boolean as its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(pub String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Word, E> {
                Ok(Word(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Word, E> {
                Ok(Word(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

impl<'de> Deserialize<'de> for Labeled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SignalOrTable;

        impl<'de> Visitor<'de> for SignalOrTable {
            type Value = Labeled;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a signal id like \"spo2\" or a table like { signal = \"spo2\", unit = \"%\" }")
            }

            fn visit_str<E>(self, signal: &str) -> Result<Labeled, E> {
                Ok(Labeled(LabelForm { signal: Some(signal.to_owned()), ..LabelForm::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Labeled, A::Error> {
                LabelForm::deserialize(MapAccessDeserializer::new(table)).map(Labeled)
            }
        }

        deserializer.deserialize_any(SignalOrTable)
    }
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Micros>, D::Error> {
    wardbell_schemas::duration::as_text::deserialize(deserializer).map(Some)
}

impl TimeForm {
    /// Beginnings (UTC) of the days to which clocks are reset.
    ///
    /// # Errors
    /// One fault for each date that is none.
    pub fn reset_days(&self) -> Result<Vec<Micros>, Vec<KeyFault>> {
        let (mut days, mut faults) = (Vec::new(), Vec::new());
        for (i, text) in self.reset_dates.iter().enumerate() {
            match text.parse::<Date>().and_then(|date| jiff::tz::Offset::UTC.to_timestamp(date.at(0, 0, 0, 0))) {
                Ok(day) => days.push(day.as_microsecond()),
                Err(_) => {
                    let message = format!("`{text}` is not a date");
                    let path = ["time", "reset_dates", &i.to_string()];
                    faults.push(KeyFault::new(&path, message, "write it like \"1970-01-01\""));
                }
            }
        }
        if faults.is_empty() { Ok(days) } else { Err(faults) }
    }
}

/// A profile ready for use.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    labels: HashMap<String, LabelRule>,
    units: HashMap<String, String>,
    states: HashMap<String, String>,
    sentinels: Sentinels,
    no_patient: HashSet<String>,
    status: HashMap<String, Status>,
    changes: HashMap<String, Change>,
    actions: HashMap<String, Action>,
    /// Of gas shares in percent to mm[Hg], at the barometric pressure the file names.
    pub(super) gas_share: Option<Conversion>,
    pub(super) time: TimeRules,
    pub(super) allowed: Policies,
}

/// One vendor label.
#[derive(Debug, Clone)]
pub(super) struct LabelRule {
    pub meaning: Meaning,
    pub method: Option<String>,
    pub unit: Option<String>,
    pub states: HashMap<String, String>,
    pub sentinels: Sentinels,
    /// Letters behind a number, and the method they stand for.
    pub suffixes: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub(super) enum Meaning {
    Ignored,
    Signal(SignalIndex),
    Split { signals: Vec<SignalIndex>, separator: String },
}

/// Values that mean "no value", as texts and as numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Sentinels {
    texts: HashSet<String>,
    numbers: Vec<Ratio>,
}

impl Sentinels {
    fn new(words: &[Word]) -> Self {
        let number = |word: &Word| word.0.parse::<Decimal>().ok()?.to_ratio();
        Self {
            texts: words.iter().map(|word| word.0.trim().to_owned()).collect(),
            numbers: words.iter().filter_map(number).collect(),
        }
    }

    pub(super) fn has_text(&self, text: &str) -> bool {
        self.texts.contains(text)
    }

    pub(super) fn has_number(&self, number: Ratio) -> bool {
        self.numbers.contains(&number)
    }
}

impl Profile {
    /// Checks the sections of a file against the catalogue.
    ///
    /// # Errors
    /// Every fault, each with the path of its key.
    pub fn new(form: &ProfileForm, catalogue: &Catalogue) -> Result<Self, Vec<KeyFault>> {
        let mut check = Check { form, catalogue, faults: Vec::new() };
        let profile = check.profile();
        if check.faults.is_empty() { Ok(profile) } else { Err(check.faults) }
    }

    #[inline]
    pub(super) fn label(&self, label: &str) -> Option<&LabelRule> {
        self.labels.get(label)
    }

    pub(super) fn unit<'a>(&'a self, unit: &'a str) -> &'a str {
        self.units.get(unit).map_or(unit, String::as_str)
    }

    /// Whether a unit that is no text has a meaning here.
    pub(super) fn has_unit(&self, unit: &str) -> bool {
        self.units.contains_key(unit)
    }

    pub(super) fn state(&self, text: &str) -> Option<&str> {
        self.states.get(text).map(String::as_str)
    }

    pub(super) fn is_sentinel_text(&self, text: &str) -> bool {
        self.sentinels.has_text(text)
    }

    pub(super) fn is_sentinel_number(&self, number: Ratio) -> bool {
        self.sentinels.has_number(number)
    }

    pub(super) fn is_no_patient(&self, patient: &str) -> bool {
        self.no_patient.contains(patient)
    }

    /// The file's words for the status of a value; `None` where it has none and the canonical ones hold.
    pub(super) fn status_words(&self) -> Option<&HashMap<String, Status>> {
        Some(&self.status).filter(|words| !words.is_empty())
    }

    /// The same for what a reading does to an earlier one.
    pub(super) fn change_words(&self) -> Option<&HashMap<String, Change>> {
        Some(&self.changes).filter(|words| !words.is_empty())
    }

    /// What a word asks for: as the file says, or the canonical words where it lists none.
    pub(super) fn action(&self, word: &str) -> Option<Action> {
        match word {
            _ if !self.actions.is_empty() => self.actions.get(word).copied(),
            "acknowledge" => Some(Action::Acknowledge),
            "reset" => Some(Action::Reset),
            "discharge" => Some(Action::Discharge),
            "standby" => Some(Action::Standby),
            _ => None,
        }
    }
}

/// Turns a form into a profile and collects what is wrong with it.
struct Check<'a> {
    form: &'a ProfileForm,
    catalogue: &'a Catalogue,
    faults: Vec<KeyFault>,
}

impl Check<'_> {
    fn fault(&mut self, path: &[&str], message: impl Into<String>, help: impl Into<String>) {
        self.faults.push(KeyFault::new(path, message, help));
    }

    fn profile(&mut self) -> Profile {
        let form = self.form;
        let mut allowed = self.policies();
        let gas_share = self.barometric_pressure();
        if gas_share.is_some() {
            allowed.insert(Policy::BarometricPressure);
        }
        let mut profile = Profile {
            labels: HashMap::new(),
            units: self.units(),
            states: words(&form.states),
            sentinels: Sentinels::new(&form.sentinels),
            no_patient: form.no_patient.iter().map(|word| word.0.trim().to_owned()).collect(),
            status: form.status.iter().map(|(word, status)| (word.trim().to_owned(), *status)).collect(),
            changes: form.changes.iter().map(|(word, change)| (word.trim().to_owned(), *change)).collect(),
            actions: form.control.actions.iter().map(|(word, action)| (word.trim().to_owned(), *action)).collect(),
            gas_share,
            time: TimeRules::default(),
            allowed,
        };
        match TimeRules::new(&form.time, form.policies.assume_zone.as_deref(), allowed) {
            Ok(time) => profile.time = time,
            Err(faults) => self.faults.extend(faults),
        }
        for (label, Labeled(of_label)) in &form.labels {
            if let Some(rule) = self.label(label, of_label, &profile) {
                profile.labels.insert(label.trim().to_owned(), rule);
            }
        }
        for (i, label) in form.ignore.iter().enumerate() {
            let ignored = LabelRule {
                meaning: Meaning::Ignored,
                method: None,
                unit: None,
                states: HashMap::new(),
                sentinels: Sentinels::default(),
                suffixes: Vec::new(),
            };
            if profile.labels.insert(label.trim().to_owned(), ignored).is_some() {
                let message = format!("`{label}` is ignored here and has a meaning elsewhere");
                self.fault(&["ignore", &i.to_string()], message, "keep one of the two");
            }
        }
        profile
    }

    fn policies(&mut self) -> Policies {
        let form = &self.form.policies;
        let mut allowed = Policies::NONE;
        for (is_on, policy) in [
            (form.decimal_comma, Policy::DecimalComma),
            (form.thousands_comma, Policy::ThousandsComma),
            (form.infer_temperature_unit, Policy::InferTemperatureUnit),
            (form.scale_fraction, Policy::ScaleFraction),
            (form.assume_zone.is_some(), Policy::AssumeZone),
            (form.day_first, Policy::DayFirst),
            (form.month_first, Policy::MonthFirst),
            (form.spreadsheet_time, Policy::SpreadsheetTime),
            (form.record_time, Policy::RecordTime),
        ] {
            if is_on {
                allowed.insert(policy);
            }
        }
        for (one, other) in [(Policy::DecimalComma, Policy::ThousandsComma), (Policy::DayFirst, Policy::MonthFirst)] {
            if allowed.contains(one) && allowed.contains(other) {
                let message = format!("`{}` and `{}` contradict each other", one.name(), other.name());
                self.fault(&["policies", other.name()], message, "keep the one that the vendor documents");
            }
        }
        allowed
    }

    /// A share of dry gas to its pressure in gas saturated with water vapor at 37 °C: p = share * (barometric - 47).
    fn barometric_pressure(&mut self) -> Option<Conversion> {
        let text = self.form.policies.barometric_pressure.as_deref()?;
        let (value, unit) = number::split_unit(text.trim());
        let in_mmhg = || {
            let raw = value.parse::<Decimal>().ok()?.to_ratio()?;
            let mmhg = self.catalogue.units.conversion("pressure", unit?, "mm[Hg]").ok()?.apply(raw)?;
            // Between the top of Mount Everest and the lowest valley.
            (200..=900).contains(&mmhg.to_counts(1)?).then_some(mmhg)
        };
        let conversion = in_mmhg().and_then(|mmhg| {
            let dry = mmhg.checked_add(Ratio::new(-WATER_VAPOR_MMHG, 1)?)?;
            Some(Conversion { factor: dry.checked_mul(Ratio::new(1, 100)?)?, offset: Ratio::ZERO })
        });
        if conversion.is_none() {
            let message = format!("`{text}` is not a barometric pressure");
            self.fault(&["policies", "barometric_pressure"], message, "write it with its unit, like \"760 mm[Hg]\"");
        }
        conversion
    }

    fn units(&mut self) -> HashMap<String, String> {
        let mut units = HashMap::new();
        for (spelling, unit) in &self.form.units {
            if self.catalogue.units.ucum(unit).is_none() {
                let message = format!("`{unit}` is not in the unit table");
                self.fault(&["units", spelling], message, "give the UCUM code, like \"mm[Hg]\"");
            }
            units.insert(spelling.trim().to_owned(), unit.clone());
        }
        units
    }

    fn label(&mut self, label: &str, form: &LabelForm, profile: &Profile) -> Option<LabelRule> {
        let n_faults = self.faults.len();
        let meaning = self.meaning(label, form);
        let signals: Vec<&Signal> = match &meaning {
            Some(Meaning::Signal(signal)) => vec![self.catalogue.signal(*signal)],
            Some(Meaning::Split { signals, .. }) => signals.iter().map(|i| self.catalogue.signal(*i)).collect(),
            _ => Vec::new(),
        };
        for signal in signals {
            self.unit_of(label, form, signal, profile);
            for (word, Word(state)) in &form.states {
                if !is_value_of(state, signal) {
                    let known = if signal.is_category() { signal.states.join(", ") } else { "numbers".to_owned() };
                    let message = format!("`{state}` is not a value of `{}`", signal.id);
                    self.fault(&["labels", label, "states", word], message, format!("its values are {known}"));
                }
            }
        }
        for (key, method) in
            form.method.iter().map(|method| ("method", method)).chain(form.suffixes.values().map(|m| ("suffixes", m)))
        {
            if method.trim().is_empty() || method.contains('/') || method.chars().count() > TEXT_MAX {
                let help = format!("a word of at most {TEXT_MAX} characters without `/`");
                self.fault(&["labels", label, key], format!("`{method}` cannot be a method"), help);
            }
        }
        if form.suffixes.keys().any(|suffix| suffix.trim().is_empty()) {
            self.fault(&["labels", label, "suffixes"], "an empty suffix", "name the letters, like T = \"intubated\"");
        }
        let meaning = meaning.filter(|_| self.faults.len() == n_faults)?;
        Some(LabelRule {
            meaning,
            method: form.method.as_ref().map(|method| method.trim().to_owned()),
            unit: form.unit.clone(),
            states: words(&form.states),
            sentinels: Sentinels::new(&form.sentinels),
            suffixes: form.suffixes.iter().map(|(suffix, method)| (suffix.clone(), method.clone())).collect(),
        })
    }

    fn meaning(&mut self, label: &str, form: &LabelForm) -> Option<Meaning> {
        match (&form.signal, &form.split[..]) {
            (Some(_), [_, ..]) => {
                let help = "keep `split` for a value that holds several signals";
                self.fault(&["labels", label, "split"], "both `signal` and `split` are given", help);
                None
            }
            (Some(id), []) => self.signal(&["labels", label, "signal"], id).map(Meaning::Signal),
            (None, [_]) => {
                self.fault(&["labels", label, "split"], "one signal is no split", "use `signal`");
                None
            }
            (None, [_, _, ..]) => {
                let path = ["labels", label, "split"];
                let signals: Vec<SignalIndex> = form.split.iter().filter_map(|id| self.signal(&path, id)).collect();
                if let Some(category) = signals.iter().find(|i| self.catalogue.signal(**i).is_category()) {
                    let message = format!("`{}` is a category", self.catalogue.signal(*category).id);
                    self.fault(&path, message, "only numbers can be split");
                }
                let separator = form.separator.clone().unwrap_or_else(|| SEPARATOR.to_owned());
                if separator.is_empty() {
                    self.fault(&["labels", label, "separator"], "the separator is empty", "like \"/\"");
                }
                (signals.len() == form.split.len()).then_some(Meaning::Split { signals, separator })
            }
            (None, []) => match self.catalogue.label(label) {
                Label::Known(signal) => Some(Meaning::Signal(signal)),
                Label::Ambiguous | Label::Unknown => {
                    let message = format!("the catalogue does not say what `{label}` is");
                    self.fault(&["labels", label], message, "add `signal = \"...\"` with an id of the catalogue");
                    None
                }
            },
        }
    }

    fn signal(&mut self, path: &[&str], id: &str) -> Option<SignalIndex> {
        let found = self.catalogue.by_id(id).map(|signal| signal.index);
        if found.is_none() {
            let ids = self.catalogue.signals().iter().map(|signal| signal.id.as_str());
            let help = did_you_mean(id, ids).unwrap_or_else(|| "signals.csv lists the ids".to_owned());
            self.fault(path, format!("no signal `{id}` in the catalogue"), help);
        }
        found
    }

    fn unit_of(&mut self, label: &str, form: &LabelForm, signal: &Signal, profile: &Profile) {
        let Some(unit) = form.unit.as_deref() else {
            return;
        };
        let unit = profile.unit(unit);
        let known = self.catalogue.units.conversion(&signal.quantity, unit, &signal.unit).is_ok();
        let by_pressure = profile.gas_share.is_some() && is_gas_share(signal, unit, self.catalogue);
        if signal.is_category() || !(known || by_pressure) {
            let help = match signal.unit.as_str() {
                "" => "leave it out: the values are states".to_owned(),
                canonical => format!("`{}` is kept in {canonical}; give a unit of the same quantity", signal.id),
            };
            self.fault(&["labels", label, "unit"], format!("`{unit}` is not a unit of `{}`", signal.id), help);
        }
    }
}

fn words(form: &BTreeMap<String, Word>) -> HashMap<String, String> {
    form.iter().map(|(word, Word(meaning))| (word.trim().to_owned(), meaning.trim().to_owned())).collect()
}

/// Whether the text a vendor's word is replaced by can be read as a value of the signal.
fn is_value_of(text: &str, signal: &Signal) -> bool {
    let text = text.trim();
    if super::SENTINEL_TEXTS.contains(&text) {
        return true;
    }
    if signal.is_category() {
        return signal.states.iter().any(|state| state.eq_ignore_ascii_case(text));
    }
    let (number, _) = number::split_unit(number::comparator(text).1);
    number.parse::<Decimal>().is_ok()
}
