//! Units: raw spellings to UCUM, and exact conversions within one quantity.
//!
//! UCUM itself is case sensitive (`mm` is not `Mm`); vendor spellings are not, so only the spelling table folds case,
//! and only where two spellings do not differ by case alone. mg/dL to mmol/L depends on the substance: the quantity is
//! part of the key.

use std::collections::HashMap;

use crate::decimal::Ratio;

/// `canonical = raw * factor + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    pub factor: Ratio,
    pub offset: Ratio,
}

impl Conversion {
    pub const IDENTITY: Conversion = Conversion { factor: Ratio::ONE, offset: Ratio::ZERO };

    /// `None` if the exact result does not fit.
    pub fn apply(&self, raw: Ratio) -> Option<Ratio> {
        if *self == Self::IDENTITY {
            return Some(raw);
        }
        raw.checked_mul(self.factor)?.checked_add(self.offset)
    }
}

/// All known units, checked once.
#[derive(Debug)]
pub struct UnitTable {
    /// Exact spelling to UCUM.
    exact: HashMap<String, String>,
    /// Lower-cased spelling to UCUM, without the ambiguous ones.
    folded: HashMap<String, String>,
    /// (quantity, from, to) to its conversion.
    conversions: HashMap<(String, String, String), Conversion>,
}

/// Why a raw unit cannot be used for a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitError {
    /// No table knows the spelling.
    Unknown,
    /// A known unit, but of another quantity (a heart rate in mmHg).
    Quantity,
}

impl UnitTable {
    /// Builds the table from `data/units.csv` and `data/unit_spellings.csv` texts.
    ///
    /// # Errors
    /// A sentence naming the row and what is wrong with it.
    pub fn from_csv(units: &str, spellings: &str) -> Result<Self, String> {
        let mut table = Self { exact: HashMap::new(), folded: HashMap::new(), conversions: HashMap::new() };
        let mut ambiguous = Vec::new();
        for row in csv::Reader::from_reader(spellings.as_bytes()).records() {
            let row = row.map_err(|error| format!("unit_spellings.csv: {error}"))?;
            let ucum = &row[0];
            for spelling in row[3].split('|').chain([ucum, &row[2]]).filter(|spelling| !spelling.is_empty()) {
                if let Some(other) = table.exact.insert(spelling.to_owned(), ucum.to_owned())
                    && other != ucum
                {
                    return Err(format!("unit_spellings.csv: `{spelling}` stands for both `{other}` and `{ucum}`"));
                }
                let folded = spelling.to_lowercase();
                if let Some(other) = table.folded.insert(folded.clone(), ucum.to_owned())
                    && other != ucum
                {
                    ambiguous.push(folded);
                }
            }
        }
        for folded in ambiguous {
            table.folded.remove(&folded);
        }
        for row in csv::Reader::from_reader(units.as_bytes()).records() {
            let row = row.map_err(|error| format!("units.csv: {error}"))?;
            let ratio = |text: &str| Ratio::parse(text).ok_or_else(|| format!("units.csv: `{text}` is not a number"));
            let conversion = Conversion { factor: ratio(&row[3])?, offset: ratio(&row[4])? };
            let key = (row[0].to_owned(), row[1].to_owned(), row[2].to_owned());
            for ucum in [&row[1], &row[2]] {
                table.exact.entry(ucum.to_owned()).or_insert_with(|| ucum.to_owned());
            }
            if table.conversions.insert(key, conversion).is_some() {
                return Err(format!("units.csv: `{}` to `{}` of {} stands twice", &row[1], &row[2], &row[0]));
            }
        }
        Ok(table)
    }

    /// The UCUM code of a raw spelling; the micro sign and the Greek mu are UCUM's `u`.
    pub fn ucum(&self, raw: &str) -> Option<&str> {
        let raw = raw.trim();
        let known = self.exact.get(raw).or_else(|| self.folded.get(&raw.to_lowercase()));
        if known.is_none() && raw.contains(['\u{b5}', '\u{3bc}']) {
            return self.ucum(&raw.replace(['\u{b5}', '\u{3bc}'], "u"));
        }
        known.map(String::as_str)
    }

    /// How a raw unit becomes `canonical` for a signal of `quantity`.
    ///
    /// # Errors
    /// [`UnitError`], which the caller turns into a dead letter with its reason.
    pub fn conversion(&self, quantity: &str, raw: &str, canonical: &str) -> Result<Conversion, UnitError> {
        if raw == canonical {
            return Ok(Conversion::IDENTITY);
        }
        // A spelling may be a unit in its own right for this quantity (`mm` of an ECG is 0.1 mV).
        let own = |from: &str| self.conversions.get(&(quantity.to_owned(), from.to_owned(), canonical.to_owned()));
        let Some(ucum) = self.ucum(raw) else {
            return Err(UnitError::Unknown);
        };
        if ucum == canonical {
            return Ok(Conversion::IDENTITY);
        }
        own(raw.trim()).or_else(|| own(ucum)).copied().ok_or(UnitError::Quantity)
    }
}
