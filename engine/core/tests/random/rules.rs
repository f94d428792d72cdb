//! Rules for random cases, in every shape that the checker lets through.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Dice, Profile};

/// A rule that is being written.
struct RuleWriter<'a> {
    dice: &'a mut Dice,
    long: bool,
    limits: BTreeMap<&'static str, String>,
    helpers: Vec<String>,
    of_patient: bool,
}

/// `raise` and, if there is one, `clear`.
type Bodies = (String, Option<String>);

const FALSE: [&str; 3] = ["false", "\"none\"", "false"];

pub(super) fn random_rule(dice: &mut Dice, number: i64, profiles: &[&'static Profile], long: bool) -> String {
    let mut read = profiles.to_vec();
    dice.0.shuffle(&mut read);
    let several = read.len() > 1 && dice.chance(40);
    read.truncate(if several { dice.pick(&[2, 2, 3]) } else { 1 });
    let mut writer = RuleWriter { dice, long, limits: BTreeMap::new(), helpers: Vec::new(), of_patient: false };
    let (raise, clear) = writer.bodies(&read);
    let RuleWriter { dice, limits, helpers, of_patient, .. } = writer;

    let mut fields = vec![
        format!("id: \"rule-{number}\", version: 1, owner: \"random\""),
        format!("priority: \"{}\"", dice.pick(&["low", "medium", "high"])),
    ];
    let mut duration = |dice: &mut Dice, percent: u32, name: &str, values: &[&str]| {
        if dice.chance(percent) {
            fields.push(format!("{name}: \"{}\"", dice.pick(values)));
        }
    };
    duration(dice, 60, "hold", &["0s", "3s", "5s", "10s", "20s", "45s", "1500ms"]);
    duration(dice, 50, "clear_hold", &["0s", "4s", "10s", "30s", "1m"]);
    duration(dice, 25, "gap", &["2s", "10s", "1m", "5m"]);
    duration(dice, 25, "max_age", &["0s", "2s", "10s", "1m", "10m"]);
    duration(dice, 25, "cool_down", &["0s", "10s", "1m", "2m"]);
    if dice.chance(25) {
        fields.push("latching: true".to_owned());
    }
    if dice.chance(30) {
        fields.push("accept: [\"questionable\"]".to_owned());
    }
    if !limits.is_empty() {
        let limits: Vec<String> = limits.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        fields.push(format!("limits: #{{ {} }}", limits.join(", ")));
    }
    let parameters = parameters(&read, of_patient);
    let mut text = format!("const RULE = #{{ {} }};\n", fields.join(", "));
    for helper in helpers {
        text += &helper;
        text.push('\n');
    }
    let _ = writeln!(text, "fn raise({parameters}) {{ {raise} }}");
    if let Some(clear) = clear {
        let _ = writeln!(text, "fn clear({parameters}) {{ {clear} }}");
    }
    if let [profile] = read[..]
        && profile.level.is_some()
        && dice.chance(20)
    {
        let id = profile.id;
        let _ = writeln!(text, "fn message({id}) {{ `{id} is ${{{id}.last}}` }}");
    }
    text
}

fn parameters(read: &[&Profile], of_patient: bool) -> String {
    let mut names: Vec<&str> = read.iter().map(|profile| profile.id).collect();
    names.push("limit");
    if of_patient {
        names.push("patient");
    }
    names.join(", ")
}

fn literal(counts: i64, per_unit: i64) -> String {
    format!("{:?}", counts as f64 / per_unit as f64)
}

impl RuleWriter<'_> {
    fn bodies(&mut self, read: &[&Profile]) -> Bodies {
        let first = read[0];
        let numbers: Vec<&Profile> = read.iter().copied().filter(|profile| profile.level.is_some()).collect();
        match (self.dice.between(0, 13), &numbers[..]) {
            (0..=2, [..]) if read.len() == 1 && first.level.is_some() => self.one_limit(first),
            (3..=5, [profile, ..]) => self.bands(profile, read),
            (6, [profile, ..]) => self.chain_of_names(profile, read),
            (7, [profile, ..]) => self.by_age(profile),
            (8, [profile, ..]) => self.own_functions(profile),
            (0..=2 | 11, [a, b, ..]) => self.two_numbers(a, b),
            (9, _) => {
                let (urgent, mild) = (self.atom(first), self.atom(read[read.len() - 1]));
                let otherwise = self.dice.pick(&["\"low\"", "\"none\"", "\"high\""]);
                let urgency = format!(
                    "let urgency = if {urgent} {{ \"high\" }} else if {mild} {{ \"medium\" }} else {{ \"none\" }};"
                );
                (format!("{urgency} urgency ?? {otherwise}"), self.other_clear(read))
            }
            (10, _) => {
                let condition = self.condition(read);
                let otherwise = self.dice.pick(&["true", "false", "false"]);
                (format!("({condition}) ?? {otherwise}"), self.other_clear(read))
            }
            _ => {
                let condition = self.condition(read);
                if self.dice.chance(40) {
                    let parameters = parameters(read, self.of_patient);
                    self.helpers.push(format!("fn bad({parameters}) {{ {condition} }}"));
                    (format!("bad({parameters})"), Some(format!("!bad({parameters})")))
                } else {
                    (condition, self.other_clear(read))
                }
            }
        }
    }

    /// One function, one limit to raise and one to clear, never both.
    fn one_limit(&mut self, profile: &Profile) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let apart = self.dice.between(0, 3) * step;
        let low = self.dice.chance(60);
        let (raise, clear) = if low { ("<", ">=") } else { (">", "<=") };
        let bound = self.limit("low", level, profile);
        let back = self.limit("clear", if low { level + apart } else { level - apart }, profile);
        let read = if self.dice.chance(15) { format!("({function} ?? {bound})") } else { function.clone() };
        let raise = format!("{read} {raise} {bound}");
        let clear = self.dice.chance(70).then(|| format!("{function} {clear} {back}"));
        (raise, clear)
    }

    /// Priorities by how far it is.
    fn bands(&mut self, profile: &Profile, read: &[&Profile]) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let down = if self.dice.chance(60) { 1 } else { -1 };
        let (worse, back) = if down > 0 { ("<", ">=") } else { (">", "<=") };
        let (first, second) = (self.dice.between(1, 4) * step, self.dice.between(1, 4) * step);
        let very = self.limit("very", level - down * (first + second), profile);
        let low = self.limit("low", level - down * first, profile);
        let mut raise = format!("if {function} {worse} {very} {{ \"high\" }} else if {function} {worse} {low} ");
        let otherwise = self.dice.pick(&FALSE);
        if self.dice.chance(50) {
            let mild = self.limit("mild", level, profile);
            let _ = write!(
                raise,
                "{{ \"medium\" }} else if {function} {worse} {mild} {{ \"low\" }} else {{ {otherwise} }}"
            );
        } else {
            let or_true = self.dice.pick(&["\"medium\"", "\"low\"", "true"]);
            let _ = write!(raise, "{{ {or_true} }} else {{ {otherwise} }}");
        }
        let clear = match self.dice.between(0, 9) {
            0..=4 => {
                let apart = self.dice.between(0, 3) * step;
                let bound = self.limit("clear", level + down * apart, profile);
                Some(format!("{function} {back} {bound}"))
            }
            5..=6 => None,
            _ => self.other_clear(read),
        };
        (raise, clear)
    }

    fn chain_of_names(&mut self, profile: &Profile, read: &[&Profile]) -> Bodies {
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let (bound, fall) = (self.limit("low", level, profile), literal(step, profile.signal().per_unit));
        let id = profile.id;
        let raise = format!(
            "let now = {function}; let fall = now - {id}.prev; let twice = fall * 2; \
             if twice < -{fall} && now < {bound} {{ \"high\" }} \
             else if now < {bound} || fall > {fall} * 4 {{ \"low\" }} else {{ false }}"
        );
        (raise, self.other_clear(read))
    }

    fn by_age(&mut self, profile: &Profile) -> Bodies {
        self.of_patient = true;
        let function = self.level_function(profile);
        let (level, step) = self.level_and_step(profile);
        let age = self.dice.pick(&["patient.age", "(patient.age ?? 50)", "(patient.age ?? 70.0)"]);
        let bound = self.limit("bound", level, profile);
        let less = literal(step, profile.signal().per_unit);
        let raise = format!("let bound = if {age} >= 65 {{ {bound} }} else {{ {bound} - {less} }}; {function} < bound");
        // Nothing is both: clear asks for more than either bound.
        let clear = self.dice.chance(50).then(|| format!("{function} > {bound} + {less} && {age} < 200"));
        (raise, clear)
    }

    fn own_functions(&mut self, profile: &Profile) -> Bodies {
        let window = self.window();
        let (_, step) = self.level_and_step(profile);
        let fall = literal(step * 3, profile.signal().per_unit);
        self.helpers.push("fn fall(s, length) { s.max(length) - s.last }".to_owned());
        self.helpers.push("fn far(x, bound) { let most = bound; x > most }".to_owned());
        let id = profile.id;
        let deep = self.dice.pick(&["\"high\"", "\"medium\"", "true"]);
        let raise = format!("if far(fall({id}, \"{window}\"), {fall}) {{ {deep} }} else {{ false }}");
        let clear = self.dice.chance(60).then(|| format!("!far(fall({id}, \"{window}\"), {fall} / 2)"));
        (raise, clear)
    }

    fn two_numbers(&mut self, a: &Profile, b: &Profile) -> Bodies {
        let (f, g) = (self.level_function(a), self.level_function(b));
        let ratio = a.level.map_or(1.0, |(level, _)| level) / b.level.map_or(1.0, |(level, _)| level);
        let times = |factor: f64| format!("{:?}", (ratio * factor * 100.0).round() / 100.0);
        let (more, most, less) = (times(1.02), times(1.1), times(0.98));
        let raise = match self.dice.between(0, 2) {
            0 => format!("{f} / {g} >= {more}"),
            1 => format!(
                "if {f} / {g} >= {most} {{ \"high\" }} else if {f} >= {g} * {more} {{ \"low\" }} else {{ false }}"
            ),
            _ => format!("{f} - {g} * {more} > 0 || {f} / ({g} - {g}) > 1"),
        };
        let clear = self.dice.chance(60).then(|| format!("{f} / {g} < {less}"));
        (raise, clear)
    }

    /// Conditions joined; every signal read is named at least once.
    fn condition(&mut self, read: &[&Profile]) -> String {
        let mut text = self.atom(read[0]);
        for profile in &read[1..] {
            text = self.joined(&text, profile);
        }
        while self.dice.chance(40) && text.len() < 300 {
            let profile = self.dice.pick(read);
            text = self.joined(&text, profile);
        }
        text
    }

    fn joined(&mut self, text: &str, profile: &Profile) -> String {
        let other = self.atom(profile);
        match self.dice.between(0, 9) {
            0..=3 => format!("({text}) && ({other})"),
            4..=7 => format!("({text}) || ({other})"),
            8 => format!("!({text}) || ({other})"),
            _ => format!("if {other} {{ {text} }} else {{ {other} }}"),
        }
    }

    /// A clear of its own, of two functions, so that nothing about it and `raise` can be proved.
    fn other_clear(&mut self, read: &[&Profile]) -> Option<String> {
        if self.dice.chance(35) {
            return None;
        }
        let profile = self.dice.pick(read);
        let id = profile.id;
        let Some((level, spread)) = profile.counts() else {
            return Some(format!("{id}.last == \"A\" && {id}.age < 3600"));
        };
        let bound = literal(level + self.dice.between(-2, 3) * spread / 10, profile.signal().per_unit);
        let compared = self.dice.pick(&[">=", "<="]);
        Some(format!("{id}.last {compared} {bound} && {id}.count(\"1m\") > 0"))
    }

    fn window(&mut self) -> &'static str {
        if self.long {
            return self.dice.pick(&["30s", "1m", "90s", "5m", "20m", "1h"]);
        }
        self.dice.pick(&["5s", "7s", "2500ms", "10s", "15s", "30s", "45s", "1m", "1m30s", "2m", "3m", "5m"])
    }

    fn level_and_step(&mut self, profile: &Profile) -> (i64, i64) {
        let (level, spread) = profile.counts().unwrap_or((2, 10));
        let step = (spread / 10).max(1);
        (level + self.dice.between(-4, 4) * step, step)
    }

    /// A limit by name, or just the number.
    fn limit(&mut self, name: &'static str, counts: i64, profile: &Profile) -> String {
        let number = literal(counts, profile.signal().per_unit);
        if self.dice.chance(60) {
            let _ = self.limits.insert(name, number);
            format!("limit.{name}")
        } else {
            number
        }
    }

    /// A function whose value is one of the signal's.
    fn level_function(&mut self, profile: &Profile) -> String {
        let (id, window) = (profile.id, self.window());
        match self.dice.between(0, 9) {
            0..=3 => format!("{id}.last"),
            4 => format!("{id}.prev"),
            5 => format!("{id}.mean(\"{window}\")"),
            6 => format!("{id}.min(\"{window}\")"),
            7 => format!("{id}.max(\"{window}\")"),
            8 => format!("{id}.median(\"{window}\")"),
            _ => {
                let share = self.dice.pick(&["0.0", "0.1", "0.25", "0.333", "0.5", "0.9", "0.95", "1.0", "1"]);
                format!("{id}.percentile({share}, \"{window}\")")
            }
        }
    }

    /// One condition of one signal.
    fn atom(&mut self, profile: &Profile) -> String {
        if profile.level.is_none() {
            return self.atom_of_category(profile);
        }
        let (id, window) = (profile.id, self.window());
        let per_unit = profile.signal().per_unit;
        let (level, step) = self.level_and_step(profile);
        let far = literal(self.dice.between(1, 12) * step, per_unit);
        let compared = self.dice.pick(&["<", "<=", ">", ">="]);
        let (more, less) = (self.dice.pick(&[">", ">="]), self.dice.pick(&["<", "<="]));
        let seconds = self.dice.pick(&["0", "1", "2.0", "4", "10", "20.5", "30"]);
        let share = self.dice.pick(&["0", "0.1", "0.25", "0.5", "0.75", "1"]);
        let number = literal(level, per_unit);
        match self.dice.between(0, 21) {
            0..=5 => {
                let function = self.level_function(profile);
                format!("{function} {compared} {number}")
            }
            6 => format!("{id}.sum(\"{window}\") / {id}.count(\"{window}\") {compared} {number}"),
            7 => format!("{id}.sum(\"{window}\") > {number} * {seconds}"),
            8 => format!("{id}.stddev(\"{window}\") {more} {far} / 2"),
            9 => format!("{id}.range(\"{window}\") {more} {far}"),
            10 => format!("{id}.delta(\"{window}\") {less} -{far}"),
            11 => format!("{id}.slope(\"{window}\") {compared} {far}"),
            12 => format!("{id}.age {more} {seconds}"),
            13 => format!("{id}.count(\"{window}\") {less} {seconds}"),
            14 => format!("{id}.time_below({number}, \"{window}\") {more} {seconds}"),
            15 => format!("{id}.time_above({number}, \"{window}\") {more} {seconds}"),
            16 => format!("{id}.fraction_below({number}, \"{window}\") {more} {share}"),
            17 => format!("{id}.fraction_above({number} - {far}, \"{window}\") {compared} {share}"),
            18 => format!("{id}.gap(\"{window}\") {more} {seconds}"),
            19 => format!("{id}.last {} {id}.prev", self.dice.pick(&["==", "!=", "<"])),
            20 => format!("{id}.time_below({id}.prev, \"{window}\") {more} {seconds}"),
            _ => format!("({id}.max(\"{window}\") - {id}.last) / {id}.mean(\"{window}\") {more} 0.02"),
        }
    }

    fn atom_of_category(&mut self, profile: &Profile) -> String {
        let (id, window) = (profile.id, self.window());
        let (state, equal) = (self.dice.pick(&["A", "C", "V", "P", "U"]), self.dice.pick(&["==", "!="]));
        let share = self.dice.pick(&["0", "0.25", "0.5", "1"]);
        match self.dice.between(0, 6) {
            0..=1 => format!("{id}.last {equal} \"{state}\""),
            2 => format!("\"{state}\" {equal} {id}.prev"),
            3 => format!("{id}.last {equal} {id}.prev"),
            4 => format!("{id}.fraction_is(\"{state}\", \"{window}\") > {share}"),
            5 => format!("{id}.count(\"{window}\") >= {}", self.dice.between(0, 4)),
            _ => format!("{id}.age >= {}", self.dice.between(0, 60)),
        }
    }
}
