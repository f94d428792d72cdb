//! A source record: when its readings count, what they correct, how they join their series (sections 2, 3.1, 7.1, 7.5).

use std::collections::BTreeMap;

use wardbell_schemas::reading::Change;

use super::episode::{Stamp, TrackId};
use super::rule::Priority;
use super::series::{Accepted, Remembered, Said, Series, SeriesId, said};
use super::{CLOCK, DAY, EPOCH_END, HOUR, OVERRUN, Reading, Record, STALE, World};

/// What holds for the readings of one record.
struct Bounds {
    lateness: i64,
    skew: i64,
    epoch_check: bool,
    coarse: bool,
    reset_days: Vec<i64>,
}

impl Bounds {
    /// A clock at an epoch (2.2).
    fn is_epoch(&self, event: i64) -> bool {
        let listed = self.reset_days.iter().any(|day| (*day..*day + DAY).contains(&event));
        listed || (self.epoch_check && event < EPOCH_END)
    }
}

/// How a reading's `t` came to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    AsSent,
    Replaced,
    /// Replaced, and no matter of `technical/clock`.
    Quietly,
    /// It is that of the sample that it corrects.
    Named,
}

struct Decided<'a> {
    reading: &'a Reading,
    id: SeriesId,
    t: i64,
    time: Time,
    /// What duplicates of it are compared with.
    said: Said,
}

