//! What a rule of one number says, band by band.
//!
//! Most rules compare one number (a feature, or a quotient of two) with limits. From one limit to the next such a rule
//! says the same everywhere, so what it says at each limit and between each two can be found beforehand, by the evaluator
//! itself. What is left for each reading is the number, and to see which limits it has reached. The result is that of
//! [`crate::evaluate`] by construction; rules that do more than compare have no bands.

use crate::Rule;
use crate::evaluate::{self, Inputs};
use crate::ir::{Decision, Logic, Number, Verdict};

/// Raise and clear, as [`Rule::evaluate`] gives them.
type Said = (Verdict, Option<bool>);

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Bands {
    /// What the rule compares.
    number: Number,
    /// What it is compared with, ascending, each once.
    edges: Vec<f64>,
    /// Below all edges, at the first, between it and the second, at the second, and so on.
    known: Vec<Said>,
    unknown: Said,
}

impl Bands {
    /// The bands of a rule with its own limits; `None` if it reads several numbers or does more than compare.
    pub fn of(rule: &Rule) -> Option<Self> {
        let mut compared = Compared { rule, number: None, edges: Vec::new() };
        let raise = compared.in_decision(&rule.raise)?;
        let clear = match &rule.clear {
            Some(clear) => Some(compared.in_logic(clear)?),
            None => None,
        };
        let (number, mut edges) = (compared.number?, compared.edges);
        edges.sort_by(f64::total_cmp);
        // Zero and minus zero are one edge.
        edges.dedup_by(|a, b| *a == *b);
        let mut in_terms_of_it = rule.clone();
        (in_terms_of_it.raise, in_terms_of_it.clear) = (raise, clear);
        let say = |value: Option<f64>| in_terms_of_it.evaluate(&mut Probe { rule, value });
        // The double next to an edge speaks for all up to the next edge, if there are any.
        let below = say(Some(edges.first()?.next_down()));
        let from_edges = edges.iter().flat_map(|edge| [say(Some(*edge)), say(Some(edge.next_up()))]);
        let known = std::iter::once(below).chain(from_edges).collect();
        Some(Self { number, edges, known, unknown: say(None) })
    }

    /// Raise and clear for a key with no limits of its own. `None` where the number is known only as far as a comparator
    /// goes: the rule itself has to be asked.
    #[inline]
    pub fn evaluate(&self, inputs: &mut impl Inputs) -> Option<Said> {
        match (evaluate::number(&self.number, inputs), &self.number) {
            (Some(value), _) => Some(self.at(value)),
            (None, Number::Feature { feature, .. }) if inputs.bound(*feature).is_some() => None,
            (None, _) => Some(self.unknown),
        }
    }

    /// The number's index among the rule's features, where it is just that.
    #[inline]
    pub fn feature(&self) -> Option<usize> {
        match self.number {
            Number::Feature { feature, .. } => Some(feature),
            _ => None,
        }
    }

    /// Raise and clear where the number is known, thus finite.
    #[inline]
    pub fn at(&self, value: f64) -> Said {
        let reached = |edge: &f64| usize::from(value >= *edge) + usize::from(value > *edge);
        self.known[self.edges.iter().map(reached).sum::<usize>()]
    }
}

/// Writes a rule in terms of the one number it compares, as if that were its feature 0. `None` from anything that does
/// more.
struct Compared<'a> {
    rule: &'a Rule,
    number: Option<Number>,
    /// What it is compared with.
    edges: Vec<f64>,
}

