//! What a change of a rule set means, in words, before it is applied.
//!
//! Rules are told apart as the engine does at an activation: a rule of unchanged meaning keeps everything, a changed one
//! starts its runs over, a removed one ends its episodes. Conditions are printed from their typed form with the helper
//! functions inlined, so that layout, comments and the names of `let` do not count as a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use wardbell_schemas::Micros;
use wardbell_schemas::catalogue::Catalogue;
use wardbell_schemas::duration;

use crate::ir::{Arithmetic, Comparison, Decision, Logic, Number};
use crate::rule::{Rule, RuleSet};

/// How a set differs from the one before it; rules by id, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Difference {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Rules that decide differently.
    pub changed: Vec<Change>,
    /// Rules of another text that decide the same.
    pub reworded: Vec<Change>,
    /// Rules whose text is the same.
    pub unchanged: usize,
}

/// One rule in two sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub rule: String,
    /// `limit low 90 -> 88`, `hold 15s -> 20s`.
    pub what: Vec<String>,
}

impl Difference {
    /// From one set to another.
    pub fn between(before: &RuleSet, after: &RuleSet, catalogue: &Catalogue) -> Self {
        let by_id = |set: &RuleSet| -> BTreeMap<String, usize> {
            set.rules.iter().enumerate().map(|(index, rule)| (rule.id.clone(), index)).collect()
        };
        let (old, new) = (by_id(before), by_id(after));
        let mut difference = Self::default();
        for id in old.keys().chain(new.keys()).collect::<BTreeSet<&String>>() {
            match (old.get(id), new.get(id)) {
                (Some(old), Some(new)) => {
                    difference.of_rule(&before.rules[*old], &after.rules[*new], catalogue);
                }
                (Some(_), None) => difference.removed.push(id.clone()),
                (None, _) => difference.added.push(id.clone()),
            }
        }
        difference
    }

    fn of_rule(&mut self, before: &Rule, after: &Rule, catalogue: &Catalogue) {
        if before.hash == after.hash {
            self.unchanged += 1;
            return;
        }
        let mut what = changes_of_meaning(before, after, catalogue);
        let same = before.means_the_same(after);
        if !same && what.is_empty() {
            what.push("condition".to_owned());
        }
        what.extend(changes_of_wording(before, after));
        if what.is_empty() {
            what.push("wording or layout".to_owned());
        }
        let change = Change { rule: after.id.clone(), what };
        if same { self.reworded.push(change) } else { self.changed.push(change) }
    }

