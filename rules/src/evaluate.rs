//! The scalar evaluator: one rule, one key, one evaluation time.
//!
//! Kleene logic throughout: unknown in, unknown out, unless the other side decides. Nothing here allocates.

use wardbell_schemas::alert::Priority;

use crate::ir::{Arithmetic, Comparison, Decision, Logic, Number, Verdict};

/// The frozen view of one key that a rule sees. `None` is unknown everywhere.
pub trait Inputs {
    /// A feature's value in the signal's canonical unit (a category: its code). `threshold` is meant for functions that
    /// take one and is 0 for the others.
    fn feature(&mut self, feature: usize, threshold: f64) -> Option<f64>;
    /// A feature that is known only as far as its source's comparator goes (`<20`).
    fn bound(&mut self, _feature: usize) -> Option<Bound> {
        None
    }
    /// The limit in force for this key, by its index in the rule.
    fn limit(&self, limit: usize) -> Option<f64>;
    fn attribute(&self, attribute: usize) -> Option<f64>;
}

/// A number that is known only on one side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Below this, or equal to it where `inclusive`.
    Below {
        value: f64,
        inclusive: bool,
    },
    Above {
        value: f64,
        inclusive: bool,
    },
}

impl Bound {
    /// As a source writes it, before the printed number.
    pub fn symbol(self) -> &'static str {
        match self {
            Bound::Below { inclusive: false, .. } => "<",
            Bound::Below { inclusive: true, .. } => "<=",
            Bound::Above { inclusive: false, .. } => ">",
            Bound::Above { inclusive: true, .. } => ">=",
        }
    }

    pub fn value(self) -> f64 {
        match self {
            Bound::Below { value, .. } | Bound::Above { value, .. } => value,
        }
    }

    /// What comparing with a number says, if the bound is enough to say it.
    fn compare(self, comparison: Comparison, other: f64) -> Option<bool> {
        // Above is the mirror of below.
        let (value, inclusive, other, comparison) = match self {
            Bound::Below { value, inclusive } => (value, inclusive, other, comparison),
            Bound::Above { value, inclusive } => (-value, inclusive, -other, mirrored(comparison)),
        };
        // Everything it can be is below `other`; for an inclusive bound that takes room.
        let below = if inclusive { value < other } else { value <= other };
        match comparison {
            Comparison::Less => below.then_some(true),
            Comparison::LessOrEqual => (value <= other).then_some(true),
            Comparison::Greater => (value <= other).then_some(false),
            Comparison::GreaterOrEqual | Comparison::Equal => below.then_some(false),
            Comparison::NotEqual => below.then_some(true),
        }
    }
}

/// The comparison with its sides changed over.
fn mirrored(comparison: Comparison) -> Comparison {
    match comparison {
        Comparison::Less => Comparison::Greater,
        Comparison::LessOrEqual => Comparison::GreaterOrEqual,
        Comparison::Greater => Comparison::Less,
        Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        same => same,
    }
}

/// What `raise` says; `own` is the rule's priority, meant by a plain `true`.
pub fn decide(decision: &Decision, own: Priority, inputs: &mut impl Inputs) -> Verdict {
    match decision {
        Decision::Logic(condition) => match logic(condition, inputs) {
            None => Verdict::Unknown,
            Some(false) => Verdict::False,
            Some(true) => Verdict::True(own),
        },
        Decision::Level(None) => Verdict::False,
        Decision::Level(Some(priority)) => Verdict::True(*priority),
        Decision::If(condition, then, otherwise) => match logic(condition, inputs) {
            None => Verdict::Unknown,
            Some(true) => decide(then, own, inputs),
            Some(false) => decide(otherwise, own, inputs),
        },
        Decision::Coalesce(first, second) => match decide(first, own, inputs) {
            Verdict::Unknown => decide(second, own, inputs),
            known => known,
        },
    }
}