impl Compared<'_> {
    fn in_decision(&mut self, decision: &Decision) -> Option<Decision> {
        Some(match decision {
            Decision::Level(_) => decision.clone(),
            Decision::Logic(condition) => Decision::Logic(self.in_logic(condition)?),
            Decision::If(condition, then, otherwise) => Decision::If(
                Box::new(self.in_logic(condition)?),
                Box::new(self.in_decision(then)?),
                Box::new(self.in_decision(otherwise)?),
            ),
            Decision::Coalesce(first, second) => {
                Decision::Coalesce(Box::new(self.in_decision(first)?), Box::new(self.in_decision(second)?))
            }
        })
    }

    fn in_logic(&mut self, condition: &Logic) -> Option<Logic> {
        let mut boxed = |inner: &Logic| self.in_logic(inner).map(Box::new);
        Some(match condition {
            Logic::Constant(_) => condition.clone(),
            Logic::Not(inner) => Logic::Not(boxed(inner)?),
            Logic::Coalesce(first, second) => Logic::Coalesce(boxed(first)?, boxed(second)?),
            Logic::If(condition, then, otherwise) => Logic::If(boxed(condition)?, boxed(then)?, boxed(otherwise)?),
            Logic::And(parts) => Logic::And(parts.iter().map(|part| self.in_logic(part)).collect::<Option<_>>()?),
            Logic::Or(parts) => Logic::Or(parts.iter().map(|part| self.in_logic(part)).collect::<Option<_>>()?),
            Logic::Compare(comparison, left, right) => match (is_fixed(left), is_fixed(right)) {
                (false, true) => Logic::Compare(*comparison, self.compared(left, right)?, right.clone()),
                (true, false) => Logic::Compare(*comparison, left.clone(), self.compared(right, left)?),
                _ => return None,
            },
            Logic::State { .. } | Logic::SameState { .. } => return None,
        })
    }

    /// The number that stands for `number`, which has to be the one of the comparisons before.
    fn compared(&mut self, number: &Number, limit: &Number) -> Option<Box<Number>> {
        let is_the_one = match &self.number {
            Some(known) => known == number,
            None => is_plain(number),
        };
        if !is_the_one {
            return None;
        }
        self.number = Some(number.clone());
        // A comparison with something unknown is unknown for every value: no edge.
        self.edges.extend(evaluate::number(limit, &mut Probe { rule: self.rule, value: None }));
        Some(Box::new(Number::Feature { feature: 0, threshold: None }))
    }
}

/// The same for every reading: made of constants and limits.
fn is_fixed(number: &Number) -> bool {
    match number {
        Number::Constant(_) | Number::Limit(_) => true,
        Number::Negate(inner) => is_fixed(inner),
        Number::Arithmetic(_, left, right) => is_fixed(left) && is_fixed(right),
        _ => false,
    }
}

/// A feature or arithmetic: where that is unknown, only a feature can still be known as far as a comparator goes.
fn is_plain(number: &Number) -> bool {
    match number {
        Number::Feature { threshold, .. } => threshold.is_none(),
        Number::Constant(_) | Number::Limit(_) => true,
        Number::Negate(inner) => is_plain(inner),
        Number::Arithmetic(_, left, right) => is_plain(left) && is_plain(right),
        _ => false,
    }
}

/// A key about which the one number is all there is to know, with the limits of the rule.
struct Probe<'a> {
    rule: &'a Rule,
    value: Option<f64>,
}

