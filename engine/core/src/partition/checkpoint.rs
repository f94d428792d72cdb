//! The written form of a partition: everything it remembers, as of one place in its log.
//!
//! A checkpoint is written while the partition goes on. What is not about a single patient is written at once, at the
//! beginning; the patients follow, some with each slice. A patient about to change is written first, so the whole is the
//! state at the beginning, and nothing stops. A partition that is read back goes on as if nothing had happened.
//!
//! The form is one stream of bytes, cut into slices anywhere: magic and number of the form; then parts, each with a tag
//! and its length: a header, a part for each patient with everything of it, and an end with the SHA-256 of all bytes before
//! it. Contents are in postcard's form, which does not tell its fields: another field or order is another form.

use std::collections::VecDeque;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wardbell_rules::RuleSet;
use wardbell_schemas::catalogue::Catalogue;

use super::series::Series;
use super::{Partition, Patient, SEMANTICS, Settings, State, rule_ids};

/// Form written by this binary; all forms up to it are read.
pub const FORM: u32 = 1;
/// Most bytes of a slice.
pub const SLICE_MAX: usize = 512 * 1024;

const MAGIC: &[u8; 8] = b"wardbell";
const HEADER: u8 = 1;
const PATIENT: u8 = 2;
const END: u8 = 3;
const HASH_LEN: usize = 32;

/// What a checkpoint says of itself before anything of it is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub form: u32,
    pub site: String,
    pub record_clock: bool,
    /// Version of the semantics it was reached under.
    pub semantics: u32,
    /// Number and content hash of the set in force; `None` before the first activation.
    pub in_force: Option<(u64, String)>,
    /// As [`Partition::transitions`] and [`Partition::digest`].
    pub transitions: u64,
    pub digest: [u8; 16],
}

/// Why a checkpoint cannot be gone on from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the checkpoint is of form {found}, this version reads up to {FORM}: run the version that wrote it")]
    Form { found: u32 },
    #[error(
        "the checkpoint was reached under version {found} of the semantics, this version has {SEMANTICS}: \
         run the version that wrote it"
    )]
    Semantics { found: u32 },
    #[error("the checkpoint is damaged: {what}")]
    Damaged { what: &'static str },
    #[error("the checkpoint was reached under other rules than those of the set it is to go on with")]
    OtherRules,
}

/// Everything that is not about a single patient. `S` is [`State`], borrowed to be written.
#[derive(Serialize, Deserialize)]
struct Header<S> {
    site: String,
    record_clock: bool,
    resumed: bool,
    semantics: u32,
    n_patients: u32,
    n_series: u32,
    state: S,
}

/// One patient with everything of it, each of its series at its place.
#[derive(Serialize, Deserialize)]
struct OfPatient<P, S> {
    number: u32,
    patient: P,
    series: Vec<(u32, S)>,
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing
// ---------------------------------------------------------------------------------------------------------------------

/// A checkpoint that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    /// Which of the patients there were at the beginning have been written.
    written: Vec<bool>,
    /// All before this one have.
    next: usize,
    hash: Sha256,
    n_bytes: usize,
    /// Full slices that wait to be fetched, and the one that is being filled.
    full: VecDeque<Vec<u8>>,
    slice: Vec<u8>,
    ended: bool,
}

impl Partition {
    /// Begins a checkpoint of the partition as it stands now; one that is under way is abandoned. Between records only,
    /// with all transitions fetched: those that were not are in no checkpoint.
    pub fn begin_checkpoint(&mut self) {
        let mut writing = Box::new(Writing {
            written: vec![false; self.state.patients.len()],
            next: 0,
            hash: Sha256::new(),
            n_bytes: 0,
            full: VecDeque::new(),
            slice: Vec::new(),
            ended: false,
        });
        writing.add(MAGIC);
        writing.add(&FORM.to_le_bytes());
        let header = Header {
            site: self.settings.site.clone(),
            record_clock: self.settings.record_clock,
            resumed: self.settings.resumed,
            semantics: SEMANTICS,
            n_patients: self.state.patients.len() as u32,
            n_series: self.state.series.len() as u32,
            state: &self.state,
        };
        writing.add_part(HEADER, &header);
        self.writing = Some(writing);
    }

    /// True until the last slice has been fetched.
    pub fn is_checkpointing(&self) -> bool {
        self.writing.is_some()
    }

    pub fn abandon_checkpoint(&mut self) {
        self.writing = None;
    }

