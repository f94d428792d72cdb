//! Episodes out of alerts: for a partition whose replay gave another history than the one that was committed.
//!
//! Sinks and people go by what was committed. So the newest transition of each episode says what is open, and nothing else
//! is; an episode that only this partition knew ends without a word. Windows and runs stay: what is still true is raised
//! anew, under an id that was never used.

use std::collections::{BTreeMap, HashMap};

use wardbell_schemas::Micros;
use wardbell_schemas::alert::{CANARY_RULE, Content, Kind, Priority, State, TransitionKind};

use super::plan::Plan;
use super::series::{Technical, TechnicalOpen};
use super::silence::{CONDITIONS, FORGOTTEN_FOR};
use super::{Forgotten, KeyRef, Noticed, Partition, Retired, content};
use crate::episode::{Ended, Open};

/// One episode, as its transitions tell it.
struct Told<'a> {
    newest: &'a Content,
    highest: Priority,
    acknowledged: bool,
}

/// The newest open and the newest ended episode of a rule and key.
#[derive(Default)]
struct Episodes<'a> {
    open: Option<Told<'a>>,
    ended: Option<Told<'a>>,
}

/// Rule id, patient and key.
type Place = (String, String, String);

fn place(rule: &str, patient: &str, key: &str) -> Place {
    (rule.to_owned(), patient.to_owned(), key.to_owned())
}

/// What was told of each rule and key. Contents are in the order in which they were committed.
fn episodes(committed: &[Content]) -> BTreeMap<Place, Episodes<'_>> {
    let mut told: BTreeMap<(Place, Micros), Told<'_>> = BTreeMap::new();
    for content in committed.iter().filter(|content| content.rule.id != CANARY_RULE) {
        let place = place(&content.rule.id, &content.patient, &content.key);
        let first = Told { newest: content, highest: content.priority, acknowledged: false };
        let known = told.entry((place, content.episode_start)).or_insert(first);
        known.newest = content;
        known.highest = known.highest.max(content.priority);
        match content.transition {
            TransitionKind::Acknowledged => known.acknowledged = true,
            TransitionKind::Raised | TransitionKind::Escalated => known.acknowledged = false,
            _ => {}
        }
    }
    let mut episodes: BTreeMap<Place, Episodes<'_>> = BTreeMap::new();
    for ((place, _), told) in told {
        let of_place = episodes.entry(place).or_default();
        match told.newest.state {
            State::Off => of_place.ended = Some(told),
            State::On | State::Latched | State::Ack => of_place.open = Some(told),
        }
    }
    episodes
}

impl Told<'_> {
    fn open(&self) -> Open {
        Open {
            start: self.newest.episode_start,
            condition_start: self.newest.condition_start,
            priority: self.newest.priority,
            highest: self.highest,
            next_number: self.newest.number + 1,
            latched: self.newest.state == State::Latched,
            acknowledged: self.acknowledged,
            newest_at: self.newest.at,
            raised_by_version: self.newest.raised_by_version,
            clear: None,
            lower: None,
        }
    }

    /// `clock` is the key's, with its number: where it stood when the episode ended is not told.
    fn ended(&self, (clock, clock_number): (Micros, u32)) -> Ended {
        Ended {
            start: self.newest.episode_start,
            at: self.newest.at,
            clock: clock.min(self.newest.at),
            clock_number,
            highest: self.highest,
            cools_down: matches!(self.newest.transition, TransitionKind::Cleared | TransitionKind::Reset),
        }
    }
}

impl Technical {
    /// The alert is what was told of it.
    fn correct(&mut self, told: &Episodes<'_>) {
        if let Some(own) = self.open.take() {
            self.ended = self.ended.max(Some((own.start, own.raised_at)));
        }
        let ended = told.ended.as_ref().map(|told| (told.newest.episode_start, told.newest.at));
        self.ended = self.ended.max(ended);
        self.open = told.open.as_ref().map(|told| TechnicalOpen {
            start: told.newest.episode_start,
            raised_at: told.newest.condition_start,
            next_number: told.newest.number + 1,
        });
    }
}