    /// No rule was added, removed or changed, not even in its wording.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty() && self.reworded.is_empty()
    }

    /// One line for each rule that differs, then how many do not.
    pub fn lines(&self) -> Vec<String> {
        let named = |what: &str, rules: &[String]| -> Vec<String> {
            rules.iter().map(|rule| format!("{what:<9} {rule}")).collect()
        };
        let told = |what: &str, changes: &[Change]| -> Vec<String> {
            changes.iter().map(|change| format!("{what:<9} {}: {}", change.rule, change.what.join(", "))).collect()
        };
        let mut lines = named("added", &self.added);
        lines.extend(named("removed", &self.removed));
        lines.extend(told("changed", &self.changed));
        lines.extend(told("reworded", &self.reworded));
        lines.push(format!("unchanged {}", self.unchanged));
        lines
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// Adds `name before -> after` where the two differ.
fn note(what: &mut Vec<String>, name: &str, before: String, after: String) {
    if before != after {
        what.push(format!("{name} {before} -> {after}"));
    }
}

fn changes_of_meaning(before: &Rule, after: &Rule, catalogue: &Catalogue) -> Vec<String> {
    let mut what = Vec::new();
    let time = duration::print;
    let optional = |us: Option<Micros>| us.map_or_else(|| "none".to_owned(), duration::print);
    let limits = |rule: &Rule| -> BTreeMap<String, f64> { rule.limits.iter().cloned().collect() };
    let (old, new) = (limits(before), limits(after));
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<&String>>() {
        match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => note(&mut what, &format!("limit {name}"), old.to_string(), new.to_string()),
            (Some(_), None) => what.push(format!("limit {name} removed")),
            (None, new) => what.push(format!("limit {name} added ({})", new.copied().unwrap_or_default())),
        }
    }
    note(&mut what, "priority", before.priority.name().to_owned(), after.priority.name().to_owned());
    note(&mut what, "hold", time(before.hold_us), time(after.hold_us));
    note(&mut what, "clear_hold", time(before.clear_hold_us), time(after.clear_hold_us));
    note(&mut what, "latching", before.latching.to_string(), after.latching.to_string());
    note(&mut what, "cool_down", optional(before.cool_down_us), optional(after.cool_down_us));
    note(&mut what, "gap", optional(before.gap_us), optional(after.gap_us));
    note(&mut what, "max_age", optional(before.max_age_us), optional(after.max_age_us));
    let accept = |rule: &Rule| String::from(if rule.accept_questionable { "questionable" } else { "none" });
    note(&mut what, "accept", accept(before), accept(after));
    let (old, new) = (Printer { rule: before, catalogue }, Printer { rule: after, catalogue });
    note(&mut what, "signals", old.signals(), new.signals());
    note(&mut what, "raise", old.raise(), new.raise());
    note(&mut what, "clear", old.clear(), new.clear());
    what
}

fn changes_of_wording(before: &Rule, after: &Rule) -> Vec<String> {
    let mut what = Vec::new();
    note(&mut what, "version", before.version.to_string(), after.version.to_string());
    note(&mut what, "owner", before.owner.clone(), after.owner.clone());
    if before.reference != after.reference {
        what.push("reference".to_owned());
    }
    what
}

/// Prints a rule's condition as it would be written without helpers.
struct Printer<'a> {
    rule: &'a Rule,
    catalogue: &'a Catalogue,
}