/// True, false or unknown.
pub fn logic(condition: &Logic, inputs: &mut impl Inputs) -> Option<bool> {
    match condition {
        Logic::Constant(value) => Some(*value),
        Logic::Compare(comparison, left, right) => match (number(left, inputs), number(right, inputs)) {
            (Some(left), Some(right)) => Some(compare(*comparison, left, right)),
            (None, Some(right)) => bound(left, inputs)?.compare(*comparison, right),
            (Some(left), None) => bound(right, inputs)?.compare(mirrored(*comparison), left),
            (None, None) => None,
        },
        Logic::State { feature, code, equal } => {
            let state = inputs.feature(*feature, 0.0)?;
            Some((state == *code as f64) == *equal)
        }
        Logic::SameState { left, right, equal } => {
            let (left, right) = (inputs.feature(*left, 0.0)?, inputs.feature(*right, 0.0)?);
            Some((left == right) == *equal)
        }
        Logic::And(parts) => all(parts, inputs, false),
        Logic::Or(parts) => all(parts, inputs, true),
        Logic::Not(inner) => logic(inner, inputs).map(|value| !value),
        Logic::Coalesce(first, second) => logic(first, inputs).or_else(|| logic(second, inputs)),
        Logic::If(condition, then, otherwise) => match logic(condition, inputs)? {
            true => logic(then, inputs),
            false => logic(otherwise, inputs),
        },
    }
}

