//! The signal catalogue: what can be measured, in which unit and resolution, and how labels of the field map to it.
//!
//! Loaded from `data/signals.csv` and validated once. Plausible bounds say "could exist in a living or dying patient",
//! not "normal". Labels that mean different things to different vendors (`MAP`, `CO`, `RR`) are listed as ambiguous and
//! never mapped here: a connector has to say what they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::decimal::Ratio;
use crate::units::UnitTable;
use crate::{Micros, SECOND};

const SIGNALS_CSV: &str = include_str!("../data/signals.csv");
const UNITS_CSV: &str = include_str!("../data/units.csv");
const SPELLINGS_CSV: &str = include_str!("../data/unit_spellings.csv");

/// Where a signal stands in the catalogue; dense, and valid for one catalogue version only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SignalIndex(pub u16);

/// What a zero means for a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPolicy {
    /// Zero is a value.
    Valid,
    /// Zero means "not measured": quality `technical`.
    Reject,
    /// Zero may be true (apnoea, asystole) or a loose lead: quality `questionable`.
    Suspect,
}

/// One measurable thing.
#[derive(Debug, Clone)]
pub struct Signal {
    pub index: SignalIndex,
    /// The name rules and readings use, for example `spo2`.
    pub id: String,
    pub display: String,
    /// Key of the unit table together with the unit; empty for a category.
    pub quantity: String,
    /// Canonical UCUM unit; empty for a category.
    pub unit: String,
    /// Counts of resolution in one canonical unit: 10 for a resolution of 0.1.
    pub per_unit: i64,
    /// Decimals of the resolution, for printing.
    pub decimals: u8,
    /// Inclusive plausible bounds in counts.
    pub plausible: (i64, i64),
    pub zero_policy: ZeroPolicy,
    pub typical_interval_us: Micros,
    /// Zero: no expectation.
    pub stale_after_us: Micros,
    /// Names of the states of a category, in code order; empty for a number.
    pub states: Vec<String>,
}

impl Signal {
    pub fn is_category(&self) -> bool {
        !self.states.is_empty()
    }

    /// A count of resolution as a double in the canonical unit: the nearest one.
    pub fn to_f64(&self, counts: i64) -> f64 {
        counts as f64 / self.per_unit as f64
    }

    /// The value as people read it: `93.5`, `V`.
    pub fn print(&self, counts: i64) -> String {
        if self.is_category() {
            return usize::try_from(counts).ok().and_then(|code| self.states.get(code)).cloned().unwrap_or_default();
        }
        self.print_f64(self.to_f64(counts))
    }

    /// A derived number (a mean, a difference) at the signal's resolution.
    pub fn print_f64(&self, value: f64) -> String {
        let text = format!("{value:.*}", usize::from(self.decimals));
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        if text == "-0" { "0".to_owned() } else { text.to_owned() }
    }
}

/// What a raw label turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    Known(SignalIndex),
    /// Means different things to different vendors; a connector must say which.
    Ambiguous,
    Unknown,
}

/// All signals and units of one version.
#[derive(Debug)]
pub struct Catalogue {
    signals: Vec<Signal>,
    by_id: HashMap<String, SignalIndex>,
    labels: HashMap<String, Label>,
    pub units: UnitTable,
    /// SHA-256 over the data files, in hexadecimal: what "the same catalogue" means.
    pub hash: String,
}