impl Partition {
    /// Makes the episodes of this partition what its committed alerts say: `committed` are their contents as far as they
    /// are retained, oldest first. Gives the ids of episodes that are open there and whose rule or key is not known here:
    /// nothing of this partition will ever end them.
    pub fn rebuild_episodes(&mut self, committed: &[Content]) -> Vec<String> {
        self.about_to_change_everything();
        let plan = self.plan.clone();
        let mut told = episodes(committed);
        self.correct_episodes(&plan, &mut told);
        self.correct_silences(&mut told);
        self.correct_devices(&mut told);
        self.correct_feeds_and_conditions(&mut told);
        // What is left belongs to nothing here. Its ids stay used all the same.
        let mut unknown = Vec::new();
        for ((rule, patient, key), episodes) in told {
            unknown.extend(episodes.open.iter().map(|told| told.newest.episode.clone()));
            for told in [episodes.ended, episodes.open].into_iter().flatten() {
                if told.newest.kind == Kind::Physiological {
                    let mut ended = told.ended((Micros::MAX, 0));
                    ended.forget_cool_down();
                    self.remember_unknown(&plan, &rule, &patient, &key, ended);
                }
            }
        }
        self.scratch.answers.forget();
        self.rearm_everything();
        unknown
    }

    /// Goes on counting from what was committed, see [`Partition::transitions`] and [`Partition::digest`].
    pub fn continue_history(&mut self, transitions: u64, digest: [u8; 16]) {
        (self.state.transitions, self.state.digest) = (transitions, digest);
    }

    fn correct_episodes(&mut self, plan: &Plan, told: &mut BTreeMap<Place, Episodes<'_>>) {
        let own = self.open.values().map(|(rule, key)| ((*rule, *key), None));
        let mut concerned: HashMap<(usize, KeyRef), Option<Episodes<'_>>> = own.collect();
        told.retain(|place, episodes| {
            let known = self.find(plan, place);
            if let Some(place) = known {
                concerned.insert(place, Some(std::mem::take(episodes)));
            }
            known.is_none()
        });
        for ((rule, key), episodes) in concerned {
            let clock = self.key_clock_if_any(plan, rule, key);
            let Episodes { open, ended } = episodes.unwrap_or_default();
            let (open, ended) = (open.map(|told| told.open()), ended.map(|told| told.ended(clock)));
            self.key_state_mut(plan, rule, key).correct(open, ended, clock);
        }
    }

    fn correct_silences(&mut self, told: &mut BTreeMap<Place, Episodes<'_>>) {
        for patient in &mut self.state.patients {
            patient.n_stale = 0;
        }
        for series in self.state.series.iter_mut().filter(|series| series.alive) {
            let patient = self.state.patient_names.name(series.patient);
            let mut take = |rule: &str| told.remove(&place(rule, patient, &series.key)).unwrap_or_default();
            series.overrun.correct(&take(content::OVERRUN));
            let of_stale = take(content::STALE);
            let superseded =
                of_stale.ended.as_ref().is_some_and(|told| told.newest.transition == TransitionKind::Superseded);
            let silence = &mut series.silence;
            let was_told_here = silence.alert.open.is_some();
            silence.alert.correct(&of_stale);
            // Silence that nobody was told of is told when its timer fires; what was told ends with the next sample.
            let stays = silence.is_stale && (superseded || !was_told_here);
            let is_stale = silence.alert.open.is_some() || stays;
            if is_stale && !silence.is_stale {
                self.state.sequence += 1;
                silence.stale_since = self.state.sequence;
            }
            silence.is_stale = is_stale;
            self.state.patients[series.patient as usize].n_stale += u32::from(is_stale);
        }
    }

    fn correct_devices(&mut self, told: &mut BTreeMap<Place, Episodes<'_>>) {
        for (number, patient) in (0..).zip(&mut self.state.patients) {
            for device in &mut patient.devices {
                let key = format!("{}/-/-", self.state.device_names.name(device.device));
                let place = place(content::CLOCK, self.state.patient_names.name(number), &key);
                let was_told_here = device.alert.open.is_some();
                device.alert.correct(&told.remove(&place).unwrap_or_default());
                if was_told_here && device.alert.open.is_none() {
                    device.newest_raise = None;
                }
            }
        }
        self.count_clock_alerts();
    }

