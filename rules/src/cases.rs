//! The test notation: cases beside a rule, in a plain language, expanded to exact readings and expected transitions.
//!
//! `NAME.test.toml` belongs to `NAME.rhai`. What the notation means is section 12 of the semantics. Running a case needs
//! the engine; here it is only read, checked and expanded.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use wardbell_schemas::alert::{Priority, TransitionKind};
use wardbell_schemas::catalogue::{Catalogue, Signal, SignalIndex};
use wardbell_schemas::decimal::{Decimal, Ratio};
use wardbell_schemas::{Micros, SECOND, duration};

use crate::diagnostic::{Diagnostic, SourceFile, did_you_mean};

/// One case, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub name: String,
    /// From 1, where the case begins in its file.
    pub line: usize,
    pub attributes: BTreeMap<String, f64>,
    pub limits: BTreeMap<String, f64>,
    /// Other rule files of the folder, without their ending, that run together with the case's own.
    pub rules: Vec<String>,
    /// Records in the order of broker time.
    pub records: Vec<CaseRecord>,
    /// The clock runs to here, inclusive.
    pub end_us: Micros,
    pub expect: Vec<Expectation>,
    /// Technical alerts need not be listed.
    pub ignore_technical: bool,
}

/// All readings of one broker time.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseRecord {
    pub broker_us: Micros,
    pub readings: Vec<CaseReading>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CaseReading {
    pub device: String,
    pub signal: SignalIndex,
    pub event_us: Micros,
    /// Counts of resolution or the code of a state; `None` for a blank.
    pub value: Option<i64>,
}

/// One entry of `expect`. What is not written is not compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// As written, for messages.
    pub text: String,
    pub at_us: Micros,
    pub transition: TransitionKind,
    pub priority: Option<Priority>,
    pub device: Option<String>,
    pub rule: Option<String>,
}

/// The device of a series that names none.
pub const DEFAULT_DEVICE: &str = "device-a";
/// The patient of every case.
pub const PATIENT: &str = "patient";
/// The site of every case.
pub const SITE: &str = "test";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    case: Vec<Spanned<CaseForm>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseForm {
    name: Spanned<String>,
    every: Option<Spanned<PerSeries>>,
    #[serde(default)]
    attributes: BTreeMap<String, f64>,
    #[serde(default)]
    limits: BTreeMap<String, f64>,
    series: Option<BTreeMap<String, Spanned<String>>>,
    #[serde(default)]
    delay: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    stamp: BTreeMap<String, Spanned<String>>,
    then: Option<Spanned<String>>,
    expect: Vec<Spanned<String>>,
    technical: Option<Spanned<String>>,
    #[serde(default)]
    rules: Vec<String>,
}

/// `every = "1s"`, or one per signal or series.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PerSeries {
    All(String),
    Each(BTreeMap<String, String>),
}

/// Reads a file of cases; every fault at once.
pub fn parse(file: &SourceFile, catalogue: &Catalogue) -> (Vec<Case>, Vec<Diagnostic>) {
    let form: FileForm = match toml::from_str(&file.text) {
        Ok(form) => form,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            return (Vec::new(), vec![Diagnostic::error("T001", file, at, error.message().to_owned())]);
        }
    };
    let mut reader = Reader { file, catalogue, diagnostics: Vec::new() };
    let mut cases = Vec::new();
    for spanned in &form.case {
        let line = crate::diagnostic::line_column(&file.text, spanned.span().start).0;
        cases.extend(reader.case(spanned.get_ref(), line));
    }
    if form.case.is_empty() {
        reader.diagnostics.push(Diagnostic::whole_file("T002", &file.path, "the file has no `[[case]]`"));
    }
    (cases, reader.diagnostics)
}

struct Reader<'a> {
    file: &'a SourceFile,
    catalogue: &'a Catalogue,
    diagnostics: Vec<Diagnostic>,
}

/// A series with everything that shapes its readings.
struct SeriesPlan<'a> {
    signal: &'a Signal,
    device: String,
    every_us: Micros,
    delay_us: Micros,
    stamp_us: Micros,
}

impl<'a> Reader<'a> {
    fn error(&mut self, code: &'static str, at: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        self.diagnostics.push(Diagnostic::error(code, self.file, at, message));
        let last = self.diagnostics.len() - 1;
        &mut self.diagnostics[last]
    }