    /// Writes about `budget` further bytes, at least one patient, and gives the next slice once it is full or the last:
    /// at most [`SLICE_MAX`] bytes. `None` while there is none to fetch yet.
    pub fn next_slice(&mut self, budget: usize) -> Option<Vec<u8>> {
        let writing = self.writing.as_mut()?;
        writing.go_on(&self.state, budget);
        let slice = writing.fetch();
        if writing.is_fetched() {
            self.writing = None;
        }
        slice
    }

    /// To be called before anything of a patient changes: a checkpoint under way takes it as it was.
    #[inline]
    pub(super) fn about_to_change(&mut self, patient: u32) {
        if let Some(writing) = &mut self.writing {
            writing.write(&self.state, patient as usize);
        }
    }

    /// The same for what may change every patient.
    pub(super) fn about_to_change_everything(&mut self) {
        for patient in 0..self.state.patients.len() as u32 {
            self.about_to_change(patient);
        }
    }
}

impl Writing {
    /// Writes a patient, unless that was done or it was not there at the beginning.
    #[cold]
    fn write(&mut self, state: &State, number: usize) {
        if self.written.get(number).is_none_or(|written| *written) {
            return;
        }
        self.written[number] = true;
        let patient = &state.patients[number];
        let places = patient.signals.iter().flat_map(|known| &known.series);
        let series = places.map(|place| (*place, &state.series[*place as usize])).collect();
        self.add_part(PATIENT, &OfPatient { number: number as u32, patient, series });
    }

    /// Writes patients until a slice is full or the budget is spent, and the end behind the last of them.
    fn go_on(&mut self, state: &State, budget: usize) {
        let enough = self.n_bytes.saturating_add(budget);
        while self.full.is_empty() && self.next < self.written.len() {
            let n_bytes = self.n_bytes;
            self.write(state, self.next);
            self.next += 1;
            if self.n_bytes > n_bytes && self.n_bytes >= enough {
                break;
            }
        }
        if self.next == self.written.len() && !self.ended {
            self.ended = true;
            self.add(&[END]);
            self.add(&(HASH_LEN as u64).to_le_bytes());
            let hash = self.hash.clone().finalize();
            self.add(&hash);
        }
    }

    fn fetch(&mut self) -> Option<Vec<u8>> {
        let last = || (self.ended && !self.slice.is_empty()).then(|| std::mem::take(&mut self.slice));
        self.full.pop_front().or_else(last)
    }

    fn is_fetched(&self) -> bool {
        self.ended && self.full.is_empty() && self.slice.is_empty()
    }

    fn add_part(&mut self, tag: u8, part: &impl Serialize) {
        let content =
            postcard::to_stdvec(part).expect("every part of a state knows its length, so postcard can write it");
        self.add(&[tag]);
        self.add(&(content.len() as u64).to_le_bytes());
        self.add(&content);
    }