impl Printer<'_> {
    fn signals(&self) -> String {
        let ids = self.rule.signals.iter().map(|index| self.catalogue.signal(*index).id.as_str());
        ids.collect::<Vec<&str>>().join(" and ")
    }

    fn raise(&self) -> String {
        format!("`{}`", self.decision(&self.rule.raise))
    }

    fn clear(&self) -> String {
        match &self.rule.clear {
            Some(clear) => format!("`{}`", self.logic(clear)),
            None => "when `raise` is false".to_owned(),
        }
    }

    fn decision(&self, decision: &Decision) -> String {
        match decision {
            Decision::Logic(condition) => self.logic(condition),
            Decision::Level(priority) => format!("{:?}", priority.map_or("none", |priority| priority.name())),
            Decision::If(condition, then, otherwise) => {
                let otherwise = match &**otherwise {
                    chained @ Decision::If(..) => self.decision(chained),
                    other => format!("{{ {} }}", self.decision(other)),
                };
                format!("if {} {{ {} }} else {otherwise}", self.logic(condition), self.decision(then))
            }
            Decision::Coalesce(first, second) => {
                format!("({}) ?? ({})", self.decision(first), self.decision(second))
            }
        }
    }

    fn logic(&self, condition: &Logic) -> String {
        match condition {
            Logic::Constant(value) => value.to_string(),
            Logic::Compare(comparison, left, right) => {
                let symbol = match comparison {
                    Comparison::Less => "<",
                    Comparison::LessOrEqual => "<=",
                    Comparison::Greater => ">",
                    Comparison::GreaterOrEqual => ">=",
                    Comparison::Equal => "==",
                    Comparison::NotEqual => "!=",
                };
                format!("{} {symbol} {}", self.operand(left), self.operand(right))
            }
            Logic::State { feature, code, equal } => {
                let signal = self.rule.signals[self.rule.features[*feature].signal];
                let state = self.catalogue.signal(signal).print(*code);
                format!("{} {} {state:?}", self.feature(*feature, None), symbol_of(*equal))
            }
            Logic::SameState { left, right, equal } => {
                format!("{} {} {}", self.feature(*left, None), symbol_of(*equal), self.feature(*right, None))
            }
            Logic::And(parts) => self.joined(parts, " && "),
            Logic::Or(parts) => self.joined(parts, " || "),
            Logic::Not(inner) => format!("!({})", self.logic(inner)),
            Logic::Coalesce(first, second) => format!("({}) ?? ({})", self.logic(first), self.logic(second)),
            Logic::If(condition, then, otherwise) => {
                format!("if {} {{ {} }} else {{ {} }}", self.logic(condition), self.logic(then), self.logic(otherwise))
            }
        }
    }

    fn joined(&self, parts: &[Logic], between: &str) -> String {
        let part = |part: &Logic| match part {
            Logic::And(_) | Logic::Or(_) | Logic::If(..) => format!("({})", self.logic(part)),
            other => self.logic(other),
        };
        parts.iter().map(part).collect::<Vec<String>>().join(between)
    }

    fn number(&self, number: &Number) -> String {
        match number {
            Number::Constant(value) => value.to_string(),
            Number::Feature { feature, threshold } => self.feature(*feature, threshold.as_deref()),
            Number::Limit(limit) => format!("limit.{}", self.rule.limits[*limit].0),
            Number::Attribute(attribute) => format!("patient.{}", self.rule.attributes[*attribute]),
            Number::Negate(inner) => format!("-{}", self.operand(inner)),
            Number::Arithmetic(operation, left, right) => {
                let symbol = match operation {
                    Arithmetic::Add => "+",
                    Arithmetic::Subtract => "-",
                    Arithmetic::Multiply => "*",
                    Arithmetic::Divide => "/",
                };
                format!("{} {symbol} {}", self.operand(left), self.operand(right))
            }
            Number::Coalesce(first, second) => format!("{} ?? {}", self.operand(first), self.operand(second)),
            Number::If(condition, then, otherwise) => format!(
                "if {} {{ {} }} else {{ {} }}",
                self.logic(condition),
                self.number(then),
                self.number(otherwise)
            ),
        }
    }

    /// A number as part of a larger expression.
    fn operand(&self, number: &Number) -> String {
        match number {
            Number::Arithmetic(..) | Number::Coalesce(..) | Number::If(..) => format!("({})", self.number(number)),
            other => self.number(other),
        }
    }

    /// `spo2.mean("30s")`; a threshold is printed whole, which the feature's own text need not be.
    fn feature(&self, feature: usize, threshold: Option<&Number>) -> String {
        let feature = &self.rule.features[feature];
        let signal = &self.catalogue.signal(self.rule.signals[feature.signal]).id;
        match threshold {
            Some(threshold) => {
                let name = feature.text.split('(').next().unwrap_or_default();
                let window = duration::print(feature.window_us);
                format!("{signal}.{name}({}, \"{window}\")", self.number(threshold))
            }
            None => format!("{signal}.{}", feature.text),
        }
    }
}

fn symbol_of(equal: bool) -> &'static str {
    if equal { "==" } else { "!=" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceFile, compile_all};

    const LOW: &str = r#"const RULE = #{
    id: "spo2-low", version: 3, owner: "respiratory team", priority: "high", hold: "15s",
    limits: #{ low: 90.0, clear: 92.0 },
};
fn raise(spo2, limit) { spo2.mean("30s") < limit.low }
fn clear(spo2, limit) { spo2.mean("30s") >= limit.clear }
"#;
    const FEVER: &str = r#"const RULE = #{ id: "fever", version: 1, owner: "ward 4", priority: "medium" };