    fn correct_feeds_and_conditions(&mut self, told: &mut BTreeMap<Place, Episodes<'_>>) {
        for noticed in &mut self.state.conditions {
            noticed.alert.correct(&told.remove(&place(&noticed.rule, "-", &noticed.key)).unwrap_or_default());
        }
        for clock in &mut self.state.clocks {
            clock.feed_alert.correct(&told.remove(&place(content::FEED, "-", &clock.name)).unwrap_or_default());
        }
        told.retain(|(rule, _, key), episodes| {
            let newest = episodes.open.as_ref().or(episodes.ended.as_ref());
            let Some(told) = newest.filter(|_| CONDITIONS.contains(&rule.as_str())) else {
                return true;
            };
            let mut alert = Technical::default();
            alert.correct(episodes);
            let (rule, key, priority) = (rule.clone(), key.clone(), told.newest.priority);
            self.state.conditions.push(Noticed { rule, key, priority, alert });
            false
        });
    }

    /// Rule and key of the set in force, where both are known.
    fn find(&self, plan: &Plan, (rule, patient, key): &Place) -> Option<(usize, KeyRef)> {
        let rule = plan.rules.iter().position(|known| known.rule.id == *rule)?;
        let key = self.key(patient, key)?;
        let of_rule = &plan.rules[rule].rule;
        let fits = match key {
            KeyRef::Series(series) => {
                !of_rule.is_of_patient() && of_rule.signals[0] == self.state.series[series as usize].signal_index()
            }
            KeyRef::Patient(patient) => {
                let patient = &self.state.patients[patient as usize];
                let mut known = of_rule.signals.iter().filter_map(|signal| patient.signal(*signal));
                of_rule.is_of_patient() && known.any(|known| !known.series.is_empty())
            }
        };
        fits.then_some((rule, key))
    }

    fn key(&self, patient: &str, key: &str) -> Option<KeyRef> {
        let number = *self.state.patient_names.numbers.get(patient)?;
        if key == "-" {
            return Some(KeyRef::Patient(number));
        }
        let patient = self.state.patients.get(number as usize)?;
        let mut series = patient.signals.iter().flat_map(|known| &known.series);
        series.find(|series| self.state.series[**series as usize].key == key).map(|series| KeyRef::Series(*series))
    }

    /// An episode of a rule or key that is not known: its rule, or its series, may come back and must not begin it again.
    fn remember_unknown(&mut self, plan: &Plan, rule: &str, patient: &str, key: &str, ended: Ended) {
        let now = self.state.clocks.iter().filter_map(|clock| clock.now).max().unwrap_or(ended.at);
        if now - ended.at >= FORGOTTEN_FOR {
            return;
        }
        let number = self.patient(patient);
        let index = plan.rules.iter().position(|known| known.rule.id == rule);
        match (self.key(patient, key), index.filter(|index| plan.rules[*index].rule.is_of_patient())) {
            (Some(key @ KeyRef::Patient(_)), Some(index)) => {
                self.key_state_mut(plan, index, key).correct(None, Some(ended), (0, 0));
            }
            (Some(key), _) => {
                let same =
                    |known: &Retired| (known.rule.as_str(), known.key) == (rule, key) && known.ended.at >= ended.at;
                if !self.state.retired.iter().any(same) {
                    self.state.retired.push(Retired { rule: rule.to_owned(), key, ended: Box::new(ended) });
                }
            }
            (None, _) => {
                let same =
                    |known: &Forgotten| (known.rule.as_str(), known.patient, known.key.as_str()) == (rule, number, key);
                if !self.state.forgotten.iter().any(|known| same(known) && known.ended.at >= ended.at) {
                    let (rule, key, ended) = (rule.to_owned(), key.to_owned(), Box::new(ended));
                    self.state.forgotten.push(Forgotten { rule, patient: number, key, ended });
                }
            }
        }
    }
}