impl Inputs for Probe<'_> {
    fn feature(&mut self, _feature: usize, _threshold: f64) -> Option<f64> {
        self.value
    }

    fn limit(&self, limit: usize) -> Option<f64> {
        self.rule.limits.get(limit).map(|(_, default)| *default)
    }

    fn attribute(&self, _attribute: usize) -> Option<f64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use wardbell_schemas::catalogue::Catalogue;

    use super::*;
    use crate::{SourceFile, compile, compile_all, packs};

    fn rule(body: &str) -> Rule {
        let head =
            r#"const RULE = #{ id: "a", version: 1, owner: "o", priority: "high", limits: #{ low: 2.0, high: 8.0 } };"#;
        let file = SourceFile { path: "a.rhai".to_owned(), text: format!("{head}\n{body}") };
        let (rule, faults) = compile(&file, Catalogue::builtin());
        rule.unwrap_or_else(|| panic!("{body}: {faults:?}"))
    }

    /// The first two features of a rule; all others are unknown.
    struct Features<'a>(&'a Rule, [Option<f64>; 2]);

    impl Inputs for Features<'_> {
        fn feature(&mut self, feature: usize, _threshold: f64) -> Option<f64> {
            self.1.get(feature).copied().flatten()
        }

        fn limit(&self, limit: usize) -> Option<f64> {
            self.0.limits.get(limit).map(|(_, default)| *default)
        }

        fn attribute(&self, _attribute: usize) -> Option<f64> {
            None
        }
    }

    fn in_full(rule: &Rule, features: [Option<f64>; 2]) -> Said {
        rule.evaluate(&mut Features(rule, features))
    }

    /// Rules whose number is their first feature, or the first over the second.
    fn assert_agrees(rule: &Rule, bands: &Bands) {
        let edges = &bands.edges;
        let middles = edges.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        let near = edges.iter().flat_map(|edge| [edge.next_down(), *edge, edge.next_up(), edge - 0.3, edge + 0.3]);
        for value in near.chain(middles).chain([-0.0, 0.0, f64::MIN, f64::MAX]) {
            assert_eq!(bands.at(value), in_full(rule, [Some(value), Some(1.0)]), "{} at {value}", rule.id);
        }
        for features in [[None, Some(1.0)], [Some(1.0), None], [Some(0.0), Some(0.0)]] {
            let told = bands.evaluate(&mut Features(rule, features));
            assert_eq!(told, Some(in_full(rule, features)), "{} with {features:?}", rule.id);
        }
    }

    #[test]
    fn a_rule_that_compares_one_number_says_the_same_in_bands() {
        for (body, edges) in [
            ("fn raise(spo2, limit) { spo2.last < limit.low }", &[2.0][..]),
            ("fn raise(spo2, limit) { limit.high - 1.0 <= spo2.last }", &[7.0]),
            ("fn raise(spo2) { spo2.last == 5 || !(spo2.last > -3) }", &[-3.0, 5.0]),
            ("fn raise(spo2) { spo2.last > 0.0 && spo2.last != -0.0 }", &[0.0]),
            (
                "fn raise(spo2, limit) { if spo2.mean(\"30s\") < limit.low { \"high\" } else if spo2.mean(\"30s\") < 4 { \"low\" } else { false } }
                 fn clear(spo2, limit) { spo2.mean(\"30s\") >= limit.high }",
                &[2.0, 4.0, 8.0],
            ),
            ("fn raise(heart_rate, nibp_sys) { heart_rate.last / nibp_sys.last > 1.5 }", &[1.5]),
        ] {
            let rule = rule(body);
            let bands = Bands::of(&rule).unwrap_or_else(|| panic!("no bands: {body}"));
            assert_eq!(bands.edges, edges, "{body}");
            assert_agrees(&rule, &bands);
        }
    }

    #[test]
    fn what_does_more_than_compare_one_number_has_no_bands() {
        for body in [
            "fn raise(spo2) { spo2.last < 4 || spo2.mean(\"30s\") < 4 }",
            "fn raise(spo2) { spo2.last < 4 }\nfn clear(spo2) { spo2.prev > 5 }",
            "fn raise(heart_rate, nibp_sys) { heart_rate.last > nibp_sys.last }",
            "fn raise(spo2) { spo2.last * 2 < 4 || spo2.last > 5 }",
            "fn raise(spo2) { spo2.last ?? 0 < 4 }",
            "fn raise(spo2, patient) { spo2.last < patient.age }",
            "fn raise(spo2) { spo2.time_below(90, \"30s\") > 10 }",
        ] {
            assert_eq!(Bands::of(&rule(body)), None, "{body}");
        }
    }

    #[test]
    fn bands_of_the_starter_pack_agree_with_its_rules() {
        let (rules, _) = compile_all(&packs::adult_ward(), Catalogue::builtin());
        let with_bands: Vec<_> = rules.iter().filter_map(|rule| Some((rule, Bands::of(rule)?))).collect();
        assert!(with_bands.len() > rules.len() / 2, "most rules compare one number with limits");
        with_bands.iter().for_each(|(rule, bands)| assert_agrees(rule, bands));
    }
}