fn raise(temp_core) { temp_core.last >= 38.5 }
"#;

    fn set(texts: &[&str]) -> RuleSet {
        let file = |(i, text): (usize, &&str)| SourceFile { path: format!("{i}.rhai"), text: (*text).to_owned() };
        let files: Vec<SourceFile> = texts.iter().enumerate().map(file).collect();
        let (rules, faults) = compile_all(&files, Catalogue::builtin());
        assert!(faults.is_empty(), "{faults:?}");
        RuleSet::new(rules)
    }

    fn lines(before: &[&str], after: &[&str]) -> Vec<String> {
        Difference::between(&set(before), &set(after), Catalogue::builtin()).lines()
    }

    #[test]
    fn limits_and_holds_are_told_with_both_values() {
        let after = LOW.replace("low: 90.0", "low: 88.0").replace("15s", "20s").replace("version: 3", "version: 4");
        assert_eq!(
            lines(&[LOW, FEVER], &[&after, FEVER]),
            ["changed   spo2-low: limit low 90 -> 88, hold 15s -> 20s, version 3 -> 4", "unchanged 1"]
        );
    }

    #[test]
    fn rules_that_come_and_go_are_named() {
        assert_eq!(lines(&[LOW], &[FEVER]), ["added     fever", "removed   spo2-low", "unchanged 0"]);
        let same = Difference::between(&set(&[LOW]), &set(&[LOW]), Catalogue::builtin());
        assert!(same.is_empty());
    }

    #[test]
    fn wording_and_layout_are_no_change_of_meaning() {
        let comment = format!("// Reviewed.\n{FEVER}");
        assert_eq!(lines(&[FEVER], &[&comment]), ["reworded  fever: wording or layout", "unchanged 0"]);
        let helper = FEVER.replace("temp_core.last >= 38.5", "let high = 38.5; temp_core.last >= high");
        let versioned = helper.replace("version: 1", "version: 2");
        assert_eq!(lines(&[FEVER], &[&versioned]), ["reworded  fever: version 1 -> 2", "unchanged 0"]);
    }

    #[test]
    fn a_changed_condition_is_printed_as_it_decides() {
        let after = LOW.replace(
            "{ spo2.mean(\"30s\") < limit.low }",
            "{ if is_low(spo2.time_below(limit.low - 2, \"1m\")) { \"high\" } else { \"none\" } }\nfn is_low(seconds) { seconds > 10 && !(seconds > 50) }",
        );
        assert_eq!(
            lines(&[LOW], &[&after]),
            [
                "changed   spo2-low: raise `spo2.mean(\"30s\") < limit.low` -> `if spo2.time_below(limit.low - 2, \"1m\") > 10 \
                 && !(spo2.time_below(limit.low - 2, \"1m\") > 50) { \"high\" } else { \"none\" }`",
                "unchanged 0"
            ]
        );
        let without = LOW.replace("fn clear(spo2, limit) { spo2.mean(\"30s\") >= limit.clear }\n", "");
        assert_eq!(
            lines(&[LOW], &[&without]),
            ["changed   spo2-low: clear `spo2.mean(\"30s\") >= limit.clear` -> when `raise` is false", "unchanged 0"]
        );
    }

    #[test]
    fn a_limit_in_front_of_others_changes_only_itself() {
        let after = LOW.replace("low: 90.0,", "alarm: 70.0, low: 90.0,");
        assert_eq!(lines(&[LOW], &[&after]), ["changed   spo2-low: limit alarm added (70)", "unchanged 0"]);
    }

    #[test]
    fn categories_are_printed_by_the_names_of_their_states() {
        let rule = |state: &str| {
            format!(
                "const RULE = #{{ id: \"c\", version: 1, owner: \"o\", priority: \"low\" }};\nfn raise(consciousness) {{ consciousness.last != \"{state}\" }}\n"
            )
        };
        assert_eq!(
            lines(&[&rule("A")], &[&rule("V")]),
            ["changed   c: raise `consciousness.last != \"A\"` -> `consciousness.last != \"V\"`", "unchanged 0"]
        );
    }
}