/// And (`decisive` = false) or or (`decisive` = true): one decisive part decides, else one unknown part leaves it unknown.
fn all(parts: &[Logic], inputs: &mut impl Inputs, decisive: bool) -> Option<bool> {
    let mut unknown = false;
    for part in parts {
        match logic(part, inputs) {
            Some(value) if value == decisive => return Some(decisive),
            Some(_) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(!decisive)
}

/// A finite number or unknown.
pub fn number(expression: &Number, inputs: &mut impl Inputs) -> Option<f64> {
    let value = match expression {
        Number::Constant(value) => *value,
        Number::Feature { feature, threshold: None } => inputs.feature(*feature, 0.0)?,
        Number::Feature { feature, threshold: Some(threshold) } => {
            let threshold = number(threshold, inputs)?;
            inputs.feature(*feature, threshold)?
        }
        Number::Limit(limit) => inputs.limit(*limit)?,
        Number::Attribute(attribute) => inputs.attribute(*attribute)?,
        Number::Negate(inner) => -number(inner, inputs)?,
        Number::Arithmetic(operation, left, right) => {
            let (left, right) = (number(left, inputs)?, number(right, inputs)?);
            match operation {
                Arithmetic::Add => left + right,
                Arithmetic::Subtract => left - right,
                Arithmetic::Multiply => left * right,
                Arithmetic::Divide => left / right,
            }
        }
        Number::Coalesce(first, second) => match number(first, inputs) {
            Some(value) => value,
            None if bound(first, inputs).is_some() => return None,
            None => number(second, inputs)?,
        },
        Number::If(condition, then, otherwise) => match logic(condition, inputs)? {
            true => number(then, inputs)?,
            false => number(otherwise, inputs)?,
        },
    };
    value.is_finite().then_some(value)
}

/// How far an expression is known that is no known number: a feature, or what `??` and `if` choose. Arithmetic on it is
/// unknown.
fn bound(expression: &Number, inputs: &mut impl Inputs) -> Option<Bound> {
    match expression {
        Number::Feature { feature, threshold: None } => inputs.bound(*feature),
        Number::Coalesce(first, second) => match bound(first, inputs) {
            Some(known) => Some(known),
            None if number(first, inputs).is_none() => bound(second, inputs),
            None => None,
        },
        Number::If(condition, then, otherwise) => match logic(condition, inputs)? {
            true => bound(then, inputs),
            false => bound(otherwise, inputs),
        },
        _ => None,
    }
}

#[expect(clippy::float_cmp, reason = "comparison in rules is exact IEEE by definition")]
fn compare(comparison: Comparison, left: f64, right: f64) -> bool {
    match comparison {
        Comparison::Less => left < right,
        Comparison::LessOrEqual => left <= right,
        Comparison::Greater => left > right,
        Comparison::GreaterOrEqual => left >= right,
        Comparison::Equal => left == right,
        Comparison::NotEqual => left != right,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feature 0 is unknown, feature n is n.
    struct Fixed;

    impl Inputs for Fixed {
        fn feature(&mut self, feature: usize, _threshold: f64) -> Option<f64> {
            (feature > 0).then_some(feature as f64)
        }

        fn limit(&self, _limit: usize) -> Option<f64> {
            None
        }

        fn attribute(&self, _attribute: usize) -> Option<f64> {
            None
        }
    }

    fn feature(feature: usize) -> Box<Number> {
        Box::new(Number::Feature { feature, threshold: None })
    }

    fn below(index: usize, bound: f64) -> Logic {
        Logic::Compare(Comparison::Less, feature(index), Box::new(Number::Constant(bound)))
    }

    #[test]
    fn kleene_tables_hold_on_either_side() {
        let (yes, no, unknown) = (below(1, 5.0), below(9, 5.0), below(0, 5.0));
        let and = |a: &Logic, b: &Logic| logic(&Logic::And(vec![a.clone(), b.clone()]), &mut Fixed);
        let or = |a: &Logic, b: &Logic| logic(&Logic::Or(vec![a.clone(), b.clone()]), &mut Fixed);
        for (a, b, both, either) in [
            (&yes, &yes, Some(true), Some(true)),
            (&yes, &no, Some(false), Some(true)),
            (&no, &no, Some(false), Some(false)),
            (&yes, &unknown, None, Some(true)),
            (&no, &unknown, Some(false), None),
            (&unknown, &unknown, None, None),
        ] {
            assert_eq!((and(a, b), and(b, a)), (both, both), "{a:?} && {b:?}");
            assert_eq!((or(a, b), or(b, a)), (either, either), "{a:?} || {b:?}");
        }
        assert_eq!(logic(&Logic::Not(Box::new(unknown.clone())), &mut Fixed), None);
        let same_either_way = Logic::If(Box::new(unknown), Box::new(yes.clone()), Box::new(yes));
        assert_eq!(logic(&same_either_way, &mut Fixed), None, "`if unknown` is unknown");
    }

    #[test]
    fn a_value_with_a_comparator_is_known_as_far_as_it_goes() {
        use Comparison::*;
        let below = Bound::Below { value: 20.0, inclusive: false };
        for (comparison, other, said) in [
            (Less, 54.0, Some(true)),
            (Less, 20.0, Some(true)),
            (Less, 19.0, None),
            (LessOrEqual, 20.0, Some(true)),
            (Greater, 10.0, None),
            (Greater, 20.0, Some(false)),
            (GreaterOrEqual, 20.0, Some(false)),
            (Equal, 20.0, Some(false)),
            (Equal, 10.0, None),
            (NotEqual, 30.0, Some(true)),
        ] {
            assert_eq!(below.compare(comparison, other), said, "<20 {comparison:?} {other}");
        }
        let at_most = Bound::Below { value: 20.0, inclusive: true };
        assert_eq!((at_most.compare(Less, 20.0), at_most.compare(LessOrEqual, 20.0)), (None, Some(true)));
        assert_eq!((at_most.compare(Greater, 20.0), at_most.compare(GreaterOrEqual, 20.0)), (Some(false), None));
        let above = Bound::Above { value: 600.0, inclusive: false };
        assert_eq!((above.compare(Greater, 600.0), above.compare(Greater, 601.0)), (Some(true), None));
        assert_eq!((above.compare(LessOrEqual, 600.0), above.compare(Less, 700.0)), (Some(false), None));
    }

    #[test]
    fn what_is_not_finite_is_unknown() {
        let divide = |a: f64, b: f64| {
            let operands = (Box::new(Number::Constant(a)), Box::new(Number::Constant(b)));
            number(&Number::Arithmetic(Arithmetic::Divide, operands.0, operands.1), &mut Fixed)
        };
        assert_eq!(divide(7.0, 2.0), Some(3.5));
        assert_eq!(divide(1.0, 0.0), None);
        assert_eq!(divide(0.0, 0.0), None);
        assert_eq!(divide(f64::MAX, f64::MIN_POSITIVE), None);
        let or_else = Number::Coalesce(feature(0), Box::new(Number::Constant(100.0)));
        assert_eq!(number(&or_else, &mut Fixed), Some(100.0));
    }
}