impl Catalogue {
    /// The catalogue that ships with this build.
    ///
    /// # Panics
    /// Never in a build whose tests passed: the data files are compiled in and a test loads them.
    pub fn builtin() -> &'static Catalogue {
        static BUILTIN: OnceLock<Catalogue> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            Catalogue::from_csv(SIGNALS_CSV, UNITS_CSV, SPELLINGS_CSV).expect("the compiled-in catalogue is valid")
        })
    }

    /// Reads and validates the three data files.
    ///
    /// # Errors
    /// A sentence naming the file, the row and what is wrong with it.
    pub fn from_csv(signals: &str, units: &str, spellings: &str) -> Result<Self, String> {
        let hash = hex(&Sha256::new()
            .chain_update(signals)
            .chain_update([0])
            .chain_update(units)
            .chain_update([0])
            .chain_update(spellings)
            .finalize());
        let units = UnitTable::from_csv(units, spellings)?;
        let mut catalogue = Self { signals: Vec::new(), by_id: HashMap::new(), labels: HashMap::new(), units, hash };
        let mut ambiguous = Vec::new();
        for row in csv::Reader::from_reader(signals.as_bytes()).deserialize() {
            let row: BTreeMap<String, String> = row.map_err(|error| format!("signals.csv: {error}"))?;
            let cell = |name: &str| row.get(name).map(String::as_str).unwrap_or_default();
            let signal = read_signal(catalogue.signals.len(), &cell)
                .map_err(|what| format!("signals.csv: `{}`: {what}", cell("signal")))?;
            for label in cell("labels").split('|').chain([signal.id.as_str()]).filter(|label| !label.is_empty()) {
                let old = catalogue.labels.insert(normal_form(label), Label::Known(signal.index));
                if let Some(Label::Known(other)) = old
                    && other != signal.index
                {
                    let other = &catalogue.signals[usize::from(other.0)].id;
                    return Err(format!("signals.csv: label `{label}` stands for both `{other}` and `{}`", signal.id));
                }
            }
            ambiguous.extend(cell("ambiguous_labels").split('|').filter(|label| !label.is_empty()).map(normal_form));
            catalogue.by_id.insert(signal.id.clone(), signal.index);
            catalogue.signals.push(signal);
        }
        for label in ambiguous {
            catalogue.labels.insert(label, Label::Ambiguous);
        }
        Ok(catalogue)
    }

    pub fn signals(&self) -> &[Signal] {
        &self.signals
    }

    /// # Panics
    /// If the index is of another catalogue; indexes read from outside go through [`Catalogue::get`].
    pub fn signal(&self, index: SignalIndex) -> &Signal {
        &self.signals[usize::from(index.0)]
    }

    pub fn get(&self, index: u16) -> Option<&Signal> {
        self.signals.get(usize::from(index))
    }

    pub fn by_id(&self, id: &str) -> Option<&Signal> {
        self.by_id.get(id).map(|index| self.signal(*index))
    }

    /// What a raw label means: exact id first, then the normal form (lower case without ` _-()%`).
    pub fn label(&self, raw: &str) -> Label {
        if let Some(index) = self.by_id.get(raw) {
            return Label::Known(*index);
        }
        self.labels.get(&normal_form(raw)).copied().unwrap_or(Label::Unknown)
    }
}

fn read_signal<'a>(position: usize, cell: &dyn Fn(&str) -> &'a str) -> Result<Signal, String> {
    let seconds = |name: &str| -> Result<Micros, String> {
        let value: i64 = cell(name).parse().map_err(|_| format!("{name} is `{}`, not whole seconds", cell(name)))?;
        if value < 0 { Err(format!("{name} is negative")) } else { Ok(value * SECOND) }
    };
    let states: Vec<String> = cell("states").split('|').filter(|state| !state.is_empty()).map(str::to_owned).collect();
    let (per_unit, decimals, plausible) = if states.is_empty() {
        let resolution = Ratio::parse(cell("resolution")).ok_or("resolution is not a number")?;
        let (per_unit, decimals) = [(1_i64, 0_u8), (10, 1), (100, 2), (1_000, 3), (10_000, 4), (1_000_000, 6)]
            .into_iter()
            .find(|(per_unit, _)| {
                resolution.to_counts(*per_unit) == Some(1) && Ratio::new(1, i128::from(*per_unit)) == Some(resolution)
            })
            .ok_or("resolution must be 1, 0.1, 0.01, 0.001, 0.0001 or 0.000001")?;
        let bound = |name: &str| {
            let counts = Ratio::parse(cell(name)).and_then(|ratio| ratio.to_counts(per_unit));
            counts.ok_or_else(|| format!("{name} is `{}`, not a number", cell(name)))
        };
        let plausible = (bound("plausible_min")?, bound("plausible_max")?);
        if plausible.0 >= plausible.1 {
            return Err("plausible_min must be below plausible_max".to_owned());
        }
        (per_unit, decimals, plausible)
    } else {
        (1, 0, (0, states.len() as i64 - 1))
    };
    let zero_policy = match cell("zero_policy") {
        "valid" => ZeroPolicy::Valid,
        "reject" => ZeroPolicy::Reject,
        "suspect" => ZeroPolicy::Suspect,
        other => return Err(format!("zero_policy is `{other}`; it is valid, reject or suspect")),
    };
    Ok(Signal {
        index: SignalIndex(u16::try_from(position).map_err(|_| "more than 65,535 signals")?),
        id: cell("signal").to_owned(),
        display: cell("display").to_owned(),
        quantity: cell("quantity").to_owned(),
        unit: cell("unit").to_owned(),
        per_unit,
        decimals,
        plausible,
        zero_policy,
        typical_interval_us: seconds("typical_interval_s")?,
        stale_after_us: seconds("stale_after_s")?,
        states,
    })
}