impl World<'_> {
    fn bounds(&self, source: &str) -> Bounds {
        let (topic, _) = source.rsplit_once('/').expect("a source is topic/partition");
        let connector =
            self.set.connectors.iter().find(|connector| connector.topics.iter().any(|known| known == topic));
        Bounds {
            lateness: connector.map_or(self.set.lateness_us, |connector| connector.lateness_us),
            skew: connector.map_or(self.set.skew_us, |connector| connector.skew_us),
            epoch_check: self.set.epoch_check,
            coarse: connector.is_some_and(|connector| connector.coarse),
            reset_days: connector.map_or_else(Vec::new, |connector| connector.reset_days.clone()),
        }
    }

    pub(super) fn record(&mut self, record: &Record) {
        let source = self.source(&record.source).to_string();
        self.move_clock(&source, record.broker_us);
        let clock = self.clock(&source);
        let bounds = self.bounds(&record.source);
        for reading in &record.readings {
            self.hear(reading, &source, clock);
            self.remember_no_longer(&SeriesId::of(reading), clock, &bounds);
        }
        let readings = self.name_corrected(record);
        let own: Vec<&Reading> =
            readings.iter().filter(|(_, named)| named.is_none()).map(|(reading, _)| *reading).collect();
        self.look_for_slow_clocks(&own, record.broker_us, &bounds);
        let mut decided: Vec<Decided> = Vec::new();
        for (reading, named) in readings {
            let id = SeriesId::of(reading);
            self.remember_no_longer(&id, clock, &bounds);
            let time = match named {
                Some(t) => Ok((self.decide_correction(reading, &mut decided, t), Time::Named)),
                None => self.decide(reading, &decided, record.broker_us, clock, &bounds),
            };
            match time {
                Ok((t, time)) => decided.push(Decided { reading, id, t, time, said: said(reading) }),
                Err(outcome) => self.count(outcome),
            }
        }
        decided.sort_by_key(|d| d.t);
        for group in decided.chunk_by(|a, b| a.t == b.t) {
            let mut touched: Vec<&SeriesId> = Vec::new();
            for d in group {
                let joined = match d.time {
                    Time::Named => self.correct(d),
                    _ => self.accept(d, clock, &bounds),
                };
                if joined {
                    touched.push(&d.id);
                }
            }
            self.evaluate_all(&touched);
        }
    }

    /// A reading of any outcome: the series is known, and is on this clock.
    fn hear(&mut self, reading: &Reading, source: &str, clock: i64) {
        let (id, signal) = (SeriesId::of(reading), self.signal(&reading.signal));
        let series = self.series.entry(id.clone()).or_insert_with(|| Series::new(source, clock, signal));
        let moved = series.source != source;
        series.source = source.to_string();
        self.watch_series(&id);
        if moved {
            self.watch_tracks_of(&id.patient);
        }
    }

    fn remember_no_longer(&mut self, id: &SeriesId, clock: i64, bounds: &Bounds) {
        let series = self.the_series(id);
        if series.replacing.is_none() {
            series.memory.retain(|remembered| clock - remembered.clock <= bounds.lateness + bounds.skew);
        }
    }

    /// The readings of a record, those that correct or retract something with the `t` of what they name (2.7). A
    /// correction of nothing is a reading like others; a retraction of nothing comes too late.
    fn name_corrected<'r>(&mut self, record: &'r Record) -> Vec<(&'r Reading, Option<i64>)> {
        let mut readings: Vec<(&Reading, Option<i64>)> = Vec::new();
        for reading in &record.readings {
            let id = SeriesId::of(reading);
            let in_this_record =
                readings.iter().any(|(earlier, _)| earlier.event_us == reading.event_us && SeriesId::of(earlier) == id);
            let series = self.the_series(&id);
            let t = series.remembered(reading.event_us).map_or(reading.event_us, |remembered| remembered.t);
            let is_there = in_this_record || series.held_at(t).is_some();
            match reading.change {
                Change::None => readings.push((reading, None)),
                Change::Corrects => readings.push((reading, is_there.then_some(t))),
                Change::Retracts if is_there => readings.push((reading, Some(t))),
                Change::Retracts => self.count("late"),
            }
        }
        readings
    }

    /// Section 2.3, once per series and record.
    fn look_for_slow_clocks(&mut self, readings: &[&Reading], broker: i64, bounds: &Bounds) {
        let mut newest: BTreeMap<SeriesId, i64> = BTreeMap::new();
        for reading in readings {
            let entry = newest.entry(SeriesId::of(reading)).or_insert(reading.event_us);
            *entry = reading.event_us.max(*entry);
        }
        for (id, event) in newest {
            let too_old = event < broker - bounds.lateness && !bounds.is_epoch(event);
            let series = self.the_series(&id);
            // Passed over, whatever becomes of it.
            if series.newest_of_record_before.replace(event) == Some(event) {
                continue;
            }
            if series.remembered(event).is_some() || !too_old {
                series.late_row.clear();
                continue;
            }
            if series.late_row.last().is_some_and(|(before, _)| event <= *before) {
                series.late_row.clear();
            }
            series.late_row.push((event, broker));
            if let [.., first, _, third] = series.late_row.as_slice() {
                let (by_event, by_broker) = (third.0 - first.0, third.1 - first.1);
                if 4 * by_broker >= 3 * by_event && 3 * by_broker <= 4 * by_event {
                    series.slow = true;
                    series.replacing = series.replacing.or(Some(false));
                }
            }
        }
    }

    /// A reading's `t` (2.2, 2.3, 2.6), or the outcome of one that is not accepted.
    fn decide(
        &mut self,
        reading: &Reading,
        decided: &[Decided],
        broker: i64,
        clock: i64,
        bounds: &Bounds,
    ) -> Result<(i64, Time), &'static str> {
        let id = SeriesId::of(reading);
        let event = reading.event_us;
        let earlier: Vec<&Decided> = decided.iter().filter(|d| d.id == id && d.time != Time::Named).collect();
        // A duplicate or a conflict inside the record: the first stays.
        if let Some(first) = earlier.iter().find(|d| d.reading.event_us == event) {
            let same = reading.value.is_none() || first.said == said(reading);
            return Err(if same { "duplicate" } else { "conflict" });
        }
        let series = self.the_series(&id);
        let newest = series.newest_t().into_iter().chain(earlier.iter().map(|d| d.t)).max();
        let replaced_before = earlier.iter().filter(|d| d.time != Time::AsSent).count() as i64;
        if let Some(last) = series.remembered(event) {
            if reading.value.is_none() {
                return Err("duplicate");
            }
            if last.said == said(reading) && !bounds.coarse {
                self.sign_of_life(&id, clock);
                return Err("duplicate");
            }
            let t = broker.max(newest.map_or(broker, |t| t + 1));
            series.replacing = series.replacing.or(Some(true));
            return Ok((t, Time::Quietly));
        }
        let too_old = event < broker - bounds.lateness;
        let wrong = bounds.is_epoch(event) || event > broker + bounds.skew || (too_old && series.slow);
        if too_old && !wrong {
            return Err("late");
        }
        let goes_on = !too_old && series.replacing.is_some() && newest.is_some_and(|newest| event < newest);
        if wrong || goes_on {
            let began_coarse = *series.replacing.get_or_insert(false);
            return Ok((broker + replaced_before, if began_coarse { Time::Quietly } else { Time::Replaced }));
        }
        series.replacing = None;
        series.slow = false;
        Ok((event, Time::AsSent))
    }

    /// The `t` of what a correction or retraction names: it changes what duplicates are compared with from here on.
    fn decide_correction(&mut self, reading: &Reading, decided: &mut [Decided], t: i64) -> i64 {
        let id = SeriesId::of(reading);
        let event = reading.event_us;
        let of_record =
            decided.iter_mut().rfind(|d| d.id == id && d.time != Time::Named && d.reading.event_us == event);
        if let Some(earlier) = of_record {
            earlier.said = said(reading);
            return earlier.t;
        }
        if let Some(last) = self.the_series(&id).remembered(event) {
            last.said = said(reading);
        }
        t
    }

    /// A duplicate with a value in a later record.
    fn sign_of_life(&mut self, id: &SeriesId, clock: i64) {
        let signal = self.signal(&id.signal);
        let series = self.the_series(id);
        series.expect(clock, signal);
        self.watch_series(id);
        self.end_silence(id, clock);
    }

    /// Nothing is expected of a series until its next sample: it was switched off.
    pub(super) fn expect_nothing(&mut self, id: &SeriesId, clock: i64) {
        self.the_series(id).deadline = None;
        self.end_silence(id, clock);
    }

    fn end_silence(&mut self, id: &SeriesId, clock: i64) {
        let series = self.the_series(id);
        series.speaks();
        let stamp = Stamp { source: series.source.clone(), us: clock };
        self.end(&id.track(STALE), clock, "cleared", stamp);
    }

    /// The turn of a correction or retraction; false if what it names is not there (2.7).
    fn correct(&mut self, decided: &Decided) -> bool {
        let series = self.the_series(&decided.id);
        let is_before_all = series.is_before_all(decided.t);
        let Some(sample) = series.held_at(decided.t) else {
            self.count("late");
            return false;
        };
        match said(decided.reading) {
            (None, _) => sample.retracted = true,
            (value, comparator) => {
                if !sample.is_of_windows() {
                    sample.evicted = is_before_all;
                }
                (sample.value, sample.comparator) = (value, comparator);
                sample.questionable = decided.reading.questionable;
            }
        }
        series.forget_values();
        self.count("corrected");
        true
    }

    /// One reading joins its series; false if it is late after all (2.4).
    fn accept(&mut self, decided: &Decided, clock: i64, bounds: &Bounds) -> bool {
        let (id, reading, t) = (&decided.id, decided.reading, decided.t);
        let signal = self.signal(&id.signal);
        let order = self.order;
        let series = self.the_series(id);
        if series.newest_t().is_some_and(|newest| t < newest - bounds.lateness) {
            self.count("late");
            return false;
        }
        let stamp = Stamp { source: series.source.clone(), us: clock };
        self.tell_of_clock(decided, &stamp);

        let series = self.the_series(id);
        series.intervals.extend(series.waiting.take());
        let coverage = match series.expected_interval(signal.typical_interval_us) {
            Some(e) => 2 * e,
            None => 2 * signal.typical_interval_us,
        };
        let covers_at_most = if signal.stale_after_us == 0 { coverage } else { coverage.min(signal.stale_after_us) };
        let newest_sample = series.newest_sample_t();
        series.memory.push(Remembered { event: reading.event_us, t, said: decided.said, clock });
        let (value, comparator) = said(reading);
        let evicted = series.is_before_all(t);
        series.readings.push(Accepted {
            t,
            order,
            value,
            comparator,
            questionable: reading.questionable,
            covers_at_most,
            retracted: false,
            evicted,
            gone: false,
        });
        self.order += 1;
        self.count(match (value, reading.off, decided.time) {
            (None, true, _) => "technical",
            (None, false, _) => "missing",
            (Some(_), ..) if reading.questionable => "questionable",
            (Some(_), _, Time::AsSent) => "evaluated",
            (Some(_), ..) => "retimed",
        });
        if value.is_none() {
            if reading.off {
                self.expect_nothing(id, clock);
            }
            self.evict(id, clock, &stamp, false);
            self.the_series(id).forget_what_nobody_asks_for(bounds.lateness);
            return true;
        }
        let series = self.the_series(id);
        series.first_sample.get_or_insert(order);
        series.waiting = newest_sample.map(|newest| t - newest).filter(|interval| *interval > 0);
        series.alive(clock, signal);
        self.watch_series(id);
        self.end_silence(id, clock);
        self.choose_primary(id, t);
        self.supersede_stale_alerts(id, clock, &stamp);
        self.evict(id, clock, &stamp, true);
        self.the_series(id).forget_what_nobody_asks_for(bounds.lateness);
        true
    }

    /// Section 7.5.
    fn tell_of_clock(&mut self, decided: &Decided, stamp: &Stamp) {
        let (patient, device) = (decided.id.patient.clone(), decided.id.device.clone());
        let track = TrackId { patient: patient.clone(), key: format!("{device}/-/-"), rule: CLOCK.to_string() };
        match decided.time {
            Time::AsSent => self.end(&track, stamp.us, "cleared", stamp.clone()),
            Time::Replaced => {
                let place = (patient, device);
                let lately = self.told.get(&place).is_some_and(|told| stamp.us - told.us < HOUR);
                if self.open(&track).is_none() && !lately {
                    self.told.insert(place, stamp.clone());
                    self.begin(&track, stamp.us, Priority::Low, stamp.us);
                }
            }
            Time::Quietly | Time::Named => {}
        }
    }

    /// Section 4.1, at a sample. A primary series of which no sample is left is as silent as one can be.
    fn choose_primary(&mut self, id: &SeriesId, t: i64) {
        let place = (id.patient.clone(), id.signal.clone());
        let stale_after = self.signal(&id.signal).stale_after_us;
        let silent = match self.primary.get(&place) {
            None => true,
            Some(primary) if primary == id => false,
            Some(primary) => {
                let newest = self.series.get(primary).and_then(Series::newest_sample_t);
                stale_after != 0 && newest.is_none_or(|newest| t - newest > stale_after)
            }
        };
        if silent {
            self.primary.insert(place, id.clone());
        }
    }

    /// Section 7.2, the stale alerts of other devices.
    fn supersede_stale_alerts(&mut self, id: &SeriesId, clock: i64, stamp: &Stamp) {
        for other in self.swapped(id, false) {
            self.the_series(&other).successors.insert(id.device.clone());
            self.end(&other.track(STALE), clock, "superseded", stamp.clone());
        }
    }

    /// The stale series of the same patient, signal and method, by key; if asked for, only those that this series
    /// had a sample after.
    pub(super) fn swapped(&self, id: &SeriesId, after: bool) -> Vec<SeriesId> {
        let mut others: Vec<SeriesId> = self
            .of_patient(&id.patient)
            .filter(|(other, series)| {
                other.signal == id.signal
                    && other.method == id.method
                    && other.device != id.device
                    && series.stale
                    && (!after || series.successors.contains(&id.device))
            })
            .map(|(other, _)| other.clone())
            .collect();
        others.sort_by_key(SeriesId::key);
        others
    }

    /// Section 3.1: that a needed sample had to go is told at once; that nothing is missing any more, at a sample.
    fn evict(&mut self, id: &SeriesId, clock: i64, stamp: &Stamp, is_sample: bool) {
        let longest = self.longest.get(&id.signal).copied().unwrap_or(0);
        let cap = self.set.samples_max;
        let series = self.the_series(id);
        let overrun = series.evict(longest, cap);
        let known = series.newest_t().is_some_and(|newest| newest - longest >= series.held_from);
        let track = id.track(OVERRUN);
        if overrun && self.open(&track).is_none() {
            self.begin(&track, clock, Priority::Low, clock);
        } else if is_sample && known {
            self.end(&track, clock, "cleared", stamp.clone());
        }
    }
}