    fn duration(&mut self, text: &str, at: Range<usize>) -> Option<Micros> {
        match duration::parse(text) {
            Ok(us) => Some(us),
            Err(message) => {
                self.error("T003", at, message);
                None
            }
        }
    }

    fn case(&mut self, form: &CaseForm, line: usize) -> Option<Case> {
        let before = self.diagnostics.len();
        let mut by_broker_time: BTreeMap<Micros, Vec<CaseReading>> = BTreeMap::new();
        // (broker time, slot) of the reading latest in broker time; at equal times the longest slot.
        let mut latest: Option<(Micros, Micros)> = None;
        let empty = BTreeMap::new();
        for (name, segments) in form.series.as_ref().unwrap_or(&empty) {
            let Some(plan) = self.plan(form, name, segments.span()) else {
                continue;
            };
            for (at_us, value) in self.segments(segments.get_ref(), segments.span(), &plan) {
                let broker_us = at_us + plan.delay_us;
                if broker_us < 0 {
                    self.error("T004", segments.span(), format!("a reading of `{name}` reaches the broker before 0 s"));
                    break;
                }
                let event_us = if plan.stamp_us > 0 { at_us - at_us.rem_euclid(plan.stamp_us) } else { at_us };
                let reading = CaseReading { device: plan.device.clone(), signal: plan.signal.index, event_us, value };
                by_broker_time.entry(broker_us).or_default().push(reading);
                latest = latest.max(Some((broker_us, plan.every_us)));
            }
        }
        if form.series.is_none() {
            self.error("T005", form.name.span(), "the case has no `series`");
        }
        let then_us = match &form.then {
            Some(text) => self.duration(text.get_ref(), text.span()).unwrap_or(0),
            None => 0,
        };
        let ignore_technical = match &form.technical {
            None => false,
            Some(text) if text.get_ref() == "ignore" => true,
            Some(text) => {
                self.error("T006", text.span(), "`technical` can only be \"ignore\"");
                false
            }
        };
        let expect: Vec<Expectation> = form.expect.iter().filter_map(|entry| self.expectation(entry)).collect();
        if self.diagnostics.len() > before {
            return None;
        }
        let (last_us, slot_us) = latest.unwrap_or((0, 0));
        Some(Case {
            name: form.name.get_ref().clone(),
            line,
            attributes: form.attributes.clone(),
            limits: form.limits.clone(),
            rules: form.rules.clone(),
            records: by_broker_time
                .into_iter()
                .map(|(broker_us, readings)| CaseRecord { broker_us, readings })
                .collect(),
            end_us: last_us + slot_us + then_us,
            expect,
            ignore_technical,
        })
    }