    fn add(&mut self, mut bytes: &[u8]) {
        self.hash.update(bytes);
        self.n_bytes += bytes.len();
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SLICE_MAX - self.slice.len()));
            self.slice.extend_from_slice(now);
            bytes = later;
            if self.slice.len() == SLICE_MAX {
                self.full.push_back(std::mem::take(&mut self.slice));
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading
// ---------------------------------------------------------------------------------------------------------------------

impl Partition {
    /// What a checkpoint says of itself. All of it has been looked through for damage then.
    ///
    /// # Errors
    /// [`Unreadable::Form`] and [`Unreadable::Damaged`].
    pub fn head(slices: &[Vec<u8>]) -> Result<Head, Unreadable> {
        let bytes = slices.concat();
        let (form, mut parts) = Parts::of(&bytes)?;
        let Header { site, record_clock, semantics, state, .. } = parts.next::<Header<State>>(HEADER)?;
        let State { in_force, transitions, digest, .. } = state;
        Ok(Head { form, site, record_clock, semantics, in_force, transitions, digest })
    }

    /// The partition that a checkpoint was made of. `settings` and `set` are those of the set in force ([`Head`]); site,
    /// clock and whether its windows begin inside the log are the checkpoint's own. Counts of outcomes begin at 0.
    ///
    /// # Errors
    /// [`Unreadable`]; there is no partition then.
    pub fn restore_checkpoint(
        settings: Settings,
        set: &RuleSet,
        catalogue: &'static Catalogue,
        slices: &[Vec<u8>],
    ) -> Result<Partition, Unreadable> {
        let bytes = slices.concat();
        let (_, mut parts) = Parts::of(&bytes)?;
        let Header { site, record_clock, resumed, semantics, n_patients, n_series, mut state } =
            parts.next::<Header<State>>(HEADER)?;
        if semantics != SEMANTICS {
            return Err(Unreadable::Semantics { found: semantics });
        }
        if state.rule_ids != rule_ids(set) {
            return Err(Unreadable::OtherRules);
        }
        let mut of_patients: Vec<OfPatient<Patient, Series>> = Vec::new();
        for _ in 0..n_patients {
            of_patients.push(parts.next(PATIENT)?);
        }
        parts.end()?;
        // Nothing is made room for that is not there.
        let n_living: usize = of_patients.iter().map(|of_patient| of_patient.series.len()).sum();
        if n_living + state.free_series.len() != n_series as usize {
            return Err(Unreadable::Damaged { what: "it has another number of series than it says" });
        }
        of_patients.sort_by_key(|of_patient| of_patient.number);
        state.series.resize_with(n_series as usize, Series::default);
        for OfPatient { number, patient, series } in of_patients {
            let places = patient.signals.iter().flat_map(|known| &known.series);
            if number as usize != state.patients.len() || !places.eq(series.iter().map(|(place, _)| place)) {
                return Err(Unreadable::Damaged { what: "a patient is not what it says" });
            }
            state.patients.push(patient);
            for (place, series) in series {
                let known = state.series.get_mut(place as usize).filter(|known| !known.alive);
                let known = known.ok_or(Unreadable::Damaged { what: "a series has no place" })?;
                *known = Series { alive: true, ..series };
            }
        }
        if !state.is_sound(catalogue) {
            return Err(Unreadable::Damaged { what: "its parts do not belong together" });
        }
        Ok(Self::with_state(Settings { site, record_clock, resumed, ..settings }, set, catalogue, state))
    }
}

impl State {
    /// What its parts point to is there.
    fn is_sound(&self, catalogue: &Catalogue) -> bool {
        let in_reach = |number: u32, len: usize| (number as usize) < len;
        let free = |place: &u32| self.series.get(*place as usize).is_some_and(|series| !series.alive);
        let series = |series: &Series| {
            in_reach(series.patient, self.patients.len())
                && in_reach(series.device, self.device_names.names.len())
                && in_reach(series.method, self.method_names.names.len())
                && in_reach(series.signal.into(), catalogue.signals().len())
                && in_reach(series.clock, self.clocks.len())
                && series.newest_source.is_none_or(|position| in_reach(position.feed, self.feeds.len()))
        };
        let patient = |patient: &Patient| {
            patient.signals.iter().all(|known| known.primary.is_none_or(|place| known.series.contains(&place)))
                && patient.devices.iter().all(|known| in_reach(known.device, self.device_names.names.len()))
        };
        self.patient_names.names.len() == self.patients.len()
            && self.feeds.iter().all(|feed| in_reach(feed.clock, self.clocks.len()))
            && self.free_series.iter().all(free)
            && self.series.iter().filter(|series| series.alive).all(series)
            && self.patients.iter().all(patient)
    }
}

/// The parts of a checkpoint whose hash was found right, one after the other.
struct Parts<'a> {
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The number of the form, and the parts.
    fn of(bytes: &'a [u8]) -> Result<(u32, Self), Unreadable> {
        let damaged = |what| Unreadable::Damaged { what };
        let rest = bytes.strip_prefix(MAGIC).ok_or(damaged("it does not begin like one"))?;
        let (form, rest) = rest.split_first_chunk::<4>().ok_or(damaged("it is cut"))?;
        let form = u32::from_le_bytes(*form);
        if form == 0 || form > FORM {
            return Err(Unreadable::Form { found: form });
        }
        let (_, hash) = rest.split_last_chunk::<HASH_LEN>().ok_or(damaged("it is cut"))?;
        if Sha256::digest(&bytes[..bytes.len() - HASH_LEN])[..] != hash[..] {
            return Err(damaged("it was cut or changed after it was written"));
        }
        Ok((form, Self { rest }))
    }

    fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, rest) = self.rest.split_first()?;
        let (len, rest) = rest.split_first_chunk::<8>()?;
        let (content, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.rest = rest;
        (*found == tag).then_some(content)
    }

    fn next<T: DeserializeOwned>(&mut self, tag: u8) -> Result<T, Unreadable> {
        let content = self.content(tag).ok_or(Unreadable::Damaged { what: "a part is missing" })?;
        match postcard::take_from_bytes(content) {
            Ok((part, [])) => Ok(part),
            _ => Err(Unreadable::Damaged { what: "a part does not have its form" }),
        }
    }

    /// Nothing comes behind the end.
    fn end(mut self) -> Result<(), Unreadable> {
        self.content(END)
            .filter(|_| self.rest.is_empty())
            .map(|_| ())
            .ok_or(Unreadable::Damaged { what: "it has no end" })
    }
}