/// Lower case without blanks and ` _-()%`, as vendors differ in these.
fn normal_form(label: &str) -> String {
    label.chars().filter(|c| !matches!(c, ' ' | '_' | '-' | '(' | ')' | '%')).flat_map(char::to_lowercase).collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::UnitError;

    #[test]
    fn the_shipped_catalogue_is_valid_and_complete() {
        let catalogue = Catalogue::builtin();
        assert_eq!(catalogue.signals().len(), 71);
        let spo2 = catalogue.by_id("spo2").expect("spo2");
        assert_eq!((spo2.per_unit, spo2.plausible, spo2.stale_after_us), (10, (200, 1000), 60 * SECOND));
        assert_eq!(catalogue.by_id("consciousness").expect("consciousness").states, ["A", "C", "V", "P", "U"]);
    }

    #[test]
    fn labels_of_the_field_find_their_signal_and_ambiguous_ones_none() {
        let catalogue = Catalogue::builtin();
        for (label, id) in [
            ("SpO2", "spo2"),
            ("O2Sat", "spo2"),
            ("Sp O2 (%)", "spo2"),
            ("HEART-RATE", "heart_rate"),
            ("heartRate", "heart_rate"),
            ("NBPSys", "nibp_sys"),
            ("MDC_ECG_CARD_BEAT_RATE", "heart_rate"),
        ] {
            let expected = Label::Known(catalogue.by_id(id).expect(id).index);
            assert_eq!(catalogue.label(label), expected, "{label}");
        }
        for label in ["MAP", "PR", "CO", "T1", "RR"] {
            assert_eq!(catalogue.label(label), Label::Ambiguous, "{label}");
        }
        assert_eq!(catalogue.label("XYZ9"), Label::Unknown);
    }

    #[test]
    fn every_unit_of_the_table_converts_exactly() {
        let catalogue = Catalogue::builtin();
        let counts = |signal: &str, raw: &str, unit: &str| {
            let signal = catalogue.by_id(signal).expect(signal);
            let conversion = catalogue.units.conversion(&signal.quantity, unit, &signal.unit).expect(unit);
            let raw = Ratio::parse(raw).expect(raw);
            signal.print(conversion.apply(raw).and_then(|value| value.to_counts(signal.per_unit)).expect("fits"))
        };
        for (signal, raw, unit, expected) in [
            ("temp_body", "98.6", "[degF]", "37"),
            ("temp_body", "98.6", "°F", "37"),
            ("temp_body", "310.15", "K", "37"),
            ("etco2", "5.0", "kPa", "37.5"),
            ("glucose_blood", "180", "mg/dL", "9.99"),
            ("body_weight", "154.3", "lb", "69.99"),
            ("body_weight", "3200", "g", "3.2"),
            ("st_deviation", "2", "mm", "0.2"),
            ("spo2", "0.98", "1", "98"),
            ("heart_rate", "72", "BPM", "72"),
            ("nibp_sys", "120", "MMHG", "120"),
            ("nibp_sys", "120", "mm Hg", "120"),
        ] {
            assert_eq!(counts(signal, raw, unit), expected, "{raw} {unit}");
        }
    }

    #[test]
    fn units_of_another_quantity_or_of_none_are_refused() {
        let catalogue = Catalogue::builtin();
        let heart_rate = catalogue.by_id("heart_rate").expect("heart_rate");
        let convert = |unit| catalogue.units.conversion(&heart_rate.quantity, unit, &heart_rate.unit);
        assert_eq!(convert("mmHg"), Err(UnitError::Quantity));
        assert_eq!(convert("99MNDRY"), Err(UnitError::Unknown));
    }

    #[test]
    fn numbers_are_printed_at_the_resolution_without_trailing_zeros() {
        let catalogue = Catalogue::builtin();
        let spo2 = catalogue.by_id("spo2").expect("spo2");
        assert_eq!(spo2.print_f64(85.333_333), "85.3");
        assert_eq!(spo2.print(860), "86");
        assert_eq!(catalogue.by_id("pain_score").expect("pain_score").print_f64(10.0), "10");
        assert_eq!(spo2.print_f64(-0.01), "0");
    }
}