    fn plan(&mut self, form: &CaseForm, name: &str, at: Range<usize>) -> Option<SeriesPlan<'a>> {
        let (id, device) = name.split_once('@').unwrap_or((name, DEFAULT_DEVICE));
        let catalogue = self.catalogue;
        let Some(signal) = catalogue.by_id(id) else {
            let help = did_you_mean(id, catalogue.signals().iter().map(|signal| signal.id.as_str()));
            self.error("T007", at, format!("unknown signal `{id}`")).help = help;
            return None;
        };
        let every = match &form.every {
            None => None,
            Some(spanned) => match spanned.get_ref() {
                PerSeries::All(text) => Some((text.clone(), spanned.span())),
                PerSeries::Each(each) => {
                    each.get(name).or_else(|| each.get(id)).map(|text| (text.clone(), spanned.span()))
                }
            },
        };
        let every_us = match every {
            Some((text, span)) => self.duration(&text, span.clone()).filter(|us| *us > 0).or_else(|| {
                self.error("T003", span, "`every` must be longer than zero");
                None
            })?,
            None => SECOND,
        };
        let mut own = |map: &BTreeMap<String, Spanned<String>>| match map.get(name).or_else(|| map.get(id)) {
            Some(text) => self.duration(text.get_ref(), text.span()),
            None => Some(0),
        };
        let (delay_us, stamp_us) = (own(&form.delay)?, own(&form.stamp)?);
        Some(SeriesPlan { signal, device: device.to_owned(), every_us, delay_us, stamp_us })
    }

    /// Expands `95 for 10s, 86 to 92 over 1m, none for 5s, blank for 5s` to samples and blanks at their times.
    fn segments(&mut self, text: &str, at: Range<usize>, plan: &SeriesPlan<'_>) -> Vec<(Micros, Option<i64>)> {
        let mut readings = Vec::new();
        let mut start_us = 0;
        for segment in text.split(',') {
            let words: Vec<&str> = segment.split_whitespace().collect();
            let (length, from, to) = match words[..] {
                [value, "for", length] => (length, value, None),
                [from, "to", to, "over", length] => (length, from, Some(to)),
                _ => {
                    let help = "write `95 for 10s`, `90 to 80 over 1m`, `none for 5s` or `blank for 5s`";
                    self.error("T008", at, format!("`{}` is not a segment", segment.trim())).help =
                        Some(help.to_owned());
                    return readings;
                }
            };
            let Some(length_us) = self.duration(length, at.clone()) else {
                return readings;
            };
            let times = (0..).map(|i| i * plan.every_us).take_while(|offset| *offset < length_us);
            match (from, to) {
                ("none", None) => {}
                ("blank", None) => readings.extend(times.map(|offset| (start_us + offset, None))),
                (value, None) => {
                    let Some(counts) = self.value(value, plan.signal, at.clone()) else {
                        return readings;
                    };
                    readings.extend(times.map(|offset| (start_us + offset, Some(counts))));
                }
                (from, Some(to)) => {
                    let (Some(from), Some(to)) = (ratio(from), ratio(to)) else {
                        self.error("T008", at, format!("`{}` is not a line between two numbers", segment.trim()));
                        return readings;
                    };
                    for offset in times {
                        let Some(counts) = on_line(from, to, offset, length_us, plan.signal.per_unit) else {
                            self.error("T008", at, format!("`{}` is out of range", segment.trim()));
                            return readings;
                        };
                        readings.push((start_us + offset, Some(counts)));
                    }
                }
            }
            start_us += length_us;
        }
        readings
    }

    fn value(&mut self, text: &str, signal: &Signal, at: Range<usize>) -> Option<i64> {
        let counts = if signal.is_category() {
            signal.states.iter().position(|state| state == text).map(|code| code as i64)
        } else {
            ratio(text).and_then(|ratio| ratio.to_counts(signal.per_unit))
        };
        if counts.is_none() {
            let expected = if signal.is_category() {
                format!("one of {}", signal.states.join(", "))
            } else {
                "a number".to_owned()
            };
            self.error("T008", at, format!("`{text}` is not a value of `{}`; expected {expected}", signal.id));
        }
        counts
    }

    /// `<time> <transition> [priority] [@device] [rule id]`
    fn expectation(&mut self, entry: &Spanned<String>) -> Option<Expectation> {
        let text = entry.get_ref();
        let mut words = text.split_whitespace().peekable();
        let at_us = self.duration(words.next().unwrap_or_default(), entry.span())?;
        let name = words.next().unwrap_or_default();
        let Some(transition) = TransitionKind::ALL.into_iter().find(|kind| kind.name() == name) else {
            let help = did_you_mean(name, TransitionKind::ALL.map(TransitionKind::name));
            self.error("T009", entry.span(), format!("unknown transition `{name}`")).help =
                help.or_else(|| Some("an entry is `<time> <transition> [priority] [@device] [rule id]`".to_owned()));
            return None;
        };
        let priority = words.peek().and_then(|word| word.parse::<Priority>().ok());
        if priority.is_some() {
            words.next();
        }
        let device = words.peek().and_then(|word| word.strip_prefix('@')).map(str::to_owned);
        if device.is_some() {
            words.next();
        }
        let rule = words.next().map(str::to_owned);
        if let Some(extra) = words.next() {
            self.error("T009", entry.span(), format!("`{extra}` is one word too many"));
            return None;
        }
        Some(Expectation { text: text.clone(), at_us, transition, priority, device, rule })
    }
}

fn ratio(text: &str) -> Option<Ratio> {
    text.parse::<Decimal>().ok()?.to_ratio()
}

/// The line from `from` towards `to` at `offset` of `length`, rounded half away from zero to the signal's resolution.
fn on_line(from: Ratio, to: Ratio, offset_us: Micros, length_us: Micros, per_unit: i64) -> Option<i64> {
    let part = Ratio::new(i128::from(offset_us), i128::from(length_us))?;
    let minus_from = from.checked_mul(Ratio::new(-1, 1)?)?;
    let step = to.checked_add(minus_from)?.checked_mul(part)?;
    from.checked_add(step)?.to_counts(per_unit)
}
